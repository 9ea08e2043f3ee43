/* gzindex.c - points in a gzip stream that it can be inflated from: found while it is inflated, and used.
 *
 * ISA-L does not stop between blocks, but it stops after the last one. So each block is passed off as the last: the bit that
 * says so is set before ISA-L sees it. When ISA-L considers a stream finished, some versions drop the bits that they read
 * ahead; it does so when all output was handed out, so one byte always seems to be waiting. Output goes through ISA-L's own
 * buffer, the 32 KiB before and some 32 KiB more, which is what a point needs anyway.
 *
 * A block may be longer than points should be apart, even as long as the stream. Within a block a point is the block's
 * header and the place of a symbol: whoever resumes has the header read first, which makes the tables.
 *
 * Of the 32 KiB before a point only that is kept which the next 32 KiB refer to; nothing later can. To find it, these are
 * inflated once more, with markers before them: two bytes that follow each other do so at no other place of the markers. Two of
 * them in what comes out say where they came from, as no match is shorter. */
#include "gzip.h"
#include "wide.h"

#include <stdlib.h>
#include <string.h>

#define WINDOW_NBYTES BT_GZPOINT_WINDOW_NBYTES
#define NOWHERE (WINDOW_NBYTES + 1)
/* Compressed bytes for 32 KiB. More than that has useless blocks in it; then the rest of the window is kept as it is. */
#define AFTER_NBYTES (40u << 10)
/* The longest block header is 2,283 bits: 17, 19 * 3 for the code length code, and 316 lengths of 7 bits. */
#define HEADER_NBYTES 296
/* Room in ISA-L's buffer below which it is moved up rather than filled. */
#define LITTLE_ROOM_NBYTES 4096

/* A piece of the compressed stream. The low `skip_nbits` of its first byte are none of it. */
struct tape {
    unsigned skip_nbits;
    size_t nbytes, room_nbytes;
    uint8_t *bytes;
};

struct marker {
    uint64_t spacing_nbytes;
    /* of this stream, what was inflated so far, whether handed out or not */
    uint64_t out_nbytes;
    uint64_t last_in_nbytes, last_out_nbytes; /* where the last point is */
    int any;                                  /* there was a point */
    enum { NONE, RIPENING, WAITING } state;
    bt_gzpoint point;
    /* the block that is being read */
    struct tape header;  /* its header, and what follows */
    size_t header_nbits; /* how long the header is, once there was a point within the block; 0 before */
    int begun;          /* its first bit was changed, having been ... */
    int final;          /* ... this */
    /* what comes after the point: compressed, and not */
    struct tape after;
    size_t follow_nbytes;
    uint8_t header_bytes[HEADER_NBYTES], after_bytes[AFTER_NBYTES], follow[WINDOW_NBYTES];
    struct inflate_state scratch;
    uint8_t markers[WINDOW_NBYTES], marked[WINDOW_NBYTES];
    uint16_t places[WINDOW_NBYTES / 2];
    uint8_t used[NOWHERE + 4]; /* of byte i of the window i + 1 */
};

static uint64_t low_bits(uint64_t value, unsigned nbits)
{
    return nbits >= 64 ? value : value & ((UINT64_C(1) << nbits) - 1);
}

/* ---- bits --------------------------------------------------------------------------------------------------- */

static void record(struct tape *tape, const uint8_t *p, size_t nbytes)
{
    size_t room = tape->room_nbytes - tape->nbytes;
    size_t take = nbytes < room ? nbytes : room;
    memcpy(tape->bytes + tape->nbytes, p, take);
    tape->nbytes += take;
}

