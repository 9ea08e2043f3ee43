/* gzip.c - gzip streams in (deflate by ISA-L, the members around it here) and gzip members out (libdeflate).
 *
 * ISA-L could parse headers and trailers itself. It is done here because a stream of several members, padding after it, the
 * header checksum, and being handed one byte at a time are where readers go wrong, and this way it is one small machine. */
#include "gzip.h"
#include "wide.h"

#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

const char *bt_isal_version(void)
{
    return TEXT(ISAL_MAJOR_VERSION) "." TEXT(ISAL_MINOR_VERSION) "." TEXT(ISAL_PATCH_VERSION);
}

const char *bt_libdeflate_version(void) { return LIBDEFLATE_VERSION_STRING; }

/* ---- reading ------------------------------------------------------------------------------------------------ */

/* RFC 1952 section 2.3.1, the bits of FLG. FTEXT (1) is a hint without consequences. */
#define FHCRC 0x02
#define FEXTRA 0x04
#define FNAME 0x08
#define FCOMMENT 0x10
#define RESERVED 0xe0

#define TRAILER_NBYTES 8

static uint32_t little_endian(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

bt_inflater *bt_inflate_alloc(void)
{
    bt_inflater *z = calloc(1, sizeof(*z));
    if (z != NULL) {
        isal_inflate_init(&z->deflate);
        z->starved = 1;
    }
    return z;
}

void bt_inflate_free(bt_inflater *z)
{
    if (z != NULL) {
        bt_marker_free(z->marker);
        free(z);
    }
}

/* Takes header bytes off s into the header checksum, if there is one to compare with. */
static void skip(bt_inflater *z, struct span *s, size_t nbytes)
{
    if (z->flags & FHCRC)
        z->header_crc = crc32_gzip_refl(z->header_crc, s->p, nbytes);
    s->p += nbytes;
    s->nbytes -= nbytes;
}

/* Gathers a fixed-size part; 1 when it is whole, and the next one starts empty. */
static int gather(bt_inflater *z, struct span *s, size_t nbytes)
{
    size_t take = nbytes - z->field_nbytes < s->nbytes ? nbytes - z->field_nbytes : s->nbytes;
    memcpy(z->field + z->field_nbytes, s->p, take);
    z->field_nbytes += take;
    s->p += take;
    s->nbytes -= take;
    if (z->field_nbytes < nbytes)
        return 0;
    z->field_nbytes = 0;
    return 1;
}

/* Skips a zero-terminated text; 1 when its end was seen. */
static int skip_text(bt_inflater *z, struct span *s)
{
    const uint8_t *end = memchr(s->p, 0, s->nbytes);
    skip(z, s, end == NULL ? s->nbytes : (size_t)(end - s->p) + 1);
    return end != NULL;
}

/* The part after `done` that this member's flags ask for. */
static enum step after(const bt_inflater *z, enum step done)
{
    switch (done) {
    case FIXED_HEADER:
        if (z->flags & FEXTRA)
            return EXTRA_LENGTH;
        /* fall through */
    case EXTRA:
        if (z->flags & FNAME)
            return NAME;
        /* fall through */
    case NAME:
        if (z->flags & FCOMMENT)
            return COMMENT;
        /* fall through */
    case COMMENT:
        if (z->flags & FHCRC)
            return HEADER_CRC;
        /* fall through */
    default:
        return BODY;
    }
}

void bt_inflate_begin_body(bt_inflater *z)
{
    isal_inflate_reset(&z->deflate);
    z->deflate.crc_flag = ISAL_GZIP_NO_HDR; /* keep the CRC-32; the trailer is ours */
    z->member_nbytes = 0;
    z->step = BODY;
}

static void enter(bt_inflater *z, enum step step)
{
    if (step == BODY)
        bt_inflate_begin_body(z);
    else
        z->step = step;
}

static int fixed_header(bt_inflater *z, struct span *s)
{
    static const uint8_t magic[2] = {0x1f, 0x8b};
    int garbage = z->members > 0 ? BT_TRAILING_GARBAGE : BT_BAD_MAGIC;

    /* The first two bytes decide what this is at all; look at each as soon as it is there, so that garbage of one byte is
     * garbage and not the beginning of something. */
    while (z->field_nbytes < 2 && s->nbytes > 0) {
        if (z->field_nbytes == 0 && z->members > 0 && *s->p == 0) {
            z->step = PADDING;
            return BT_OK;
        }
        if (*s->p != magic[z->field_nbytes])
            return garbage;
        z->field[z->field_nbytes++] = *s->p++;
        s->nbytes--;
    }
    if (!gather(z, s, FIXED_HEADER_NBYTES))
        return BT_OK;
    if (z->field[2] != 8)
        return BT_BAD_METHOD;
    z->flags = z->field[3];
    if (z->flags & RESERVED)
        return BT_BAD_FLAGS;
    z->header_crc = crc32_gzip_refl(0, z->field, FIXED_HEADER_NBYTES);
    enter(z, after(z, FIXED_HEADER));
    return BT_OK;
}

static int trailer(bt_inflater *z, struct span *s)
{
    if (!gather(z, s, TRAILER_NBYTES))
        return BT_OK;
    if (little_endian(z->field) != z->deflate.crc)
        return BT_BAD_CRC;
    if (little_endian(z->field + 4) != z->member_nbytes)
        return BT_BAD_ISIZE;
    z->members++;
    z->step = FIXED_HEADER;
    return BT_OK;
}

/* One part of what surrounds the deflate data, as far as s goes. s is not empty, and something of it is used. */
static int around(bt_inflater *z, struct span *s)
{
    switch (z->step) {
    case FIXED_HEADER:
        return fixed_header(z, s);
    case EXTRA_LENGTH: {
        struct span seen = *s;
        int whole = gather(z, s, 2);
        skip(z, &seen, seen.nbytes - s->nbytes);
        if (whole) {
            z->extra_left_nbytes = (size_t)z->field[0] | (size_t)z->field[1] << 8;
            z->step = EXTRA;
            if (z->extra_left_nbytes == 0)
                enter(z, after(z, EXTRA));
        }
        return BT_OK;
    }
    case EXTRA: {
        size_t take = z->extra_left_nbytes < s->nbytes ? z->extra_left_nbytes : s->nbytes;
        skip(z, s, take);
        z->extra_left_nbytes -= take;
        if (z->extra_left_nbytes == 0)
            enter(z, after(z, EXTRA));
        return BT_OK;
    }
    case NAME:
    case COMMENT:
        if (skip_text(z, s))
            enter(z, after(z, z->step));
        return BT_OK;
    case HEADER_CRC:
        if (gather(z, s, 2)) {
            if (((uint32_t)z->field[0] | (uint32_t)z->field[1] << 8) != (z->header_crc & 0xffff))
                return BT_BAD_HEADER_CRC;
            bt_inflate_begin_body(z);
        }
        return BT_OK;
    case TRAILER:
        return trailer(z, s);
    case PADDING:
        for (; s->nbytes > 0; s->p++, s->nbytes--)
            if (*s->p != 0)
                return BT_TRAILING_GARBAGE;
        return BT_OK;
    case BODY:
        break;
    }
    return BT_INTERNAL;
}

int bt_inflate_call(bt_inflater *z, struct span *in, uint8_t *out, size_t out_nbytes, size_t *made_nbytes)
{
    struct inflate_state *d = &z->deflate;
    uint32_t in_bite = bite(in->nbytes), out_bite = bite(out_nbytes);

    d->next_in = (uint8_t *)(uintptr_t)in->p; /* it only reads; its interface lacks the const */
    d->avail_in = in_bite;
    d->next_out = out;
    d->avail_out = out_bite;
    int answer = isal_inflate(d);
    clear_upper_halves();
    if (answer != ISAL_DECOMP_OK)
        return BT_BAD_DEFLATE;

    *made_nbytes = out_bite - d->avail_out;
    if (*made_nbytes > out_bite)
        return BT_INTERNAL;
    /* At the end of deflate data, versions from 2.32.1 on give back what they read ahead, even if it came in an earlier call. */
    size_t too_much = d->avail_in > in_bite ? d->avail_in - in_bite : 0;
    size_t used = too_much > 0 ? 0 : in_bite - d->avail_in;
    if (too_much > READ_AHEAD_NBYTES || (too_much > 0 && d->block_state != ISAL_BLOCK_FINISH))
        return BT_INTERNAL;
    z->ahead_at = 0;
    z->ahead_end = too_much;
    memcpy(z->ahead, z->recent + READ_AHEAD_NBYTES - too_much, too_much);
    size_t fresh = used < READ_AHEAD_NBYTES ? used : READ_AHEAD_NBYTES;
    memmove(z->recent, z->recent + fresh, READ_AHEAD_NBYTES - fresh);
    memcpy(z->recent + READ_AHEAD_NBYTES - fresh, in->p + used - fresh, fresh);
    in->p += used;
    in->nbytes -= used;
    return BT_OK;
}

int bt_inflate_end_body(bt_inflater *z)
{
    /* Bits of the last, half-used byte are dropped; whole bytes behind it are the trailer's. */
    int bits = z->deflate.read_in_length;
    if (bits < 0 || bits > 64 || (bits >= 8 && z->ahead_end > 0))
        return BT_INTERNAL;
    uint64_t rest = bits % 8 == 0 ? z->deflate.read_in : z->deflate.read_in >> bits % 8;
    for (int i = 0; i < bits / 8; i++)
        z->ahead[z->ahead_end++] = (uint8_t)(rest >> 8 * i);
    z->step = TRAILER;
    return BT_OK;
}

/* Deflate data, one call of ISA-L. *more: there may be more to do with what is at hand. */
static int body(bt_inflater *z, struct span *in, uint8_t **out, size_t *out_nbytes, int *more)
{
    size_t before = in->nbytes, made = 0;
    int result = bt_inflate_call(z, in, *out, *out_nbytes, &made);
    if (result != BT_OK)
        return result;
    int stuck = in->nbytes > 0 && *out_nbytes > 0 && in->nbytes == before && made == 0;
    *out += made;
    *out_nbytes -= made;
    z->member_nbytes += (uint32_t)made;
    if (z->deflate.block_state == ISAL_BLOCK_FINISH)
        return bt_inflate_end_body(z);
    if (stuck)
        return BT_INTERNAL; /* rather a failure than a caller that turns for ever */
    *more = in->nbytes > 0 && *out_nbytes > 0;
    return BT_OK;
}

static int inflate(bt_inflater *z, struct span *in, uint8_t **out, size_t *out_nbytes)
{
    uint64_t end_nbytes = z->total_in_nbytes + in->nbytes;
    int result = BT_OK, more = 1;
    while (result == BT_OK && more) {
        enum step before = z->step;
        if (z->step == BODY) {
            result = z->marker == NULL ? body(z, in, out, out_nbytes, &more)
                                       : bt_marker_body(z, end_nbytes, in, out, out_nbytes, &more);
        } else if (z->ahead_at < z->ahead_end) {
            struct span ahead = {z->ahead + z->ahead_at, z->ahead_end - z->ahead_at};
            result = around(z, &ahead);
            z->ahead_at = z->ahead_end - ahead.nbytes;
        } else if (in->nbytes > 0) {
            result = around(z, in);
        } else {
            more = 0;
        }
        if (z->marker != NULL) {
            if (z->step == BODY && before != BODY)
                bt_marker_begin_body(z, end_nbytes - in->nbytes);
            more = more && !bt_marker_waits(z->marker);
        }
    }
    z->starved = in->nbytes == 0 && (z->step != BODY || *out_nbytes > 0) &&
                 (z->marker == NULL || !bt_marker_waits(z->marker));
    return result;
}

int bt_inflate(bt_inflater *z, const uint8_t *in, size_t in_nbytes, size_t *in_used_nbytes,
               uint8_t *out, size_t out_nbytes, size_t *out_used_nbytes)
{
    if (!claim(&z->busy))
        return BT_BUSY;
    /* An empty buffer may come without an address; ISA-L does arithmetic on it all the same. */
    uint8_t nothing[1] = {0};
    struct span rest = {in_nbytes > 0 ? in : nothing, in_nbytes};
    uint8_t *out_at = out_nbytes > 0 ? out : nothing;
    size_t space = out_nbytes;

    if (z->marker != NULL && bt_marker_waits(z->marker)) {
        release(&z->busy);
        return BT_NOT_DRAINED;
    }
    if (z->failure == BT_OK)
        z->failure = inflate(z, &rest, &out_at, &space);
    int result = z->failure;
    *in_used_nbytes = result == BT_OK ? in_nbytes - rest.nbytes : 0;
    *out_used_nbytes = result == BT_OK ? out_nbytes - space : 0;
    z->total_in_nbytes += *in_used_nbytes;
    z->total_out_nbytes += *out_used_nbytes;
    release(&z->busy);
    return result;
}

static int finished(const bt_inflater *z)
{
    return z->members > 0 && (z->step == PADDING || (z->step == FIXED_HEADER && z->field_nbytes == 0));
}

int bt_inflate_finish(bt_inflater *z)
{
    int result;
    if (!claim(&z->busy))
        return BT_BUSY;
    if (z->failure != BT_OK || finished(z))
        result = z->failure;
    else if (!z->starved)
        result = BT_NOT_DRAINED;
    else
        result = z->failure = BT_TRUNCATED;
    release(&z->busy);
    return result;
}

int bt_inflate_stat(bt_inflater *z, bt_inflate_info *info)
{
    if (!claim(&z->busy))
        return BT_BUSY;
    info->total_in_nbytes = z->total_in_nbytes;
    info->total_out_nbytes = z->total_out_nbytes;
    info->members = z->members;
    info->finished = z->failure == BT_OK && finished(z);
    info->needs_input = z->failure == BT_OK && z->starved;
    info->failure = z->failure;
    info->crc = z->step == BODY ? z->deflate.crc : 0;
    info->member_nbytes = z->step == BODY ? z->member_nbytes : 0;
    release(&z->busy);
    return BT_OK;
}

/* ---- writing ------------------------------------------------------------------------------------------------ */

struct bt_gzipper {
    struct libdeflate_compressor *compressor;
    uint32_t busy;
};

bt_gzipper *bt_gzip_alloc(int level)
{
    if (level < BT_GZIP_MIN_LEVEL || level > BT_GZIP_MAX_LEVEL)
        return NULL;
    bt_gzipper *g = calloc(1, sizeof(*g));
    if (g == NULL)
        return NULL;
    g->compressor = libdeflate_alloc_compressor(level);
    if (g->compressor == NULL) {
        free(g);
        return NULL;
    }
    return g;
}

void bt_gzip_free(bt_gzipper *g)
{
    if (g != NULL) {
        libdeflate_free_compressor(g->compressor);
        free(g);
    }
}

/* RFC 1952 section 2.3.1.1: a subfield "MZ" of four bytes, which MiGz defined for the size of the member's deflate data. */
#define EXTRA_NBYTES 10 /* its own length, the subfield's name and length, the size */

size_t bt_gzip_bound(size_t in_nbytes)
{
    /* libdeflate adds without looking; half the address space leaves its additions room */
    if (in_nbytes > SIZE_MAX / 2)
        return 0;
    return libdeflate_deflate_compress_bound(NULL, in_nbytes) + FIXED_HEADER_NBYTES + EXTRA_NBYTES + TRAILER_NBYTES;
}

static void put_little_endian(uint8_t *p, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(value >> 8 * i);
}

/* Compresses into out and puts header and trailer around it; the member's length, 0 for want of space. */
static size_t member(struct libdeflate_compressor *compressor, const uint8_t *in, size_t in_nbytes,
                     uint8_t *out, size_t out_nbytes, int sized)
{
    /* ID, CM, FLG, MTIME 0, XFL 0, OS 255: nothing that says when or where it was made */
    uint8_t header[FIXED_HEADER_NBYTES + EXTRA_NBYTES] = {
        0x1f, 0x8b, 8, sized ? FEXTRA : 0, 0, 0, 0, 0, 0, 255, EXTRA_NBYTES - 2, 0, 'M', 'Z', 4, 0};
    size_t header_nbytes = sized ? sizeof(header) : FIXED_HEADER_NBYTES;

    if (out_nbytes < header_nbytes + TRAILER_NBYTES)
        return 0;
    size_t deflate_nbytes = libdeflate_deflate_compress(compressor, in, in_nbytes, out + header_nbytes,
                                                        out_nbytes - header_nbytes - TRAILER_NBYTES);
    if (deflate_nbytes == 0 || (sized && deflate_nbytes > UINT32_MAX))
        return 0;
    if (sized)
        put_little_endian(header + header_nbytes - 4, (uint32_t)deflate_nbytes);
    memcpy(out, header, header_nbytes);
    put_little_endian(out + header_nbytes + deflate_nbytes, libdeflate_crc32(0, in, in_nbytes));
    put_little_endian(out + header_nbytes + deflate_nbytes + 4, (uint32_t)in_nbytes);
    return header_nbytes + deflate_nbytes + TRAILER_NBYTES;
}

int bt_gzip_member(bt_gzipper *g, const uint8_t *in, size_t in_nbytes,
                   uint8_t *out, size_t out_nbytes, int sized, size_t *member_nbytes)
{
    uint8_t nothing[1] = {0};
    if (sized && in_nbytes > BT_GZIP_SIZED_MAX_NBYTES)
        return BT_TOO_LONG;
    if (!claim(&g->busy))
        return BT_BUSY;
    size_t nbytes = member(g->compressor, in_nbytes > 0 ? in : nothing, in_nbytes, out, out_nbytes, sized);
    release(&g->busy);
    if (nbytes == 0)
        return BT_NO_SPACE;
    *member_nbytes = nbytes;
    return BT_OK;
}

/* ---- reading a whole member --------------------------------------------------------------------------------- */

struct bt_gunzipper {
    struct libdeflate_decompressor *decompressor;
    uint32_t busy;
};

bt_gunzipper *bt_gunzip_alloc(void)
{
    bt_gunzipper *g = calloc(1, sizeof(*g));
    if (g == NULL)
        return NULL;
    g->decompressor = libdeflate_alloc_decompressor();
    if (g->decompressor == NULL) {
        free(g);
        return NULL;
    }
    return g;
}

void bt_gunzip_free(bt_gunzipper *g)
{
    if (g != NULL) {
        libdeflate_free_decompressor(g->decompressor);
        free(g);
    }
}

int bt_gunzip_member(bt_gunzipper *g, const uint8_t *in, size_t in_nbytes, uint8_t *out, size_t out_nbytes)
{
    uint8_t nothing[1] = {0};
    size_t used_nbytes = 0;
    if (!claim(&g->busy))
        return BT_BUSY;
    /* without a place for the actual size, libdeflate refuses what does not fill the output exactly */
    enum libdeflate_result result =
        libdeflate_gzip_decompress_ex(g->decompressor, in_nbytes > 0 ? in : nothing, in_nbytes,
                                      out_nbytes > 0 ? out : nothing, out_nbytes, &used_nbytes, NULL);
    release(&g->busy);
    return result == LIBDEFLATE_SUCCESS && used_nbytes == in_nbytes ? BT_OK : BT_BAD_DEFLATE;
}
