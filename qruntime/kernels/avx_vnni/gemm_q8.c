/// int8 GEMM on AVX-VNNI: vpdpbusd of 256 bits.
#include <math.h>
#include <string.h>

#include "../rungs.h"

#if defined(__x86_64__)

#define QRT_TILE_ROWS 4
enum { MR = QRT_TILE_ROWS, NR = 24, KR = 4, CODE_OFFSET = 0 };

#include "../vector/simd_avx2.h"

#include "../avx2/quantize_u8.inc.h"
#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"
#include "../vector/gemm_q8.inc.h"

static inline vi vi_codes(const void *a) {
    int32_t codes;
    memcpy(&codes, a, sizeof codes);
    return vi_set(codes);
}

#include "dot4.inc.h"

#include "../vector/gemm_q8_dot4.inc.h"

static void quantize_pieces(const float *x, int64_t step, int64_t n, const int64_t *places, int64_t num_pieces, bool any_outside,
                            int64_t k_padded, const float *inverse_scales, const qrt_q8_row *rows, int32_t qmax, void *packed,
                            int64_t stride_bytes) {
    uint8_t *row = packed;
    (void)k_padded;  // whole pieces are whole steps
    for (int64_t r = 0; r < n; r++, x += step, row += stride_bytes) {
        if (any_outside) quantize_row_of_pieces(true, x, places, num_pieces, inverse_scales[r], rows[r].zero_point, qmax, row);
        else quantize_row_of_pieces(false, x, places, num_pieces, inverse_scales[r], rows[r].zero_point, qmax, row);
    }
}

#include "../vector/simd_end.h"

void qrt_avx_vnni_gemm_q8(qrt_kernel_table *t) {
    t->gemm_q8 = dot4_gemm_q8;
    t->gemm_q8.name = "avx_vnni";
    t->gemm_q8.codes.quantize_pieces = quantize_pieces;
}

#endif