/* Begins a tape with what ISA-L has read and not used. */
static void record_ahead(struct tape *tape, const struct inflate_state *d)
{
    unsigned nbits = (unsigned)d->read_in_length, part = nbits % 8;
    uint64_t bits = low_bits(d->read_in, nbits);

    tape->nbytes = 0;
    tape->skip_nbits = part > 0 ? 8 - part : 0;
    if (part > 0)
        tape->bytes[tape->nbytes++] = (uint8_t)(bits << tape->skip_nbits);
    bits >>= part;
    for (unsigned i = 0; i < nbits / 8; i++)
        tape->bytes[tape->nbytes++] = (uint8_t)(bits >> 8 * i);
    if (d->block_state == ISAL_BLOCK_HDR)
        record(tape, d->tmp_in_buffer, (size_t)d->tmp_in_size);
}

/* The `nbits` (at most 8) from bit `at` of p on. */
static unsigned bits_at(const uint8_t *p, size_t at, unsigned nbits)
{
    unsigned found = p[at / 8] >> at % 8;
    if (nbits > 8 - at % 8)
        found |= (unsigned)p[at / 8 + 1] << (8 - at % 8);
    return (unsigned)low_bits(found, nbits);
}

/* Has d read a block's header: `nbits` from bit `at` of p on. 1 when it is read, and it was all of that. */
static int read_header(struct inflate_state *d, const uint8_t *p, size_t at, size_t nbits)
{
    uint8_t whole[HEADER_NBYTES], nothing[1] = {0};
    unsigned part = nbits % 8;

    d->read_in = bits_at(p, at, part);
    d->read_in_length = (int32_t)part;
    at += part;
    for (size_t i = 0; i < nbits / 8; i++)
        whole[i] = (uint8_t)bits_at(p, at + 8 * i, 8);
    d->next_in = whole;
    d->avail_in = (uint32_t)(nbits / 8);
    d->next_out = nothing;
    d->avail_out = 0;
    return isal_inflate(d) == ISAL_DECOMP_OK && d->block_state == ISAL_BLOCK_CODED && d->read_in_length == 0 &&
           d->avail_in == 0;
}

static void reset(struct inflate_state *d)
{
    isal_inflate_reset(d);
    d->crc_flag = ISAL_DEFLATE;
}

/* ---- points ------------------------------------------------------------------------------------------------- */

/* How many bits the header of this block has, tried out: ISA-L does not say. 0: none that is all on the tape. */
static size_t find_header_nbits(struct marker *m)
{
    size_t most = 8 * m->header.nbytes - m->header.skip_nbits;
    if (most > 8 * (HEADER_NBYTES - 1))
        most = 8 * (HEADER_NBYTES - 1);
    for (size_t nbits = 3; nbits <= most; nbits++) {
        reset(&m->scratch);
        if (read_header(&m->scratch, m->header.bytes, m->header.skip_nbits, nbits))
            return nbits;
    }
    return 0;
}

/* From a state to the beginning of what follows a point, with `window` before it. 1 if that can be. */
static int prime(struct inflate_state *d, const bt_gzpoint *point, const uint8_t *window)
{
    if (point->header_nbits > 0 && !read_header(d, point->header, 0, point->header_nbits))
        return 0;
    memcpy(d->tmp_out_buffer, window, point->window_nbytes);
    d->tmp_out_valid = d->tmp_out_processed = (int32_t)point->window_nbytes;
    d->dict_length = point->window_nbytes;
    d->read_in = low_bits(point->bits, point->nbits);
    d->read_in_length = point->nbits;
    return 1;
}

/* Inflates what follows the point with `window` before it, into out. How much came; at most follow_nbytes. */
static size_t run(struct marker *m, const uint8_t *window, uint8_t *out)
{
    struct inflate_state *d = &m->scratch;
    size_t first = m->after.skip_nbits > 0; /* the byte whose bits are the point's */

    reset(d);
    if (!prime(d, &m->point, window))
        return 0;
    d->next_in = m->after.bytes + first;
    d->avail_in = (uint32_t)(m->after.nbytes - first);
    d->next_out = out;
    d->avail_out = (uint32_t)m->follow_nbytes;
    if (isal_inflate(d) != ISAL_DECOMP_OK)
        return 0;
    return m->follow_nbytes - d->avail_out;
}

