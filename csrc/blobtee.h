/* blobtee.h - the contract of the C core.
 *
 * Rules that hold for every function below:
 *  - Sizes and offsets are bytes and say so (`_nbytes`); counts of other things name the thing (`nblocks`).
 *  - The caller owns every context and every buffer. Nothing here keeps a pointer after it returns.
 *  - No global state, save one word: which CPU features may be used (see bt_cpu_restrict).
 *  - Different contexts may be used by different threads at once. One context may not: functions that take a
 *    context which can be busy claim it atomically, and answer BT_BUSY - having touched nothing - when another
 *    thread is inside. That is a report of a mistake, not a lock to wait on.
 *  - A pointer may be NULL only where that is said, or when the size that goes with it is 0.
 *  - Functions without a failure value cannot fail.
 */
#ifndef BLOBTEE_H
#define BLOBTEE_H

#include <stddef.h>
#include <stdint.h>

/* ---- results ------------------------------------------------------------------------------------------------ */

enum bt_result {
    BT_OK = 0,
    /* mistakes of the caller */
    BT_BUSY = -1,          /* another thread is inside this context */
    BT_BAD_ARGUMENT = -2,  /* an argument outside its documented range */
    BT_BAD_STATE = -3,     /* bytes that are no serialised state of ours */
    BT_TOO_LONG = -4,      /* more input than the algorithm is defined for */
    BT_NOT_DRAINED = -5,   /* output is still waiting: finish was called too early */
    BT_NO_SPACE = -6,      /* the output buffer is smaller than the result */
    BT_NO_MEMORY = -7,
    /* ends that are no mistakes */
    BT_GONE = -10,         /* the client has gone, or what it asked was ended */
    BT_END = -11,          /* there is no more */
    BT_TIMED_OUT = -12,
    BT_CLOSED = -13,       /* the server has stopped */
    /* facts about the input */
    BT_TRUNCATED = -20,    /* the stream ends inside a member, or is empty */
    BT_BAD_MAGIC = -21,    /* the first member does not start as gzip does */
    BT_BAD_METHOD = -22,   /* a compression method other than deflate */
    BT_BAD_FLAGS = -23,    /* reserved header flags are set */
    BT_BAD_HEADER_CRC = -24,
    BT_BAD_DEFLATE = -25,  /* an invalid block, symbol or distance */
    BT_BAD_CRC = -26,
    BT_BAD_ISIZE = -27,
    BT_TRAILING_GARBAGE = -28, /* after a member: neither another member nor zero padding */
    /* our own fault */
    BT_INTERNAL = -90,
    /* what the system said: BT_ERRNO - errno */
    BT_ERRNO = -1000,
};

/* One short English phrase for a result, never NULL, static storage. Thread-safe. */
const char *bt_strerror(int result);

/* ---- CPU features ------------------------------------------------------------------------------------------- */

#define BT_CPU_SHANI (1u << 0)       /* x86: SHA extensions (with SSSE3 and SSE4.1)        word: shani       */
#define BT_CPU_SSE42 (1u << 1)       /* x86: SSE4.2, the crc32 instruction                 word: sse42       */
#define BT_CPU_PCLMUL (1u << 2)      /* x86: carry-less multiplication                     word: pclmul      */
#define BT_CPU_ARM_SHA2 (1u << 3)    /* aarch64: SHA-256 instructions                      word: armv8-sha2  */
#define BT_CPU_ARM_CRC32 (1u << 4)   /* aarch64: crc32c instructions                       word: armv8-crc32 */
#define BT_CPU_ARM_PMULL (1u << 5)   /* aarch64: 64-bit polynomial multiplication          word: armv8-pmull */
#define BT_CPU_ALL ((1u << 6) - 1)

/* What the processor has, whatever is allowed. Thread-safe. */
uint32_t bt_cpu_found(void);

/* What may be used: found, restricted by the last bt_cpu_restrict. Thread-safe. */
uint32_t bt_cpu_allowed(void);

/* Sets what may be used from `words`: NULL, "" or "native" = all that is found; "portable" = nothing;
 * else a comma list of feature words, blanks around them ignored. A word known to blobtee but not found on this
 * machine is ignored, so one list serves many machines.
 * Returns BT_OK; BT_BAD_ARGUMENT for an unknown or empty word, then words[*bad_begin, *bad_end) is it and nothing changed.
 * Call it before the other functions are in use by other threads (a running call may see either word). */
int bt_cpu_restrict(const char *words, size_t *bad_begin, size_t *bad_end);

