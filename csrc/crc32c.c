/* crc32c.c - CRC-32C (reflected polynomial 0x82f63b78): tables anywhere, instructions where they may be used.
 *
 * The crc32 instruction takes 8 bytes a cycle but answers after three: one chain reaches a third of it. So a long input
 * is cut in three parts of fixed length, the chains run side by side, and are joined by shifting the first two past what
 * follows them. Shifting by n bytes multiplies by x**(8n) mod P. The carry-less product of two reflected 32-bit values,
 * taken as 64 bits of data, stands for their product times x, and the crc32 instruction multiplies by x**32 and reduces;
 * so the constants are x**(8n - 33) mod P, reflected. (Derivation: bit i of a reflected word is x**(31 - i).) */
#include "blobtee.h"

#include <string.h>

/* ---- tables ------------------------------------------------------------------------------------------------- */

/* Slicing by eight: table[k][b] is the checksum of byte b followed by k zero bytes. It is linear in b, so each entry is a sum
 * (exclusive or) of eight basis values, and the compiler writes the table. basis k, bit i: 0x82f63b78 stepped 8k+7-i times. */
#define BASIS0(i) B(i, 0xf26b8303, 0xe13b70f7, 0xc79a971f, 0x8ad958cf, 0x105ec76f, 0x20bd8ede, 0x417b1dbc, 0x82f63b78)
#define BASIS1(i) B(i, 0x13a29877, 0x274530ee, 0x4e8a61dc, 0x9d14c3b8, 0x3fc5f181, 0x7f8be302, 0xff17c604, 0xfbc3faf9)
#define BASIS2(i) B(i, 0xa541927e, 0x4f6f520d, 0x9edea41a, 0x38513ec5, 0x70a27d8a, 0xe144fb14, 0xc76580d9, 0x8b277743)
#define BASIS3(i) B(i, 0xdd45aab8, 0xbf672381, 0x7b2231f3, 0xf64463e6, 0xe964b13d, 0xd725148b, 0xaba65fe7, 0x52a0c93f)
#define BASIS4(i) B(i, 0x38116fac, 0x7022df58, 0xe045beb0, 0xc5670b91, 0x8f2261d3, 0x1ba8b557, 0x37516aae, 0x6ea2d55c)
#define BASIS5(i) B(i, 0xef306b19, 0xdb8ca0c3, 0xb2f53777, 0x6006181f, 0xc00c303e, 0x85f4168d, 0x0e045beb, 0x1c08b7d6)
#define BASIS6(i) B(i, 0x68032cc8, 0xd0065990, 0xa5e0c5d1, 0x4e2dfd53, 0x9c5bfaa6, 0x3d5b83bd, 0x7ab7077a, 0xf56e0ef4)
#define BASIS7(i) B(i, 0x493c7d27, 0x9278fa4e, 0x211d826d, 0x423b04da, 0x847609b4, 0x0d006599, 0x1a00cb32, 0x34019664)

#define B(i, b0, b1, b2, b3, b4, b5, b6, b7)                                                             \
    (((i) & 1 ? b0 : 0u) ^ ((i) & 2 ? b1 : 0u) ^ ((i) & 4 ? b2 : 0u) ^ ((i) & 8 ? b3 : 0u) ^             \
     ((i) & 16 ? b4 : 0u) ^ ((i) & 32 ? b5 : 0u) ^ ((i) & 64 ? b6 : 0u) ^ ((i) & 128 ? b7 : 0u))
#define FOUR(F, i) F(i), F((i) + 1), F((i) + 2), F((i) + 3)
#define SIXTEEN(F, i) FOUR(F, i), FOUR(F, (i) + 4), FOUR(F, (i) + 8), FOUR(F, (i) + 12)
#define SIXTY_FOUR(F, i) SIXTEEN(F, i), SIXTEEN(F, (i) + 16), SIXTEEN(F, (i) + 32), SIXTEEN(F, (i) + 48)
#define ALL(F) {SIXTY_FOUR(F, 0), SIXTY_FOUR(F, 64), SIXTY_FOUR(F, 128), SIXTY_FOUR(F, 192)}

static const uint32_t table[8][256] = {
    ALL(BASIS0), ALL(BASIS1), ALL(BASIS2), ALL(BASIS3), ALL(BASIS4), ALL(BASIS5), ALL(BASIS6), ALL(BASIS7),
};

static uint32_t crc32c_portable(uint32_t crc, const uint8_t *p, size_t nbytes)
{
    for (; nbytes >= 8; p += 8, nbytes -= 8) {
        crc ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        crc = table[7][crc & 0xff] ^ table[6][crc >> 8 & 0xff] ^ table[5][crc >> 16 & 0xff] ^ table[4][crc >> 24] ^
              table[3][p[4]] ^ table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]];
    }
    for (; nbytes > 0; p++, nbytes--)
        crc = crc >> 8 ^ table[0][(crc ^ *p) & 0xff];
    return crc;
}

/* ---- instructions ------------------------------------------------------------------------------------------- */

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__)
#include <immintrin.h>
#define HAVE_INSTRUCTIONS 1
#define CRC __attribute__((target("sse4.2")))
#define CRC_CLMUL __attribute__((target("sse4.2,pclmul")))
#define FEATURE_CRC BT_CPU_SSE42
#define FEATURE_CLMUL BT_CPU_PCLMUL
#define PATH_CRC "sse42"
#define PATH_CRC_CLMUL "sse42+pclmul"

