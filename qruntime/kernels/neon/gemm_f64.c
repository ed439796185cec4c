/// Double GEMM of Advanced SIMD: 5 × 8 tiles, as the float one.
#include "../rungs.h"

enum { MR = 5, NV = 4 };
#define QRT_TILES TILE(1) TILE(2) TILE(3) TILE(4) TILE(5)

#include "../vector/simd_neon.h"
#include "../vector/gemm_f64.inc.h"

void qrt_neon_gemm_f64(qrt_kernel_table *t) { t->gemm_f64 = (qrt_gemm_f64){MR, NR, strip}; }
