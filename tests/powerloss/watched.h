/* What both shims need: which file below the watched directory a call is about.
 *
 * The system is called directly, past glibc, so nothing here can call itself. Names are those of
 * glibc's large-file interface (pwrite64 ...) beside the plain ones: SQLite uses the former. Locks
 * (fcntl) and shared memory (mmap of the -shm file, which every start makes anew) are left alone. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *directory; /* absolute, without links and without a slash at its end */

/* The part of a path below the directory, "" for the directory itself, NULL for any other. */
static const char *below(const char *path)
{
    size_t length;
    if (!directory || !path)
        return NULL;
    length = strlen(directory);
    if (strncmp(path, directory, length) != 0)
        return NULL;
    if (!path[length])
        return path + length;
    return path[length] == '/' ? path + length + 1 : NULL;
}

/* The same for a descriptor; `path` takes what is returned. */
static const char *watched(int fd, char path[PATH_MAX])
{
    char link[64];
    int before = errno;
    ssize_t length;
    if (!directory)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, PATH_MAX - 1);
    errno = before;
    if (length < 0)
        return NULL;
    path[length] = 0;
    return below(path);
}

static int ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), wanted = strlen(end);
    return length >= wanted && strcmp(text + length - wanted, end) == 0;
}
