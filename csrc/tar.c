/* tar.c - tar headers, many at a time, as far as they are plain.
 *
 * What is plain: files, directories, links and pipes with numbers in octal (or short base-256), names in the header, in a
 * POSIX extended header or in GNU's long names, and no record that asks for more than a number or a name. Everything
 * else - and everything that is wrong - is left to the caller, who has one set of rules for it, and its errors. So nothing
 * here may accept what those rules would refuse or read otherwise: a doubt is a reason to stop.
 * (POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; the GNU tar manual, "Basic Tar Format".) */
#include "blobtee.h"

#include <string.h>

enum { BLOCK = 512, MAX_EXTENDED = 1 << 20, MAX_PATH = 32 << 10, MAX_OWNER = 255, MAX_TIME_DIGITS = 64 };

/* 9 * 10**9 seconds still fit 64 bits of nanoseconds */
static const int64_t max_seconds = 9000000000, second = 1000000000;

struct span {
    const uint8_t *p;
    size_t nbytes;
};

/* What is known of one entry before it is written out. A span with p == NULL was not said. */
struct entry {
    struct span path, link, uname, gname;
    int64_t size, uid, gid, mtime_ns;
    int has_size, has_uid, has_gid, has_mtime;
};

/* ---- numbers ------------------------------------------------------------------------------------------------ */

static int is_blank(uint8_t c) { return c == ' ' || c == 0; }

/* An octal or base-256 field of 8 or 12 bytes. */
static int number(const uint8_t *field, size_t nbytes, int64_t *value)
{
    uint64_t n = 0;
    size_t i = 0;

    if (field[0] == 0x80) {
        for (i = 1; i < nbytes; i++) {
            if (n >> 55)
                return 0;
            n = n << 8 | field[i];
        }
    } else {
        while (i < nbytes && is_blank(field[i]))
            i++;
        for (; i < nbytes && field[i] >= '0' && field[i] <= '7'; i++)
            n = n << 3 | (uint64_t)(field[i] - '0');
        for (; i < nbytes; i++)
            if (!is_blank(field[i]))
                return 0;
    }
    *value = (int64_t)n;
    return 1;
}

/* Decimal digits, at most 18, as far as they go; how many there were. */
static size_t digits(struct span text, int64_t *value)
{
    size_t i = 0;
    int64_t n = 0;

    for (; i < text.nbytes && i < 18 && text.p[i] >= '0' && text.p[i] <= '9'; i++)
        n = n * 10 + (text.p[i] - '0');
    *value = n;
    return i;
}

static int decimal(struct span text, int64_t *value)
{
    return text.nbytes > 0 && digits(text, value) == text.nbytes;
}

/* Seconds with or without a fraction, of which nine digits count. */
static int nanoseconds(struct span text, int64_t *value)
{
    int64_t seconds, fraction = 0, unit = second;
    size_t i = digits(text, &seconds);

    if (i == 0 || seconds > max_seconds || text.nbytes > MAX_TIME_DIGITS)
        return 0;
    if (i < text.nbytes && text.p[i++] != '.')
        return 0;
    for (; i < text.nbytes; i++) {
        if (text.p[i] < '0' || text.p[i] > '9')
            return 0;
        unit /= 10;
        fraction += unit * (text.p[i] - '0');
    }
    *value = seconds * second + fraction;
    return 1;
}

static int checksum_is_right(const uint8_t *header)
{
    int64_t stated;
    uint32_t sum = 8 * ' ';

    for (size_t i = 0; i < 148; i++)
        sum += header[i];
    for (size_t i = 156; i < BLOCK; i++)
        sum += header[i];
    /* Base-256 is no way to write it. */
    return header[148] != 0x80 && number(header + 148, 8, &stated) && stated == (int64_t)sum;
}

/* ---- names -------------------------------------------------------------------------------------------------- */

static struct span until_nul(const uint8_t *p, size_t nbytes)
{
    const uint8_t *nul = memchr(p, 0, nbytes);
    return (struct span){p, nul != NULL ? (size_t)(nul - p) : nbytes};
}