/* The markers, part by part: 0, then 0 before each greater byte; 1, then 1 before each greater byte; and so on. */
static void write_markers(uint8_t out[WINDOW_NBYTES])
{
    size_t n = 0;
    for (unsigned part = 0; n < WINDOW_NBYTES; part++)
        for (unsigned i = 0; i < 511 - 2 * part && n < WINDOW_NBYTES; i++)
            out[n++] = (uint8_t)(i % 2 == 0 ? part + i / 2 : part);
}

/* Where in the markers each two bytes are, the 1st and 2nd, the 3rd and 4th, and so on; for what is nowhere in them,
 * WINDOW_NBYTES - 1 or more. In 16 bits, which compilers do many at a time. */
static void find_places(const uint8_t *bytes, size_t npairs, uint16_t *places)
{
    for (size_t k = 0; k < npairs; k++) {
        int16_t first = bytes[2 * k], second = bytes[2 * k + 1];
        int16_t less = first < second ? first : second, greater = first < second ? second : first;
        /* part p begins at p * (512 - p); its last byte is 255, before the next part's first */
        uint16_t within = (uint16_t)(less * (512 - less) + 2 * (greater - less) - (first < second));
        uint16_t between = (uint16_t)(second * (512 - second) - 1);
        places[k] = first == 255 ? between : within;
    }
}

#define ONES UINT64_C(0x0101010101010101)

static uint64_t eight_at(const uint8_t *p)
{
    uint64_t bytes;
    memcpy(&bytes, p, sizeof(bytes));
    return bytes;
}

static uint32_t two_at(const uint8_t *p)
{
    uint16_t bytes;
    memcpy(&bytes, p, sizeof(bytes));
    return bytes;
}

/* That the window's bytes `at` and `at` + 1 are used, and so perhaps their neighbours. */
static void set_used(struct marker *m, uint32_t at) { memset(m->used + at, 0xff, 4); }

/* Finds what of the point's window the first `known` bytes after it come from, and may take a little more for used. Looks at
 * every other pair of bytes, as no match is shorter than three. */
static void find_used(struct marker *m, size_t known)
{
    const uint8_t *window = m->point.window;
    uint32_t size = m->point.window_nbytes;

    memset(m->used, 0, sizeof(m->used));
    /* A match that goes on with what follows may have only one or two of the window. */
    set_used(m, size - 1);
    /* What looks like its markers is passed over below. */
    for (uint32_t i = 0; i + 1 < size; i += 8) {
        uint64_t differ = eight_at(window + i) ^ eight_at(m->markers + i);
        if (((differ - ONES) & ~differ & 0x80 * ONES) == 0)
            continue; /* none of the eight is zero */
        for (uint32_t k = i; k < i + 8 && k + 1 < size; k++)
            if (two_at(window + k) == two_at(m->markers + k))
                set_used(m, k);
    }
    find_places(m->marked, known / 2, m->places);
    for (size_t j = 0; j + 1 < known; j += 8) {
        /* what is the same with markers before it comes from the stream */
        if (j + 8 <= known && eight_at(m->marked + j) == eight_at(m->follow + j))
            continue;
        for (size_t k = j; k < j + 8 && k + 1 < known; k += 2) {
            uint32_t at = m->places[k / 2];
            /* without a branch, which would often be guessed wrong; and so that no compiler makes one of it */
            uint32_t none = 0u - (at >= size - 1);
            at &= ~none;
            uint32_t differ = two_at(window + at) ^ two_at(m->follow + k);
            none |= 0u - ((differ + 0xffff) >> 16);
            set_used(m, (at & ~none) | (NOWHERE & none));
        }
    }
}

