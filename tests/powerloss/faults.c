/* LD_PRELOADed into a process, makes calls on files below a directory fail while it is told to.
 * FAULTS_DIRECTORY is the directory, FAULTS_CONTROL a file of this shape, shared with the test: */

#include "watched.h"
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/statvfs.h>

struct control {
    int32_t write;    /* errno of every write */
    int32_t extend;   /* errno of a write beyond the file's end; what fits is written before */
    int32_t sync;     /* errno of fsync and fdatasync */
    int32_t truncate; /* errno of ftruncate */
    int32_t create;   /* errno of opening a file that is not there */
    int32_t no_space; /* statvfs says that nothing is free */
    int32_t failed;   /* counts the calls that were made to fail */
    char name[36];    /* only files whose name ends in this; "" is all of them */
};

static volatile struct control *control;

__attribute__((constructor)) static void start(void)
{
    const char *name = getenv("FAULTS_CONTROL");
    int fd;
    directory = getenv("FAULTS_DIRECTORY");
    if (!name || !directory)
        abort();
    fd = syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC, 0);
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || control == MAP_FAILED)
        abort();
    close(fd);
}

static int named(const char *name) { return ends_with(name, (const char *)control->name); }

static int concerned(int fd)
{
    char path[PATH_MAX];
    const char *name = watched(fd, path);
    return name && named(name);
}

static int fail(int number)
{
    __atomic_add_fetch(&control->failed, 1, __ATOMIC_SEQ_CST);
    errno = number;
    return -1;
}

static ssize_t raw_write(int fd, const void *data, size_t length, off_t offset)
{
    return offset < 0 ? syscall(SYS_write, fd, data, length)
                      : syscall(SYS_pwrite64, fd, data, length, offset);
}

/* `offset` -1 is where the descriptor stands. */
static ssize_t write_or_fail(int fd, const void *data, size_t length, off_t offset)
{
    if ((control->write || control->extend) && concerned(fd)) {
        struct stat about;
        off_t from = offset < 0 ? lseek(fd, 0, SEEK_CUR) : offset;
        if (control->write)
            return fail(control->write);
        if (fstat(fd, &about) == 0 && from + (off_t)length > about.st_size) {
            /* As on a full disk: the blocks that are there can be written. */
            if (from >= about.st_size)
                return fail(control->extend);
            return raw_write(fd, data, about.st_size - from, offset);
        }
    }
    return raw_write(fd, data, length, offset);
}

ssize_t write(int fd, const void *data, size_t length)
{
    return write_or_fail(fd, data, length, -1);
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    return write_or_fail(fd, data, length, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    return write_or_fail(fd, data, length, offset);
}

int fsync(int fd)
{
    return control->sync && concerned(fd) ? fail(control->sync) : syscall(SYS_fsync, fd);
}
int fdatasync(int fd)
{
    return control->sync && concerned(fd) ? fail(control->sync) : syscall(SYS_fdatasync, fd);
}
int ftruncate(int fd, off_t size)
{
    return control->truncate && concerned(fd) ? fail(control->truncate)
                                              : syscall(SYS_ftruncate, fd, size);
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

static int open_or_fail(const char *file, int flags, mode_t mode)
{
    const char *name = below(file);
    if (control->create && (flags & O_CREAT) && name && named(name)) {
        struct stat about;
        if (stat(file, &about) != 0)
            return fail(control->create);
    }
    return syscall(SYS_openat, AT_FDCWD, file, flags, mode);
}

#define OPEN(file, flags)                                                                          \
    mode_t mode = 0;                                                                               \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                                         \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode = va_arg(rest, mode_t);                                                               \
        va_end(rest);                                                                              \
    }                                                                                              \
    return open_or_fail(file, flags, mode);

int open(const char *file, int flags, ...) { OPEN(file, flags) }
int open64(const char *file, int flags, ...) { OPEN(file, flags) }

int statvfs(const char *path, struct statvfs *about)
{
    static int (*real)(const char *, struct statvfs *);
    int code;
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "statvfs");
    code = real(path, about);
    if (code == 0 && control->no_space && below(path))
        about->f_bfree = about->f_bavail = 0;
    return code;
}
int statvfs64(const char *path, struct statvfs64 *about)
{
    /* The same struct where file offsets have 64 bits anyway. */
    return statvfs(path, (struct statvfs *)about);
}
