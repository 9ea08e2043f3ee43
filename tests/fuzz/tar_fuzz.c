/* tar_fuzz.c - libFuzzer target: the reader of plain tar headers on any input, with any space for its results.
 *
 * The first four bytes of a test case choose how much space there is and where the input is cut, the rest is the tar. Each
 * block that looks like a header gets a right checksum, or nothing would get past it. What is held:
 *  - nothing is read or written outside the buffers, which end at pages that fault;
 *  - what comes out is what blobtee.h says: numbers within their bounds, offsets in order, names relative and without
 *    empty, "." and ".." parts, as many of them as there are entries;
 *  - a part of the input gives the first entries of the whole, and going on after it gives the rest.
 * Run it by scripts/sanitize. Called with -DSEEDS, this file writes a corpus to the folder it is given instead. */
#define _GNU_SOURCE
#include "blobtee.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BLOCK 512
#define CONTROL_NBYTES 4
#define MAX_ENTRIES 256

#define HOLD(condition)                                                                                  \
    do {                                                                                                 \
        if (!(condition)) {                                                                              \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);               \
            abort();                                                                                     \
        }                                                                                                \
    } while (0)

static void checksum(uint8_t *header)
{
    unsigned sum = 8 * ' ';
    char text[9];
    for (int i = 0; i < BLOCK; i++)
        sum += i >= 148 && i < 156 ? 0 : header[i];
    snprintf(text, sizeof(text), "%06o", sum);
    memcpy(header + 148, text, 7);
    header[155] = ' ';
}

#ifndef SEEDS
/* Memory of nbytes, with a page that faults right behind it. */
struct fenced {
    uint8_t *p, *map;
    size_t map_nbytes;
};

