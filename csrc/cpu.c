/* cpu.c - which instructions may be used: found at run time, restricted by the user (tests run once per restriction). */
#include "blobtee.h"

#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

/* The only global. 0 = not decided yet; otherwise DECIDED with the allowed bits. Every writer stores a whole, valid word,
 * so relaxed atomics are enough: nothing else is published with it. */
#define DECIDED (1u << 31)
static uint32_t allowed_word;

static const struct {
    uint32_t bit;
    const char *word;
} features[] = {
    {BT_CPU_SHANI, "shani"},          {BT_CPU_SSE42, "sse42"},           {BT_CPU_PCLMUL, "pclmul"},
    {BT_CPU_ARM_SHA2, "armv8-sha2"},  {BT_CPU_ARM_CRC32, "armv8-crc32"}, {BT_CPU_ARM_PMULL, "armv8-pmull"},
};
#define NFEATURES (sizeof(features) / sizeof(features[0]))

uint32_t bt_cpu_found(void)
{
    uint32_t found = 0;
#if defined(__x86_64__) || defined(__i386__)
    unsigned a, b, c, d;
    /* Only 128-bit registers are used, which every 64-bit system saves: no need to ask XGETBV. */
    if (__get_cpuid(1, &a, &b, &c, &d)) {
        int ssse3_and_sse41 = (c & bit_SSSE3) && (c & bit_SSE4_1);
        if (c & bit_SSE4_2)
            found |= BT_CPU_SSE42;
        if (c & bit_PCLMUL)
            found |= BT_CPU_PCLMUL;
        if (ssse3_and_sse41 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA))
            found |= BT_CPU_SHANI;
    }
#elif defined(__aarch64__) && defined(__linux__)
    /* Bit numbers are the kernel's ABI (arch/arm64, hwcap): written out so that old headers do not matter. */
    unsigned long caps = getauxval(AT_HWCAP);
    if (caps & (1ul << 4))
        found |= BT_CPU_ARM_PMULL;
    if (caps & (1ul << 6))
        found |= BT_CPU_ARM_SHA2;
    if (caps & (1ul << 7))
        found |= BT_CPU_ARM_CRC32;
#endif
    return found;
}

uint32_t bt_cpu_allowed(void)
{
    uint32_t word = __atomic_load_n(&allowed_word, __ATOMIC_RELAXED);
    if (word == 0) {
        word = bt_cpu_found() | DECIDED;
        __atomic_store_n(&allowed_word, word, __ATOMIC_RELAXED);
    }
    return word & ~DECIDED;
}

static uint32_t feature_named(const char *word, size_t length)
{
    for (size_t i = 0; i < NFEATURES; i++)
        if (strlen(features[i].word) == length && memcmp(features[i].word, word, length) == 0)
            return features[i].bit;
    return 0;
}

int bt_cpu_restrict(const char *words, size_t *bad_begin, size_t *bad_end)
{
    uint32_t mask = 0;
    if (words == NULL || words[0] == '\0' || strcmp(words, "native") == 0) {
        mask = BT_CPU_ALL;
    } else if (strcmp(words, "portable") != 0) {
        size_t at = 0;
        for (;;) {
            size_t next = at + strcspn(words + at, ",");
            size_t begin = at, end = next;
            while (begin < end && words[begin] == ' ')
                begin++;
            while (end > begin && words[end - 1] == ' ')
                end--;
            uint32_t bit = feature_named(words + begin, end - begin);
            if (bit == 0) {
                *bad_begin = begin;
                *bad_end = end;
                return BT_BAD_ARGUMENT;
            }
            mask |= bit;
            if (words[next] == '\0')
                break;
            at = next + 1;
        }
    }
    __atomic_store_n(&allowed_word, (bt_cpu_found() & mask) | DECIDED, __ATOMIC_RELAXED);
    return BT_OK;
}

const char *bt_cpu_word(uint32_t feature)
{
    for (size_t i = 0; i < NFEATURES; i++)
        if (features[i].bit == feature)
            return features[i].word;
    return NULL;
}

const char *bt_strerror(int result)
{
    switch (result) {
    case BT_OK: return "no error";
    case BT_BUSY: return "in use by another thread";
    case BT_BAD_ARGUMENT: return "argument out of range";
    case BT_BAD_STATE: return "not a serialised SHA-256 state, or a damaged one";
    case BT_TOO_LONG: return "longer than SHA-256 is defined for (2**61 - 1 bytes)";
    case BT_NOT_DRAINED: return "output is still waiting to be taken";
    case BT_NO_SPACE: return "the output buffer is too small";
    case BT_NO_MEMORY: return "out of memory";
    case BT_GONE: return "the client has gone";
    case BT_END: return "there is no more";
    case BT_TIMED_OUT: return "timed out";
    case BT_CLOSED: return "the server has stopped";
    case BT_TRUNCATED: return "gzip stream ends too early";
    case BT_BAD_MAGIC: return "not a gzip stream";
    case BT_BAD_METHOD: return "gzip member with a compression method other than deflate";
    case BT_BAD_FLAGS: return "gzip member with reserved header flags";
    case BT_BAD_HEADER_CRC: return "gzip header checksum does not match";
    case BT_BAD_DEFLATE: return "invalid deflate data";
    case BT_BAD_CRC: return "gzip member CRC-32 does not match its data";
    case BT_BAD_ISIZE: return "gzip member length does not match its data";
    case BT_TRAILING_GARBAGE: return "garbage after the last gzip member";
    case BT_INTERNAL: return "internal error";
    default: return "unknown result";
    }
}
