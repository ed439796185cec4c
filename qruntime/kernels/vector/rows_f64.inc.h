/// Rows of float64: softmax and normalisation. Plain loops over math_f64.inc.h, which the compiler vectorizes for the target
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

static double greatest_f64(const double *row, int64_t n) {
    double lanes[F64_LANES], most = -INFINITY;
    for (int i = 0; i < F64_LANES; i++) lanes[i] = -INFINITY;
    int64_t j = 0;
    for (; j + F64_LANES <= n; j += F64_LANES)
        for (int i = 0; i < F64_LANES; i++) lanes[i] = row[j + i] > lanes[i] ? row[j + i] : lanes[i];
    for (; j < n; j++) most = row[j] > most ? row[j] : most;
    for (int i = 0; i < F64_LANES; i++) most = lanes[i] > most ? lanes[i] : most;
    return most;
}

static void f64_softmax(const double *input, double *y, int64_t n) {
    const double most = greatest_f64(input, n);
    IN_PLACE for (int64_t j = 0; j < n; j++) y[j] = exp_f64(input[j] - most);
    const double sum = SUM_F64(y, n, x);
    IN_PLACE for (int64_t j = 0; j < n; j++) y[j] /= sum;
}

static void f64_log_softmax(const double *input, double *y, int64_t n) {
    const double most = greatest_f64(input, n), sum = log(SUM_F64(input, n, exp_f64(x - most)));
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

static void set_f64_rows(qrt_rows *table) {
    table->softmax_f64 = f64_softmax;
    table->log_softmax_f64 = f64_log_softmax;
    table->layer_norm_f64 = f64_layer_norm;
    table->rms_norm_f64 = f64_rms_norm;
}