CRC INLINE uint64_t step8(uint64_t crc, uint64_t word) { return _mm_crc32_u64(crc, word); }
CRC INLINE uint64_t step1(uint64_t crc, uint8_t byte) { return _mm_crc32_u8((uint32_t)crc, byte); }
CRC_CLMUL INLINE uint64_t clmul(uint64_t a, uint64_t b)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((int64_t)a), _mm_cvtsi64_si128((int64_t)b), 0);
    return (uint64_t)_mm_cvtsi128_si64(product);
}

#elif defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16)
/* Older clang hides these intrinsics unless the whole file is compiled for them. */
#include <arm_acle.h>
#include <arm_neon.h>
#define HAVE_INSTRUCTIONS 1
#if defined(__clang__)
#define CRC __attribute__((target("crc")))
#define CRC_CLMUL __attribute__((target("crc,aes")))
#else
#define CRC __attribute__((target("+crc")))
#define CRC_CLMUL __attribute__((target("+crc+crypto")))
#endif
#define FEATURE_CRC BT_CPU_ARM_CRC32
#define FEATURE_CLMUL BT_CPU_ARM_PMULL
#define PATH_CRC "armv8-crc32"
#define PATH_CRC_CLMUL "armv8-crc32+pmull"

CRC INLINE uint64_t step8(uint64_t crc, uint64_t word) { return __crc32cd((uint32_t)crc, word); }
CRC INLINE uint64_t step1(uint64_t crc, uint8_t byte) { return __crc32cb((uint32_t)crc, byte); }
CRC_CLMUL INLINE uint64_t clmul(uint64_t a, uint64_t b)
{
    return (uint64_t)vmull_p64((poly64_t)a, (poly64_t)b);
}
#endif

#ifdef HAVE_INSTRUCTIONS

INLINE uint64_t load8(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

CRC static uint32_t crc32c_serial(uint32_t crc, const uint8_t *p, size_t nbytes)
{
    uint64_t c = crc;
    for (; nbytes >= 8; p += 8, nbytes -= 8)
        c = step8(c, load8(p));
    for (; nbytes > 0; p++, nbytes--)
        c = step1(c, *p);
    return (uint32_t)c;
}

/* Three parts of `part` bytes each at p; past1 and past2 shift by one and by two parts. */
CRC_CLMUL INLINE uint64_t three_parts(uint64_t a, const uint8_t *p, const size_t part, uint64_t past1, uint64_t past2)
{
    uint64_t b = 0, c = 0;
    for (size_t i = 0; i < part; i += 8) {
        a = step8(a, load8(p + i));
        b = step8(b, load8(p + part + i));
        c = step8(c, load8(p + 2 * part + i));
    }
    return c ^ step8(0, clmul(a, past2) ^ clmul(b, past1));
}

#define LONG_PART 4096
#define LONG_PAST1 0x82f89c77
#define LONG_PAST2 0x54a86326
#define SHORT_PART 256
#define SHORT_PAST1 0xb9e02b86
#define SHORT_PAST2 0xdd7e3b0c

CRC_CLMUL static uint32_t crc32c_three(uint32_t crc, const uint8_t *p, size_t nbytes)
{
    uint64_t c = crc;
    for (; nbytes >= 3 * LONG_PART; p += 3 * LONG_PART, nbytes -= 3 * LONG_PART)
        c = three_parts(c, p, LONG_PART, LONG_PAST1, LONG_PAST2);
    for (; nbytes >= 3 * SHORT_PART; p += 3 * SHORT_PART, nbytes -= 3 * SHORT_PART)
        c = three_parts(c, p, SHORT_PART, SHORT_PAST1, SHORT_PAST2);
    return crc32c_serial((uint32_t)c, p, nbytes);
}
#endif

/* ---- which --------------------------------------------------------------------------------------------------- */

uint32_t bt_crc32c(uint32_t value, const uint8_t *in, size_t in_nbytes)
{
    uint32_t crc = ~value;
#ifdef HAVE_INSTRUCTIONS
    uint32_t allowed = bt_cpu_allowed();
    if (allowed & FEATURE_CRC)
        return ~(allowed & FEATURE_CLMUL ? crc32c_three : crc32c_serial)(crc, in, in_nbytes);
#endif
    return ~crc32c_portable(crc, in, in_nbytes);
}

void bt_crc32c_each(const uint8_t *in, size_t in_nbytes, size_t every_nbytes, uint8_t *values)
{
    while (in_nbytes > 0) {
        size_t n = in_nbytes < every_nbytes ? in_nbytes : every_nbytes;
        uint32_t crc = bt_crc32c(0, in, n);
        for (int i = 0; i < 4; i++)
            *values++ = (uint8_t)(crc >> 8 * i);
        in += n;
        in_nbytes -= n;
    }
}

const char *bt_crc32c_path(void)
{
#ifdef HAVE_INSTRUCTIONS
    uint32_t allowed = bt_cpu_allowed();
    if (allowed & FEATURE_CRC)
        return allowed & FEATURE_CLMUL ? PATH_CRC_CLMUL : PATH_CRC;
#endif
    return "portable";
}