static struct fenced fence(size_t nbytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t middle = (nbytes + page - 1) / page * page;
    struct fenced f = {.map_nbytes = middle + page};
    f.map = mmap(NULL, f.map_nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    HOLD(f.map != MAP_FAILED);
    HOLD(middle == 0 || mprotect(f.map, middle, PROT_READ | PROT_WRITE) == 0);
    f.p = f.map + middle - nbytes;
    return f;
}

static void unfence(struct fenced f) { munmap(f.map, f.map_nbytes); }

struct scanned {
    struct fenced numbers, text, owners;
    bt_tar_batch batch;
    int stop;
};

static const uint8_t *next_text(const uint8_t *p, const uint8_t *end)
{
    const uint8_t *nul = memchr(p, 0, (size_t)(end - p));
    HOLD(nul != NULL);
    return nul + 1;
}

static void hold_path(const uint8_t *path, int may_be_empty)
{
    const char *p = (const char *)path;
    HOLD(may_be_empty || *p != 0);
    while (*p != 0) {
        size_t nbytes = strcspn(p, "/");
        HOLD(nbytes > 0 && !(nbytes == 1 && p[0] == '.') && !(nbytes == 2 && p[0] == '.' && p[1] == '.'));
        HOLD(p[nbytes] == 0 || p[nbytes + 1] != 0);
        p += nbytes + (p[nbytes] == '/');
    }
}

static int64_t at(const struct scanned *s, enum bt_tar_column column, size_t n)
{
    return s->batch.numbers[column * s->batch.capacity + n];
}

static struct scanned scan(const uint8_t *in, size_t in_nbytes, size_t capacity, size_t text, size_t owners)
{
    struct scanned s = {fence(capacity * BT_TAR_COLUMNS * 8), fence(text), fence(owners), {0}, 0};
    s.batch.numbers = (int64_t *)(void *)s.numbers.p;
    s.batch.capacity = capacity;
    s.batch.text = s.text.p;
    s.batch.text_nbytes = text;
    s.batch.owners = s.owners.p;
    s.batch.owners_nbytes = owners;
    s.stop = bt_tar_scan(in, in_nbytes, &s.batch);
    HOLD(s.stop == BT_TAR_MORE || s.stop == BT_TAR_ODD);
    HOLD(s.batch.nentries <= capacity && s.batch.text_used <= text && s.batch.owners_used <= owners);

    const uint8_t *p = s.text.p, *end = p + s.batch.text_used, *q = s.owners.p, *owners_end = q + s.batch.owners_used;
    int64_t last = 0, owner = -1;
    for (size_t n = 0; n < s.batch.nentries; n++) {
        int64_t type = at(&s, BT_TAR_TYPE, n), offset = at(&s, BT_TAR_OFFSET, n), size = at(&s, BT_TAR_SIZE, n);
        const uint8_t *link = next_text(p, end);
        HOLD(type >= BT_TAR_FILE && type <= BT_TAR_FIFO);
        hold_path(p, type == BT_TAR_DIRECTORY);
        if (type == BT_TAR_HARDLINK)
            hold_path(link, 0);
        HOLD((*link != 0) == (type == BT_TAR_HARDLINK || type == BT_TAR_SYMLINK));
        HOLD(at(&s, BT_TAR_MODE, n) >= 0 && at(&s, BT_TAR_MODE, n) <= 07777);
        HOLD(at(&s, BT_TAR_UID, n) >= 0 && at(&s, BT_TAR_GID, n) >= 0 && at(&s, BT_TAR_MTIME_NS, n) >= 0);
        HOLD(size >= 0 && (size == 0 || type == BT_TAR_FILE));
        HOLD(offset >= last + BLOCK && offset % BLOCK == 0 && (uint64_t)offset <= in_nbytes);
        HOLD(s.batch.next >= (uint64_t)offset + (uint64_t)size || n + 1 < s.batch.nentries);
        if (at(&s, BT_TAR_OWNER, n) != owner) {
            HOLD(at(&s, BT_TAR_OWNER, n) == ++owner);
            q = next_text(next_text(q, owners_end), owners_end);
        }
        last = offset;
        p = next_text(link, end);
    }
    HOLD(p == end && q == owners_end);
    HOLD(s.batch.nentries > 0 || s.batch.next == 0);
    return s;
}

static void let_go(struct scanned s)
{
    unfence(s.numbers);
    unfence(s.text);
    unfence(s.owners);
}

/* The first entries of `whole` are those of `part`, but for where they begin. Returns where the text of the next is. */
static size_t hold_same(const struct scanned *whole, size_t skip, size_t text, uint64_t moved, const struct scanned *part)
{
    size_t n = part->batch.nentries;
    HOLD(skip + n <= whole->batch.nentries && text + part->batch.text_used <= whole->batch.text_used);
    for (size_t i = 0; i < n; i++)
        for (int column = 0; column < BT_TAR_OWNER; column++)
            HOLD(at(whole, column, skip + i) == at(part, column, i) + (column == BT_TAR_OFFSET ? (int64_t)moved : 0));
    HOLD(part->batch.text_used == 0 || memcmp(whole->batch.text + text, part->batch.text, part->batch.text_used) == 0);
    return text + part->batch.text_used;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < CONTROL_NBYTES)
        return 0;
    size_t nbytes = size - CONTROL_NBYTES;
    struct fenced tar = fence(nbytes);
    if (nbytes > 0)
        memcpy(tar.p, data + CONTROL_NBYTES, nbytes);
    for (size_t block = 0; block + BLOCK <= nbytes; block += BLOCK)
        if (memcmp(tar.p + block + 257, "usta", 4) == 0 || (data[3] & 1 && tar.p[block] != 0))
            checksum(tar.p + block);

    struct scanned whole = scan(tar.p, nbytes, MAX_ENTRIES, 1 << 18, 1 << 17);
    size_t cut = nbytes * data[0] / 255;
    struct scanned part = scan(tar.p, cut, MAX_ENTRIES, 1 << 18, 1 << 17);
    size_t text = hold_same(&whole, 0, 0, 0, &part);
    if (part.batch.next <= nbytes) {
        uint64_t moved = part.batch.next;
        struct scanned rest = scan(tar.p + moved, nbytes - moved, MAX_ENTRIES, 1 << 18, 1 << 17);
        if (part.batch.nentries + rest.batch.nentries <= MAX_ENTRIES) {
            hold_same(&whole, part.batch.nentries, text, moved, &rest);
            HOLD(part.batch.nentries + rest.batch.nentries == whole.batch.nentries && rest.stop == whole.stop);
        }
        let_go(rest);
    }
    struct scanned tight = scan(tar.p, nbytes, data[1] % 8, (size_t)data[2] * 4, data[3]);
    hold_same(&whole, 0, 0, 0, &tight);
    let_go(tight);
    let_go(part);
    let_go(whole);
    unfence(tar);
    return 0;
}
#else
/* ---- the corpus: small tars of every kind, from which mutations start */

