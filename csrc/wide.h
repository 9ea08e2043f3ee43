/* wide.h - wide registers of x86 processors, after somebody else used them. */
#ifndef BLOBTEE_WIDE_H
#define BLOBTEE_WIDE_H

/* Code that used wide registers may leave their upper halves in use: ISA-L's CRC-32 does, for one. Then each instruction of
 * the older encoding that comes after it in this thread waits for them, whoever's it is, until somebody clears them: SHA-256
 * by the SHA extensions takes a third longer. */
static inline void clear_upper_halves(void)
{
#if defined(__x86_64__) && !defined(__AVX__)
    if (__builtin_cpu_supports("avx"))
        __asm__ volatile("vzeroupper");
#endif
}

#endif
