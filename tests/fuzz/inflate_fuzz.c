/* inflate_fuzz.c - libFuzzer target: the gzip reader on any input, in any pieces, beside zlib.
 *
 * The first four bytes of a test case choose sizes of the pieces in and out, the rest is the stream. What is held:
 *  - nothing is read or written outside the buffers. ISA-L is partly assembler, which sanitizers do not see into: the
 *    input ends, and the output begins and ends, at pages that fault;
 *  - each call gets further or fails, and no more than the cap comes out;
 *  - whole or in pieces, the answer is the same;
 *  - as far as both we and zlib get, the bytes are the same; and what zlib accepts, we accept;
 *  - what the reader of whole members accepts is what the other reads;
 *  - looking for points changes nothing of that, and from each point comes what comes there, up to the next one;
 *  - a point made of anything does no harm.
 * Run it by scripts/sanitize. Called with -DSEEDS, this file writes a corpus to the folder it is given instead. */
#define _GNU_SOURCE
#include "blobtee.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#define CAP_NBYTES (1u << 20)
#define CONTROL_NBYTES 4

#define HOLD(condition)                                                                                  \
    do {                                                                                                 \
        if (!(condition)) {                                                                              \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);               \
            abort();                                                                                     \
        }                                                                                                \
    } while (0)

/* Memory of nbytes, with a page that faults right behind it and one some bytes before it. */
struct fenced {
    uint8_t *p, *map;
    size_t map_nbytes;
};

