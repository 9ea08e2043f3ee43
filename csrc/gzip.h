/* gzip.h - what gzip.c and gzindex.c share: a gzip stream's decoder. */
#ifndef BLOBTEE_GZIP_H
#define BLOBTEE_GZIP_H

#include "blobtee.h"

#if !__has_include(<isa-l/igzip_lib.h>)
#error "blobtee needs ISA-L 2.30 or later: on Debian or Ubuntu install the package libisal-dev"
#endif
#if !__has_include(<libdeflate.h>)
#error "blobtee needs libdeflate: on Debian or Ubuntu install the package libdeflate-dev"
#endif

#include <isa-l.h>
#include <isa-l/crc.h>
#include <isa-l/igzip_lib.h>

#define FIXED_HEADER_NBYTES 10
#define READ_AHEAD_NBYTES 8

/* Where in a member the stream is, in the order of the bytes. */
enum step { FIXED_HEADER, EXTRA_LENGTH, EXTRA, NAME, COMMENT, HEADER_CRC, BODY, TRAILER, PADDING };

/* Input not yet looked at. */
struct span {
    const uint8_t *p;
    size_t nbytes;
};

struct marker; /* gzindex.c: what finds points; NULL in an inflater that looks for none */

struct bt_inflater {
    struct inflate_state deflate;
    uint32_t busy;
    int failure;
    enum step step;
    int starved; /* the last call ended for want of input, all output handed out */
    uint8_t flags;
    uint8_t field[FIXED_HEADER_NBYTES]; /* a fixed-size part, gathered over calls */
    size_t field_nbytes;
    size_t extra_left_nbytes;
    uint32_t header_crc;
    uint32_t member_nbytes; /* modulo 2**32, as ISIZE is */
    /* ISA-L reads up to eight bytes ahead. What it had too much belongs to the trailer, which is as long. */
    uint8_t ahead[READ_AHEAD_NBYTES];
    size_t ahead_at, ahead_end;
    uint8_t recent[READ_AHEAD_NBYTES]; /* the last bytes that ISA-L took, the newest at the end */
    uint64_t total_in_nbytes, total_out_nbytes, members;
    struct marker *marker;
};

/* ISA-L counts in 32 bits, signed in places. */
static inline uint32_t bite(size_t nbytes) { return nbytes < (1u << 30) ? (uint32_t)nbytes : 1u << 30; }

static inline int claim(uint32_t *busy) { return __atomic_exchange_n(busy, 1, __ATOMIC_ACQUIRE) == 0; }
static inline void release(uint32_t *busy) { __atomic_store_n(busy, 0, __ATOMIC_RELEASE); }

/* A member's deflate data begins, with nothing before it. */
void bt_inflate_begin_body(bt_inflater *z);

/* One call of ISA-L on *in, of which what it took is left out then: BT_OK, BT_BAD_DEFLATE, BT_INTERNAL. */
int bt_inflate_call(bt_inflater *z, struct span *in, uint8_t *out, size_t out_nbytes, size_t *made_nbytes);

/* The deflate data is at its end and handed out: the trailer comes next, beginning with what was read ahead. */
int bt_inflate_end_body(bt_inflater *z);

/* For an inflater with a marker, in place of what others do. `in_nbytes` is where *in ends in the stream; a part of the deflate
 * data, as far as input and space go: as `body` in gzip.c. */
int bt_marker_body(bt_inflater *z, uint64_t in_nbytes, struct span *in, uint8_t **out, size_t *out_nbytes, int *more);

/* A member's deflate data begins at in_nbytes of the stream. */
void bt_marker_begin_body(bt_inflater *z, uint64_t in_nbytes);

/* Whether a point waits to be taken: nothing is done before. */
int bt_marker_waits(const struct marker *marker);

void bt_marker_free(struct marker *marker);

#endif
