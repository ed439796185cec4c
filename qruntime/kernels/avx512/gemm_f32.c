/// Float GEMM of AVX-512: 14 × 32 tiles fill 28 of the 32 registers.
#include <immintrin.h>

#include "../rungs.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif

enum { MR = 14, NV = 2 };
#define QRT_TILES                                                                                             \
    TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)

#include "../vector/f32_avx512.h"
#include "../vector/exp.inc.h"
#include "../vector/transpose_avx2.h"
#include "../vector/gemm_f32.inc.h"

void qrt_avx512_gemm_f32(qrt_kernel_table *t) {
    t->gemm_f32 = (qrt_gemm_f32){"avx512", MR, NR, strip, stream, finish, pack};
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