static struct fenced fence(size_t nbytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t middle = (nbytes + page - 1) / page * page;
    struct fenced f = {.map_nbytes = middle + 2 * page};
    f.map = mmap(NULL, f.map_nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    HOLD(f.map != MAP_FAILED);
    HOLD(middle == 0 || mprotect(f.map + page, middle, PROT_READ | PROT_WRITE) == 0);
    f.p = f.map + page + middle - nbytes;
    return f;
}

static void unfence(struct fenced f) { munmap(f.map, f.map_nbytes); }

struct answer {
    int result;
    size_t nbytes;
    int capped;
};

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* The stream through an inflater; in_step and out_step at most a call. What comes out is kept in `all`. */
static struct answer ours(const uint8_t *stream, size_t nbytes, size_t in_step, size_t out_step, uint8_t *all)
{
    struct answer a = {0};
    struct fenced out = fence(out_step);
    bt_inflater *z = bt_inflate_alloc();
    HOLD(z != NULL);
    size_t at = 0, calls_without_progress = 0;

    for (;;) {
        size_t give = smaller(in_step, nbytes - at), used = 12345, made = 12345;
        size_t space = smaller(out_step, CAP_NBYTES - a.nbytes);
        a.result = bt_inflate(z, stream + at, give, &used, out.p, space, &made);
        HOLD(used <= give && made <= space);
        if (a.result != BT_OK) {
            HOLD(used == 0 && made == 0);
            HOLD(bt_inflate(z, stream, nbytes, &used, out.p, space, &made) == a.result);
            HOLD(bt_inflate_finish(z) == a.result);
            break;
        }
        if (give > 0 && space > 0)
            HOLD(used > 0 || made > 0);
        memcpy(all + a.nbytes, out.p, made);
        at += used;
        a.nbytes += made;
        if (a.nbytes == CAP_NBYTES) {
            a.capped = 1;
            break;
        }
        bt_inflate_info info;
        HOLD(bt_inflate_stat(z, &info) == BT_OK);
        HOLD(info.total_in_nbytes == at && info.total_out_nbytes == a.nbytes && info.failure == BT_OK);
        calls_without_progress = used == 0 && made == 0 ? calls_without_progress + 1 : 0;
        HOLD(calls_without_progress < 2);
        if (at == nbytes && info.needs_input) {
            a.result = bt_inflate_finish(z);
            HOLD(a.result == (info.finished ? BT_OK : BT_TRUNCATED));
            break;
        }
    }
    bt_inflate_free(z);
    unfence(out);
    return a;
}

/* The same by zlib: 1 and the output, when it takes the stream as whole members with nothing but zeros behind. */
static int theirs(const uint8_t *stream, size_t nbytes, uint8_t *all, size_t *all_nbytes)
{
    size_t at = 0, members = 0;
    *all_nbytes = 0;
    while (at < nbytes) {
        if (members > 0 && stream[at] == 0) {
            while (at < nbytes && stream[at] == 0)
                at++;
            return at == nbytes;
        }
        z_stream z = {0};
        HOLD(inflateInit2(&z, 31) == Z_OK);
        z.next_in = (Bytef *)(uintptr_t)(stream + at);
        z.avail_in = (uInt)(nbytes - at);
        z.next_out = all + *all_nbytes;
        z.avail_out = (uInt)(CAP_NBYTES - *all_nbytes);
        int result = inflate(&z, Z_FINISH);
        at = nbytes - z.avail_in;
        *all_nbytes = CAP_NBYTES - z.avail_out;
        inflateEnd(&z);
        if (result != Z_STREAM_END)
            return 0;
        members++;
    }
    return members > 0;
}

/* The stream as one whole member of out_nbytes bytes; `all` is what the other reader made of it, if that was OK. */
static void at_once(const uint8_t *stream, size_t nbytes, size_t out_nbytes, struct answer other, const uint8_t *all)
{
    struct fenced out = fence(out_nbytes);
    bt_gunzipper *g = bt_gunzip_alloc();
    HOLD(g != NULL);
    int result = bt_gunzip_member(g, stream, nbytes, out.p, out_nbytes);
    HOLD(result == BT_OK || result == BT_BAD_DEFLATE);
    if (result == BT_OK && other.result == BT_OK && !other.capped) {
        HOLD(other.nbytes == out_nbytes);
        HOLD(memcmp(out.p, all, out_nbytes) == 0);
    }
    bt_gunzip_free(g);
    unfence(out);
}

/* The stream by an inflater that begins at `from`: out_nbytes bytes of it, with no more input than up to `to`, if there is a
 * next point, are what `all` has there; and it is where that point says then. */
static void from_point(const uint8_t *stream, size_t nbytes, const bt_gzpoint *from, const bt_gzpoint *to,
                       const uint8_t *all, size_t all_nbytes)
{
    size_t end = to != NULL ? to->in_nbytes : nbytes, out_end = to != NULL ? to->out_nbytes : all_nbytes;
    HOLD(from->in_nbytes <= end && end <= nbytes && from->out_nbytes <= out_end);
    struct fenced in = fence(end - from->in_nbytes), out = fence(out_end - from->out_nbytes);
    size_t in_nbytes = end - from->in_nbytes, out_nbytes = out_end - from->out_nbytes, used, made, more;
    if (in_nbytes > 0)
        memcpy(in.p, stream + from->in_nbytes, in_nbytes);
    bt_inflater *z = bt_inflate_alloc();
    HOLD(z != NULL && bt_inflate_resume(z, from) == BT_OK);
    HOLD(bt_inflate(z, in.p, in_nbytes, &used, out.p, out_nbytes, &made) == BT_OK);
    HOLD(bt_inflate(z, in.p + used, in_nbytes - used, &more, out.p, 0, &more) == BT_OK);
    if (made < out_nbytes) {
        HOLD(to != NULL && to->header_nbits > 0);
        HOLD(bt_inflate(z, to->ahead, to->ahead_nbytes, &used, out.p + made, out_nbytes - made, &more) == BT_OK);
        made += more;
    }
    HOLD(made == out_nbytes && (made == 0 || memcmp(out.p, all + from->out_nbytes, made) == 0));
    bt_inflate_info info;
    HOLD(bt_inflate_stat(z, &info) == BT_OK);
    if (to != NULL)
        HOLD(info.crc == to->crc && info.member_nbytes == to->member_nbytes);
    else
        HOLD(bt_inflate_finish(z) == BT_OK);
    bt_inflate_free(z);
    unfence(in);
    unfence(out);
}

/* The stream with points, in pieces; `plain` is what it gave without. */
static void with_points(const uint8_t *stream, size_t nbytes, size_t in_step, size_t out_step, uint64_t spacing,
                        struct answer plain, const uint8_t *all)
{
    static bt_gzpoint points[2];
    struct fenced out = fence(out_step);
    bt_inflater *z = bt_inflate_alloc();
    size_t at = 0, nbytes_out = 0, used = 0, made = 0;
    int result, found, npoints = 0, idle = 0;
    HOLD(z != NULL && bt_inflate_mark(z, spacing) == BT_OK);

    for (;;) {
        size_t give = smaller(in_step, nbytes - at), space = smaller(out_step, CAP_NBYTES - nbytes_out);
        result = bt_inflate(z, stream + at, give, &used, out.p, space, &made);
        if (result != BT_OK)
            break;
        HOLD(used <= give && made <= space);
        HOLD(memcmp(all + nbytes_out, out.p, smaller(made, nbytes_out < plain.nbytes ? plain.nbytes - nbytes_out : 0)) == 0);
        at += used;
        nbytes_out += made;
        HOLD(bt_inflate_point(z, &points[npoints % 2], &found) == BT_OK);
        if (found) {
            const bt_gzpoint *point = &points[npoints % 2], *before = &points[(npoints + 1) % 2];
            HOLD(npoints > 0 || point->out_nbytes == 0);
            if (npoints++ > 0 && point->out_nbytes <= plain.nbytes)
                from_point(stream, nbytes, before, point, all, plain.nbytes);
            idle = 0;
            continue;
        }
        if (nbytes_out == CAP_NBYTES)
            break;
        idle = used == 0 && made == 0 ? idle + 1 : 0;
        HOLD(idle < 2);
        bt_inflate_info info;
        HOLD(bt_inflate_stat(z, &info) == BT_OK);
        if (at == nbytes && info.needs_input) {
            result = bt_inflate_finish(z);
            break;
        }
    }
    if (nbytes_out < CAP_NBYTES && !plain.capped) {
        HOLD(result == plain.result);
        if (result == BT_OK) {
            HOLD(nbytes_out == plain.nbytes && npoints > 0);
            from_point(stream, nbytes, &points[(npoints + 1) % 2], NULL, all, plain.nbytes);
        }
    }
    bt_inflate_free(z);
    unfence(out);
}

/* Bytes as a point, and as the stream from there on. */
static void from_anything(const uint8_t *data, size_t nbytes, size_t out_step)
{
    static bt_gzpoint point;
    struct fenced out = fence(out_step);
    size_t used = 0, made = 0, at = smaller(nbytes, 400);
    memset(&point, 0, sizeof(point));
    memcpy(&point, data, smaller(nbytes, offsetof(bt_gzpoint, window)));
    memcpy(point.window, data, smaller(nbytes, sizeof(point.window)));
    point.nbits %= 9;
    point.window_nbytes %= BT_GZPOINT_WINDOW_NBYTES + 2;
    point.header_nbits %= 8 * BT_GZPOINT_HEADER_NBYTES + 2;
    bt_inflater *z = bt_inflate_alloc();
    HOLD(z != NULL);
    int result = bt_inflate_resume(z, &point);
    for (int calls = 0; result == BT_OK && calls < 100; calls++) {
        result = bt_inflate(z, data + at, nbytes - at, &used, out.p, out_step, &made);
        at += used;
        if (result == BT_OK && used == 0 && made == 0)
            break;
    }
    HOLD(result != BT_INTERNAL);
    bt_inflate_free(z);
    unfence(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t whole[CAP_NBYTES], pieces[CAP_NBYTES], reference[CAP_NBYTES];
    if (size < CONTROL_NBYTES)
        return 0;
    size_t nbytes = size - CONTROL_NBYTES;
    size_t in_step = 1 + (size_t)data[0] * data[1], out_step = 1 + (size_t)data[2] * data[3];
    struct fenced stream = fence(nbytes);
    if (nbytes > 0)
        memcpy(stream.p, data + CONTROL_NBYTES, nbytes);

    struct answer first = ours(stream.p, nbytes, nbytes, CAP_NBYTES, whole);
    struct answer second = ours(stream.p, nbytes, in_step, out_step, pieces);
    size_t reference_nbytes;
    int accepted = theirs(stream.p, nbytes, reference, &reference_nbytes);

    if (!first.capped && !second.capped) {
        HOLD(first.result == second.result);
        if (first.result == BT_OK)
            HOLD(first.nbytes == second.nbytes);
    }
    HOLD(memcmp(whole, pieces, smaller(first.nbytes, second.nbytes)) == 0);
    HOLD(memcmp(pieces, reference, smaller(second.nbytes, reference_nbytes)) == 0);
    if (accepted && reference_nbytes < CAP_NBYTES) {
        HOLD(first.result == BT_OK && first.nbytes == reference_nbytes);
        HOLD(memcmp(whole, reference, reference_nbytes) == 0);
    }
    at_once(stream.p, nbytes, first.nbytes, first, whole);
    at_once(stream.p, nbytes, out_step, first, whole);
    with_points(stream.p, nbytes, in_step, out_step, 1 + (uint64_t)data[1] * data[2], first, whole);
    from_anything(stream.p, nbytes, out_step);
    unfence(stream);
    return 0;
}

#ifdef SEEDS
/* ---- the corpus: small streams of every kind, from which mutations start */

static uint8_t seed[1 << 20];
static size_t seed_nbytes;
static int seeds;
static const char *folder;

static void put(const void *p, size_t nbytes)
{
    HOLD(seed_nbytes + nbytes <= sizeof(seed));
    memcpy(seed + seed_nbytes, p, nbytes);
    seed_nbytes += nbytes;
}

static void begin(void)
{
    static const uint8_t steps[][CONTROL_NBYTES] = {{0, 0, 0, 0}, {1, 1, 255, 255}, {255, 255, 1, 1}, {7, 3, 20, 5}};
    seed_nbytes = 0;
    put(steps[seeds % 4], CONTROL_NBYTES);
}

static void end(void)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/seed%03d", folder, seeds++);
    FILE *file = fopen(path, "wb");
    HOLD(file != NULL && fwrite(seed, 1, seed_nbytes, file) == seed_nbytes && fclose(file) == 0);
}

static void member(const uint8_t *data, size_t nbytes, int level, int strategy, int flags)
{
    static const uint8_t extra[] = {6, 0, 'B', 'C', 2, 0, 1, 2};
    uint8_t header[64] = {0x1f, 0x8b, 8, (uint8_t)flags, 0, 0, 0, 0, 0, 3};
    size_t n = 10;
    if (flags & 4) {
        memcpy(header + n, extra, sizeof(extra));
        n += sizeof(extra);
    }
    if (flags & 8) {
        memcpy(header + n, "name", 5);
        n += 5;
    }
    if (flags & 16) {
        memcpy(header + n, "note", 5);
        n += 5;
    }
    if (flags & 2) {
        uLong crc = crc32(0, header, (uInt)n);
        header[n++] = (uint8_t)crc;
        header[n++] = (uint8_t)(crc >> 8);
    }
    put(header, n);
    z_stream z = {0};
    HOLD(deflateInit2(&z, level, Z_DEFLATED, -15, 9, strategy) == Z_OK);
    z.next_in = (Bytef *)(uintptr_t)data;
    z.avail_in = (uInt)nbytes;
    z.next_out = seed + seed_nbytes;
    z.avail_out = (uInt)(sizeof(seed) - seed_nbytes);
    HOLD(deflate(&z, Z_FINISH) == Z_STREAM_END);
    seed_nbytes = sizeof(seed) - z.avail_out;
    deflateEnd(&z);
    uint32_t trailer[2] = {(uint32_t)crc32(0, data, (uInt)nbytes), (uint32_t)nbytes};
    put(trailer, sizeof(trailer));
}

int main(int argc, char **argv)
{
    static uint8_t data[100000], zeros[300];
    HOLD(argc == 2);
    folder = argv[1];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = i % 1000 < 500 ? (uint8_t)(i * i >> 7) : i < 40000 ? data[i / 2] : (uint8_t)"blobtee "[i % 8];
    static const size_t sizes[] = {0, 1, 50, 700, 5000, 70000, 100000};
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++)
        for (int kind = 0; kind < 5; kind++) {
            static const int levels[] = {0, 1, 9, 6, 6}, strategies[] = {0, 0, 0, Z_FIXED, Z_HUFFMAN_ONLY};
            begin();
            member(data, sizes[s], levels[kind], strategies[kind], kind == 0 ? 2 | 4 | 8 | 16 : 0);
            end();
        }
    for (int flags = 0; flags < 32; flags++) {
        begin();
        member(data, 20, 6, 0, flags);
        end();
    }
    for (int members = 2; members < 5; members++) {
        begin();
        for (int i = 0; i < members; i++)
            member(data + 100 * i, (size_t)(i * 97), 6, 0, i * 4 & 31);
        put(zeros, members == 3 ? sizeof(zeros) : 0);
        end();
    }
    return 0;
}
#endif
