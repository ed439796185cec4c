/// Elementwise kernels over contiguous runs.
///
/// Every element is computed by the same operations wherever it stands, so runs may be split anywhere.
/// Errors of the float functions are stated in vector/math.inc.h, those of double in vector/math_f64.inc.h; portable calls
/// libm for float.
#ifndef QRT_POINTWISE_H
#define QRT_POINTWISE_H

#include <stdint.h>

/// X(enumerator, name). p and q are the two parameters of qrt_unary_fn.
#define QRT_UNARY_OPS(X)                                                                          \
    X(RELU, relu) X(LEAKY_RELU, leaky_relu) /* p·x below 0 */                                     \
    X(EXP, exp) X(LOG, log) X(SQRT, sqrt) X(RECIPROCAL, reciprocal) X(NEG, neg) X(ABS, abs)       \
    X(TANH, tanh) X(SIGMOID, sigmoid) X(ERF, erf)                                                 \
    X(GELU, gelu) X(GELU_TANH, gelu_tanh) X(SILU, silu) X(SOFTPLUS, softplus)                     \
    X(ELU, elu) /* p·(eˣ − 1) below 0 */ X(SELU, selu) /* q·x, and q·p·(eˣ − 1) below 0 */        \
    X(HARD_SIGMOID, hard_sigmoid) /* clip(p·x + q, 0, 1) */                                       \
    X(HARD_SWISH, hard_swish) /* x·clip(x/6 + 1/2, 0, 1) */                                       \
    X(CELU, celu) /* p·(e^(x/p) − 1) below 0, p > 0 */                                            \
    X(THRESHOLDED_RELU, thresholded_relu) /* x above p, else 0 */                                 \
    X(SHRINK, shrink) /* x + q below −p, x − q above p, else 0 */                                 \
    X(AFFINE, affine) /* p·x + q */ X(SCALED_TANH, scaled_tanh) /* p·tanh(q·x) */                 \
    X(FLOOR, floor) X(CEIL, ceil) X(ROUND, round) /* half to even */                              \
    X(SIN, sin) X(COS, cos) X(CLIP, clip) /* min(max(x, p), q) */ X(SIGN, sign)                   \
    X(SOFTSIGN, softsign) X(MISH, mish) X(SQUARE, square) X(QUICK_GELU, quick_gelu) /* x·sigmoid(p·x) */

#define QRT_BINARY_OPS(X)                                                                         \
    X(ADD, add) X(SUB, sub) X(MUL, mul) X(DIV, div) X(MIN, min) X(MAX, max)                       \
    X(POW, pow) /* float only */ X(PRELU, prelu) /* float only: a, and a·b where a is below 0 */  \
    X(MOD, mod) /* integers only, sign of the divisor */ X(FMOD, fmod) /* sign of the dividend */ \
    X(EQUAL, equal) X(LESS, less) X(LESS_EQUAL, less_equal)                                       \
    X(GREATER, greater) X(GREATER_EQUAL, greater_equal)                                           \
    X(AND, and) X(OR, or) X(XOR, xor) /* bool only */

typedef enum {
#define X(enumerator, name) QRT_##enumerator,
    QRT_UNARY_OPS(X)
#undef X
    QRT_NUM_UNARY
} qrt_unary_op;

typedef enum {
#define X(enumerator, name) QRT_##enumerator,
    QRT_BINARY_OPS(X)
#undef X
    QRT_NUM_BINARY
} qrt_binary_op;

/// Names by opcode, NULL-terminated.
extern const char *const qrt_unary_names[];
extern const char *const qrt_binary_names[];

/// y[i] = f(x[i]); y may be x.
typedef void (*qrt_unary_fn)(const float *x, float *y, int64_t n, float p, float q);

/// The same of float64. NULL for what is left to numpy: exponential, logarithm, sine, cosine.
typedef void (*qrt_unary_f64_fn)(const double *x, double *y, int64_t n, double p, double q);

/// The same of float16, computed in float and rounded once, to the bits of `f32_to_f16` of it.
typedef void (*qrt_unary_f16_fn)(const uint16_t *x, uint16_t *y, int64_t n, float p, float q);

/// An elementwise kernel with its parameters.
typedef struct {
    qrt_unary_fn fn;
    float p, q;
} qrt_elementwise;

/// y[i] = f(a[i·a_step], b[i·b_step]), steps 0 or 1; y may be a or b where that step is 1 and the element
/// types agree. NULL where the type has no such operation. Integers wrap; min and max propagate NaN;
/// integer division truncates, and the caller makes sure that it is defined.
typedef void (*qrt_binary_fn)(const void *a, const void *b, void *y, int64_t n, int a_step, int b_step);

typedef struct qrt_pointwise {
    qrt_unary_fn unary[QRT_NUM_UNARY];
    qrt_unary_f64_fn unary_f64[QRT_NUM_UNARY];
    qrt_unary_f16_fn unary_f16[QRT_NUM_UNARY];
    qrt_binary_fn binary_f32[QRT_NUM_BINARY];
    qrt_binary_fn binary_f64[QRT_NUM_BINARY];                      ///< neither powers nor remainders
    qrt_binary_fn binary_i32[QRT_NUM_BINARY];
    qrt_binary_fn binary_i64[QRT_NUM_BINARY];
    qrt_binary_fn binary_bool[QRT_NUM_BINARY];                     ///< bytes 0 or 1
    void (*twice)(const uint32_t *x, uint32_t *y, int64_t n);      ///< y[2 i] = y[2 i + 1] = x[i]; y lies apart from x
    void (*f16_to_f32)(const uint16_t *x, float *y, int64_t n);
    void (*f32_to_f16)(const float *x, uint16_t *y, int64_t n);    ///< half to even
} qrt_pointwise;

#endif
