/// Products with codes of activations in clusters of Advanced SIMD without dot products: eight products as int16, which pairwise
/// sums widen.
#include <math.h>
#include <string.h>

#include "../rungs.h"

#define PANELS 1

#include "../vector/simd_neon.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"

#include "../vector/nbits_unpack.inc.h"

enum { NR = QRT_NBITS_NR, TILE_ROWS = 4, PANEL_VECTORS = NR / VL, VECTORS = PANELS * PANEL_VECTORS, CODE_OFFSET = 128 };

/// Four products of signed bytes a lane.
static inline vi add_signed(vi sums, int8x16_t x, int8x16_t y) {
    int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y)), high = vmull_high_s8(x, y);
    return vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}

#include "clusters_signed.inc.h"

#include "../vector/gemm_clusters.inc.h"

void qrt_neon_gemm_clusters(qrt_kernel_table *t) {
    t->gemm_clusters = clusters;
    t->gemm_clusters.name = "neon";
}