/* Leaves zeros in the point's window where nothing refers to. `ended`: the member ends with what follows. */
static void prune(struct marker *m, int ended)
{
    bt_gzpoint *point = &m->point;
    size_t size = point->window_nbytes, known = run(m, m->markers, m->marked);
    uint8_t *used = m->used + 1;

    find_used(m, known);
    /* What was not looked at refers to no more than 32 KiB before itself; nor do two bytes of a match that goes on in it. */
    if (known < WINDOW_NBYTES && !(ended && known == m->follow_nbytes)) {
        size_t lost = known + size > WINDOW_NBYTES + 2 ? known + size - WINDOW_NBYTES - 2 : 0;
        memset(used + lost, 0xff, size - lost);
    }
    for (size_t i = 0; i < size; i++)
        point->window[i] &= used[i];
}

/* Whether nothing that comes now refers to the point's window, or as much is known as will be. */
static void ripen(struct marker *m, int ended)
{
    if (m->state != RIPENING)
        return;
    if (!ended && m->follow_nbytes < WINDOW_NBYTES && m->after.nbytes < m->after.room_nbytes)
        return;
    if (m->point.window_nbytes > 0)
        prune(m, ended);
    if (m->point.header_nbits > 0) {
        size_t first = m->after.skip_nbits > 0, there = m->after.nbytes - first;
        m->point.ahead_nbytes = there < BT_GZPOINT_AHEAD_NBYTES ? (uint32_t)there : BT_GZPOINT_AHEAD_NBYTES;
        memcpy(m->point.ahead, m->after.bytes + first, m->point.ahead_nbytes);
    }
    m->state = WAITING;
}

/* A point at bit `in_nbits` of the stream, where m->out_nbytes have come out. */
static void note(bt_inflater *z, uint64_t in_nbits, size_t nheader_bits)
{
    struct marker *m = z->marker;
    struct inflate_state *d = &z->deflate;
    bt_gzpoint *point = &m->point;
    uint32_t valid = (uint32_t)d->tmp_out_valid, waiting = valid - (uint32_t)d->tmp_out_processed;

    point->in_nbytes = (in_nbits + 7) / 8;
    point->out_nbytes = m->out_nbytes;
    point->nbits = (uint8_t)(8 * point->in_nbytes - in_nbits);
    point->bits = (uint8_t)low_bits(d->read_in, point->nbits);
    point->crc = crc32_gzip_refl(d->crc, d->tmp_out_buffer + d->tmp_out_processed, waiting);
    point->member_nbytes = z->member_nbytes + waiting;
    point->ahead_nbytes = 0;
    point->header_nbits = (uint32_t)nheader_bits;
    memset(point->header, 0, sizeof(point->header));
    for (size_t i = 0; i < nheader_bits; i++)
        point->header[i / 8] |= (uint8_t)(bits_at(m->header.bytes, m->header.skip_nbits + i, 1) << i % 8);
    point->window_nbytes = valid < WINDOW_NBYTES ? valid : WINDOW_NBYTES;
    memcpy(point->window, d->tmp_out_buffer + (valid - point->window_nbytes), point->window_nbytes);

    m->last_in_nbytes = point->in_nbytes;
    m->last_out_nbytes = point->out_nbytes;
    m->any = 1;
    m->state = RIPENING;
    m->follow_nbytes = 0;
    record_ahead(&m->after, d);
    if (point->window_nbytes == 0)
        ripen(m, 1);
}

static int is_far(const struct marker *m, uint64_t in_nbits, uint64_t nbytes)
{
    return m->state == NONE && (m->out_nbytes - m->last_out_nbytes >= nbytes || in_nbits / 8 - m->last_in_nbytes >= nbytes);
}

void bt_marker_begin_body(bt_inflater *z, uint64_t in_nbytes)
{
    struct marker *m = z->marker;
    m->begun = 0;
    m->header_nbits = 0;
    record_ahead(&m->header, &z->deflate);
    /* needs no window, so it is worth having where another one would not be */
    if (!m->any || is_far(m, 8 * in_nbytes, m->spacing_nbytes / 4))
        note(z, 8 * in_nbytes, 0);
}

