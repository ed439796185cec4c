/// Kernels over rows: softmax, normalisation, reductions.
///
/// A row is `n` contiguous floats and never depends on other rows. Vector rungs sum into lanes, element j
/// into lane j mod (4·VL), and fold the lanes in a fixed order; portable sums in double. Hence elements
/// that add exactly 0 at the end of a row change no bit of the others.
#ifndef QRT_ROWS_H
#define QRT_ROWS_H

#include <stdint.h>

/// X(enumerator, name)
#define QRT_REDUCE_OPS(X) \
    X(SUM, sum) X(MAX, max) X(MIN, min) X(PROD, prod) X(L1, l1) X(SUM_SQUARE, sum_square) X(MEAN, mean) X(L2, l2)

typedef enum {
#define X(enumerator, name) QRT_REDUCE_##enumerator,
    QRT_REDUCE_OPS(X)
#undef X
    QRT_NUM_REDUCE
} qrt_reduce_op;

/// The kernels do these; a mean is a sum divided afterwards, l2 the root of a sum of squares.
enum { QRT_NUM_REDUCE_KERNELS = QRT_REDUCE_SUM_SQUARE + 1 };

extern const char *const qrt_reduce_names[];

/// `scale` and `bias` have n entries or are NULL.
typedef struct {
    const float *scale;
    const float *bias;
    float epsilon;
} qrt_norm_params;

typedef struct {
    const double *scale;
    const double *bias;
    double epsilon;
} qrt_norm_params_f64;

typedef struct qrt_rows {
    /// y[j] = e^(x[j] − max x) / Σ; y may be x. A NaN makes the whole row NaN, so does a row of −inf.
    /// Errors within 4 ulp plus what the sum of n terms loses.
    void (*softmax)(const float *x, float *y, int64_t n);
    /// y[j] = x[j] − max x − ln Σ e^(x − max x); y may be x.
    void (*log_softmax)(const float *x, float *y, int64_t n);
    /// The same of `columns` that lie side by side, element j of column c at j · stride + c in x and y: with the bits of a row.
    void (*softmax_columns)(const float *x, float *y, int64_t n, int64_t stride, int64_t columns);
    void (*log_softmax_columns)(const float *x, float *y, int64_t n, int64_t stride, int64_t columns);

    /// For each of the rows, n > 0 floats that follow one another in x, residual, sum and y:
    /// y = (s − mean s) / √(var s + epsilon) · scale + bias with s = x + residual (residual NULL: s = x).
    /// The mean is taken first, the variance from centred values. `sum` receives s unless NULL; y may be
    /// x, residual or sum.
    void (*layer_norm)(int64_t rows, const float *x, const float *residual, float *sum, float *y, int64_t n,
                       const qrt_norm_params *params);
    /// y = s / √(mean s² + epsilon) · scale + bias, the rest as layer_norm.
    void (*rms_norm)(int64_t rows, const float *x, const float *residual, float *sum, float *y, int64_t n,
                     const qrt_norm_params *params);

    /// y = each x to the nearest number of E4M3, ties to even, times a scale that makes the largest |x| 448; 1 where all are 0. With
    /// NaN or infinity in x all of y is NaN. x and y do not overlap. The same bits on every rung.
    void (*round_to_float8)(const float *x, float *y, int64_t n);
    /// The numbers of E4M3 alone; what they are to be multiplied by is returned.
    float (*float8_codes)(const float *x, float *codes, int64_t n);

    /// Softmax and norms of doubles; sums of n terms are made in 16 lanes.
    void (*softmax_f64)(const double *x, double *y, int64_t n);
    void (*log_softmax_f64)(const double *x, double *y, int64_t n);
    void (*layer_norm_f64)(int64_t rows, const double *x, const double *residual, double *sum, double *y, int64_t n,
                           const qrt_norm_params_f64 *params);
    void (*rms_norm_f64)(int64_t rows, const double *x, const double *residual, double *sum, double *y, int64_t n,
                         const qrt_norm_params_f64 *params);

    /// One number of a row. Blocks of 2048 elements are summed apart, so errors stay near √n·ε.
    /// n = 0 gives 0 (sum, l1, sum_square), 1 (prod), ∓inf (max, min). max and min propagate NaN.
    float (*reduce[QRT_NUM_REDUCE_KERNELS])(const float *x, int64_t n);
    /// y[c] = op over r of x[r·stride_elems + c], for c < columns, in ascending r (sums in blocks of 64 rows).
    void (*reduce_columns[QRT_NUM_REDUCE_KERNELS])(const float *x, int64_t stride_elems, int64_t rows,
                                                     int64_t columns, float *y);
    /// The same of float16, to the bits of what it is in float.
    float (*reduce_f16[QRT_NUM_REDUCE_KERNELS])(const uint16_t *x, int64_t n);
    void (*reduce_columns_f16[QRT_NUM_REDUCE_KERNELS])(const uint16_t *x, int64_t stride_elems, int64_t rows, int64_t columns, float *y);
    /// The same of doubles: of a row in 16 lanes, also in blocks of 2048.
    double (*reduce_f64[QRT_NUM_REDUCE_KERNELS])(const double *x, int64_t n);
    void (*reduce_columns_f64[QRT_NUM_REDUCE_KERNELS])(const double *x, int64_t stride_elems, int64_t rows, int64_t columns,
                                                       double *y);
} qrt_rows;

#endif
