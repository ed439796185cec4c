/// Elementwise operations on float64. Plain loops, which the compiler vectorizes for the target region that includes them;
/// portable includes them too.
#include "math_f64.inc.h"

static inline double leaky_f64(double x, double p) { return pick(x < 0, p * x, x); }
static inline double shrink_f64(double x, double p, double q) { return pick(x < -p, x + q, pick(x > p, x - q, 0)); }
static inline double sign_f64(double x) { return x > 0 ? 1 : x < 0 ? -1 : x == 0 ? 0 : x; }

#define UNARY_F64(name, expression)                                                              \
    static void f64_unary_##name(const double *input, double *y, int64_t n, double p, double q) { \
        (void)p, (void)q;                                                                        \
        IN_PLACE for (int64_t i = 0; i < n; i++) {                                                        \
            const double x = input[i];                                                           \
            y[i] = expression;                                                                   \
        }                                                                                        \
    }

/// Exponential, logarithm, sine and cosine are left to numpy, whose own vectors of them are as fast.
#define F64_UNARY_OPS(X)                                                                                     \
    X(RELU, relu, x < 0 ? 0 : x) X(LEAKY_RELU, leaky_relu, leaky_f64(x, p))                                   \
    X(SQRT, sqrt, sqrt(x)) X(RECIPROCAL, reciprocal, 1 / x) X(NEG, neg, -x) X(ABS, abs, fabs(x))              \
    X(TANH, tanh, tanh_f64(x)) X(SIGMOID, sigmoid, sigmoid_f64(x)) X(ERF, erf, erf_f64(x))                     \
    X(GELU, gelu, gelu_f64(x)) X(GELU_TANH, gelu_tanh, gelu_tanh_f64(x)) X(SILU, silu, x * sigmoid_f64(x))    \
    X(SOFTPLUS, softplus, softplus_f64(x)) X(ELU, elu, elu_f64(x, p)) X(SELU, selu, q * elu_f64(x, p))        \
    X(HARD_SIGMOID, hard_sigmoid, at_most(1, at_least(0, p * x + q)))                                         \
    X(HARD_SWISH, hard_swish, x * at_most(1, at_least(0, 1.0 / 6 * x + 0.5)))                                 \
    X(CELU, celu, celu_f64(x, p)) X(THRESHOLDED_RELU, thresholded_relu, x > p ? x : 0)                        \
    X(SHRINK, shrink, shrink_f64(x, p, q)) X(AFFINE, affine, p * x + q)                                       \
    X(SCALED_TANH, scaled_tanh, p * tanh_f64(q * x))                                                          \
    X(FLOOR, floor, floor(x)) X(CEIL, ceil, ceil(x)) X(ROUND, round, rint(x))                                 \
    X(CLIP, clip, at_most(q, at_least(p, x))) X(SIGN, sign, sign_f64(x))                                      \
    X(SOFTSIGN, softsign, x / (1 + fabs(x))) X(MISH, mish, x * tanh_f64(softplus_f64(x)))                     \
    X(SQUARE, square, x * x) X(QUICK_GELU, quick_gelu, x * sigmoid_f64(p * x))
#define X(enumerator, name, expression) UNARY_F64(name, expression)
F64_UNARY_OPS(X)
#undef X

/// Three loops, so that the one at hand has constant strides.
#define BINARY_F64(name, result, expression)                                                                      \
    static void f64_##name(const void *va, const void *vb, void *vy, int64_t n, int a_step, int b_step) {         \
        const double *pa = va, *pb = vb;                                                                          \
        result *y = vy;                                                                                           \
        if (a_step && b_step) {                                                                                   \
            IN_PLACE for (int64_t i = 0; i < n; i++) { double a = pa[i], b = pb[i]; y[i] = expression; } \
        } else if (a_step && n) {                                                                                 \
            const double b = *pb;                                                                                 \
            IN_PLACE for (int64_t i = 0; i < n; i++) { double a = pa[i]; y[i] = expression; }         \
        } else if (b_step && n) {                                                                                 \
            const double a = *pa;                                                                                 \
            IN_PLACE for (int64_t i = 0; i < n; i++) { double b = pb[i]; y[i] = expression; }         \
        } else {                                                                                                  \
            for (int64_t i = 0; i < n; i++) { double a = *pa, b = *pb; y[i] = expression; }                       \
        }                                                                                                         \
    }
#define F64_BINARY_OPS(X)                                                                                         \
    X(ADD, add, double, a + b) X(SUB, sub, double, a - b) X(MUL, mul, double, a * b) X(DIV, div, double, a / b)   \
    X(MIN, min, double, a != a || a < b ? a : b) X(MAX, max, double, a != a || a > b ? a : b)                     \
    X(PRELU, prelu, double, leaky_f64(a, b))                                                                      \
    X(EQUAL, equal, uint8_t, a == b) X(LESS, less, uint8_t, a < b) X(LESS_EQUAL, less_equal, uint8_t, a <= b)     \
    X(GREATER, greater, uint8_t, a > b) X(GREATER_EQUAL, greater_equal, uint8_t, a >= b)
#define X(enumerator, name, result, expression) BINARY_F64(name, result, expression)
F64_BINARY_OPS(X)
#undef X

static void set_f64_slots(qrt_pointwise *table) {
#define X(enumerator, name, ...) table->unary_f64[QRT_##enumerator] = f64_unary_##name;
    F64_UNARY_OPS(X)
#undef X
#define X(enumerator, name, ...) table->binary_f64[QRT_##enumerator] = f64_##name;
    F64_BINARY_OPS(X)
#undef X
}
