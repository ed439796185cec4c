/// Functions of doubles, for plain loops which the compiler vectorizes for the target region that includes them; portable
/// includes them too.
#include <stdbool.h>

/// a·b + c, rounded once where that is one instruction, which it is on every rung.
#ifdef RUNG
#define MULTIPLY_ADD(a, b, c) __builtin_fma(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

/// Before a loop over arrays that are one another or lie apart.
#define IN_PLACE _Pragma("GCC ivdep")

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