/* The word of one feature bit, NULL when `feature` is not exactly one known bit. Static storage. Thread-safe. */
const char *bt_cpu_word(uint32_t feature);

/* ---- SHA-256 (FIPS 180-4) ----------------------------------------------------------------------------------- */

#define BT_SHA256_DIGEST_NBYTES 32
#define BT_SHA256_BLOCK_NBYTES 64
/* a serialised state is at most this long (see bt_sha256_save) */
#define BT_SHA256_STATE_MAX_NBYTES 115

/* Fields are private. No pointers inside: it may be moved while no call is in progress. */
typedef struct bt_sha256 {
    uint32_t state[8];
    uint64_t nbytes;      /* hashed so far; the low six bits are the fill of `partial` */
    uint8_t partial[BT_SHA256_BLOCK_NBYTES];
    uint32_t busy;
} bt_sha256;

/* Starts an empty message. Not safe while another thread uses h. */
void bt_sha256_init(bt_sha256 *h);

/* Appends in[0, in_nbytes). BT_OK; BT_BUSY; BT_TOO_LONG past 2**61 - 1 bytes in all (h is unchanged). */
int bt_sha256_update(bt_sha256 *h, const uint8_t *in, size_t in_nbytes);

/* Appends in[i] to h[i] for each i < n, several streams at a time on this one core. Fastest when the longest inputs come
 * first. BT_OK; BT_BUSY when a context is in use or appears twice; BT_TOO_LONG: after a failure every h[i] is unchanged. */
int bt_sha256_update_many(bt_sha256 *const *h, const uint8_t *const *in, const size_t *in_nbytes, size_t n);

/* The digests of n whole buffers, several at a time on this one core, into digests[32 * i, 32 * i + 32).
 * Fastest when the longest inputs come first. BT_OK; BT_TOO_LONG. Thread-safe. */
int bt_sha256_many(const uint8_t *const *in, const size_t *in_nbytes, size_t n, uint8_t *digests);

/* Both in one: appends, and writes the digest of all so far. As bt_sha256_update; `digest` is written at BT_OK alone. */
int bt_sha256_append(bt_sha256 *h, const uint8_t *in, size_t in_nbytes, uint8_t digest[BT_SHA256_DIGEST_NBYTES]);

/* Writes the digest of what was appended so far; more may be appended after. BT_OK; BT_BUSY. */
int bt_sha256_digest(bt_sha256 *h, uint8_t digest[BT_SHA256_DIGEST_NBYTES]);

/* to = from. BT_OK; BT_BUSY when `from` is in use. `to` must not be in use. */
int bt_sha256_copy(bt_sha256 *to, bt_sha256 *from);

/* *nbytes = bytes appended so far. BT_OK; BT_BUSY. */
int bt_sha256_nbytes(bt_sha256 *h, uint64_t *nbytes);

/* The state of SHA-256 between two blocks is its chaining value (FIPS 180-4: H(i)), here big-endian as a digest is. Two of
 * one message prove the bytes between them without the rest of it: from the first on, other bytes do not lead to the second.
 *
 * Appends in[0, in_nbytes) and writes the chaining value after each whole every_nbytes of it, one behind the other.
 * BT_OK; BT_BUSY; BT_TOO_LONG; BT_BAD_ARGUMENT when every_nbytes is not a positive number of whole blocks, or h is in the
 * middle of one. After a failure h is unchanged. */
int bt_sha256_update_chained(bt_sha256 *h, const uint8_t *in, size_t in_nbytes, size_t every_nbytes, uint8_t *values);

/* The chaining value after what was appended so far. BT_OK; BT_BUSY; BT_BAD_ARGUMENT in the middle of a block. */
int bt_sha256_chaining_value(bt_sha256 *h, uint8_t value[BT_SHA256_DIGEST_NBYTES]);

/* Starts h as it is after nbytes that led to `value`. BT_OK; BT_BAD_ARGUMENT when that is no number of whole blocks, then
 * h is unchanged. h must not be in use. */
int bt_sha256_resume(bt_sha256 *h, const uint8_t value[BT_SHA256_DIGEST_NBYTES], uint64_t nbytes);

/* Serialises the state in the middle of a stream: big-endian, the same on every machine and path.
 *   "btsha2" version:u16 = 1   nbytes:u64   state:8 * u32   partial: nbytes % 64 bytes   crc32c of all before: u32
 * Returns its length (at most BT_SHA256_STATE_MAX_NBYTES), or BT_BUSY. */
int bt_sha256_save(bt_sha256 *h, uint8_t out[BT_SHA256_STATE_MAX_NBYTES]);

