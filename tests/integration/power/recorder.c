/* What a process does to the files below one folder, in order, for `replay.py`: preloaded into the process.
 *
 * BLOBTEE_RECORD_ROOT is the folder, empty at the beginning; BLOBTEE_RECORD_LOG gets the records. A record is
 *     kind:u32  length of the first name or of the data:u32  length of the second name:u32  zero:u32  a:u64  b:u64
 * and then the names or the data. Stores into shared mappings are found by comparing them with what they were, at every
 * other record: they count as writes of that moment. Opening NOTE/text writes a note, and fails. With
 * BLOBTEE_RECORD_FILE_SYNC_US an fsync of a file, which is nobody's log, takes that long.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITE = 1, TRUNCATE, SYNC_BEGIN, SYNC_END, CREATE, MKDIR, RENAME, UNLINK, RMDIR, LINK, NOTE };

#define PAGE 4096u
#define NOTE_PREFIX "/blobtee-note/"
#define SLOW_SYNC_US 6000 /* what a disk takes: others write meanwhile */

struct record {
    uint32_t kind, first, second, zero;
    uint64_t a, b;
};

struct region {
    uint8_t *at, *before;
    size_t nbytes;
    uint64_t inode;
    off_t offset;
    struct region *next;
};

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static char root[4096];
static size_t root_nbytes;
static dev_t device;
static int out = -1;
static useconds_t file_sync_us = SLOW_SYNC_US;
static struct region *regions;

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (real == NULL) \
        real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static ssize_t plain_write(int fd, const void *data, size_t nbytes)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    return real(fd, data, nbytes);
}

static void put(const void *data, size_t nbytes)
{
    const uint8_t *at = data;
    while (nbytes > 0) {
        ssize_t n = plain_write(out, at, nbytes);
        if (n <= 0)
            abort();
        at += n;
        nbytes -= (size_t)n;
    }
}

static void record(uint32_t kind, uint64_t a, uint64_t b, const void *first, size_t first_nbytes, const void *second,
                   size_t second_nbytes)
{
    struct record head = {kind, (uint32_t)first_nbytes, (uint32_t)second_nbytes, 0, a, b};
    put(&head, sizeof head);
    put(first, first_nbytes);
    put(second, second_nbytes);
}

/* Stores into mappings since the last record. */
static void catch_up(void)
{
    for (struct region *r = regions; r != NULL; r = r->next)
        for (size_t page = 0; page < r->nbytes; page += PAGE) {
            size_t nbytes = r->nbytes - page < PAGE ? r->nbytes - page : PAGE;
            uint8_t now[PAGE];
            memcpy(now, r->at + page, nbytes);
            if (memcmp(now, r->before + page, nbytes) == 0)
                continue;
            size_t from = 0, to = nbytes;
            while (now[from] == r->before[page + from])
                from++;
            while (now[to - 1] == r->before[page + to - 1])
                to--;
            memcpy(r->before + page, now, nbytes);
            record(WRITE, r->inode, (uint64_t)r->offset + page + from, now + from, to - from, NULL, 0);
        }
}

static void begin(void)
{
    pthread_mutex_lock(&turn);
    catch_up();
}

static void end(void)
{
    int saved = errno;
    catch_up();
    pthread_mutex_unlock(&turn);
    errno = saved;
}

static int is_ours(const char *path)
{
    return out >= 0 && strncmp(path, root, root_nbytes) == 0 && (path[root_nbytes] == '/' || path[root_nbytes] == 0);
}

/* The inode behind `fd`, 0 when it is not on the root's file system, or the log. */
static uint64_t inode_of(int fd)
{
    struct stat found;
    if (out < 0 || fd == out || fstat(fd, &found) != 0 || found.st_dev != device ||
        !(S_ISREG(found.st_mode) || S_ISDIR(found.st_mode)))
        return 0;
    return found.st_ino;
}

static void name(uint32_t kind, const char *path, uint64_t inode)
{
    record(kind, inode, 0, path, strlen(path), NULL, 0);
}

