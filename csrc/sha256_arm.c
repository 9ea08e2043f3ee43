/* sha256_arm.c - SHA-256 with the ARMv8 cryptographic instructions (Arm ARM: SHA256H, SHA256H2, SHA256SU0, SHA256SU1).
 *
 * As on x86, four rounds wait for the four before them; two streams side by side fill the gaps. There are 32 vector
 * registers, so two lanes (2 * (2 state + 2 saved + 4 message)) stay in registers with room for the constants.
 */
#include "sha256.h"

#if defined(SHA256_HAVE_ARMV8)

/* Only these functions may use the instructions, not the whole file: the machine may not have them. */
#if defined(__clang__)
#define ARMV8_SHA2 __attribute__((target("sha2")))
#else
#define ARMV8_SHA2 __attribute__((target("+crypto")))
#endif

#include <arm_neon.h>

#define LANES 2
#define INLINE static inline __attribute__((always_inline))
#define EACH_LANE _Pragma("GCC unroll 2") for (int l = 0; l < lanes; l++)

/* Four rounds, i = 0..15, on every lane; m[l] is a ring of four registers. The words of these rounds are not needed
 * any more once they are added to the constants, so their place takes the words of sixteen rounds later. */
#define ROUNDS4(i)                                                                                       \
    do {                                                                                                 \
        uint32x4_t k = vld1q_u32(bt_sha256_k + 4 * (i));                                                 \
        EACH_LANE {                                                                                      \
            uint32x4_t wk = vaddq_u32(m[l][(i) & 3], k);                                                 \
            uint32x4_t before = abcd[l];                                                                 \
            if ((i) < 12)                                                                                \
                m[l][(i) & 3] = vsha256su1q_u32(vsha256su0q_u32(m[l][(i) & 3], m[l][((i) + 1) & 3]),     \
                                                m[l][((i) + 2) & 3], m[l][((i) + 3) & 3]);               \
            abcd[l] = vsha256hq_u32(abcd[l], efgh[l], wk);                                               \
            efgh[l] = vsha256h2q_u32(efgh[l], before, wk);                                               \
        }                                                                                                \
    } while (0)

ARMV8_SHA2 INLINE void run(uint32_t *const *state, const uint8_t *const *in, size_t nblocks, const int lanes)
{
    uint32x4_t abcd[LANES], efgh[LANES];
    const uint8_t *p[LANES];

    EACH_LANE {
        abcd[l] = vld1q_u32(state[l]);
        efgh[l] = vld1q_u32(state[l] + 4);
        p[l] = in[l];
    }
    for (; nblocks > 0; nblocks--) {
        uint32x4_t m[LANES][4], abcd0[LANES], efgh0[LANES];
        EACH_LANE {
            abcd0[l] = abcd[l];
            efgh0[l] = efgh[l];
            _Pragma("GCC unroll 4") for (int q = 0; q < 4; q++)
                m[l][q] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(p[l] + 16 * q)));
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
            abcd[l] = vaddq_u32(abcd[l], abcd0[l]);
            efgh[l] = vaddq_u32(efgh[l], efgh0[l]);
        }
    }
    EACH_LANE {
        vst1q_u32(state[l], abcd[l]);
        vst1q_u32(state[l] + 4, efgh[l]);
    }
}

ARMV8_SHA2 void bt_sha256_x1_armv8(uint32_t *state, const uint8_t *in, size_t nblocks)
{
    run(&state, &in, nblocks, 1);
}

ARMV8_SHA2 void bt_sha256_x2_armv8(uint32_t *const *state, const uint8_t *const *in, size_t nblocks)
{
    run(state, in, nblocks, 2);
}
#endif