/* Starts h from a serialised state. BT_OK; BT_BAD_STATE (wrong tag, version, length, checksum, or a state that no
 * message has), then h is unchanged. The checksum finds accidents, not forgery. h must not be in use. */
int bt_sha256_restore(bt_sha256 *h, const uint8_t *in, size_t in_nbytes);

/* The name of the implementation in use ("shani", "armv8-sha2", "portable"), and how many streams it interleaves. */
const char *bt_sha256_path(void);
int bt_sha256_lanes(void);

/* ---- CRC-32C (Castagnoli; RFC 3720 appendix B.4) ------------------------------------------------------------ */

/* The checksum of the bytes that gave `value` (0 for none) followed by in[0, in_nbytes). Thread-safe. */
uint32_t bt_crc32c(uint32_t value, const uint8_t *in, size_t in_nbytes);

/* The CRC-32C of each every_nbytes (more than 0) of the input, the last of what is left: four bytes each, little endian. */
void bt_crc32c_each(const uint8_t *in, size_t in_nbytes, size_t every_nbytes, uint8_t *values);

/* The implementation in use: "sse42+pclmul", "sse42", "armv8-crc32+pmull", "armv8-crc32", "portable". */
const char *bt_crc32c_path(void);

/* ---- gzip (RFC 1952): reading ------------------------------------------------------------------------------- */

typedef struct bt_inflater bt_inflater;

/* What bt_inflate_stat tells. */
typedef struct bt_inflate_info {
    uint64_t total_in_nbytes;  /* consumed from the caller, over all calls */
    uint64_t total_out_nbytes; /* produced, over all calls */
    uint64_t members;          /* members whose trailer was read and right */
    int finished;              /* 1: what was read so far is a whole stream, all of it handed out */
    int needs_input;           /* 1: nothing more can come out before more goes in */
    int failure;               /* BT_OK, or the failure the stream stays in */
    uint32_t crc;              /* of this member's data so far, and ... */
    uint32_t member_nbytes;    /* ... how much of it there was, modulo 2**32; 0 and 0 where the next one's begins */
} bt_inflate_info;

/* A context for one stream (about 90 KB), or NULL when memory is out. Free it with bt_inflate_free. */
bt_inflater *bt_inflate_alloc(void);

/* Frees it; NULL is allowed. It must not be in use. */
void bt_inflate_free(bt_inflater *z);

/* Decompresses from in[0, in_nbytes) into out[0, out_nbytes), until the input is used up or the output is full.
 * *in_used_nbytes and *out_used_nbytes say how far it got. With input and space both left, it always gets further or
 * fails. Output may be waiting after all input was taken: call again (with no input, if there is none) until less
 * than out_nbytes comes out. Members follow each other; zero bytes may follow the last one.
 * Returns BT_OK; BT_BUSY (nothing happened, the two results are untouched); any of the facts about the input except
 * BT_TRUNCATED; BT_INTERNAL. After a failure other than BT_BUSY the stream gives the same failure for ever,
 * out[0, out_nbytes) is unspecified, and both results are 0.
 * Never writes outside out[0, out_nbytes). `in` and `out` must not overlap. */
int bt_inflate(bt_inflater *z, const uint8_t *in, size_t in_nbytes, size_t *in_used_nbytes,
               uint8_t *out, size_t out_nbytes, size_t *out_used_nbytes);

/* Says that no more input comes. BT_OK: the stream was whole. BT_NOT_DRAINED: output may still wait, take it and ask
 * again. BT_TRUNCATED: input is missing (the stream stays failed). Or BT_BUSY, or the failure it is in. */
int bt_inflate_finish(bt_inflater *z);

/* Fills *info. BT_OK; BT_BUSY. */
int bt_inflate_stat(bt_inflater *z, bt_inflate_info *info);

/* ---- gzip: points to inflate from ------------------------------------------------------------------------------ */

#define BT_GZPOINT_WINDOW_NBYTES 32768
#define BT_GZPOINT_HEADER_NBYTES 296
#define BT_GZPOINT_AHEAD_NBYTES 8
#define BT_GZPOINT_MAX_SPACING (UINT64_C(1) << 40)

/* A place in the deflate data of a gzip stream, and what has to be known to inflate from there on. It lies at the beginning
 * of a member's data, between two blocks, or between two symbols of a block that is long. */
