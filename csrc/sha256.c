/* sha256.c - SHA-256 as a stream: which implementation, partial blocks, padding, several streams in lanes, saved states. */
#include "blobtee.h"
#include "sha256.h"

#include <string.h>

#define BLOCK BT_SHA256_BLOCK_NBYTES
/* FIPS 180-4 counts the message in bits, in 64 bits. */
#define MAX_NBYTES ((UINT64_C(1) << 61) - 1)

static const uint32_t initial_state[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

/* ---- which implementation ----------------------------------------------------------------------------------- */

struct kernels {
    const char *path;
    int lanes; /* most streams in one go: 1, 2 or 3 */
    bt_sha256_one *x1;
    bt_sha256_lanes_fn *x2, *x3; /* x3 is NULL with two lanes, both with one */
};

static const struct kernels *kernels(void)
{
    static const struct kernels portable = {"portable", 1, bt_sha256_x1_portable, NULL, NULL};
#if defined(__x86_64__)
    static const struct kernels shani = {"shani", 3, bt_sha256_x1_shani, bt_sha256_x2_shani, bt_sha256_x3_shani};
    if (bt_cpu_allowed() & BT_CPU_SHANI)
        return &shani;
#elif defined(SHA256_HAVE_ARMV8)
    static const struct kernels armv8 = {"armv8-sha2", 2, bt_sha256_x1_armv8, bt_sha256_x2_armv8, NULL};
    if (bt_cpu_allowed() & BT_CPU_ARM_SHA2)
        return &armv8;
#endif
    return &portable;
}

const char *bt_sha256_path(void) { return kernels()->path; }
int bt_sha256_lanes(void) { return kernels()->lanes; }

/* ---- small helpers ------------------------------------------------------------------------------------------ */

static int claim(bt_sha256 *h) { return __atomic_exchange_n(&h->busy, 1, __ATOMIC_ACQUIRE) == 0; }
static void release(bt_sha256 *h) { __atomic_store_n(&h->busy, 0, __ATOMIC_RELEASE); }

static void put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

static void put64(uint8_t *p, uint64_t v)
{
    put32(p, (uint32_t)(v >> 32));
    put32(p + 4, (uint32_t)v);
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint64_t get64(const uint8_t *p) { return (uint64_t)get32(p) << 32 | get32(p + 4); }

static void put_state(uint8_t *p, const uint32_t *state)
{
    for (int i = 0; i < 8; i++)
        put32(p + 4 * i, state[i]);
}

/* The last one or two blocks of the message of h, padded, into tail; how many they are. */
static size_t pad(const bt_sha256 *h, uint8_t tail[2 * BLOCK])
{
    size_t fill = h->nbytes % BLOCK;
    size_t nblocks = fill + 1 + 8 <= BLOCK ? 1 : 2;
    memcpy(tail, h->partial, fill);
    memset(tail + fill, 0, nblocks * BLOCK - fill);
    tail[fill] = 0x80;
    put64(tail + nblocks * BLOCK - 8, h->nbytes * 8);
    return nblocks;
}

/* ---- one stream --------------------------------------------------------------------------------------------- */

void bt_sha256_init(bt_sha256 *h)
{
    memcpy(h->state, initial_state, sizeof(initial_state));
    h->nbytes = 0;
    /* not needed by any computation, but then a context never holds uninitialised memory */
    memset(h->partial, 0, sizeof(h->partial));
    __atomic_store_n(&h->busy, 0, __ATOMIC_RELEASE);
}

static void update(bt_sha256 *h, const uint8_t *in, size_t in_nbytes)
{
    const struct kernels *k = kernels();
    size_t fill = h->nbytes % BLOCK;

    h->nbytes += in_nbytes;
    if (fill > 0) {
        size_t take = BLOCK - fill;
        if (in_nbytes < take) {
            memcpy(h->partial + fill, in, in_nbytes);
            return;
        }
        memcpy(h->partial + fill, in, take);
        k->x1(h->state, h->partial, 1);
        in += take;
        in_nbytes -= take;
    }
    if (in_nbytes >= BLOCK)
        k->x1(h->state, in, in_nbytes / BLOCK);
    memcpy(h->partial, in + in_nbytes / BLOCK * BLOCK, in_nbytes % BLOCK);
}

/* The digest of the message of h so far, which stays as it is. */
static void digest_of(const bt_sha256 *h, uint8_t digest[BT_SHA256_DIGEST_NBYTES])
{
    uint8_t tail[2 * BLOCK];
    uint32_t state[8];
    size_t nblocks = pad(h, tail);
    memcpy(state, h->state, sizeof(state));
    kernels()->x1(state, tail, nblocks);
    put_state(digest, state);
}

static int append(bt_sha256 *h, const uint8_t *in, size_t in_nbytes, uint8_t *digest)
{
    int result = BT_OK;
    if (!claim(h))
        return BT_BUSY;
    if (in_nbytes > MAX_NBYTES - h->nbytes)
        result = BT_TOO_LONG;
    else if (in_nbytes > 0)
        update(h, in, in_nbytes);
    if (result == BT_OK && digest != NULL)
        digest_of(h, digest);
    release(h);
    return result;
}

int bt_sha256_update(bt_sha256 *h, const uint8_t *in, size_t in_nbytes) { return append(h, in, in_nbytes, NULL); }

int bt_sha256_append(bt_sha256 *h, const uint8_t *in, size_t in_nbytes, uint8_t digest[BT_SHA256_DIGEST_NBYTES])
{
    return append(h, in, in_nbytes, digest);
}

int bt_sha256_digest(bt_sha256 *h, uint8_t digest[BT_SHA256_DIGEST_NBYTES])
{
    if (!claim(h))
        return BT_BUSY;
    digest_of(h, digest);
    release(h);
    return BT_OK;
}

int bt_sha256_copy(bt_sha256 *to, bt_sha256 *from)
{
    if (!claim(from))
        return BT_BUSY;
    memcpy(to->state, from->state, sizeof(to->state));
    memcpy(to->partial, from->partial, sizeof(to->partial));
    to->nbytes = from->nbytes;
    release(from);
    __atomic_store_n(&to->busy, 0, __ATOMIC_RELEASE);
    return BT_OK;
}

int bt_sha256_nbytes(bt_sha256 *h, uint64_t *nbytes)
{
    if (!claim(h))
        return BT_BUSY;
    *nbytes = h->nbytes;
    release(h);
    return BT_OK;
}

/* ---- chaining values ---------------------------------------------------------------------------------------- */

int bt_sha256_update_chained(bt_sha256 *h, const uint8_t *in, size_t in_nbytes, size_t every_nbytes, uint8_t *values)
{
    int result = BT_OK;
    if (every_nbytes == 0 || every_nbytes % BLOCK != 0)
        return BT_BAD_ARGUMENT;
    if (!claim(h))
        return BT_BUSY;
    if (h->nbytes % BLOCK != 0)
        result = BT_BAD_ARGUMENT;
    else if (in_nbytes > MAX_NBYTES - h->nbytes)
        result = BT_TOO_LONG;
    else {
        for (; in_nbytes >= every_nbytes; in += every_nbytes, in_nbytes -= every_nbytes) {
            update(h, in, every_nbytes);
            put_state(values, h->state);
            values += BT_SHA256_DIGEST_NBYTES;
        }
        if (in_nbytes > 0)
            update(h, in, in_nbytes);
    }
    release(h);
    return result;
}

int bt_sha256_chaining_value(bt_sha256 *h, uint8_t value[BT_SHA256_DIGEST_NBYTES])
{
    int result = BT_OK;
    if (!claim(h))
        return BT_BUSY;
    if (h->nbytes % BLOCK != 0)
        result = BT_BAD_ARGUMENT;
    else
        put_state(value, h->state);
    release(h);
    return result;
}

int bt_sha256_resume(bt_sha256 *h, const uint8_t value[BT_SHA256_DIGEST_NBYTES], uint64_t nbytes)
{
    if (nbytes % BLOCK != 0 || nbytes > MAX_NBYTES)
        return BT_BAD_ARGUMENT;
    bt_sha256_init(h);
    for (int i = 0; i < 8; i++)
        h->state[i] = get32(value + 4 * i);
    h->nbytes = nbytes;
    return BT_OK;
}

/* ---- several streams ---------------------------------------------------------------------------------------- */

/* One stream on its way through a lane. What it has to compress comes in up to three runs of whole blocks: the partial
 * block once it is filled, the blocks of the input itself (never copied), and the padding if a digest is wanted. */
struct job {
    bt_sha256 *h;
    const uint8_t *in; /* input not looked at yet */
    size_t in_nbytes;
    uint8_t *digest; /* NULL: an update only */
    int padded;
    const uint8_t *run; /* blocks to compress now */
    size_t run_nblocks;
    uint8_t tail[2 * BLOCK];
    bt_sha256 own; /* for whole buffers, which bring no context */
};

/* Finds the next run. 0: the stream is through, its state or digest is in place. */
static int next_run(struct job *j)
{
    bt_sha256 *h = j->h;
    size_t fill = h->nbytes % BLOCK;
    while (j->in_nbytes > 0) {
        if (fill == 0 && j->in_nbytes >= BLOCK) {
            size_t nbytes = j->in_nbytes / BLOCK * BLOCK;
            j->run = j->in;
            j->run_nblocks = nbytes / BLOCK;
            j->in += nbytes;
            j->in_nbytes -= nbytes;
            h->nbytes += nbytes;
            return 1;
        }
        size_t take = BLOCK - fill < j->in_nbytes ? BLOCK - fill : j->in_nbytes;
        memcpy(h->partial + fill, j->in, take);
        j->in += take;
        j->in_nbytes -= take;
        h->nbytes += take;
        fill = h->nbytes % BLOCK;
        if (fill == 0) {
            j->run = h->partial;
            j->run_nblocks = 1;
            return 1;
        }
    }
    if (j->digest == NULL)
        return 0;
    if (!j->padded) {
        j->padded = 1;
        j->run_nblocks = pad(h, j->tail);
        j->run = j->tail;
        return 1;
    }
    put_state(j->digest, h->state);
    return 0;
}

/* Job i of n into j. `h` NULL: whole buffers, with a digest each. 0: it needed no compression and is done already. */
static int start(struct job *j, bt_sha256 *const *h, const uint8_t *const *in, const size_t *in_nbytes, size_t i,
                 uint8_t *digests)
{
    if (h == NULL) {
        bt_sha256_init(&j->own);
        j->h = &j->own;
        j->digest = digests + i * BT_SHA256_DIGEST_NBYTES;
    } else {
        j->h = h[i];
        j->digest = NULL;
    }
    j->padded = 0;
    j->in = in[i];
    j->in_nbytes = in_nbytes[i];
    return next_run(j);
}

/* Blocks left in a job, near enough to compare. */
static size_t left(const struct job *j) { return j->run_nblocks + j->in_nbytes / BLOCK; }

/* Moves the `lanes` jobs with most work left to the front. */
static void longest_to_front(struct job **jobs, int n, int lanes)
{
    for (int l = 0; l < lanes; l++)
        for (int i = l + 1; i < n; i++)
            if (left(jobs[i]) > left(jobs[l])) {
                struct job *j = jobs[l];
                jobs[l] = jobs[i];
                jobs[i] = j;
            }
}

/* More jobs are kept open than there are lanes. While others wait outside, the first ones run to their end. When none does,
 * the open ones take turns, those with most left first: so they end together, and no lane stays empty while, say, the last
 * of four equal streams has the core for itself. */
#define OPEN_JOBS (2 * SHA256_MAX_LANES)
#define TURN_NBLOCKS 64

static void run_lanes(bt_sha256 *const *h, const uint8_t *const *in, const size_t *in_nbytes, size_t n, uint8_t *digests)
{
    const struct kernels *k = kernels();
    struct job jobs[OPEN_JOBS];
    struct job *open[OPEN_JOBS];
    uint32_t *state[SHA256_MAX_LANES];
    const uint8_t *run[SHA256_MAX_LANES];
    int nopen = 0; /* open[0, nopen) have work; the rest point to free jobs */
    int most = k->lanes > 1 ? OPEN_JOBS : 1;
    size_t next = 0;

    for (int i = 0; i < OPEN_JOBS; i++)
        open[i] = &jobs[i];
    for (;;) {
        while (nopen < most && next < n)
            nopen += start(open[nopen], h, in, in_nbytes, next++, digests);
        if (nopen == 0)
            return;

        size_t nblocks = SIZE_MAX;
        int lanes = nopen;
        if (nopen > k->lanes) {
            lanes = k->lanes;
            if (next == n) {
                longest_to_front(open, nopen, lanes);
                nblocks = left(open[0]) / 8 + 1;
                if (nblocks > TURN_NBLOCKS)
                    nblocks = TURN_NBLOCKS;
            }
        }
        for (int l = 0; l < lanes; l++) {
            state[l] = open[l]->h->state;
            run[l] = open[l]->run;
            if (open[l]->run_nblocks < nblocks)
                nblocks = open[l]->run_nblocks;
        }
        if (lanes == 3)
            k->x3(state, run, nblocks);
        else if (lanes == 2)
            k->x2(state, run, nblocks);
        else
            k->x1(state[0], run[0], nblocks);

        for (int l = lanes - 1; l >= 0; l--) {
            struct job *j = open[l];
            j->run += nblocks * BLOCK;
            j->run_nblocks -= nblocks;
            if (j->run_nblocks == 0 && !next_run(j)) {
                open[l] = open[--nopen];
                open[nopen] = j;
            }
        }
    }
}

int bt_sha256_update_many(bt_sha256 *const *h, const uint8_t *const *in, const size_t *in_nbytes, size_t n)
{
    int result = BT_OK;
    size_t claimed = 0;
    /* A context that appears twice finds itself busy. */
    while (claimed < n && result == BT_OK) {
        if (!claim(h[claimed])) {
            result = BT_BUSY;
        } else {
            if (in_nbytes[claimed] > MAX_NBYTES - h[claimed]->nbytes)
                result = BT_TOO_LONG;
            claimed++;
        }
    }
    if (result == BT_OK)
        run_lanes(h, in, in_nbytes, n, NULL);
    while (claimed > 0)
        release(h[--claimed]);
    return result;
}

int bt_sha256_many(const uint8_t *const *in, const size_t *in_nbytes, size_t n, uint8_t *digests)
{
    for (size_t i = 0; i < n; i++)
        if (in_nbytes[i] > MAX_NBYTES)
            return BT_TOO_LONG;
    run_lanes(NULL, in, in_nbytes, n, digests);
    return BT_OK;
}

/* ---- saved states ------------------------------------------------------------------------------------------- */

static const uint8_t tag[8] = {'b', 't', 's', 'h', 'a', '2', 0, 1};
#define FIXED_NBYTES (sizeof(tag) + 8 + 32)

int bt_sha256_save(bt_sha256 *h, uint8_t out[BT_SHA256_STATE_MAX_NBYTES])
{
    if (!claim(h))
        return BT_BUSY;
    size_t fill = h->nbytes % BLOCK;
    memcpy(out, tag, sizeof(tag));
    put64(out + sizeof(tag), h->nbytes);
    put_state(out + sizeof(tag) + 8, h->state);
    memcpy(out + FIXED_NBYTES, h->partial, fill);
    release(h);
    put32(out + FIXED_NBYTES + fill, bt_crc32c(0, out, FIXED_NBYTES + fill));
    return (int)(FIXED_NBYTES + fill + 4);
}

int bt_sha256_restore(bt_sha256 *h, const uint8_t *in, size_t in_nbytes)
{
    if (in_nbytes < FIXED_NBYTES + 4 || memcmp(in, tag, sizeof(tag)) != 0)
        return BT_BAD_STATE;
    uint64_t nbytes = get64(in + sizeof(tag));
    size_t fill = nbytes % BLOCK;
    if (in_nbytes != FIXED_NBYTES + fill + 4 || nbytes > MAX_NBYTES)
        return BT_BAD_STATE;
    if (get32(in + FIXED_NBYTES + fill) != bt_crc32c(0, in, FIXED_NBYTES + fill))
        return BT_BAD_STATE;

    uint32_t state[8];
    for (int i = 0; i < 8; i++)
        state[i] = get32(in + sizeof(tag) + 8 + 4 * i);
    /* Before the first whole block there is only one state a message can have. */
    if (nbytes < BLOCK && memcmp(state, initial_state, sizeof(state)) != 0)
        return BT_BAD_STATE;

    bt_sha256_init(h);
    memcpy(h->state, state, sizeof(state));
    memcpy(h->partial, in + FIXED_NBYTES, fill);
    h->nbytes = nbytes;
    return BT_OK;
}