static int has_nul(struct span text) { return memchr(text.p, 0, text.nbytes) != NULL; }

/* Where text for the caller goes. */
struct sink {
    uint8_t *p;
    size_t nbytes, used;
};

static int put(struct sink *to, const uint8_t *p, size_t nbytes)
{
    if (nbytes > to->nbytes - to->used)
        return 0;
    if (nbytes > 0)
        memcpy(to->p + to->used, p, nbytes);
    to->used += nbytes;
    return 1;
}

static int put_nul(struct sink *to) { return put(to, (const uint8_t *)"", 1); }

/* Appends the parts of a name, with single slashes between them and what has been there since `start`. `fits` is 0 when
 * there is no space. Returns 0 for "..", and when it does not fit. */
static int put_parts(struct sink *to, size_t start, struct span name, int *fits)
{
    const uint8_t *p = name.p, *end = name.p + name.nbytes;

    while (p < end) {
        const uint8_t *slash = memchr(p, '/', (size_t)(end - p));
        size_t nbytes = (size_t)((slash != NULL ? slash : end) - p);
        if (nbytes == 2 && p[0] == '.' && p[1] == '.')
            return 0;
        if (nbytes > 0 && !(nbytes == 1 && p[0] == '.')) {
            *fits = (to->used == start || put(to, (const uint8_t *)"/", 1)) && put(to, p, nbytes);
            if (!*fits)
                return 0;
        }
        if (slash == NULL)
            break;
        p = slash + 1;
    }
    return 1;
}

/* ---- extended headers --------------------------------------------------------------------------------------- */

static int starts_with(struct span text, const char *start)
{
    size_t nbytes = strlen(start);
    return text.nbytes >= nbytes && memcmp(text.p, start, nbytes) == 0;
}

static int is(struct span text, const char *other) { return starts_with(text, other) && text.nbytes == strlen(other); }

/* A name, once; not empty, which would take it back. */
static int say(struct span *field, struct span value, size_t limit)
{
    if (field->p != NULL || value.nbytes == 0 || value.nbytes > limit || has_nul(value))
        return 0;
    *field = value;
    return 1;
}

static int record(struct entry *e, struct span key, struct span value)
{
    if (is(key, "path"))
        return say(&e->path, value, MAX_PATH);
    if (is(key, "linkpath"))
        return say(&e->link, value, MAX_PATH);
    if (is(key, "uname"))
        return say(&e->uname, value, MAX_OWNER);
    if (is(key, "gname"))
        return say(&e->gname, value, MAX_OWNER);
    if (is(key, "size"))
        return !e->has_size++ && decimal(value, &e->size);
    if (is(key, "uid"))
        return !e->has_uid++ && decimal(value, &e->uid);
    if (is(key, "gid"))
        return !e->has_gid++ && decimal(value, &e->gid);
    if (is(key, "mtime"))
        return !e->has_mtime++ && nanoseconds(value, &e->mtime_ns);
    return !starts_with(key, "SCHILY.xattr.") && !starts_with(key, "GNU.sparse.");
}

/* "length key=value\n", one after another. */
static int records(struct entry *e, struct span block)
{
    while (block.nbytes > 0) {
        int64_t nbytes;
        size_t blank = digits(block, &nbytes);
        if (blank == 0 || blank == block.nbytes || block.p[blank] != ' ')
            return 0;
        if ((uint64_t)nbytes > block.nbytes || (uint64_t)nbytes <= blank + 2 || block.p[nbytes - 1] != '\n')
            return 0;
        struct span rest = {block.p + blank + 1, (size_t)nbytes - blank - 2};
        const uint8_t *equals = memchr(rest.p, '=', rest.nbytes);
        if (equals == NULL || equals == rest.p)
            return 0;
        struct span key = {rest.p, (size_t)(equals - rest.p)};
        struct span value = {equals + 1, rest.nbytes - key.nbytes - 1};
        if (!record(e, key, value))
            return 0;
        block.p += nbytes;
        block.nbytes -= (size_t)nbytes;
    }
    return 1;
}