typedef struct bt_gzpoint {
    uint64_t in_nbytes;     /* the first whole byte of the stream that is needed */
    uint64_t out_nbytes;    /* what the stream gives before */
    uint32_t crc;           /* CRC-32 of this member's data before, and ... */
    uint32_t member_nbytes; /* ... how much of it there is, modulo 2**32 */
    uint8_t nbits;          /* bits of the byte before in_nbytes that are needed too, 0..7 ... */
    uint8_t bits;           /* ... and these bits, the first one lowest */
    uint32_t header_nbits;  /* the header of the block that it lies within, the first bit lowest; 0 between two blocks */
    uint32_t window_nbytes; /* the data before it, as far as it can be referred to */
    uint32_t ahead_nbytes;  /* within a block: the stream from in_nbytes on, for who inflates up to here and reads no further.
                             * ISA-L looks at more bits than a symbol has, and does not take it when they are missing. */
    uint8_t ahead[BT_GZPOINT_AHEAD_NBYTES];
    uint8_t header[BT_GZPOINT_HEADER_NBYTES];
    uint8_t window[BT_GZPOINT_WINDOW_NBYTES]; /* zeros in place of bytes that nothing refers to */
} bt_gzpoint;

/* Lets a stream that has not begun give points (about 350 KB more): one where the first member's data begins, then one
 * after each spacing_nbytes of input or output, whichever is sooner, at the end of the block that is being read; within
 * it when it goes on for that long again, and for each spacing from then on; where a member begins, sooner. Two points are
 * never in the same 32 KiB of output of one member. 1..BT_GZPOINT_MAX_SPACING; BT_BAD_ARGUMENT also for a stream that has begun; BT_BUSY; BT_NO_MEMORY.
 *
 * bt_inflate then returns early when a point is there, with input and space left, and answers BT_NOT_DRAINED, having done
 * nothing, until it is taken. */
int bt_inflate_mark(bt_inflater *z, uint64_t spacing_nbytes);

/* *found = 1: *point is the next one, in the order of the stream, and taken. 0: there is none now. BT_OK; BT_BUSY. */
int bt_inflate_point(bt_inflater *z, bt_gzpoint *point, int *found);

/* Begins in the middle: the next input is the stream from point->in_nbytes on. CRC-32 and length of the member are compared at
 * its end as if it had been read from its beginning. z is fresh; its totals and members count from here.
 * BT_OK; BT_BUSY; BT_BAD_ARGUMENT for a stream that has begun or a point with sizes outside its fields; BT_BAD_DEFLATE for
 * a header that is none. Any other point does no harm: what comes out is wrong or an error. */
int bt_inflate_resume(bt_inflater *z, const bt_gzpoint *point);

/* ---- gzip: writing ------------------------------------------------------------------------------------------ */

#define BT_GZIP_MIN_LEVEL 0
#define BT_GZIP_MAX_LEVEL 12

typedef struct bt_gzipper bt_gzipper;

/* A compressor for one level, BT_GZIP_MIN_LEVEL..BT_GZIP_MAX_LEVEL; it may be used again and again.
 * NULL when memory is out or the level is outside. Free it with bt_gzip_free. */
bt_gzipper *bt_gzip_alloc(int level);

/* Frees it; NULL is allowed. It must not be in use. */
void bt_gzip_free(bt_gzipper *g);

/* The most bytes a member of in_nbytes can take, at any level; 0 when that does not fit size_t. Thread-safe. */
size_t bt_gzip_bound(size_t in_nbytes);

/* The most input of a sized member (see bt_gzip_member): what it deflates to has to fit four bytes. */
#define BT_GZIP_SIZED_MAX_NBYTES (1u << 30)

/* Writes in[0, in_nbytes) as one gzip member: no name, no time, XFL 0, OS 255 ("unknown"), so that equal input gives
 * equal bytes (with one version of libdeflate and one level). If `sized`, the header says how long the member is: it has
 * one extra subfield, "MZ", whose four bytes (little endian) are the size of the deflate data, as MiGz writes it. That data
 * lies between the header of 20 bytes and the trailer of 8, so a reader can find the next member without inflating.
 * BT_OK, and *member_nbytes is its length; BT_BUSY; BT_TOO_LONG for a sized member of more than BT_GZIP_SIZED_MAX_NBYTES;
 * BT_NO_SPACE, then out[0, out_nbytes) is unspecified. With bt_gzip_bound(in_nbytes) there is always space; less may be
 * refused even if the member would just fit. */
int bt_gzip_member(bt_gzipper *g, const uint8_t *in, size_t in_nbytes,
                   uint8_t *out, size_t out_nbytes, int sized, size_t *member_nbytes);

/* ---- gzip: reading a whole member at once -------------------------------------------------------------------- */

