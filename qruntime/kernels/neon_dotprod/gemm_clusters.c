/// Products with codes of activations in clusters of Advanced SIMD with dot products: sdot.
#include <math.h>
#include <string.h>

#include "../rungs.h"

#define PANELS 1

#include "../vector/simd_neon_dotprod.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"

#include "../vector/nbits_unpack.inc.h"

enum { NR = QRT_NBITS_NR, TILE_ROWS = 4, PANEL_VECTORS = NR / VL, VECTORS = PANELS * PANEL_VECTORS, CODE_OFFSET = 128 };

static inline vi add_signed(vi sums, int8x16_t x, int8x16_t y) { return vdotq_s32(sums, x, y); }

#include "../neon/clusters_signed.inc.h"

#include "../vector/gemm_clusters.inc.h"

#include "../vector/simd_end.h"

void qrt_neon_dotprod_gemm_clusters(qrt_kernel_table *t) {
    t->gemm_clusters = clusters;
    t->gemm_clusters.name = "neon_dotprod";
}
