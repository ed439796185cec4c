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

/// Eight doubles in memory, in as many vectors as the target takes for them: gcc keeps arrays of lanes in memory, which it adds to.
typedef double eight __attribute__((vector_size(64), aligned(8), may_alias));
typedef int64_t eight_bits __attribute__((vector_size(64), aligned(8), may_alias));

#define SET_EIGHT(x) ((eight){x, x, x, x, x, x, x, x})
static inline eight pick_eight(eight_bits mask, eight a, eight b) { return (eight)(((eight_bits)a & mask) | ((eight_bits)b & ~mask)); }
static inline eight abs_of_eight(eight x) { return (eight)((eight_bits)x & ~(eight_bits)SET_EIGHT(-0.0)); }
static inline eight greater_of_eight(eight a, eight x) { return pick_eight((x > a) | (x != x), x, a); }
static inline eight less_of_eight(eight a, eight x) { return pick_eight((x < a) | (x != x), x, a); }

enum { EXTREME_LANES = 32 };

/// The extreme of a row, or NaN where there is one; `start` of an empty one.
#define EXTREME_F64(name, start, joined, joined_eight)                                                  \
    static double f64_reduce_##name(const double *row, int64_t n) {                                     \
        eight a = SET_EIGHT(start), b = a, c = a, d = a;                                                \
        int64_t j = 0;                                                                                  \
        for (; j + EXTREME_LANES <= n; j += EXTREME_LANES) {                                            \
            const eight *x = (const eight *)(row + j);                                                  \
            a = joined_eight(a, x[0]), b = joined_eight(b, x[1]);                                       \
            c = joined_eight(c, x[2]), d = joined_eight(d, x[3]);                                       \
        }                                                                                               \
        for (; j + 8 <= n; j += 8) a = joined_eight(a, *(const eight *)(row + j));                      \
        a = joined_eight(joined_eight(a, b), joined_eight(c, d));                                       \
        double most = start;                                                                            \
        for (int i = 0; i < 8; i++) most = joined(most, a[i]);                                          \
        for (; j < n; j++) most = joined(most, row[j]);                                                 \
        return most;                                                                                    \
    }
EXTREME_F64(max, -INFINITY, greater_or_nan, greater_of_eight)
EXTREME_F64(min, INFINITY, less_or_nan, less_of_eight)

static void f64_softmax(const double *input, double *y, int64_t n) {
    const double most = f64_reduce_max(input, n);
    IN_PLACE for (int64_t j = 0; j < n; j++) y[j] = exp_nonpositive(input[j] - most);
    const double sum = SUM_F64(y, n, x);
    IN_PLACE for (int64_t j = 0; j < n; j++) y[j] /= sum;
}

static void f64_log_softmax(const double *input, double *y, int64_t n) {
    const double most = f64_reduce_max(input, n), sum = log(SUM_F64(input, n, exp_nonpositive(x - most)));
    IN_PLACE for (int64_t j = 0; j < n; j++) y[j] = input[j] - most - sum;
}

/// Where the sums with the residual stand: `sum`, or y, which may be x or the residual.
static inline const double *with_residual_f64(const double *x, const double *residual, double *sum, double *y, int64_t n) {
    if (!residual) return x;
    double *to = sum ? sum : y;
    IN_PLACE for (int64_t j = 0; j < n; j++) to[j] = x[j] + residual[j];
    return to;
}