/* Hands out what waits in ISA-L's buffer. */
static void hand_out(bt_inflater *z, uint8_t **out, size_t *out_nbytes)
{
    struct inflate_state *d = &z->deflate;
    size_t n = (size_t)(d->tmp_out_valid - d->tmp_out_processed);

    if (n > *out_nbytes)
        n = *out_nbytes;
    if (n == 0)
        return;
    memcpy(*out, d->tmp_out_buffer + d->tmp_out_processed, n);
    d->crc = crc32_gzip_refl(d->crc, *out, n);
    clear_upper_halves();
    d->tmp_out_processed += (int32_t)n;
    z->member_nbytes += (uint32_t)n;
    *out += n;
    *out_nbytes -= n;
}

/* Makes room behind the 32 KiB that may be referred to. Nothing waits. */
static void make_room(struct inflate_state *d)
{
    if (d->tmp_out_valid <= (int32_t)(2 * WINDOW_NBYTES - LITTLE_ROOM_NBYTES))
        return;
    memmove(d->tmp_out_buffer, d->tmp_out_buffer + d->tmp_out_valid - WINDOW_NBYTES, WINDOW_NBYTES);
    d->tmp_out_valid = d->tmp_out_processed = WINDOW_NBYTES;
}

/* Passes the block that begins off as the last; 0 when its first bit is not there yet. */
static int begin_block(struct marker *m, struct inflate_state *d, struct span *in)
{
    if (d->read_in_length == 0) {
        if (in->nbytes == 0)
            return 0;
        d->read_in = *in->p++;
        d->read_in_length = 8;
        in->nbytes--;
    }
    m->final = (int)(d->read_in & 1);
    d->read_in |= 1;
    m->begun = 1;
    return 1;
}

/* Inflates into ISA-L's buffer, in which nothing waits: to the end of the block, of the input, or of the room. */
static int fill(bt_inflater *z, uint64_t end_nbytes, struct span *in)
{
    struct marker *m = z->marker;
    struct inflate_state *d = &z->deflate;
    struct span before = *in;
    uint8_t nothing[1] = {0};
    size_t made = 0;

    if (m->begun || begin_block(m, d, in)) {
        d->tmp_out_processed -= 1;
        int result = bt_inflate_call(z, in, nothing, 0, &made);
        if (result != BT_OK)
            return result;
        d->tmp_out_processed += 1;
    }
    if (d->read_in_length < 0 || d->read_in_length > 64 || d->tmp_out_processed < 0 ||
        d->tmp_out_processed > d->tmp_out_valid || d->tmp_out_valid > (int32_t)sizeof(d->tmp_out_buffer))
        return BT_INTERNAL;

    size_t fresh = (size_t)(d->tmp_out_valid - d->tmp_out_processed);
    m->out_nbytes += fresh;
    record(&m->header, before.p, before.nbytes - in->nbytes);
    if (m->state == RIPENING) {
        size_t room = WINDOW_NBYTES - m->follow_nbytes, take = fresh < room ? fresh : room;
        memcpy(m->follow + m->follow_nbytes, d->tmp_out_buffer + d->tmp_out_processed, take);
        m->follow_nbytes += take;
        record(&m->after, before.p, before.nbytes - in->nbytes);
    }
    int at_end = d->block_state == ISAL_BLOCK_INPUT_DONE;
    ripen(m, at_end && m->final);
    uint64_t in_nbits = 8 * (end_nbytes - in->nbytes) - (uint64_t)d->read_in_length;
    if (at_end && !m->final) {
        d->block_state = ISAL_BLOCK_NEW_HDR;
        m->begun = 0;
        m->header_nbits = 0;
        record_ahead(&m->header, d);
        if (is_far(m, in_nbits, m->spacing_nbytes))
            note(z, in_nbits, 0);
    } else if (d->block_state == ISAL_BLOCK_CODED &&
               is_far(m, in_nbits, m->header_nbits > 0 ? m->spacing_nbytes : 2 * m->spacing_nbytes)) {
        /* that it goes on for so long already says that it may go on for long */
        if (m->header_nbits == 0)
            m->header_nbits = find_header_nbits(m);
        if (m->header_nbits == 0)
            return BT_INTERNAL;
        note(z, in_nbits, m->header_nbits);
    }
    return BT_OK;
}