static uint8_t seed[1 << 16];
static size_t seed_nbytes;

static uint8_t *header(const char *name, char kind, unsigned size, const char *magic)
{
    uint8_t *h = seed + seed_nbytes;
    memset(h, 0, BLOCK);
    snprintf((char *)h, 100, "%s", name);
    memcpy(h + 100, "0000644\0" "0001750\0" "0001751\0", 24);
    snprintf((char *)h + 124, 12, "%011o", size);
    memcpy(h + 136, "14553675120", 12);
    h[156] = (uint8_t)kind;
    snprintf((char *)h + 157, 100, "%s", kind == '1' || kind == '2' ? "some/target" : "");
    memcpy(h + 257, magic, 8);
    memcpy(h + 265, "user", 5);
    memcpy(h + 297, "group", 6);
    seed_nbytes += BLOCK;
    return h;
}

static void with_data(const char *name, char kind, const char *data, const char *magic)
{
    size_t nbytes = strlen(data);
    checksum(header(name, kind, (unsigned)nbytes, magic));
    memset(seed + seed_nbytes, 0, (nbytes + BLOCK - 1) / BLOCK * BLOCK);
    memcpy(seed + seed_nbytes, data, nbytes);
    seed_nbytes += (nbytes + BLOCK - 1) / BLOCK * BLOCK;
}

int main(int argc, char **argv)
{
    static const char *magics[] = {"ustar\00000", "ustar  ", "\0\0\0\0\0\0\0"};
    HOLD(argc == 2);
    for (int number = 0; number < 12; number++) {
        const char *magic = magics[number % 3];
        static const uint8_t control[4][CONTROL_NBYTES] = {{255, 9, 255, 0}, {128, 3, 5, 200}, {60, 7, 90, 41}, {200, 2, 1, 3}};
        seed_nbytes = CONTROL_NBYTES;
        memcpy(seed, control[number % 4], CONTROL_NBYTES);
        with_data("dir/", '5', "", magic);
        with_data("./dir//file", '0', "content", magic);
        with_data("dir/link", '2', "", magic);
        with_data("dir/hard", '1', "", magic);
        with_data("pipe", '6', "", magic);
        if (number % 2)
            with_data("x", 'x', "11 path=ab\n30 mtime=1700000000.123456789\n16 uid=12345678\n9 size=3\n", magic);
        if (number % 4 == 2) {
            with_data("././@LongLink", 'L', "a/long/name", magic);
            with_data("././@LongLink", 'K', "a/long/target", magic);
        }
        with_data("last", number < 6 ? '0' : '2', number < 6 ? "abc" : "", magic);
        uint8_t *h = header("deep", '0', 0, magic);
        memcpy(h + 345, "prefix/of/it", 12);
        h[108] = 0x80;
        checksum(h);
        memset(seed + seed_nbytes, 0, 2 * BLOCK);
        seed_nbytes += 2 * BLOCK;
        char path[4096];
        snprintf(path, sizeof(path), "%s/seed%02d", argv[1], number);
        FILE *file = fopen(path, "wb");
        HOLD(file != NULL && fwrite(seed, 1, seed_nbytes, file) == seed_nbytes && fclose(file) == 0);
    }
    return 0;
}
#endif