typedef struct bt_gunzipper bt_gunzipper;

/* A context for bt_gunzip_member; it may be used again and again. NULL when memory is out. Free it with bt_gunzip_free. */
bt_gunzipper *bt_gunzip_alloc(void);

/* Frees it; NULL is allowed. It must not be in use. */
void bt_gunzip_free(bt_gunzipper *g);

/* Decompresses in[0, in_nbytes), which must be exactly one member that holds exactly out_nbytes bytes. Faster than
 * bt_inflate, and it compares CRC-32 and length as that does, but neither checks a header's checksum nor tells what is wrong.
 * BT_OK; BT_BUSY; BT_BAD_DEFLATE for anything that is not so, then out[0, out_nbytes) is unspecified. */
int bt_gunzip_member(bt_gunzipper *g, const uint8_t *in, size_t in_nbytes, uint8_t *out, size_t out_nbytes);

/* ---- tar: reading headers -------------------------------------------------------------------------------------- */

enum bt_tar_type { BT_TAR_FILE, BT_TAR_HARDLINK, BT_TAR_SYMLINK, BT_TAR_DIRECTORY, BT_TAR_FIFO };

enum bt_tar_column {
    BT_TAR_TYPE,     /* a bt_tar_type */
    BT_TAR_MODE,     /* permission bits, 0..07777 */
    BT_TAR_UID,      /* 0.. */
    BT_TAR_GID,      /* 0.. */
    BT_TAR_MTIME_NS, /* nanoseconds since the epoch, 0.. */
    BT_TAR_SIZE,     /* bytes of content, which are all stored; 0 for everything but files */
    BT_TAR_OFFSET,   /* where the content begins in the input, bytes */
    BT_TAR_OWNER,    /* which pair of `owners` is the entry's, 0.. */
    BT_TAR_COLUMNS
};

enum bt_tar_stop {
    BT_TAR_MORE, /* input or space is at its end */
    BT_TAR_ODD,  /* what comes next is not plain, or wrong */
    BT_TAR_PLAIN /* never returned */
};

typedef struct bt_tar_batch {
    /* given by the caller */
    int64_t *numbers;     /* BT_TAR_COLUMNS columns of `capacity` numbers, one column after another */
    size_t capacity;
    uint8_t *text;        /* for each entry its path and its link's target, each with a NUL behind it; both as blobtee's
                           * Entry has them (relative, no empty parts, no "."), a symbolic link's target as it is */
    size_t text_nbytes;
    uint8_t *owners;      /* user's and group's names, each with a NUL behind it, a pair for each run of entries */
    size_t owners_nbytes;
    /* filled in */
    size_t nentries, text_used, owners_used;
    uint64_t next;        /* where the header after the last entry begins in the input; may be past its end */
} bt_tar_batch;

/* Reads the entries of a tar from in[0, in_nbytes), which begins at a header, one after another as long as they are plain
 * and their headers are whole (content may reach past the end). What is read is right, its checksum compared; what is
 * not read says nothing: the end-of-archive mark is "odd" too. 0 entries with BT_TAR_MORE: give more input, or more
 * space. Never fails. Thread-safe for different batches. */
int bt_tar_scan(const uint8_t *in, size_t in_nbytes, bt_tar_batch *batch);

/* ---- SQLite: whether a database has changed -------------------------------------------------------------------------- */

#define BT_WAL_STATE_NBYTES 48

typedef struct bt_wal bt_wal;

/* Watches a database in WAL mode whose WAL index (the file "-shm") SQLite has mapped, from its beginning, at the address
 * `mapped` of this process; the mapping has to be there during the call alone. For as long as the watch is asked, this process
 * must have the database open: then the index stays the one that everybody uses. NULL when it is no such index, or memory
 * is out. Free it with bt_wal_free. */
bt_wal *bt_wal_watch(uintptr_t mapped);

/* What the database is like now: two equal states, taken at different times, mean that nothing was committed to it between,
 * by any process. BT_OK, with state[0, BT_WAL_STATE_NBYTES); BT_GONE: a commit is under way, or the watch has ended. Thread-safe. */
int bt_wal_state(const bt_wal *w, uint8_t *state);

/* Ends it: bt_wal_state says BT_GONE from now on. Before this process closes the database. Thread-safe. */
void bt_wal_end(bt_wal *w);

/* Frees it; NULL is allowed. It must not be in use. */
void bt_wal_free(bt_wal *w);

/* ---- gRPC: answers that are known ----------------------------------------------------------------------------------- */

#define BT_H2_LISTENERS 64

