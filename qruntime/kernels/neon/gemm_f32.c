/// Float GEMM of Advanced SIMD: 5 × 16 tiles fill 20 of the 32 registers, with a sixth row gcc spills some.
#include "../rungs.h"

enum { MR = 5, NV = 4 };
#define QRT_TILES TILE(1) TILE(2) TILE(3) TILE(4) TILE(5)

#include "../vector/simd_neon.h"
#include "../vector/math.inc.h"
#include "../vector/gemm_f32.inc.h"

void qrt_neon_gemm_f32(qrt_kernel_table *t) {
    t->gemm_f32 = (qrt_gemm_f32){"neon", MR, NR, strip, scattered_strip, stream, finish, pack, taps, grouped_strip};
}
