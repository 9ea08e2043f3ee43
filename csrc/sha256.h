/* sha256.h - private: what the dispatcher and the implementations of the SHA-256 compression function share. */
#ifndef BLOBTEE_SHA256_H
#define BLOBTEE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_MAX_LANES 3

/* Clang before 16 hides the intrinsics unless the whole file is compiled for them: it gets the portable code. */
#if defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16)
#define SHA256_HAVE_ARMV8 1
#endif

/* Round constants, FIPS 180-4 section 4.2.2; aligned so that they can be memory operands of SSE instructions. */
extern const uint32_t bt_sha256_k[64];

/* One stream: state[0, 8) over nblocks blocks of 64 bytes. */
typedef void bt_sha256_one(uint32_t *state, const uint8_t *in, size_t nblocks);

/* As many streams as the name says, each over the same number of blocks; states must be distinct. */
typedef void bt_sha256_lanes_fn(uint32_t *const *state, const uint8_t *const *in, size_t nblocks);

bt_sha256_one bt_sha256_x1_portable;
#if defined(__x86_64__)
bt_sha256_one bt_sha256_x1_shani;
bt_sha256_lanes_fn bt_sha256_x2_shani, bt_sha256_x3_shani;
#elif defined(SHA256_HAVE_ARMV8)
bt_sha256_one bt_sha256_x1_armv8;
bt_sha256_lanes_fn bt_sha256_x2_armv8;
#endif

#endif