/* ---- entries ------------------------------------------------------------------------------------------------ */

static uint64_t padded(uint64_t nbytes) { return (nbytes + BLOCK - 1) / BLOCK * BLOCK; }

/* The headers in front of an entry's own; *at moves to that. MORE when one is not whole. */
static int extras(struct entry *e, const uint8_t *in, size_t in_nbytes, size_t *at)
{
    int seen = 0;

    for (;;) {
        if (in_nbytes - *at < BLOCK)
            return BT_TAR_MORE;
        const uint8_t *header = in + *at;
        if (!checksum_is_right(header))
            return BT_TAR_ODD;
        int which = header[156] == 'x' ? 1 : header[156] == 'L' ? 2 : header[156] == 'K' ? 4 : 0;
        if (which == 0)
            return BT_TAR_PLAIN;
        int64_t nbytes;
        if (seen & which || !number(header + 124, 12, &nbytes) || nbytes > MAX_EXTENDED)
            return BT_TAR_ODD;
        seen |= which;
        if (in_nbytes - *at - BLOCK < padded((uint64_t)nbytes))
            return BT_TAR_MORE;
        struct span block = {header + BLOCK, (size_t)nbytes};
        if (which == 1) {
            if (!records(e, block))
                return BT_TAR_ODD;
        } else {
            /* It wins over a record of the same meaning, which may come after: not said here either. */
            struct span *field = which == 2 ? &e->path : &e->link;
            if (!say(field, until_nul(block.p, block.nbytes), MAX_PATH))
                return BT_TAR_ODD;
        }
        *at += BLOCK + padded((uint64_t)nbytes);
    }
}

/* What the entry's own header says, where no other has said it. `prefix` goes in front of the path. */
static int own(struct entry *e, const uint8_t *header, struct span *prefix, int64_t *mode)
{
    int64_t size, uid, gid, seconds;

    if (!number(header + 100, 8, mode) || !number(header + 108, 8, &uid) || !number(header + 116, 8, &gid) ||
        !number(header + 124, 12, &size) || !number(header + 136, 12, &seconds) || seconds > max_seconds)
        return 0;
    if (!e->has_size)
        e->size = size;
    if (!e->has_uid)
        e->uid = uid;
    if (!e->has_gid)
        e->gid = gid;
    if (!e->has_mtime)
        e->mtime_ns = seconds * second;
    *prefix = (struct span){header, 0};
    if (e->path.p == NULL) {
        e->path = until_nul(header, 100);
        if (memcmp(header + 257, "ustar", 6) == 0 && header[345] != 0) {
            if (memcmp(header + 508, "tar", 4) == 0)
                return 0; /* star's, with a shorter prefix */
            *prefix = until_nul(header + 345, 155);
        }
        if (memcmp(header + 257, "ustar ", 6) == 0 && (header[345] != 0 || header[357] != 0))
            return 0; /* times, or a prefix that should not be there */
    }
    if (e->link.p == NULL)
        e->link = until_nul(header + 157, 100);
    int is_posix = memcmp(header + 257, "ustar", 5) == 0;
    if (e->uname.p == NULL)
        e->uname = until_nul(header + 265, is_posix ? 32 : 0);
    if (e->gname.p == NULL)
        e->gname = until_nul(header + 297, is_posix ? 32 : 0);
    return 1;
}

static int type_of(uint8_t kind, struct span path)
{
    switch (kind) {
    case 0:
        if (path.nbytes == 0 || path.p[path.nbytes - 1] == '/')
            return -1; /* a directory of v7, which may have data */
        return BT_TAR_FILE;
    case '0':
    case '7':
        return BT_TAR_FILE;
    case '1':
        return BT_TAR_HARDLINK;
    case '2':
        return BT_TAR_SYMLINK;
    case '5':
        return BT_TAR_DIRECTORY;
    case '6':
        return BT_TAR_FIFO;
    default:
        return -1;
    }
}