/// y = (s − mean) · factor · scale + bias, in one pass over the row.
static inline void finish_f64(const double *s, double mean, double factor, double *y, int64_t n, const qrt_norm_params_f64 *params) {
    const double *scale = params->scale, *bias = params->bias;
    if (scale && bias) {
        IN_PLACE for (int64_t j = 0; j < n; j++) y[j] = (s[j] - mean) * factor * scale[j] + bias[j];
    } else if (scale) {
        IN_PLACE for (int64_t j = 0; j < n; j++) y[j] = (s[j] - mean) * factor * scale[j];
    } else if (bias) {
        IN_PLACE for (int64_t j = 0; j < n; j++) y[j] = (s[j] - mean) * factor + bias[j];
    } else {
        IN_PLACE for (int64_t j = 0; j < n; j++) y[j] = (s[j] - mean) * factor;
    }
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

enum { REDUCE_F64_BLOCK = 2048, REDUCE_F64_ROWS = 64, REDUCE_F64_COLUMNS = 32 };

/// X(enumerator, name, start, what the value x becomes, how a value v joins a, and the same of eight)
#define F64_REDUCE_OPS(X)                                                                                \
    X(SUM, sum, 0, x, a + v, x, a + v)                                                                   \
    X(MAX, max, -INFINITY, x, greater_or_nan(a, v), x, greater_of_eight(a, v))                           \
    X(MIN, min, INFINITY, x, less_or_nan(a, v), x, less_of_eight(a, v))                                  \
    X(PROD, prod, 1, x, a * v, x, a * v)                                                                 \
    X(L1, l1, 0, fabs(x), a + v, abs_of_eight(x), a + v)                                                 \
    X(SUM_SQUARE, sum_square, 0, x * x, a + v, x * x, a + v)

#define X(enumerator, name, start, value, joined, value_eight, joined_eight)                 \
    static inline double join_##name(double a, double v) { return joined; }                  \
    static inline eight join_eight_##name(eight a, eight x) {                                \
        const eight v = value_eight;                                                         \
        return joined_eight;                                                                 \
    }
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

/// Columns in blocks of rows, which are joined in their order: as many as vectors hold, and what is left.
#define REDUCE_COLUMNS_F64(name, start, value, joined_eight)                                                        \
    static void f64_reduce_panel_##name(const double *input, int64_t stride, int64_t rows, double *y) {             \
        eight total[4] = {SET_EIGHT(start), SET_EIGHT(start), SET_EIGHT(start), SET_EIGHT(start)};                  \
        for (int64_t r = 0; r < rows;) {                                                                            \
            const int64_t last = rows - r < REDUCE_F64_ROWS ? rows : r + REDUCE_F64_ROWS;                           \
            eight a = SET_EIGHT(start), b = a, c = a, d = a;                                                        \
            for (; r < last; r++) {                                                                                 \
                const eight *x = (const eight *)(input + r * stride);                                               \
                a = join_eight_##name(a, x[0]), b = join_eight_##name(b, x[1]);                                     \
                c = join_eight_##name(c, x[2]), d = join_eight_##name(d, x[3]);                                     \
            }                                                                                                       \
            const eight block[4] = {a, b, c, d};                                                                    \
            for (int i = 0; i < 4; i++) {                                                                           \
                const eight a = total[i], v = block[i];                                                             \
                total[i] = joined_eight;                                                                            \
            }                                                                                                       \
        }                                                                                                           \
        for (int i = 0; i < 4; i++) *(eight *)(y + 8 * i) = total[i];                                               \
    }                                                                                                               \
    static void f64_reduce_columns_##name(const double *input, int64_t stride, int64_t rows, int64_t columns, double *y) { \
        int64_t first = 0;                                                                                          \
        for (; first + REDUCE_F64_COLUMNS <= columns; first += REDUCE_F64_COLUMNS)                                  \
            f64_reduce_panel_##name(input + first, stride, rows, y + first);                                        \
        const int64_t count = columns - first;                                                                      \
        double total[REDUCE_F64_COLUMNS], block[REDUCE_F64_COLUMNS];                                                \
        for (int64_t c = 0; c < count; c++) total[c] = start;                                                       \
        for (int64_t r = 0; r < rows && count;) {                                                                   \
            const int64_t last = rows - r < REDUCE_F64_ROWS ? rows : r + REDUCE_F64_ROWS;                           \
            for (int64_t c = 0; c < count; c++) block[c] = start;                                                   \
            for (; r < last; r++)                                                                                   \
                for (int64_t c = 0; c < count; c++) {                                                               \
                    const double x = input[r * stride + first + c];                                                 \
                    block[c] = join_##name(block[c], value);                                                        \
                }                                                                                                   \
            for (int64_t c = 0; c < count; c++) total[c] = join_##name(total[c], block[c]);                         \
        }                                                                                                           \
        for (int64_t c = 0; c < count; c++) y[first + c] = total[c];                                                \
    }
#define X(enumerator, name, start, value, joined, value_eight, joined_eight) REDUCE_COLUMNS_F64(name, start, value, joined_eight)
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
