/// Operations on float64. Plain loops, which the compiler vectorizes for the target region that includes them; portable
/// includes them too. MULTIPLY_ADD(a, b, c) is a·b + c, rounded once or twice, whichever is one instruction or two there.

static inline uint64_t bits_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline double double_of(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/// Both sides are computed, so that the compiler may choose without a branch.
static inline double pick(bool condition, double a, double b) {
    const uint64_t mask = -(uint64_t)condition;
    return double_of((bits_of(a) & mask) | (bits_of(b) & ~mask));
}

/// Added to a number below 2^51 it leaves the nearest integer in the low bits.
#define WHOLE 0x1.8p52

/// 2^n of a whole n in [−1022, 1023].
static inline double two_to_the(double n) { return double_of((bits_of(n + WHOLE) - bits_of(WHOLE) + 1023) << 52); }

/// x = n ln 2 + r, |r| ≤ 0.35, and e^r − 1 by its series, whose next term is below 2^-57 of it. x in [−746, 710].
static inline double expm1_of_rest(double x, double *n) {
    *n = x * 0x1.71547652b82fep0 + WHOLE - WHOLE;
    const double near = x - *n * 0x1.62e42fee00000p-1;  // the product is exact
    const double r = MULTIPLY_ADD(*n, -0x1.a39ef35793c76p-33, near);
    double p = 1.0 / 87178291200;
    p = MULTIPLY_ADD(p, r, 1.0 / 6227020800);
    p = MULTIPLY_ADD(p, r, 1.0 / 479001600);
    p = MULTIPLY_ADD(p, r, 1.0 / 39916800);
    p = MULTIPLY_ADD(p, r, 1.0 / 3628800);
    p = MULTIPLY_ADD(p, r, 1.0 / 362880);
    p = MULTIPLY_ADD(p, r, 1.0 / 40320);
    p = MULTIPLY_ADD(p, r, 1.0 / 5040);
    p = MULTIPLY_ADD(p, r, 1.0 / 720);
    p = MULTIPLY_ADD(p, r, 1.0 / 120);
    p = MULTIPLY_ADD(p, r, 1.0 / 24);
    p = MULTIPLY_ADD(p, r, 1.0 / 6);
    p = MULTIPLY_ADD(p, r, 0.5);
    return MULTIPLY_ADD(p * r, r, r);
}

static inline double at_least(double low, double x) { return x < low ? low : x; }
static inline double at_most(double high, double x) { return x > high ? high : x; }

/// eˣ within 2 ulp: 1 of 1 + p, 0.5 of p, whose own errors count at most half.
static inline double exp_f64(double x) {
    double n, p = expm1_of_rest(at_most(710, at_least(-746, x)), &n);
    const double half = n * 0.5 + WHOLE - WHOLE;  // in two steps: results may be subnormal, or infinite
    return (1 + p) * two_to_the(half) * two_to_the(n - half);
}

/// eˣ − 1 within 2 ulp, x ≤ 0.
static inline double expm1_nonpositive(double x) {
    double n, p = expm1_of_rest(at_least(-40, x), &n);
    const double scale = two_to_the(n);
    return MULTIPLY_ADD(scale, p, scale - 1);
}

static inline double tanh_f64(double x) {
    const double t = expm1_nonpositive(-2 * fabs(x));
    return copysign(t / (t + 2), x);
}
static inline double sigmoid_f64(double x) {
    const double z = exp_f64(-fabs(x));
    return pick(x < 0, z, 1) / (1 + z);
}

/// ln(1 + z) within 3 ulp, z in [0, 1]: 2 artanh(z / (2 + z)) by its series, whose next term is below 2^-57 of it.
static inline double log1p_of_unit(double z) {
    const double s = z / (2 + z), t = s * s;
    double p = 1.0 / 35;
    p = MULTIPLY_ADD(p, t, 1.0 / 33);
    p = MULTIPLY_ADD(p, t, 1.0 / 31);
    p = MULTIPLY_ADD(p, t, 1.0 / 29);
    p = MULTIPLY_ADD(p, t, 1.0 / 27);
    p = MULTIPLY_ADD(p, t, 1.0 / 25);
    p = MULTIPLY_ADD(p, t, 1.0 / 23);
    p = MULTIPLY_ADD(p, t, 1.0 / 21);
    p = MULTIPLY_ADD(p, t, 1.0 / 19);
    p = MULTIPLY_ADD(p, t, 1.0 / 17);
    p = MULTIPLY_ADD(p, t, 1.0 / 15);
    p = MULTIPLY_ADD(p, t, 1.0 / 13);
    p = MULTIPLY_ADD(p, t, 1.0 / 11);
    p = MULTIPLY_ADD(p, t, 1.0 / 9);
    p = MULTIPLY_ADD(p, t, 1.0 / 7);
    p = MULTIPLY_ADD(p, t, 1.0 / 5);
    p = MULTIPLY_ADD(p, t, 1.0 / 3);
    return 2 * MULTIPLY_ADD(p * t, s, s);
}
static inline double softplus_f64(double x) { return at_least(0, x) + log1p_of_unit(exp_f64(-fabs(x))); }
static inline double elu_f64(double x, double alpha) {
    return pick(x < 0, alpha * expm1_nonpositive(at_most(0, x)), x);
}
static inline double celu_f64(double x, double alpha) {
    return pick(x < 0, alpha * expm1_nonpositive(at_most(0, x) / alpha), x);
}
/// x·Φ(x), Φ by erfc where 1 + erf would cancel; −0 where it vanishes.
static inline double gelu_f64(double x) { return x < -39 ? -0.0 : 0.5 * x * erfc(x * -0.70710678118654752); }
static inline double gelu_tanh_f64(double x) {
    return pick(x < -39, -0.0, x * sigmoid_f64(2 * 0.79788456080286536 * x * (1 + 0.044715 * x * x)));
}
static inline double leaky_f64(double x, double p) { return pick(x < 0, p * x, x); }
static inline double shrink_f64(double x, double p, double q) { return pick(x < -p, x + q, pick(x > p, x - q, 0)); }
static inline double sign_f64(double x) { return x > 0 ? 1 : x < 0 ? -1 : x == 0 ? 0 : x; }

#define UNARY_F64(name, expression)                                                              \
    static void f64_unary_##name(const double *input, double *y, int64_t n, double p, double q) { \
        (void)p, (void)q;                                                                        \
        _Pragma("GCC ivdep") /* y may be the input, never overlap it otherwise */                \
        for (int64_t i = 0; i < n; i++) {                                                        \
            const double x = input[i];                                                           \
            y[i] = expression;                                                                   \
        }                                                                                        \
    }

/// Exponential, logarithm, sine and cosine are left to numpy, whose own vectors of them are as fast.
#define F64_UNARY_OPS(X)                                                                                     \
    X(RELU, relu, x < 0 ? 0 : x) X(LEAKY_RELU, leaky_relu, leaky_f64(x, p))                                   \
    X(SQRT, sqrt, sqrt(x)) X(RECIPROCAL, reciprocal, 1 / x) X(NEG, neg, -x) X(ABS, abs, fabs(x))              \
    X(TANH, tanh, tanh_f64(x)) X(SIGMOID, sigmoid, sigmoid_f64(x)) X(ERF, erf, erf(x))                        \
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
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) { double a = pa[i], b = pb[i]; y[i] = expression; } \
        } else if (a_step && n) {                                                                                 \
            const double b = *pb;                                                                                 \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) { double a = pa[i]; y[i] = expression; }         \
        } else if (b_step && n) {                                                                                 \
            const double a = *pa;                                                                                 \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) { double b = pb[i]; y[i] = expression; }         \
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
