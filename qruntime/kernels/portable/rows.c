/// Row kernels in plain C: the definition. Sums are kept in double.
#include <math.h>
#include <string.h>

#include "../half.h"
#include "../rungs.h"

#define X(enumerator, name) #name,
const char *const qrt_reduce_names[] = {QRT_REDUCE_OPS(X) NULL};
#undef X

static float max_of(const float *x, int64_t n, int64_t stride) {
    float top = -INFINITY;
    for (int64_t i = 0; i < n; i++) top = x[i * stride] > top ? x[i * stride] : top;
    return top;
}

static void softmax_column(const float *x, float *y, int64_t n, int64_t stride) {
    float top = max_of(x, n, stride);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        y[i * stride] = expf(x[i * stride] - top);
        sum += y[i * stride];
    }
    for (int64_t i = 0; i < n; i++) y[i * stride] = (float)(y[i * stride] / sum);
}

static void log_softmax_column(const float *x, float *y, int64_t n, int64_t stride) {
    float top = max_of(x, n, stride);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += expf(x[i * stride] - top);
    double log_sum = log(sum);
    for (int64_t i = 0; i < n; i++) y[i * stride] = (float)((double)(x[i * stride] - top) - log_sum);
}

static void softmax(const float *x, float *y, int64_t n) { softmax_column(x, y, n, 1); }

static void log_softmax(const float *x, float *y, int64_t n) { log_softmax_column(x, y, n, 1); }

static void softmax_columns(const float *x, float *y, int64_t n, int64_t stride, int64_t columns) {
    for (int64_t c = 0; c < columns; c++) softmax_column(x + c, y + c, n, stride);
}

static void log_softmax_columns(const float *x, float *y, int64_t n, int64_t stride, int64_t columns) {
    for (int64_t c = 0; c < columns; c++) log_softmax_column(x + c, y + c, n, stride);
}

static const float *add_residual(const float *x, const float *residual, float *sum, float *y, int64_t n) {
    float *s = sum ? sum : y;
    if (!residual) {
        if (sum && sum != x) memcpy(sum, x, (size_t)n * sizeof *x);
        return x;
    }
    for (int64_t i = 0; i < n; i++) s[i] = x[i] + residual[i];
    return s;
}

static void normalize(const float *s, float *y, int64_t n, double mean, double variance,
                      const qrt_norm_params *params) {
    double factor = 1 / sqrt(variance + (double)params->epsilon);
    for (int64_t i = 0; i < n; i++) {
        double v = (s[i] - mean) * factor;
        y[i] = (float)(v * (params->scale ? params->scale[i] : 1) + (params->bias ? params->bias[i] : 0));
    }
}

static void layer_norm(int64_t rows, const float *x, const float *residual, float *sum, float *y, int64_t n,
                       const qrt_norm_params *params) {
    for (int64_t at = 0; at < rows * n; at += n) {
        const float *s = add_residual(x + at, residual ? residual + at : NULL, sum ? sum + at : NULL, y + at, n);
        double total = 0, squares = 0;
        for (int64_t i = 0; i < n; i++) total += s[i];
        double mean = total / (double)n;
        for (int64_t i = 0; i < n; i++) squares += (s[i] - mean) * (s[i] - mean);
        normalize(s, y + at, n, mean, squares / (double)n, params);
    }
}

static void rms_norm(int64_t rows, const float *x, const float *residual, float *sum, float *y, int64_t n,
                     const qrt_norm_params *params) {
    for (int64_t at = 0; at < rows * n; at += n) {
        const float *s = add_residual(x + at, residual ? residual + at : NULL, sum ? sum + at : NULL, y + at, n);
        double squares = 0;
        for (int64_t i = 0; i < n; i++) squares += (double)s[i] * s[i];
        normalize(s, y + at, n, 0, squares / (double)n, params);
    }
}

#define REDUCE_OF(prefix, T, wide, name, start, step)                                                        \
    static double prefix##strided_##name(const T *px, int64_t stride, int64_t n) {                           \
        double acc = start;                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            double x = wide(px[i * stride]);                                                                 \
            acc = step;                                                                                      \
        }                                                                                                    \
        return acc;                                                                                          \
    }                                                                                                        \
    static float prefix##reduce_##name(const T *x, int64_t n) { return (float)prefix##strided_##name(x, 1, n); } \
    static void prefix##columns_##name(const T *x, int64_t stride, int64_t rows, int64_t columns, float *y) { \
        for (int64_t c = 0; c < columns; c++) y[c] = (float)prefix##strided_##name(x + c, stride, rows);     \
    }
#define REDUCE(name, start, step)                             \
    REDUCE_OF(, float, (double), name, start, step)           \
    REDUCE_OF(half_, uint16_t, qrt_f32_of_f16, name, start, step)

REDUCE(sum, 0, acc + x)
REDUCE(max, -INFINITY, isnan(acc) || acc > x ? acc : x)
REDUCE(min, INFINITY, isnan(acc) || acc < x ? acc : x)
REDUCE(prod, 1, acc * x)
REDUCE(l1, 0, acc + fabs(x))
REDUCE(sum_square, 0, acc + x * x)

#include "../vector/float8.inc.h"
#include "../vector/rows_f64.inc.h"

void qrt_portable_rows(qrt_kernel_table *t) {
    qrt_rows *table = &t->rows;
    table->softmax = softmax;
    table->log_softmax = log_softmax;
    table->softmax_columns = softmax_columns;
    table->log_softmax_columns = log_softmax_columns;
    table->layer_norm = layer_norm;
    table->rms_norm = rms_norm;
    table->round_to_float8 = round_to_float8;
    table->float8_codes = float8_codes;
    set_f64_rows(table);
#define SET(enumerator, name)                                                   \
    table->reduce[QRT_REDUCE_##enumerator] = reduce_##name;                     \
    table->reduce_columns[QRT_REDUCE_##enumerator] = columns_##name;            \
    table->reduce_f16[QRT_REDUCE_##enumerator] = half_reduce_##name;            \
    table->reduce_columns_f16[QRT_REDUCE_##enumerator] = half_columns_##name;
    SET(SUM, sum) SET(MAX, max) SET(MIN, min) SET(PROD, prod) SET(L1, l1) SET(SUM_SQUARE, sum_square)
#undef SET
}
