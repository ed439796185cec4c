/// Float GEMM of AVX2 + FMA: 6 × 16 tiles fill 12 of the 16 registers.
#include <immintrin.h>

#include "../rungs.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

enum { MR = 6, NV = 2 };
#define QRT_TILES TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)

#include "../vector/f32_avx2.h"
#include "../vector/exp.inc.h"
#include "../vector/transpose_avx2.h"
#include "../vector/gemm_f32.inc.h"

void qrt_avx2_gemm_f32(qrt_kernel_table *t) {
    t->gemm_f32 = (qrt_gemm_f32){"avx2", MR, NR, strip, stream, finish, pack};
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