/* Path and link, each with a NUL behind it. */
static int put_names(struct sink *text, int type, struct span prefix, struct span path, struct span link)
{
    int fits = 1;
    size_t start = text->used;

    if (!put_parts(text, start, prefix, &fits) || !put_parts(text, start, path, &fits))
        return fits ? BT_TAR_ODD : BT_TAR_MORE;
    if (text->used == start && type != BT_TAR_DIRECTORY)
        return BT_TAR_ODD;
    if (!put_nul(text))
        return BT_TAR_MORE;
    start = text->used;
    if (type == BT_TAR_HARDLINK && !put_parts(text, start, link, &fits))
        return fits ? BT_TAR_ODD : BT_TAR_MORE;
    if (type == BT_TAR_SYMLINK && !put(text, link.p, link.nbytes))
        return BT_TAR_MORE;
    if (text->used == start && (type == BT_TAR_HARDLINK || type == BT_TAR_SYMLINK))
        return BT_TAR_ODD;
    return put_nul(text) ? BT_TAR_PLAIN : BT_TAR_MORE;
}

static int same(struct span a, struct span b)
{
    return a.nbytes == b.nbytes && (a.nbytes == 0 || memcmp(a.p, b.p, a.nbytes) == 0);
}

int bt_tar_scan(const uint8_t *in, size_t in_nbytes, bt_tar_batch *batch)
{
    struct sink text = {batch->text, batch->text_nbytes, 0}, owners = {batch->owners, batch->owners_nbytes, 0};
    struct span uname = {NULL, 0}, gname = {NULL, 0};
    size_t n = 0, nowners = 0;
    uint64_t next = 0;
    int stop = BT_TAR_MORE;

    while (n < batch->capacity && next < in_nbytes) {
        struct entry e = {0};
        struct span prefix;
        struct sink names = text, names_of_owners = owners;
        size_t at = (size_t)next;
        int64_t mode;

        stop = extras(&e, in, in_nbytes, &at);
        if (stop != BT_TAR_PLAIN)
            break;
        const uint8_t *header = in + at;
        if (!own(&e, header, &prefix, &mode)) {
            stop = BT_TAR_ODD;
            break;
        }
        int type = type_of(header[156], e.path);
        if (type < 0) {
            stop = BT_TAR_ODD;
            break;
        }
        stop = put_names(&names, type, prefix, e.path, e.link);
        if (stop != BT_TAR_PLAIN)
            break;
        stop = BT_TAR_MORE;
        int is_new = nowners == 0 || !same(uname, e.uname) || !same(gname, e.gname);
        if (is_new && !(put(&names_of_owners, e.uname.p, e.uname.nbytes) && put_nul(&names_of_owners) &&
                        put(&names_of_owners, e.gname.p, e.gname.nbytes) && put_nul(&names_of_owners)))
            break;
        text = names;
        owners = names_of_owners;
        uname = e.uname;
        gname = e.gname;
        nowners += (size_t)is_new;

        int64_t size = type == BT_TAR_FILE ? e.size : 0;
        int64_t row[BT_TAR_COLUMNS] = {
            [BT_TAR_TYPE] = type,
            [BT_TAR_MODE] = mode & 07777,
            [BT_TAR_UID] = e.uid,
            [BT_TAR_GID] = e.gid,
            [BT_TAR_MTIME_NS] = e.mtime_ns,
            [BT_TAR_SIZE] = size,
            [BT_TAR_OFFSET] = (int64_t)(at + BLOCK),
            [BT_TAR_OWNER] = (int64_t)nowners - 1,
        };
        for (size_t column = 0; column < BT_TAR_COLUMNS; column++)
            batch->numbers[column * batch->capacity + n] = row[column];
        n++;
        next = at + BLOCK + padded((uint64_t)size);
    }
    batch->nentries = n;
    batch->text_used = text.used;
    batch->owners_used = owners.used;
    batch->next = next;
    return stop;
}