int bt_marker_body(bt_inflater *z, uint64_t end_nbytes, struct span *in, uint8_t **out, size_t *out_nbytes, int *more)
{
    struct marker *m = z->marker;
    struct inflate_state *d = &z->deflate;

    hand_out(z, out, out_nbytes);
    if (d->tmp_out_processed < d->tmp_out_valid) {
        *more = 0;
        return BT_OK;
    }
    if (d->block_state == ISAL_BLOCK_INPUT_DONE)
        return bt_inflate_end_body(z);
    make_room(d);

    size_t in_nbytes = in->nbytes;
    uint64_t made_nbytes = m->out_nbytes;
    int32_t ahead_nbits = d->read_in_length;
    enum isal_block_state state = d->block_state;
    int result = fill(z, end_nbytes, in);
    if (result != BT_OK)
        return result;
    /* Input or bits read ahead went, something came, or a block ended. */
    *more = in->nbytes != in_nbytes || m->out_nbytes != made_nbytes || d->read_in_length != ahead_nbits ||
            d->block_state != state;
    return *more || in->nbytes == 0 ? BT_OK : BT_INTERNAL;
}

/* ---- for the caller ----------------------------------------------------------------------------------------- */

int bt_marker_waits(const struct marker *m) { return m->state == WAITING; }

void bt_marker_free(struct marker *m) { free(m); }

int bt_inflate_mark(bt_inflater *z, uint64_t spacing_nbytes)
{
    int result = BT_OK;
    if (spacing_nbytes == 0 || spacing_nbytes > BT_GZPOINT_MAX_SPACING)
        return BT_BAD_ARGUMENT;
    if (!claim(&z->busy))
        return BT_BUSY;
    if (z->marker != NULL || z->total_in_nbytes > 0 || z->step != FIXED_HEADER || z->failure != BT_OK) {
        result = BT_BAD_ARGUMENT;
    } else if ((z->marker = calloc(1, sizeof(*z->marker))) == NULL) {
        result = BT_NO_MEMORY;
    } else {
        struct marker *m = z->marker;
        isal_inflate_init(&m->scratch);
        write_markers(m->markers);
        m->spacing_nbytes = spacing_nbytes;
        m->header = (struct tape){.bytes = m->header_bytes, .room_nbytes = sizeof(m->header_bytes)};
        m->after = (struct tape){.bytes = m->after_bytes, .room_nbytes = sizeof(m->after_bytes)};
    }
    release(&z->busy);
    return result;
}

int bt_inflate_point(bt_inflater *z, bt_gzpoint *point, int *found)
{
    if (!claim(&z->busy))
        return BT_BUSY;
    struct marker *m = z->marker;
    *found = m != NULL && bt_marker_waits(m);
    if (*found) {
        *point = m->point;
        m->state = NONE;
    }
    release(&z->busy);
    return BT_OK;
}

int bt_inflate_resume(bt_inflater *z, const bt_gzpoint *point)
{
    if (point->nbits > 7 || point->window_nbytes > WINDOW_NBYTES || point->header_nbits > 8 * sizeof(point->header))
        return BT_BAD_ARGUMENT;
    if (!claim(&z->busy))
        return BT_BUSY;
    int result = BT_BAD_ARGUMENT;
    if (z->marker == NULL && z->total_in_nbytes == 0 && z->step == FIXED_HEADER && z->failure == BT_OK) {
        bt_inflate_begin_body(z);
        if (prime(&z->deflate, point, point->window)) {
            z->deflate.crc = point->crc;
            z->member_nbytes = point->member_nbytes;
            result = BT_OK;
        } else {
            result = z->failure = BT_BAD_DEFLATE;
        }
    }
    release(&z->busy);
    return result;
}
