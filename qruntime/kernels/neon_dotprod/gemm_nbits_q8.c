/// Low-bit GEMM with quantized activations of Advanced SIMD with dot products: sdot.
#include <math.h>
#include <string.h>

#include "../rungs.h"

#define TILE_ROWS 4
enum { PANELS = 1, IS_EXACT = true, WIDE_BYTES = 4, WIDE_OFFSET = 128 };

#include "../vector/simd_neon_dotprod.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"

static inline vi add_signed(vi sums, int8x16_t x, int8x16_t y) { return vdotq_s32(sums, x, y); }

#include "../neon/nbits_q8_signed.inc.h"

#include "../vector/gemm_nbits_q8.inc.h"

#include "../vector/simd_end.h"

void qrt_neon_dotprod_gemm_nbits_q8(qrt_kernel_table *t) {
    t->gemm_nbits_q8 = nbits_q8;
    t->gemm_nbits_q8.name = "neon_dotprod";
}
