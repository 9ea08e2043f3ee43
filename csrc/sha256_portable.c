/* sha256_portable.c - the SHA-256 compression function in plain C (FIPS 180-4, section 6.2.2). */
#include "sha256.h"

#include <string.h>

_Alignas(64) const uint32_t bt_sha256_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t rotr(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

static inline uint32_t big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint32_t mix(const uint32_t *w, int t)
{
    /* w holds the last sixteen words in a ring: t-15, t-7 and t-2 are t+1, t+9 and t+14 in it */
    uint32_t w15 = w[(t + 1) & 15], w2 = w[(t + 14) & 15];
    uint32_t small0 = rotr(w15, 7) ^ rotr(w15, 18) ^ (w15 >> 3);
    uint32_t small1 = rotr(w2, 17) ^ rotr(w2, 19) ^ (w2 >> 10);
    return w[t & 15] + small0 + w[(t + 9) & 15] + small1;
}

/* One round. Instead of moving eight variables along, the callers below rename them: only d and h are written. */
#define ROUND(a, b, c, d, e, f, g, h, t, word)                                                          \
    do {                                                                                                \
        uint32_t t1 = h + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + (g ^ (e & (f ^ g))) +              \
                      bt_sha256_k[t] + (word);                                                          \
        d += t1;                                                                                        \
        h = t1 + (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) | (c & (a | b)));                  \
    } while (0)

#define EIGHT(t, WORD)                                                                                  \
    do {                                                                                                \
        ROUND(a, b, c, d, e, f, g, h, (t) + 0, WORD((t) + 0));                                          \
        ROUND(h, a, b, c, d, e, f, g, (t) + 1, WORD((t) + 1));                                          \
        ROUND(g, h, a, b, c, d, e, f, (t) + 2, WORD((t) + 2));                                          \
        ROUND(f, g, h, a, b, c, d, e, (t) + 3, WORD((t) + 3));                                          \
        ROUND(e, f, g, h, a, b, c, d, (t) + 4, WORD((t) + 4));                                          \
        ROUND(d, e, f, g, h, a, b, c, (t) + 5, WORD((t) + 5));                                          \
        ROUND(c, d, e, f, g, h, a, b, (t) + 6, WORD((t) + 6));                                          \
        ROUND(b, c, d, e, f, g, h, a, (t) + 7, WORD((t) + 7));                                          \
    } while (0)

#define GIVEN(t) (w[t] = big_endian(in + 4 * (t)))
#define MIXED(t) (w[(t) & 15] = mix(w, t))

void bt_sha256_x1_portable(uint32_t *state, const uint8_t *in, size_t nblocks)
{
    uint32_t w[16];
    for (; nblocks > 0; nblocks--, in += 64) {
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        EIGHT(0, GIVEN);
        EIGHT(8, GIVEN);
        for (int t = 16; t < 64; t += 16) {
            EIGHT(t, MIXED);
            EIGHT(t + 8, MIXED);
        }
        state[0] += a;
        state[1] += b;
        state[2] += c;
        state[3] += d;
        state[4] += e;
        state[5] += f;
        state[6] += g;
        state[7] += h;
    }
}