/* What handlers have answered to who asked for a blob, by the place that was asked and the blob's digest. An answer has to
 * follow from the metadata (a database that is watched) and from one file: it is given for as long as neither has changed.
 * Thread-safe, save for bt_answers_free. */
typedef struct bt_answers bt_answers;

#define BT_ANSWERS_MESSAGE_MAX_NBYTES 65536u
#define BT_ANSWERS_BOUNDS 32

enum bt_answer_kind {
    BT_ANSWER_MESSAGE, /* a message, whole */
    BT_ANSWER_FILE     /* bytes of a file that is kept open */
};

/* What metadata and file were like before a handler looked at them. */
typedef struct bt_look {
    uint8_t state[BT_WAL_STATE_NBYTES];
    uint64_t device, inode, size_nbytes;
    int64_t modified_s, changed_s;
    long modified_ns, changed_ns;
    uint32_t mode;
} bt_look;

typedef struct bt_answers_counts {
    uint64_t ok, cancelled; /* RPCs that were answered, by how they ended */
    uint64_t within[BT_ANSWERS_BOUNDS + 1]; /* those that took at most so long, and longer than the bound before; the last: longer */
    uint64_t sum_ns;
    uint64_t opened;      /* files that were read from; */
    uint64_t sent_nbytes; /* bytes of them */
} bt_answers_counts;

/* Keeps at most so many bytes of messages and so many files, those that were asked for last. A file whose access time is fresh_ns old or
 * older is for a handler, which writes down that it is used. Counts times by bounds_ns[0, nbounds),
 * in order, at most BT_ANSWERS_BOUNDS. `wal` has to outlive it. NULL when memory is out. Free it with bt_answers_free. */
bt_answers *bt_answers_new(const bt_wal *wal, size_t messages_nbytes, size_t files, int64_t fresh_ns,
                           const int64_t *bounds_ns, size_t nbounds);

/* Frees it; NULL is allowed. No server that has it may be left. */
void bt_answers_free(bt_answers *a);

/* What the metadata and the file at `path` are like. BT_OK, and *look; BT_GONE when nothing can be kept of it: there is no
 * such file, or the metadata are just changing. */
int bt_answers_look(bt_answers *a, const char *path, bt_look *look);

/* Keeps an answer to who asks `place` for the blob digest[0, digest_nbytes): message[0, nbytes), or the file open at `fd`, which
 * stays the caller's; `look` was taken of `path` before anything that the answer follows from was looked at. In place of the one
 * that is known. BT_OK; BT_GONE: it is out of date already; BT_NO_SPACE: it is larger than all that may be kept; BT_NO_MEMORY: or
 * no descriptor is left; BT_BAD_ARGUMENT. */
int bt_answers_keep(bt_answers *a, int kind, uint32_t place, const uint8_t *digest, size_t digest_nbytes,
                    const char *path, const bt_look *look, const uint8_t *message, size_t nbytes, int fd);

/* Drops what is known of the blob in that place. Who is being answered from it is answered to the end. */
void bt_answers_forget(bt_answers *a, uint32_t place, const uint8_t *digest, size_t nbytes);

/* Drops all. */
void bt_answers_clear(bt_answers *a);

/* What has been answered in `place`, so far. BT_OK; BT_BAD_ARGUMENT. */
int bt_answers_tally(bt_answers *a, int kind, uint32_t place, bt_answers_counts *counts);

/* ---- gRPC: a server over HTTP/2 (nghttp2) --------------------------------------------------------------------------- */

#define BT_H2_MESSAGE_MAX_NBYTES 0xfffffff0u

/* Sockets, their connections and the calls on them. All functions on a server may be called by any thread at any time,
 * save those that say otherwise. It starts no thread: those of the caller serve, in bt_h2_next. */
typedef struct bt_h2 bt_h2;

/* One call. It is for the thread that got it from bt_h2_next, until that calls bt_h2_release. Any number of calls wait or
 * send at the same time. A call is "gone" when its client has cancelled it, its connection is lost, its deadline has
 * passed, or a limit ended it: then its answers go nowhere. */
typedef struct bt_h2_call bt_h2_call;