__attribute__((constructor)) static void start(void)
{
    const char *folder = getenv("BLOBTEE_RECORD_ROOT"), *log = getenv("BLOBTEE_RECORD_LOG");
    const char *slow = getenv("BLOBTEE_RECORD_FILE_SYNC_US");
    struct stat found;
    if (folder == NULL || log == NULL || stat(folder, &found) != 0 || strlen(folder) >= sizeof root)
        return;
    strcpy(root, folder);
    root_nbytes = strlen(root);
    device = found.st_dev;
    if (slow != NULL)
        file_sync_us = (useconds_t)atoi(slow);
    REAL(int, "open", const char *, int, ...);
    out = real(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    name(MKDIR, root, found.st_ino);
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

static int opening(int (*open_it)(const char *, int, mode_t), const char *path, int flags, mode_t mode)
{
    struct stat found;
    int fd, existed;
    if (out >= 0 && strncmp(path, NOTE_PREFIX, strlen(NOTE_PREFIX)) == 0) {
        begin();
        name(NOTE, path + strlen(NOTE_PREFIX), 0);
        end();
        errno = ENOENT;
        return -1;
    }
    if (!is_ours(path) || !(flags & (O_CREAT | O_TRUNC)))
        return open_it(path, flags, mode);
    begin();
    existed = lstat(path, &found) == 0;
    fd = open_it(path, flags, mode);
    if (fd >= 0 && !existed)
        name(CREATE, path, inode_of(fd));
    else if (fd >= 0 && flags & O_TRUNC && found.st_size > 0)
        record(TRUNCATE, inode_of(fd), 0, NULL, 0, NULL, 0);
    end();
    return fd;
}

#define MODE \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

#define OPEN(symbol) \
    static int real_##symbol(const char *path, int flags, mode_t mode) \
    { \
        REAL(int, #symbol, const char *, int, ...); \
        return real(path, flags, mode); \
    } \
    int symbol(const char *path, int flags, ...) \
    { \
        MODE \
        return opening(real_##symbol, path, flags, mode); \
    }

#define OPENAT(symbol) \
    static int real_##symbol(const char *path, int flags, mode_t mode) \
    { \
        REAL(int, #symbol, int, const char *, int, ...); \
        return real(AT_FDCWD, path, flags, mode); \
    } \
    int symbol(int folder, const char *path, int flags, ...) \
    { \
        REAL(int, #symbol, int, const char *, int, ...); \
        MODE \
        return path[0] == '/' ? opening(real_##symbol, path, flags, mode) : real(folder, path, flags, mode); \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define ONE_NAME(symbol, kind) \
    int symbol(const char *path) \
    { \
        REAL(int, #symbol, const char *); \
        if (!is_ours(path)) \
            return real(path); \
        begin(); \
        int result = real(path); \
        if (result == 0) \
            name(kind, path, 0); \
        end(); \
        return result; \
    }

#define TWO_NAMES(symbol, kind) \
    int symbol(const char *from, const char *to) \
    { \
        REAL(int, #symbol, const char *, const char *); \
        if (!is_ours(to)) \
            return real(from, to); \
        begin(); \
        int result = real(from, to); \
        if (result == 0) \
            record(kind, 0, 0, from, strlen(from), to, strlen(to)); \
        end(); \
        return result; \
    }

ONE_NAME(unlink, UNLINK)
ONE_NAME(rmdir, RMDIR)
TWO_NAMES(rename, RENAME)
TWO_NAMES(link, LINK)

int mkdir(const char *path, mode_t mode)
{
    REAL(int, "mkdir", const char *, mode_t);
    struct stat made;
    if (!is_ours(path))
        return real(path, mode);
    begin();
    int result = real(path, mode);
    if (result == 0 && lstat(path, &made) == 0)
        name(MKDIR, path, made.st_ino);
    end();
    return result;
}

/* ---- bytes ------------------------------------------------------------------------------------------------------- */

#define PWRITE(symbol, offset_t) \
    ssize_t symbol(int fd, const void *data, size_t nbytes, offset_t offset) \
    { \
        REAL(ssize_t, #symbol, int, const void *, size_t, offset_t); \
        uint64_t inode = inode_of(fd); \
        if (inode == 0) \
            return real(fd, data, nbytes, offset); \
        begin(); \
        ssize_t n = real(fd, data, nbytes, offset); \
        if (n > 0) \
            record(WRITE, inode, (uint64_t)offset, data, (size_t)n, NULL, 0); \
        end(); \
        return n; \
    }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t nbytes)
{
    uint64_t inode = inode_of(fd);
    if (inode == 0)
        return plain_write(fd, data, nbytes);
    begin();
    off_t offset = lseek(fd, 0, SEEK_CUR);
    ssize_t n = plain_write(fd, data, nbytes);
    if (n > 0)
        record(WRITE, inode, (uint64_t)offset, data, (size_t)n, NULL, 0);
    end();
    return n;
}

/* After what may have changed its size. */
static void sized(int fd, uint64_t inode)
{
    struct stat found;
    if (fstat(fd, &found) == 0)
        record(TRUNCATE, inode, (uint64_t)found.st_size, NULL, 0, NULL, 0);
}

#define FTRUNCATE(symbol, offset_t) \
    int symbol(int fd, offset_t nbytes) \
    { \
        REAL(int, #symbol, int, offset_t); \
        uint64_t inode = inode_of(fd); \
        if (inode == 0) \
            return real(fd, nbytes); \
        begin(); \
        int result = real(fd, nbytes); \
        if (result == 0) \
            sized(fd, inode); \
        end(); \
        return result; \
    }

#define FALLOCATE(symbol, offset_t) \
    int symbol(int fd, offset_t offset, offset_t nbytes) \
    { \
        REAL(int, #symbol, int, offset_t, offset_t); \
        uint64_t inode = inode_of(fd); \
        if (inode == 0) \
            return real(fd, offset, nbytes); \
        begin(); \
        int result = real(fd, offset, nbytes); \
        if (result == 0) \
            sized(fd, inode); \
        end(); \
        return result; \
    }

FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)
FALLOCATE(posix_fallocate, off_t)
FALLOCATE(posix_fallocate64, off64_t)

/* ---- mappings ---------------------------------------------------------------------------------------------------- */

#define MMAP(symbol, offset_t) \
    void *symbol(void *wanted, size_t nbytes, int rights, int flags, int fd, offset_t offset) \
    { \
        REAL(void *, #symbol, void *, size_t, int, int, int, offset_t); \
        uint64_t inode = fd >= 0 && flags & MAP_SHARED && rights & PROT_WRITE ? inode_of(fd) : 0; \
        void *at = real(wanted, nbytes, rights, flags, fd, offset); \
        if (inode != 0 && at != MAP_FAILED) \
            remember(at, nbytes, inode, (off_t)offset); \
        return at; \
    }

static void remember(void *at, size_t nbytes, uint64_t inode, off_t offset)
{
    struct region *r = malloc(sizeof *r);
    uint8_t *before = malloc(nbytes);
    if (r == NULL || before == NULL)
        abort();
    begin();
    memcpy(before, at, nbytes);
    *r = (struct region){at, before, nbytes, inode, offset, regions};
    regions = r;
    end();
}

MMAP(mmap, off_t)
MMAP(mmap64, off64_t)

int munmap(void *at, size_t nbytes)
{
    REAL(int, "munmap", void *, size_t);
    struct region *gone = NULL;
    begin();
    for (struct region **r = &regions; *r != NULL; r = &(*r)->next)
        if ((*r)->at == at) {
            gone = *r;
            *r = gone->next;
            break;
        }
    int result = real(at, nbytes);
    end();
    if (gone != NULL) {
        free(gone->before);
        free(gone);
    }
    return result;
}

/* ---- syncs ------------------------------------------------------------------------------------------------------- */

static int is_file(int fd)
{
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

/* What was written before the beginning is there from the end on. */
static uint64_t begin_sync(uint64_t inode)
{
    static uint64_t last;
    begin();
    uint64_t number = ++last;
    record(SYNC_BEGIN, inode, number, NULL, 0, NULL, 0);
    end();
    return number;
}

static void end_sync(uint64_t inode, uint64_t number)
{
    begin();
    record(SYNC_END, inode, number, NULL, 0, NULL, 0);
    end();
}

#define SYNC(symbol, file_us) \
    int symbol(int fd) \
    { \
        REAL(int, #symbol, int); \
        uint64_t inode = inode_of(fd); \
        if (inode == 0) \
            return real(fd); \
        uint64_t number = begin_sync(inode); \
        usleep(is_file(fd) ? file_us : SLOW_SYNC_US); \
        int result = real(fd); \
        if (result == 0) \
            end_sync(inode, number); \
        return result; \
    }

SYNC(fsync, file_sync_us)
SYNC(fdatasync, SLOW_SYNC_US)

int msync(void *at, size_t nbytes, int flags)
{
    REAL(int, "msync", void *, size_t, int);
    uint64_t inode = 0;
    begin();
    for (struct region *r = regions; r != NULL; r = r->next)
        if (r->at == at && nbytes >= r->nbytes && flags & MS_SYNC)
            inode = r->inode;
    end();
    uint64_t number = inode != 0 ? begin_sync(inode) : 0;
    int result = real(at, nbytes, flags);
    if (inode != 0 && result == 0)
        end_sync(inode, number);
    return result;
}
