/// int8 GEMM of Advanced SIMD with dot products: sdot adds four products of signed bytes to an int32 and loses nothing.
/// Codes are moved to q − 128 for it.
#include <math.h>
#include <string.h>

#include "../neon/gemm_q8.h"
#include "../rungs.h"

#define QRT_TILE_ROWS 8
enum { MR = QRT_TILE_ROWS, NR = 8, KR = 4 };

/// What zero points of activations are moved by.
enum { CODE_OFFSET = 128 };

#include "../vector/simd_neon_dotprod.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"
#include "../vector/gemm_q8.inc.h"

#include "../neon/quantize.inc.h"

static void quantize(const float *a, int64_t k, int64_t k_padded, float inverse_scale, int32_t zero_point, int32_t qmax,
                     void *packed, int64_t *sum) {
    quantize_bytes_with(CODE_OFFSET, a, k, k_padded, inverse_scale, zero_point, qmax, packed, sum);
}

/// sdot itself reads lane 0 for every lane.
static inline vi vi_codes(const void *a) {
    uint32_t codes;
    memcpy(&codes, a, sizeof codes);
    return vcombine_s32(vcreate_s32(codes), vcreate_s32(0));
}
static inline vi vi_dot4(vi acc, vi codes, vi weights) {
    return vdotq_laneq_s32(acc, vreinterpretq_s8_s32(weights), vreinterpretq_s8_s32(codes), 0);
}

#include "../vector/gemm_q8_dot4.inc.h"

/// Long sums are of whole codes: see qrt_gemm_q8.dot.
static bool pack_short_panel(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                             void *panel) {
    return k <= QRT_Q8_MAX_K && pack_panel(w, row_stride_elems, col_stride_elems, k, n, panel);
}

static int32_t code_offset(int32_t zero_point) {
    (void)zero_point;
    return CODE_OFFSET;
}

#include "../vector/simd_end.h"

void qrt_neon_dotprod_gemm_q8(qrt_kernel_table *t) {
    t->gemm_q8 = dot4_gemm_q8;
    t->gemm_q8.name = "neon_dotprod";
    t->gemm_q8.fallback = &qrt_neon_gemm_q8_widening;
    t->gemm_q8.pack_panel = pack_short_panel;
    t->gemm_q8.dot = NULL;
    t->gemm_q8.code_offset = code_offset;
}
