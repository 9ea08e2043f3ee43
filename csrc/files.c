/* files.c - calls of the kernel that go together, in one call of ours.
 *
 * Whoever returns from here into Python waits for the interpreter, which other threads may have: with dozens of writers
 * that costs more than making a small file does. */
#define _GNU_SOURCE
#include "blobtee.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* folder/name, or -1 where that is too long. */
static int join(char path[PATH_MAX], const char *folder, const char *name)
{
    int n = snprintf(path, PATH_MAX, "%s/%s", folder, name);
    if (n >= 0 && n < PATH_MAX)
        return 0;
    errno = ENAMETOOLONG;
    return -1;
}

static int write_file(const char *path, const bt_small_file *f)
{
    size_t done = 0;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644), failed = 0;

    if (fd < 0)
        return -1;
    while (done < f->nbytes) {
        ssize_t n = pwrite(fd, f->data + done, f->nbytes - done, (off_t)done);
        if (n < 0 && errno != EINTR) {
            failed = errno;
            break;
        }
        done += n > 0 ? (size_t)n : 0;
    }
    /* Cutting it off first would have ext4 write it out at once. */
    if (failed == 0 && f->before_nbytes > f->nbytes && ftruncate(fd, (off_t)f->nbytes) != 0)
        failed = errno;
    close(fd);
    errno = failed;
    return failed == 0 ? 0 : -1;
}

int bt_begin_folder(const char *folder, const char *spare, const bt_small_file *files, size_t nfiles, const char *data)
{
    char path[PATH_MAX];
    struct stat found;
    int fd;

    if (lstat(folder, &found) == 0)
        return BT_END;
    if (errno != ENOENT)
        return BT_ERRNO - errno;
    if (spare == NULL) {
        if (mkdir(folder, 0755) != 0)
            return BT_ERRNO - errno;
    } else {
        /* What a link leads to is not ours. */
        if (lstat(spare, &found) != 0)
            return BT_ERRNO - errno;
        if (!S_ISDIR(found.st_mode))
            return BT_ERRNO - ENOTDIR;
        if (rename(spare, folder) != 0)
            return BT_ERRNO - errno;
    }
    for (const bt_small_file *f = files; f < files + nfiles; f++)
        if (join(path, folder, f->name) != 0 || (f->data != NULL ? write_file(path, f) : unlink(path)) != 0)
            return BT_ERRNO - errno;
    if (join(path, folder, data) != 0)
        return BT_ERRNO - errno;
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    return fd >= 0 ? fd : BT_ERRNO - errno;
}

void bt_settle_files(const char *paths, size_t npaths, int rights, int64_t stale_ns)
{
    for (; npaths > 0; npaths--) {
        struct stat found;
        struct timespec now;
        chmod(paths, (mode_t)rights);
        clock_gettime(CLOCK_REALTIME, &now);
        if (stat(paths, &found) == 0) {
            int64_t age_ns = (now.tv_sec - found.st_atim.tv_sec) * 1000000000LL + now.tv_nsec - found.st_atim.tv_nsec;
            if (age_ns < 0 || age_ns >= stale_ns) {
                const struct timespec times[2] = {now, found.st_mtim};
                utimensat(AT_FDCWD, paths, times, 0);
            }
        }
        while (*paths++ != '\0')
            ;
    }
}
