/// Float GEMM of AVX2 + FMA: 6 × 16 tiles fill 12 of the 16 registers.
#include "../rungs.h"

enum { MR = 6, NV = 2 };
#define QRT_TILES TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)

#include "../vector/simd_avx2.h"
#include "../vector/math.inc.h"
#include "../vector/gemm_f32.inc.h"

void qrt_avx2_gemm_f32(qrt_kernel_table *t) {
    t->gemm_f32 = (qrt_gemm_f32){"avx2", MR, NR, strip, scattered_strip, stream, finish, pack, taps, grouped_strip};
}

#include "../vector/simd_end.h"
