/// Products with codes of activations in clusters on AVX512-VNNI: vpdpbusd of 512 bits.
#include <math.h>
#include <string.h>

#include "../rungs.h"

#if defined(__x86_64__)

#define PANELS 3

#include "../vector/simd_avx512.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"
#include "dot4.inc.h"

#include "../vector/nbits_unpack.inc.h"

enum { NR = QRT_NBITS_NR, TILE_ROWS = 4, PANEL_VECTORS = NR / VL, VECTORS = PANELS * PANEL_VECTORS, CODE_OFFSET = 0 };

static inline vi less(vi u, vi zero_points) { return _mm512_sub_epi8(u, zero_points); }

#include "../vector/clusters_unsigned.inc.h"

#include "../vector/gemm_clusters.inc.h"

#include "../vector/simd_end.h"

void qrt_avx512vnni_gemm_clusters(qrt_kernel_table *t) {
    t->gemm_clusters = clusters;
    t->gemm_clusters.name = "avx512vnni";
}

#endif
