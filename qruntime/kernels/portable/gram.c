/// Codes of rows and products of panels of codes in plain C.
#include <math.h>

#include "../rungs.h"

static bool has_code(float units) { return units >= -QRT_GRAM_CODE && units <= QRT_GRAM_CODE; }

static bool gram_code_pairs(int64_t n, const float *x, const float *y, const float *inverse_step, int32_t *pairs) {
    for (int64_t j = 0; j < QRT_GRAM_PANEL; j++) {
        const float first = j < n ? x[j] * inverse_step[j] : 0, second = j < n ? y[j] * inverse_step[j] : 0;
        if (!has_code(first) || !has_code(second)) return false;
        pairs[j] = ((int32_t)rintf(first) & 0xFFFF) | (int32_t)((uint32_t)(int32_t)rintf(second) << 16);
    }
    return true;
}

static void gram_panels(const int16_t *a, const int16_t *b, int64_t *sums) {
    for (int i = 0; i < QRT_GRAM_PANEL; i++, sums += QRT_GRAM_PANEL) {
        int32_t row[QRT_GRAM_PANEL] = {0};
        for (int t = 0; t < QRT_GRAM_ROWS / 2; t++) {
            const int16_t *pair = a + (t * QRT_GRAM_PANEL + i) * 2, *other = b + t * QRT_GRAM_PANEL * 2;
            for (int j = 0; j < QRT_GRAM_PANEL; j++) row[j] += pair[0] * other[2 * j] + pair[1] * other[2 * j + 1];
        }
        for (int j = 0; j < QRT_GRAM_PANEL; j++) sums[j] += row[j];
    }
}

static void gram_magnitudes(int64_t rows, int64_t n, const float *const *x, int64_t first, const float *inverse_step, int32_t *sums) {
    for (int64_t j = 0; j < n; j++) {
        int32_t sum = 0;
        for (int64_t t = 0; t < rows; t++) sum += (int32_t)fabsf(rintf(x[t][first + j] * inverse_step[j]));
        sums[j] = sum;
    }
}

void qrt_portable_gram(qrt_kernel_table *t) { t->gram = (qrt_gram){gram_code_pairs, gram_panels, gram_magnitudes}; }
