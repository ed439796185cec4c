/// Double GEMM of AVX2 + FMA: 6 × 8 tiles, as the float one.
#include "../rungs.h"

enum { MR = 6, NV = 2 };
#define QRT_TILES TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)

#include "../vector/simd_avx2.h"
#include "../vector/gemm_f64.inc.h"

void qrt_avx2_gemm_f64(qrt_kernel_table *t) { t->gemm_f64 = (qrt_gemm_f64){MR, NR, strip}; }

#include "../vector/simd_end.h"
