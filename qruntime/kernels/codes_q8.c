#include "codes_q8.h"

#include <float.h>

/// Added to |x| < 2^22 and taken off again it leaves rint_even(x): nearbyintf is a call into libm on plain x86-64.
static const float ROUND_TO_INT = 12582912.0f;

qrt_q8_row qrt_q8_parameters(float lo, float hi, int32_t qmax) {
    qrt_q8_row row = {.sum = 0};
    row.scale = (float)(((double)hi - (double)lo) / qmax);
    if (row.scale == 0.0f) row.scale = 1.0f;
    if (row.scale < FLT_MIN) row.scale = FLT_MIN;
    float zero_point = -lo / row.scale + ROUND_TO_INT - ROUND_TO_INT;
    zero_point = zero_point > 0.0f ? zero_point : 0.0f;  // also NaN
    row.zero_point = (int32_t)(zero_point < (float)qmax ? zero_point : (float)qmax);
    return row;
}

qrt_q8_row qrt_q8_tensor_parameters(const qrt_codes_q8 *codes, const float *a, int64_t lda_elems, int64_t m, int64_t k,
                                    int32_t qmax) {
    float lo = 0.0f, hi = 0.0f;
    for (int64_t i = 0; i < m && lo == lo; i++) codes->range(a + i * lda_elems, k, &lo, &hi);
    return qrt_q8_parameters(lo, hi, qmax);
}

/// Rows whose ranges are taken before they are quantized: the parameters of one are computed beside the range of the
/// next, and all stay in a part of the L1 cache meanwhile.
enum { ROWS_AT_ONCE = 4, BYTES_AT_ONCE = 16 * 1024 };

void qrt_q8_quantize_rows(const qrt_codes_q8 *codes, const float *a, int64_t lda_elems, int64_t m, int64_t k,
                          int64_t k_padded, int32_t qmax, const qrt_q8_row *shared, bool sums, qrt_q8_row *rows,
                          void *packed, int64_t stride_bytes) {
    int64_t step = BYTES_AT_ONCE / (int64_t)sizeof *a / (k + 1);  // k may be 0
    step = step < 1 ? 1 : step < ROWS_AT_ONCE ? step : ROWS_AT_ONCE;
    for (int64_t first = 0; first < m; first += step) {
        int64_t last = first + step < m ? first + step : m;
        for (int64_t i = first; i < last; i++) {
            if (shared) {
                rows[i] = *shared;
            } else {
                float lo = 0.0f, hi = 0.0f;
                codes->range(a + i * lda_elems, k, &lo, &hi);
                rows[i] = qrt_q8_parameters(lo, hi, qmax);
            }
        }
        for (int64_t i = first; i < last; i++) {
            codes->quantize(a + i * lda_elems, k, k_padded, 1.0f / rows[i].scale, rows[i].zero_point, qmax,
                            (char *)packed + i * stride_bytes, sums ? &rows[i].sum : NULL);
            if (sums) rows[i].sum -= k * rows[i].zero_point;
        }
    }
}
