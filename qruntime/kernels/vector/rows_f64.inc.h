/// Rows of float64: softmax, normalisation and reductions. Plain loops over math_f64.inc.h, which the compiler vectorizes for the target
/// region that includes them; portable includes them too. Element j of a row is summed into lane j mod F64_LANES.

#include "math_f64.inc.h"

enum { F64_LANES = 16 };

static inline double fold_f64(double *lanes) {
    for (int half = F64_LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

/// Σ of `expression` over x = row[j], lane by lane.
#define SUM_F64(row, n, expression)                                                         \
    (__extension__({                                                                        \
        double lanes[F64_LANES] = {0};                                                      \
        int64_t j = 0;                                                                      \
        for (; j + F64_LANES <= (n); j += F64_LANES)                                        \
            for (int i = 0; i < F64_LANES; i++) { const double x = (row)[j + i]; lanes[i] += expression; } \
        for (int i = 0; j + i < (n); i++) { const double x = (row)[j + i]; lanes[i] += expression; } \
        fold_f64(lanes);                                                                    \
    }))

/// The greater of the two, or the one that is NaN.
static inline double greater_or_nan(double a, double x) { return pick((x > a) | (x != x), x, a); }
static inline double less_or_nan(double a, double x) { return pick((x < a) | (x != x), x, a); }

enum { EXTREME_LANES = 64 };

/// The extreme of a row, or NaN where there is one; `start` of an empty one. The number of lanes hides from the compiler that
/// they are as many each time: it makes vectors of loops over any number of them only.
#define EXTREME_F64(name, start, joined)                                                      \
    static double f64_reduce_##name(const double *row, int64_t n) {                           \
        double lanes[EXTREME_LANES];                                                          \
        for (int64_t i = 0; i < EXTREME_LANES; i++) lanes[i] = start;                         \
        for (int64_t j = 0; j < n; j += EXTREME_LANES) {                                      \
            const int64_t count = n - j < EXTREME_LANES ? n - j : EXTREME_LANES;              \
            for (int64_t i = 0; i < count; i++) lanes[i] = joined(lanes[i], row[j + i]);      \
        }                                                                                     \
        for (int64_t half = EXTREME_LANES / 2; half; half /= 2)                               \
            for (int64_t i = 0; i < half; i++) lanes[i] = joined(lanes[i], lanes[i + half]);  \
        return lanes[0];                                                                      \
    }
EXTREME_F64(max, -INFINITY, greater_or_nan)
EXTREME_F64(min, INFINITY, less_or_nan)

static void f64_softmax(const double *input, double *y, int64_t n) {
    const double most = f64_reduce_max(input, n);
    IN_PLACE for (int64_t j = 0; j < n; j++) y[j] = exp_f64(input[j] - most);
    const double sum = SUM_F64(y, n, x);
    IN_PLACE for (int64_t j = 0; j < n; j++) y[j] /= sum;
}

static void f64_log_softmax(const double *input, double *y, int64_t n) {
    const double most = f64_reduce_max(input, n), sum = log(SUM_F64(input, n, exp_f64(x - most)));
    IN_PLACE for (int64_t j = 0; j < n; j++) y[j] = input[j] - most - sum;
}

/// Where the sums with the residual stand: `sum`, or y, which may be x or the residual.
static inline const double *with_residual_f64(const double *x, const double *residual, double *sum, double *y, int64_t n) {
    if (!residual) return x;
    double *to = sum ? sum : y;
    IN_PLACE for (int64_t j = 0; j < n; j++) to[j] = x[j] + residual[j];
    return to;
}

/// y = (s − mean) · factor · scale + bias
static inline void finish_f64(const double *s, double mean, double factor, double *y, int64_t n, const qrt_norm_params_f64 *params) {
    const double *scale = params->scale, *bias = params->bias;
    IN_PLACE for (int64_t j = 0; j < n; j++) y[j] = (s[j] - mean) * factor;
    if (scale) IN_PLACE for (int64_t j = 0; j < n; j++) y[j] *= scale[j];
    if (bias) IN_PLACE for (int64_t j = 0; j < n; j++) y[j] += bias[j];
}

static void f64_layer_norm(int64_t rows, const double *input, const double *residual, double *sum, double *y, int64_t n,
                           const qrt_norm_params_f64 *params) {
    for (int64_t row = 0, at = 0; row < rows; row++, at += n) {
        const double *s = with_residual_f64(input + at, residual ? residual + at : NULL, sum ? sum + at : NULL, y + at, n);
        const double mean = SUM_F64(s, n, x) / (double)n;
        const double variance = SUM_F64(s, n, (x - mean) * (x - mean)) / (double)n;
        finish_f64(s, mean, 1 / sqrt(variance + params->epsilon), y + at, n, params);
    }
}

static void f64_rms_norm(int64_t rows, const double *input, const double *residual, double *sum, double *y, int64_t n,
                         const qrt_norm_params_f64 *params) {
    for (int64_t row = 0, at = 0; row < rows; row++, at += n) {
        const double *s = with_residual_f64(input + at, residual ? residual + at : NULL, sum ? sum + at : NULL, y + at, n);
        finish_f64(s, 0, 1 / sqrt(SUM_F64(s, n, x * x) / (double)n + params->epsilon), y + at, n, params);
    }
}

enum { REDUCE_F64_BLOCK = 2048, REDUCE_F64_ROWS = 64, REDUCE_F64_COLUMNS = 64 };

/// X(enumerator, name, start, what the value x becomes, how a value v joins a)
#define F64_REDUCE_OPS(X)                                                    \
    X(SUM, sum, 0, x, a + v) X(MAX, max, -INFINITY, x, greater_or_nan(a, v)) \
    X(MIN, min, INFINITY, x, less_or_nan(a, v)) X(PROD, prod, 1, x, a * v)   \
    X(L1, l1, 0, fabs(x), a + v) X(SUM_SQUARE, sum_square, 0, x * x, a + v)

#define X(enumerator, name, start, value, joined) static inline double join_##name(double a, double v) { return joined; }
F64_REDUCE_OPS(X)
#undef X

/// A row in lanes, block after block.
#define REDUCE_ROW_F64(name, start, value)                                                                      \
    static double f64_reduce_##name(const double *row, int64_t n) {                                                 \
        double total = start;                                                                                       \
        for (int64_t first = 0; first < n; first += REDUCE_F64_BLOCK) {                                             \
            const double *at = row + first;                                                                         \
            const int64_t count = n - first < REDUCE_F64_BLOCK ? n - first : REDUCE_F64_BLOCK;                      \
            double lanes[F64_LANES];                                                                                \
            for (int i = 0; i < F64_LANES; i++) lanes[i] = start;                                                   \
            int64_t j = 0;                                                                                          \
            for (; j + F64_LANES <= count; j += F64_LANES)                                                          \
                for (int i = 0; i < F64_LANES; i++) {                                                               \
                    const double x = at[j + i];                                                                     \
                    lanes[i] = join_##name(lanes[i], value);                                                        \
                }                                                                                                   \
            for (int i = 0; j + i < count; i++) {                                                                   \
                const double x = at[j + i];                                                                         \
                lanes[i] = join_##name(lanes[i], value);                                                            \
            }                                                                                                       \
            for (int half = F64_LANES / 2; half; half /= 2)                                                         \
                for (int i = 0; i < half; i++) lanes[i] = join_##name(lanes[i], lanes[i + half]);                   \
            total = join_##name(total, lanes[0]);                                                                   \
        }                                                                                                           \
        return total;                                                                                               \
    }
