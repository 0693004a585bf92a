/* LD_PRELOADed into a process, logs in one order all that it does to the files below a directory:
 * created, written (with the bytes), truncated, synced, unlinked, renamed. DURABLE_DIRECTORY is the
 * directory, flat; DURABLE_LOG the log. The calls are carried out, so the process sees a disk that
 * works; only the syncs are not, since it is the log that says what would be durable.
 *
 * A record is five native 64-bit numbers (operation, inode, offset or size, length of the name,
 * length of the data), the name, the data. A call and its record are one step under one lock: what
 * is in the log before a sync was done before the sync. */

#include "watched.h"
#include <pthread.h>

enum { CREATE = 1, WRITE, TRUNCATE, SYNC, UNLINK, RENAME, SYNC_DIRECTORY, MARK };

static int log_fd = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void start(void)
{
    const char *name = getenv("DURABLE_LOG");
    directory = getenv("DURABLE_DIRECTORY");
    if (!name || !directory)
        abort();
    log_fd = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        abort();
}

static void record(uint64_t operation, uint64_t inode, uint64_t offset, const char *name,
                   const void *data, size_t length)
{
    uint64_t head[5] = {operation, inode, offset, strlen(name), length};
    struct iovec parts[3] = {
        {head, sizeof head}, {(void *)name, strlen(name)}, {(void *)data, length}};
    ssize_t whole = sizeof head + head[3] + length;
    if (syscall(SYS_writev, log_fd, parts, 3) != whole)
        abort(); /* a log with a hole proves nothing */
}

static uint64_t inode_of(int fd)
{
    struct stat about;
    return fstat(fd, &about) == 0 ? about.st_ino : 0;
}

/* The -shm file is shared memory: a start after a crash makes it anew. */
static const char *logged(int fd, char path[PATH_MAX])
{
    const char *name = watched(fd, path);
    return name && *name && !ends_with(name, "-shm") ? name : NULL;
}

/* For the process itself, by ctypes: note that something happened now. */
void durable_mark(const void *data, size_t length)
{
    pthread_mutex_lock(&lock);
    record(MARK, 0, 0, "", data, length);
    pthread_mutex_unlock(&lock);
}

