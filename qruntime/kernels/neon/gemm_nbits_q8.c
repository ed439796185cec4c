/// Low-bit GEMM with quantized activations of Advanced SIMD without dot products: eight products as int16, which pairwise
/// sums widen.
#include <math.h>
#include <string.h>

#include "../rungs.h"

#define TILE_ROWS 4
enum { PANELS = 1, IS_EXACT = true, WIDE_BYTES = 4, WIDE_OFFSET = 128 };

#include "../vector/simd_neon.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"

/// Four products of signed bytes a lane.
static inline vi add_signed(vi sums, int8x16_t x, int8x16_t y) {
    int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y)), high = vmull_high_s8(x, y);
    return vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}

#include "nbits_q8_signed.inc.h"

#include "../vector/gemm_nbits_q8.inc.h"

void qrt_neon_gemm_nbits_q8(qrt_kernel_table *t) {
    t->gemm_nbits_q8 = nbits_q8;
    t->gemm_nbits_q8.name = "neon";
}
