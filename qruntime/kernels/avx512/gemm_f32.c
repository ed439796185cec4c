/// Float GEMM of AVX-512: 14 × 32 tiles fill 28 of the 32 registers.
#include "../rungs.h"

enum { MR = 14, NV = 2 };
#define QRT_TILES                                                                                             \
    TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)

#include "../vector/simd_avx512.h"
#include "../vector/math.inc.h"
#include "../vector/gemm_f32.inc.h"

void qrt_avx512_gemm_f32(qrt_kernel_table *t) {
    t->gemm_f32 = (qrt_gemm_f32){"avx512", MR, NR, strip, scattered_strip, stream, finish, pack, taps, grouped_strip};
}

#include "../vector/simd_end.h"