static int open_logged(int at, const char *file, int flags, mode_t mode)
{
    char path[PATH_MAX];
    const char *name;
    int fd, existed = 1;
    if (!(flags & (O_CREAT | O_TRUNC)))
        return syscall(SYS_openat, at, file, flags, mode);
    pthread_mutex_lock(&lock);
    if (flags & O_CREAT) {
        struct stat about;
        int before = errno;
        existed = fstatat(at, file, &about, 0) == 0;
        errno = before;
    }
    fd = syscall(SYS_openat, at, file, flags, mode);
    if (fd >= 0 && (name = logged(fd, path))) {
        if (!existed)
            record(CREATE, inode_of(fd), 0, name, NULL, 0);
        else if (flags & O_TRUNC)
            record(TRUNCATE, inode_of(fd), 0, name, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPEN(at, file, flags)                                                                      \
    mode_t mode = 0;                                                                               \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                                         \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode = va_arg(rest, mode_t);                                                               \
        va_end(rest);                                                                              \
    }                                                                                              \
    return open_logged(at, file, flags, mode);

int open(const char *file, int flags, ...) { OPEN(AT_FDCWD, file, flags) }
int open64(const char *file, int flags, ...) { OPEN(AT_FDCWD, file, flags) }
int openat(int at, const char *file, int flags, ...) { OPEN(at, file, flags) }
int openat64(int at, const char *file, int flags, ...) { OPEN(at, file, flags) }
int __open_2(const char *file, int flags) { return open_logged(AT_FDCWD, file, flags, 0); }
int __open64_2(const char *file, int flags) { return open_logged(AT_FDCWD, file, flags, 0); }
int __openat_2(int at, const char *file, int flags) { return open_logged(at, file, flags, 0); }
int __openat64_2(int at, const char *file, int flags) { return open_logged(at, file, flags, 0); }
int creat(const char *file, mode_t mode)
{
    return open_logged(AT_FDCWD, file, O_WRONLY | O_CREAT | O_TRUNC, mode);
}
int creat64(const char *file, mode_t mode) { return creat(file, mode); }

static void record_vector(int fd, const char *name, off_t offset, const struct iovec *parts,
                          int count, ssize_t left)
{
    for (int i = 0; i < count && left > 0; i++) {
        ssize_t length = (ssize_t)parts[i].iov_len < left ? (ssize_t)parts[i].iov_len : left;
        record(WRITE, inode_of(fd), offset, name, parts[i].iov_base, length);
        offset += length;
        left -= length;
    }
}

/* `offset` -1 is where the descriptor stands. */
static ssize_t write_logged(int fd, const struct iovec *parts, int count, off_t offset)
{
    char path[PATH_MAX];
    const char *name = logged(fd, path);
    ssize_t done;
    if (name)
        pthread_mutex_lock(&lock);
    done = offset < 0 ? syscall(SYS_writev, fd, parts, count)
                      : syscall(SYS_pwritev, fd, parts, count, offset, 0L);
    if (name) {
        if (done > 0) {
            int before = errno;
            off_t from = offset < 0 ? lseek(fd, 0, SEEK_CUR) - done : offset;
            record_vector(fd, name, from, parts, count, done);
            errno = before;
        }
        pthread_mutex_unlock(&lock);
    }
    return done;
}

ssize_t write(int fd, const void *data, size_t length)
{
    struct iovec part = {(void *)data, length};
    return write_logged(fd, &part, 1, -1);
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    struct iovec part = {(void *)data, length};
    if (offset < 0) {
        errno = EINVAL;
        return -1;
    }
    return write_logged(fd, &part, 1, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    return pwrite(fd, data, length, offset);
}
ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return write_logged(fd, parts, count, -1);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    if (offset < 0) {
        errno = EINVAL;
        return -1;
    }
    return write_logged(fd, parts, count, offset);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return pwritev(fd, parts, count, offset);
}

static int sync_logged(int fd, long call)
{
    char path[PATH_MAX];
    const char *name = watched(fd, path);
    if (!name)
        return syscall(call, fd);
    if (*name && !logged(fd, path))
        return 0;
    pthread_mutex_lock(&lock);
    record(*name ? SYNC : SYNC_DIRECTORY, inode_of(fd), 0, name, NULL, 0);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int fd) { return sync_logged(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_logged(fd, SYS_fdatasync); }

int ftruncate(int fd, off_t size)
{
    char path[PATH_MAX];
    const char *name = logged(fd, path);
    int code;
    if (!name)
        return syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&lock);
    code = syscall(SYS_ftruncate, fd, size);
    if (code == 0)
        record(TRUNCATE, inode_of(fd), size, name, NULL, 0);
    pthread_mutex_unlock(&lock);
    return code;
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }
int truncate(const char *file, off_t size)
{
    int code, fd = open_logged(AT_FDCWD, file, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    code = ftruncate(fd, size);
    close(fd);
    return code;
}
int truncate64(const char *file, off64_t size) { return truncate(file, size); }

static int unlink_logged(int at, const char *file, int flags)
{
    const char *name = below(file);
    int code;
    pthread_mutex_lock(&lock);
    code = syscall(SYS_unlinkat, at, file, flags);
    if (code == 0 && name && !ends_with(name, "-shm"))
        record(UNLINK, 0, 0, name, NULL, 0);
    pthread_mutex_unlock(&lock);
    return code;
}

int unlink(const char *file) { return unlink_logged(AT_FDCWD, file, 0); }
int unlinkat(int at, const char *file, int flags) { return unlink_logged(at, file, flags); }

/* The record's data is the new name. */
int rename(const char *from, const char *to)
{
    const char *old = below(from), *new = below(to);
    int code;
    pthread_mutex_lock(&lock);
    code = syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (code == 0 && old && new)
        record(RENAME, 0, 0, old, new, strlen(new));
    pthread_mutex_unlock(&lock);
    return code;
}
