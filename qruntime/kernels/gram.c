#include "gram.h"

#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "threads.h"

enum { PANEL_CODES = QRT_GRAM_ROWS * QRT_GRAM_PANEL, NEAR = 4, COLUMNS = 256, SHORT_SUM = 64 };

/// Adding and taking away 1.5 · 2^23 rounds half to even what is below 2^22, with instructions that every target has.
static inline int32_t rounded(float x) { return (int32_t)((x + 12582912.0f) - 12582912.0f); }

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct {
    int64_t rows, k, panels, blocks;
    const float *const *x, *inverse_step;
    uint8_t *is_apart;
    int16_t *codes;  ///< [blocks][panels][PANEL_CODES]
    int64_t *total;
} gram_task;

static bool has_code_beyond(int64_t k, const float *x, const float *inverse_step) {
    int beyond = 0;
    for (int64_t j = 0; j < k; j++) {
        float code = x[j] * inverse_step[j];
        beyond |= !(code >= -QRT_GRAM_CODE && code <= QRT_GRAM_CODE);
    }
    return beyond;
}

/// Codes of a piece of a row, as the first or second number of each pair, which was 0.
static inline void code_row(int64_t columns, const float *x, const float *inverse_step, bool is_second, int32_t *pairs) {
    const int shift = is_second ? 16 : 0;
    for (int64_t j = 0; j < columns; j++) {
        pairs[j] |= (int32_t)(((uint32_t)rounded(x[j] * inverse_step[j]) & 0xFFFF) << shift);
    }
}

static void code_block(void *context, int64_t block) {
    const gram_task *t = context;
    int64_t first = block * QRT_GRAM_ROWS, rows = min64(QRT_GRAM_ROWS, t->rows - first);
    for (int64_t r = 0; r < rows; r++) {
        t->is_apart[first + r] = has_code_beyond(t->k, t->x[first + r], t->inverse_step);
    }
    int16_t *panel = t->codes + block * t->panels * PANEL_CODES;
    for (int64_t p = 0; p < t->panels; p++, panel += PANEL_CODES) {
        int64_t columns = min64(QRT_GRAM_PANEL, t->k - p * QRT_GRAM_PANEL);
        const float *inverse_step = t->inverse_step + p * QRT_GRAM_PANEL;
        int32_t *pairs = (int32_t *)panel;
        memset(panel, 0, PANEL_CODES * sizeof *panel);
        for (int64_t r = 0; r < rows; r++, pairs += r % 2 ? 0 : QRT_GRAM_PANEL) {
            if (t->is_apart[first + r]) continue;
            const float *x = t->x[first + r] + p * QRT_GRAM_PANEL;
            if (columns == QRT_GRAM_PANEL) {
                code_row(QRT_GRAM_PANEL, x, inverse_step, r % 2, pairs);
            } else {
                code_row(columns, x, inverse_step, r % 2, pairs);
            }
        }
    }
}

static void panel_pair(const gram_task *t, int64_t i, int64_t j) {
    int64_t sums[QRT_GRAM_PANEL][QRT_GRAM_PANEL] __attribute__((aligned(64))) = {{0}};
    for (int64_t block = 0; block < t->blocks; block++) {
        const int16_t *codes = t->codes + block * t->panels * PANEL_CODES;
        qrt_kernels.gram.panels(codes + i * PANEL_CODES, codes + j * PANEL_CODES, sums[0]);
    }
    int64_t top = i * QRT_GRAM_PANEL, height = min64(QRT_GRAM_PANEL, t->k - top);
    int64_t left = j * QRT_GRAM_PANEL, width = min64(QRT_GRAM_PANEL, t->k - left);
    for (int64_t a = 0; a < height; a++) {
        for (int64_t b = 0; b < width; b++) t->total[(top + a) * t->k + left + b] += sums[a][b];
    }
}

/// NEAR panels, which stay in cache, against themselves and all panels behind them.
static void panel_rows(void *context, int64_t task) {
    const gram_task *t = context;
    int64_t first = task * NEAR;
    for (int64_t j = first; j < t->panels; j++) {
        for (int64_t i = first; i <= min64(j, first + NEAR - 1); i++) panel_pair(t, i, j);
    }
}

bool qrt_gram_of_codes(int64_t rows, int64_t k, const float *const *x, const float *inverse_step, uint8_t *is_apart, int64_t *total,
                       int num_threads) {
    if (rows <= 0 || k <= 0) return true;
    gram_task t = {.rows = rows, .k = k, .panels = (k + QRT_GRAM_PANEL - 1) / QRT_GRAM_PANEL,
                   .blocks = (rows + QRT_GRAM_ROWS - 1) / QRT_GRAM_ROWS,
                   .x = x, .inverse_step = inverse_step, .is_apart = is_apart, .total = total};
    t.codes = aligned_alloc(64, (size_t)(t.blocks * t.panels * PANEL_CODES) * sizeof *t.codes);
    if (!t.codes) return false;
    qrt_parallel_for(num_threads, t.blocks, code_block, &t);
    qrt_parallel_for(num_threads, (t.panels + NEAR - 1) / NEAR, panel_rows, &t);
    free(t.codes);
    return true;
}

typedef struct {
    int64_t rows, k;
    const float *x, *inverse_step;
    int64_t *total;
} magnitude_task;

static void sum_columns(void *context, int64_t task) {
    const magnitude_task *t = context;
    int64_t first = task * COLUMNS, columns = min64(COLUMNS, t->k - first);
    const float *inverse_step = t->inverse_step + first;
    for (int64_t r = 0; r < t->rows; r += SHORT_SUM) {
        int32_t sums[COLUMNS] = {0};
        for (int64_t s = r; s < min64(r + SHORT_SUM, t->rows); s++) {
            const float *x = t->x + s * t->k + first;
            for (int64_t j = 0; j < columns; j++) {
                int32_t code = rounded(x[j] * inverse_step[j]);
                sums[j] += code < 0 ? -code : code;
            }
        }
        for (int64_t j = 0; j < columns; j++) t->total[first + j] += sums[j];
    }
}

void qrt_sum_magnitudes(int64_t rows, int64_t k, const float *x, const float *inverse_step, int64_t *total, int num_threads) {
    magnitude_task t = {rows, k, x, inverse_step, total};
    qrt_parallel_for(num_threads, (k + COLUMNS - 1) / COLUMNS, sum_columns, &t);
}
