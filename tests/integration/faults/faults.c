/* A file system that fails: preloaded into a process, which says when. After `faults_arm(k, errno, reads)` the k-th change
 * of a file below the folder of `faults_root` fails, or with `reads` the k-th read; whoever makes it, Python, SQLite or the
 * C core. `faults_off` ends that and says which one it was. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CHANGES, READS };

static char root[4096], failed[8192];
static size_t root_nbytes;
static atomic_int left, code;
static int kind;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (real == NULL) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

void faults_root(const char *folder)
{
    root_nbytes = (size_t)snprintf(root, sizeof(root), "%s", folder);
}

void faults_arm(int k, int number, int reads)
{
    failed[0] = 0;
    kind = reads ? READS : CHANGES;
    left = k;
    code = number;
}

const char *faults_off(void)
{
    code = 0;
    return failed;
}

static int fails(const char *name, const char *path, int is)
{
    int number = code;
    if (number == 0 || is != kind || root_nbytes == 0 || strncmp(path, root, root_nbytes) != 0)
        return 0;
    if (atomic_fetch_sub(&left, 1) != 1)
        return 0;
    snprintf(failed, sizeof(failed), "%s %s", name, path + root_nbytes);
    errno = number;
    return 1;
}

static int fails_open(const char *name, int fd, int is)
{
    char link[64], path[4096];
    ssize_t n;

    if (code == 0 || is != kind)
        return 0;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    if ((n = readlink(link, path, sizeof(path) - 1)) < 0)
        return 0;
    path[n] = 0;
    return fails(name, path, is);
}

/* Python gives whole paths, and so does SQLite. */
#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        return fails(#name, path, flags & O_CREAT ? CHANGES : READS) ? -1 : real(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) \
    { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        return fails(#name, path, flags & O_CREAT ? CHANGES : READS) ? -1 : real(folder, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define OF_PATH(name, parameters, ...) \
    int name parameters \
    { \
        REAL(name); \
        return fails(#name, path, CHANGES) ? -1 : real(__VA_ARGS__); \
    }
OF_PATH(mkdir, (const char *path, mode_t mode), path, mode)
OF_PATH(rename, (const char *path, const char *to), path, to)
OF_PATH(unlink, (const char *path), path)
OF_PATH(rmdir, (const char *path), path)
OF_PATH(chmod, (const char *path, mode_t mode), path, mode)

#define OF_FILE(result, name, is, failure, parameters, ...) \
    result name parameters \
    { \
        REAL(name); \
        return fails_open(#name, fd, is) ? failure : real(__VA_ARGS__); \
    }
OF_FILE(ssize_t, write, CHANGES, -1, (int fd, const void *data, size_t n), fd, data, n)
OF_FILE(ssize_t, pwrite, CHANGES, -1, (int fd, const void *data, size_t n, off_t at), fd, data, n, at)
OF_FILE(ssize_t, pwrite64, CHANGES, -1, (int fd, const void *data, size_t n, off64_t at), fd, data, n, at)
OF_FILE(int, fsync, CHANGES, -1, (int fd), fd)
OF_FILE(int, fdatasync, CHANGES, -1, (int fd), fd)
OF_FILE(int, ftruncate, CHANGES, -1, (int fd, off_t n), fd, n)
OF_FILE(int, ftruncate64, CHANGES, -1, (int fd, off64_t n), fd, n)
OF_FILE(int, posix_fallocate, CHANGES, errno, (int fd, off_t at, off_t n), fd, at, n)
OF_FILE(int, posix_fallocate64, CHANGES, errno, (int fd, off64_t at, off64_t n), fd, at, n)
OF_FILE(ssize_t, read, READS, -1, (int fd, void *data, size_t n), fd, data, n)
OF_FILE(ssize_t, pread, READS, -1, (int fd, void *data, size_t n, off_t at), fd, data, n, at)
OF_FILE(ssize_t, pread64, READS, -1, (int fd, void *data, size_t n, off64_t at), fd, data, n, at)
OF_FILE(ssize_t, preadv, READS, -1, (int fd, const struct iovec *v, int n, off_t at), fd, v, n, at)
OF_FILE(ssize_t, preadv64, READS, -1, (int fd, const struct iovec *v, int n, off64_t at), fd, v, n, at)