typedef struct bt_h2_limits {
    size_t message_nbytes;  /* of the largest message that is taken; a larger one ends its call: RESOURCE_EXHAUSTED */
    size_t buffered_nbytes; /* of all messages that are coming, wait or are in hand. Messages above 64 KiB wait for room
                             * in three quarters of it before they may come; where there is none even for a small one, its
                             * call ends: RESOURCE_EXHAUSTED */
    uint32_t connections;   /* at most; the idle one that was used longest ago makes place for a new one */
    uint32_t handshake_ms;  /* a client that has not begun to speak HTTP/2 by then is sent away */
    uint32_t stall_ms;      /* a large message that does not come on for so long, while others wait for room, ends its call,
                             * and so does one that has waited four times as long: RESOURCE_EXHAUSTED */
} bt_h2_limits;

enum bt_h2_kind { BT_H2_CALL = 1, BT_H2_ENDED = 2 };

typedef struct bt_h2_event {
    int kind;         /* a call has come, with its first message or its end; or one that is watched is gone */
    bt_h2_call *call; /* to be given back by bt_h2_release, or (ended) by bt_h2_told */
    int method;       /* what bt_h2_method said for its path */
    uint32_t place;   /* of its listener */
    unsigned waiting; /* threads that are in bt_h2_next now, or on their way to it: from bt_h2_expect, bt_h2_release or
                       * bt_h2_told. When there are none, nothing new is seen before one is. */
} bt_h2_event;

typedef struct bt_h2_stats {
    size_t buffered_nbytes;
    uint32_t connections;
    unsigned calls;
    uint64_t refused; /* calls above a listener's max_calls, so far */
} bt_h2_stats;

/* A server without sockets; NULL when memory or descriptors are out. Free it with bt_h2_free. */
bt_h2 *bt_h2_new(const bt_h2_limits *limits);

/* Frees it; NULL is allowed. No thread may be in it, no call unreleased, and it must have been stopped, if it listened. */
void bt_h2_free(bt_h2 *s);

/* The number, from 0 on, of the method with the path `path` ("/package.Service/Method"); before bt_h2_listen. Calls of
 * other paths end with UNIMPLEMENTED. Handlers of one that `is_light` do little between calls of the kernel and turns in
 * what one thread has at a time: when several run at once, they huddle (bt_huddle). BT_NO_SPACE after 64; BT_NO_MEMORY. */
int bt_h2_method(bt_h2 *s, const char *path, int is_light);

/* Answers calls of two methods from `a`, where it has an answer, without a handler: `info` takes a message whose field 1 is a digest,
 * and is answered by BT_ANSWER_MESSAGE; `read` takes a digest, an offset and a size (fields 1 to 3), and is answered by messages of an
 * offset and at most `piece_nbytes` of data (fields 1 and 2) out of BT_ANSWER_FILE. Requests that are put in another way than
 * usual, or ask for what is not there, are the handler's. `a` has to outlive the server. Before any bt_h2_next. */
void bt_h2_answer(bt_h2 *s, bt_answers *a, int info, int read, size_t piece_nbytes);

/* Takes connections from the listening socket `fd`, which stays the caller's, does not block, and is open until
 * bt_h2_drain has returned. `place` comes back in events; calls above `max_calls` at once end with RESOURCE_EXHAUSTED. Before
 * any bt_h2_next. BT_OK; BT_NO_SPACE above BT_H2_LISTENERS; BT_ERRNO - errno. */
int bt_h2_listen(bt_h2 *s, int fd, uint32_t place, uint32_t max_calls);

/* Waits for something to do, and does what needs no handler meanwhile. BT_OK: *event; BT_TIMED_OUT: nothing came for about
 * timeout_ms (-1: never), and more than `keep` threads wait, this one no longer among them; BT_CLOSED: the server was
 * stopped and all calls are released. */
int bt_h2_next(bt_h2 *s, int timeout_ms, unsigned keep, bt_h2_event *event);

/* `threads` more, or fewer, are on their way to bt_h2_next: no other need be started in their place. */
void bt_h2_expect(bt_h2 *s, int threads);

/* Take no more connections, and tell clients to go elsewhere with new calls; those that run go on, and so do those that
 * come before the client has heard of it. */
void bt_h2_drain(bt_h2 *s);

/* Waits until no call is left and, if told to, no connection. BT_OK; BT_TIMED_OUT after timeout_ms. */
int bt_h2_wait_idle(bt_h2 *s, int timeout_ms, int and_connections);

/* Drain, end all calls (UNAVAILABLE) and close all connections. */
void bt_h2_stop(bt_h2 *s);

void bt_h2_stat(bt_h2 *s, bt_h2_stats *stats);

/* Waits for the next message: message[0, *nbytes) is the caller's to read until the next bt_h2_take or bt_h2_release.
 * BT_OK; BT_END: the client has sent all; BT_GONE. The last message's memory is let go of in any case. */