REDUCE_ROW_F64(sum, 0, x)
REDUCE_ROW_F64(prod, 1, x)
REDUCE_ROW_F64(l1, 0, fabs(x))
REDUCE_ROW_F64(sum_square, 0, x * x)

/// Columns in blocks of rows, which are joined in their order.
#define REDUCE_COLUMNS_F64(name, start, value)                                                                      \
    static void f64_reduce_columns_##name(const double *input, int64_t stride, int64_t rows, int64_t columns, double *y) { \
        for (int64_t first = 0; first < columns; first += REDUCE_F64_COLUMNS) {                                     \
            const int64_t count = columns - first < REDUCE_F64_COLUMNS ? columns - first : REDUCE_F64_COLUMNS;      \
            double total[REDUCE_F64_COLUMNS], block[REDUCE_F64_COLUMNS];                                            \
            for (int64_t c = 0; c < count; c++) total[c] = start;                                                   \
            for (int64_t r = 0; r < rows;) {                                                                        \
                const int64_t last = rows - r < REDUCE_F64_ROWS ? rows : r + REDUCE_F64_ROWS;                       \
                for (int64_t c = 0; c < count; c++) block[c] = start;                                               \
                for (; r < last; r++)                                                                               \
                    for (int64_t c = 0; c < count; c++) {                                                           \
                        const double x = input[r * stride + first + c];                                             \
                        block[c] = join_##name(block[c], value);                                                    \
                    }                                                                                               \
                for (int64_t c = 0; c < count; c++) total[c] = join_##name(total[c], block[c]);                     \
            }                                                                                                       \
            for (int64_t c = 0; c < count; c++) y[first + c] = total[c];                                            \
        }                                                                                                           \
    }
#define X(enumerator, name, start, value, joined) REDUCE_COLUMNS_F64(name, start, value)
F64_REDUCE_OPS(X)
#undef X

static void set_f64_rows(qrt_rows *table) {
    table->softmax_f64 = f64_softmax;
    table->log_softmax_f64 = f64_log_softmax;
    table->layer_norm_f64 = f64_layer_norm;
    table->rms_norm_f64 = f64_rms_norm;
#define X(enumerator, name, ...)                                       \
    table->reduce_f64[QRT_REDUCE_##enumerator] = f64_reduce_##name;    \
    table->reduce_columns_f64[QRT_REDUCE_##enumerator] = f64_reduce_columns_##name;
    F64_REDUCE_OPS(X)
#undef X
}
