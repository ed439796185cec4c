/// int8 GEMM of Advanced SIMD without dot products: codes are int16 from the moment they are packed, weights from the
/// moment they are loaded, and smlal adds four products to four int32.
#include <math.h>
#include <string.h>

#include "../rungs.h"
#include "gemm_q8.h"

enum { MR = 4, NR = 16, KR = 8, VECTORS = NR / 4, CODE_OFFSET = 0 };

#include "../vector/simd_neon.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"
#include "../vector/gemm_q8.inc.h"
#include "quantize.inc.h"

static void quantize(const float *a, int64_t k, int64_t k_padded, float inverse_scale, int32_t zero_point, int32_t qmax,
                     void *packed, int64_t *sum) {
    (void)k_padded;  // the last, partial vector reaches it
    int16_t *q = packed;
    vf inverse = vf_set(inverse_scale), zero = vf_set((float)zero_point);
    uint8x8_t most = vdup_n_u8((uint8_t)qmax);
    int64_t total = 0, i = 0;
    for (; i < k; i += KR) {
        uint8x8_t codes = k - i >= KR ? codes_of_8(vf_load(a + i), vf_load(a + i + VL), inverse, zero, most)
                                      : codes_of_rest(a + i, k - i, inverse, zero, most);
        total += vaddlv_u8(codes);
        vst1q_s16(q + i, vreinterpretq_s16_u16(vmovl_u8(codes)));
    }
    if (sum) *sum = total;
}

#define ITEM int16_t
#include "../vector/pack_codes.inc.h"

static void quantize_bytes(const float *a, int64_t k, int64_t k_padded, float inverse_scale, int32_t zero_point, int32_t qmax,
                           void *packed, int64_t *sum) {
    quantize_bytes_with(0, a, k, k_padded, inverse_scale, zero_point, qmax, packed, sum);
}

static int64_t panel_bytes(int64_t k_padded) { return k_padded * NR; }

/// [k][NR]
static bool pack_panel(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                       void *panel) {
    int8_t *out = memset(panel, 0, (size_t)panel_bytes((k + KR - 1) / KR * KR));
    for (int64_t i = 0; i < k; i++)
        if (col_stride_elems == 1) memcpy(out + i * NR, w + i * row_stride_elems, (size_t)n);
        else
            for (int64_t j = 0; j < n; j++) out[i * NR + j] = w[i * row_stride_elems + j * col_stride_elems];
    return true;
}

static void unpack_panel(const void *panel, int64_t k, int64_t n, int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems) {
    const int8_t *from = panel;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < n; j++) w[i * row_stride_elems + j * col_stride_elems] = from[i * NR + j];
}

/// Row k + LANE of the panel times code LANE of each row.
#define STEP(LANE)                                                                             \
    do {                                                                                       \
        int8x16_t w = vld1q_s8(b + (LANE) * NR);                                               \
        int16x8_t low = vmovl_s8(vget_low_s8(w)), high = vmovl_high_s8(w);                     \
        _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) {                               \
            c[r][0] = vmlal_laneq_s16(c[r][0], vget_low_s16(low), codes[r], LANE);             \
            c[r][1] = vmlal_high_laneq_s16(c[r][1], low, codes[r], LANE);                      \
            c[r][2] = vmlal_laneq_s16(c[r][2], vget_low_s16(high), codes[r], LANE);            \
            c[r][3] = vmlal_high_laneq_s16(c[r][3], high, codes[r], LANE);                     \
        }                                                                                      \
    } while (0)

/// acc[rows][NR], `rows` a constant where it is inlined.
static inline __attribute__((always_inline)) void
tile(const int rows, const int16_t *a, int64_t stride, const int8_t *b, int64_t k_count, int32_t *acc) {
    vi c[MR][VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) c[r][v] = vi_set(0);
    for (int64_t k = 0; k < k_count; k += KR, b += KR * NR) {
        int16x8_t codes[MR];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) codes[r] = vld1q_s16(a + r * stride + k);
        STEP(0);
        STEP(1);
        STEP(2);
        STEP(3);
        STEP(4);
        STEP(5);
        STEP(6);
        STEP(7);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) vi_store(acc + r * NR + v * VL, c[r][v]);
}

#define QRT_TILES TILE(1) TILE(2) TILE(3) TILE(4)
#include "../vector/gemm_q8_widening.inc.h"

const qrt_gemm_q8 qrt_neon_gemm_q8_widening = {.name = "neon", WIDENING_GEMM_Q8};

void qrt_neon_gemm_q8(qrt_kernel_table *t) {
    t->codes_q8 = (qrt_codes_q8){range, quantize_bytes, NULL, NULL};
    t->gemm_q8 = qrt_neon_gemm_q8_widening;
}