int bt_h2_take(bt_h2_call *k, const uint8_t **message, size_t *nbytes);

/* Sends one message, and with `is_last` the status OK after it: then nothing more can be sent. Waits until the client has
 * room for it (`message` is not used after the return). BT_OK; BT_GONE; BT_TOO_LONG. */
int bt_h2_send(bt_h2_call *k, const uint8_t *message, size_t nbytes, int is_last);

/* bt_h2_send of a message that is not the last, and then bt_h2_take: an answer, and the wait for what it is answered by. */
int bt_h2_exchange(bt_h2_call *k, const uint8_t *message, size_t nbytes, const uint8_t **next, size_t *next_nbytes);

/* As bt_h2_send, with a message of head[0, head_nbytes) (64 at most) and the bytes [offset, offset + nbytes) of the file
 * `fd`. BT_TRUNCATED when the file ends before, BT_ERRNO - errno when it cannot be read: the call is gone then, and its client
 * has not got the message. BT_BAD_ARGUMENT. */
int bt_h2_send_file(bt_h2_call *k, const uint8_t *head, size_t head_nbytes, int fd, uint64_t offset, size_t nbytes,
                    int is_last);

/* 0 when the call is gone. */
int bt_h2_is_active(bt_h2_call *k);

/* From now on, the end of the call before its answer is told by an event. BT_OK; BT_GONE: it is gone already. */
int bt_h2_watch(bt_h2_call *k);

/* The metadata, without what HTTP/2 and gRPC keep for themselves: *metadata is n entries of two lengths (two bytes each,
 * big endian), name and value; the answer is its bytes. The call's own, until it is released. */
size_t bt_h2_metadata(bt_h2_call *k, const char **metadata);

/* Ends the call with gRPC's status code and the text (NULL: none), percent-encoded as grpc-message, unless it has ended before,
 * and gives it back as bt_h2_release does. */
void bt_h2_end(bt_h2_call *k, int status, const char *text);

/* Gives the call back: the handler is through with it. One that nobody answered ends with INTERNAL. */
void bt_h2_release(bt_h2_call *k);

/* Gives back the call of an event of the kind BT_H2_ENDED. */
void bt_h2_told(bt_h2_call *k);

/* ---- processors --------------------------------------------------------------------------------------------------- */

/* Has the calling thread run on the same processor as all that huddle, until bt_spread; which one that is, is settled
 * anew from time to time. As good as it goes, and nothing where there is one processor. A thread that is started meanwhile
 * inherits the processor, and no bt_spread will free it. */
void bt_huddle(void);

/* Has the calling thread run wherever it might if it had not huddled. Nothing when it does not. */
void bt_spread(void);

/* ---- files ------------------------------------------------------------------------------------------------------ */

/* What a file is to hold. Without `data` it goes. `before_nbytes`: how long it is now. */
typedef struct bt_small_file {
    const char *name;
    const uint8_t *data;
    size_t nbytes, before_nbytes;
} bt_small_file;

/* Makes `folder`, if nothing has that name: of the folder `spare` (NULL: a new one) by a rename. Then writes `files` into
 * it, not durably, and opens its file `data`, made when missing, for reading and writing: the descriptor, >= 0. BT_END:
 * something has the name, and nothing has changed; BT_ERRNO - errno, after which the folder may be there, without `data`. */
int bt_begin_folder(const char *folder, const char *spare, const bt_small_file *files, size_t nfiles, const char *data);

/* Gives each of npaths files, whose paths follow each other in `paths`, each with its NUL, these rights, and the present as
 * its time of access where that is not less than stale_ns past. As good as it goes. */
void bt_settle_files(const char *paths, size_t npaths, int rights, int64_t stale_ns);

typedef struct bt_sync_job bt_sync_job;

/* The sync of the open file `fd`, which has to stay open until bt_sync_wait; the rest is 0 at the beginning. */
typedef struct {
    int fd, is_over, result;
    bt_sync_job *job;
} bt_sync;

/* Begins it: in another thread, or where none can be started at once; when memory is out, bt_sync_wait does it. */
void bt_sync_begin(bt_sync *s);

/* Waits for it. BT_OK: the file is durable; BT_ERRNO - errno. The same each time: a caller's interrupt loses nothing. */
int bt_sync_wait(bt_sync *s);

/* ---- what it was built with --------------------------------------------------------------------------------- */

/* "2.30.0" and the like: the versions of the headers this was compiled with. Static storage. */
const char *bt_isal_version(void);
const char *bt_libdeflate_version(void);
const char *bt_nghttp2_version(void);

#endif
