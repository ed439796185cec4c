#include "gram.h"

#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "threads.h"

/// Blocks of rows that are coded before they are multiplied, and panels that stay in cache meanwhile.
enum { PAIRS = QRT_GRAM_ROWS / 2, PANEL_CODES = QRT_GRAM_ROWS * QRT_GRAM_PANEL, BLOCKS = 32, NEAR = 2 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct {
    int64_t rows, k, panels, blocks;
    const float *const *x, *inverse_step, *zeros;
    uint8_t *is_apart;
    int16_t *codes;  ///< [panels][BLOCKS][PANEL_CODES]
    int64_t *total;
} gram_task;

/// Two rows as pairs in all panels of a block. False where one of them holds what has no code.
static bool code_two(const gram_task *t, const float *x, const float *y, int32_t *pairs) {
    bool fit = true;
    for (int64_t j = 0; j < t->k; j += QRT_GRAM_PANEL, pairs += BLOCKS * PAIRS * QRT_GRAM_PANEL) {
        fit &= qrt_kernels.gram.code_pairs(min64(QRT_GRAM_PANEL, t->k - j), x + j, y + j, t->inverse_step + j, pairs);
    }
    return fit;
}

static void code_block(void *context, int64_t block) {
    const gram_task *t = context;
    int32_t *pairs = (int32_t *)(t->codes + block * PANEL_CODES);
    for (int64_t r = block * QRT_GRAM_ROWS, end = r + QRT_GRAM_ROWS; r < end; r += 2, pairs += QRT_GRAM_PANEL) {
        const float *x = r < t->rows ? t->x[r] : t->zeros, *y = r + 1 < t->rows ? t->x[r + 1] : t->zeros;
        if (code_two(t, x, y, pairs)) continue;
        if (!code_two(t, x, t->zeros, pairs)) t->is_apart[r] = 1, x = t->zeros;
        if (!code_two(t, t->zeros, y, pairs)) t->is_apart[r + 1] = 1, y = t->zeros;
        code_two(t, x, y, pairs);
    }
}

static void panel_pair(const gram_task *t, int64_t i, int64_t j) {
    int64_t sums[QRT_GRAM_PANEL][QRT_GRAM_PANEL] __attribute__((aligned(64))) = {{0}};
    for (int64_t block = 0; block < t->blocks; block++) {
        const int16_t *codes = t->codes + block * PANEL_CODES;
        qrt_kernels.gram.panels(codes + i * BLOCKS * PANEL_CODES, codes + j * BLOCKS * PANEL_CODES, sums[0]);
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
    memset(total, 0, (size_t)(k * k) * sizeof *total);
    memset(is_apart, 0, (size_t)rows);
    if (rows == 0 || k == 0) return true;
    const int64_t panels = (k + QRT_GRAM_PANEL - 1) / QRT_GRAM_PANEL;
    int16_t *codes = aligned_alloc(64, (size_t)(panels * BLOCKS * PANEL_CODES) * sizeof *codes);
    float *zeros = calloc((size_t)k, sizeof *zeros);
    for (int64_t first = 0; codes && zeros && first < rows; first += BLOCKS * QRT_GRAM_ROWS) {
        const int64_t some = min64(BLOCKS * QRT_GRAM_ROWS, rows - first), blocks = (some + QRT_GRAM_ROWS - 1) / QRT_GRAM_ROWS;
        gram_task t = {some, k, panels, blocks, x + first, inverse_step, zeros, is_apart + first, codes, total};
        qrt_parallel_for(num_threads, blocks, code_block, &t);
        qrt_parallel_for(num_threads, (panels + NEAR - 1) / NEAR, panel_rows, &t);
    }
    bool is_done = codes && zeros;
    free(codes);
    free(zeros);
    return is_done;
}

typedef struct {
    int64_t rows, k;
    const float *const *x, *inverse_step;
    int64_t *total;
} magnitude_task;

static void sum_columns(void *context, int64_t task) {
    const magnitude_task *t = context;
    int64_t first = task * QRT_MAGNITUDE_COLUMNS, n = min64(QRT_MAGNITUDE_COLUMNS, t->k - first);
    for (int64_t r = 0; r < t->rows; r += QRT_MAGNITUDE_ROWS) {
        int32_t sums[QRT_MAGNITUDE_COLUMNS];
        qrt_kernels.gram.magnitudes(min64(QRT_MAGNITUDE_ROWS, t->rows - r), n, t->x + r, first, t->inverse_step + first, sums);
        for (int64_t j = 0; j < n; j++) t->total[first + j] += sums[j];
    }
}

void qrt_sum_magnitudes(int64_t rows, int64_t k, const float *const *x, const float *inverse_step, int64_t *total, int num_threads) {
    memset(total, 0, (size_t)k * sizeof *total);
    magnitude_task t = {rows, k, x, inverse_step, total};
    qrt_parallel_for(num_threads, (k + QRT_MAGNITUDE_COLUMNS - 1) / QRT_MAGNITUDE_COLUMNS, sum_columns, &t);
}
