/* sha256_x86.c - SHA-256 with the SHA extensions (Intel SDM vol. 2: SHA256RNDS2, SHA256MSG1, SHA256MSG2).
 *
 * A round pair waits about four cycles for the one before it, while the unit could start another every two: one stream
 * leaves half of it idle, and no order of instructions changes that. Independent streams, side by side, do.
 * Three streams need more registers than there are (the instructions reach only xmm0..15), but the spilled words are
 * message words off the critical path, and loads are cheap; with four the loads are no longer hidden.
 */
#include "sha256.h"
#include "wide.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define SHANI __attribute__((target("sha,sse4.1,ssse3")))
#define INLINE static inline __attribute__((always_inline))
#define EACH_LANE _Pragma("GCC unroll 4") for (int l = 0; l < lanes; l++)

/* Four rounds, i = 0..15, on every lane. m[l] is a ring of four registers, four words each:
 *  - the words for these rounds are m[i & 3];
 *  - the next four are finished here (MSG2), as they need the last two of these;
 *  - and those after 12 more rounds are begun here (MSG1), so that it is long done when MSG2 wants it. */
#define ROUNDS4(i)                                                                                       \
    do {                                                                                                 \
        __m128i k = _mm_load_si128((const __m128i *)(const void *)(bt_sha256_k + 4 * (i)));              \
        __m128i wk[SHA256_MAX_LANES];                                                                    \
        EACH_LANE {                                                                                      \
            wk[l] = _mm_add_epi32(m[l][(i) & 3], k);                                                     \
            cdgh[l] = _mm_sha256rnds2_epu32(cdgh[l], abef[l], wk[l]);                                    \
        }                                                                                                \
        if ((i) >= 3 && (i) < 15)                                                                        \
            EACH_LANE {                                                                                  \
                __m128i w7 = _mm_alignr_epi8(m[l][(i) & 3], m[l][((i) + 3) & 3], 4);                     \
                __m128i sum = _mm_add_epi32(m[l][((i) + 1) & 3], w7);                                    \
                m[l][((i) + 1) & 3] = _mm_sha256msg2_epu32(sum, m[l][(i) & 3]);                          \
            }                                                                                            \
        EACH_LANE                                                                                        \
            abef[l] = _mm_sha256rnds2_epu32(abef[l], cdgh[l], _mm_shuffle_epi32(wk[l], 0x0e));           \
        if ((i) >= 1 && (i) < 13)                                                                        \
            EACH_LANE                                                                                    \
                m[l][((i) + 3) & 3] = _mm_sha256msg1_epu32(m[l][((i) + 3) & 3], m[l][(i) & 3]);          \
    } while (0)

SHANI INLINE void run(uint32_t *const *state, const uint8_t *const *in, size_t nblocks, const int lanes)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abef[SHA256_MAX_LANES], cdgh[SHA256_MAX_LANES];
    const uint8_t *p[SHA256_MAX_LANES];

    EACH_LANE {
        /* The instructions want (a b e f) and (c d g h) with a and c in the highest word; memory has a..d, e..h. */
        __m128i abcd = _mm_loadu_si128((const __m128i *)(const void *)state[l]);
        __m128i efgh = _mm_loadu_si128((const __m128i *)(const void *)(state[l] + 4));
        abef[l] = _mm_shuffle_epi32(_mm_unpacklo_epi64(efgh, abcd), 0xb1);
        cdgh[l] = _mm_shuffle_epi32(_mm_unpackhi_epi64(efgh, abcd), 0xb1);
        p[l] = in[l];
    }
    for (; nblocks > 0; nblocks--) {
        __m128i m[SHA256_MAX_LANES][4], abef0[SHA256_MAX_LANES], cdgh0[SHA256_MAX_LANES];
        EACH_LANE {
            abef0[l] = abef[l];
            cdgh0[l] = cdgh[l];
            _Pragma("GCC unroll 4") for (int q = 0; q < 4; q++)
                m[l][q] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(p[l] + 16 * q)), swap);
            p[l] += 64;
        }
        ROUNDS4(0);
        ROUNDS4(1);
        ROUNDS4(2);
        ROUNDS4(3);
        ROUNDS4(4);
        ROUNDS4(5);
        ROUNDS4(6);
        ROUNDS4(7);
        ROUNDS4(8);
        ROUNDS4(9);
        ROUNDS4(10);
        ROUNDS4(11);
        ROUNDS4(12);
        ROUNDS4(13);
        ROUNDS4(14);
        ROUNDS4(15);
        EACH_LANE {
            abef[l] = _mm_add_epi32(abef[l], abef0[l]);
            cdgh[l] = _mm_add_epi32(cdgh[l], cdgh0[l]);
        }
    }
    EACH_LANE {
        __m128i efab = _mm_shuffle_epi32(abef[l], 0xb1);
        __m128i ghcd = _mm_shuffle_epi32(cdgh[l], 0xb1);
        _mm_storeu_si128((__m128i *)(void *)state[l], _mm_unpackhi_epi64(efab, ghcd));
        _mm_storeu_si128((__m128i *)(void *)(state[l] + 4), _mm_unpacklo_epi64(efab, ghcd));
    }
}

SHANI void bt_sha256_x1_shani(uint32_t *state, const uint8_t *in, size_t nblocks)
{
    clear_upper_halves();
    run(&state, &in, nblocks, 1);
}

SHANI void bt_sha256_x2_shani(uint32_t *const *state, const uint8_t *const *in, size_t nblocks)
{
    clear_upper_halves();
    run(state, in, nblocks, 2);
}

SHANI void bt_sha256_x3_shani(uint32_t *const *state, const uint8_t *const *in, size_t nblocks)
{
    clear_upper_halves();
    run(state, in, nblocks, 3);
}
#endif
