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

/// 2^(n + more) of power = n + WHOLE, whose low bits are n. The sum of both in [−1022, 1023].
static inline double two_to_the(double power, int more) { return double_of((bits_of(power) + (uint64_t)(1023 + more)) << 52); }

/// x = n ln 2 + r, |r| ≤ 0.347, and e^r − 1 within 2^-60 of itself, and its roundings: r plus r² times the Chebyshev interpolation of
/// degree 10 (made with 50 digits), even and odd powers apart, which wait for each other half as long. `power` is n + WHOLE.
/// x in [−2^50, 710].
static inline double expm1_of_rest(double x, double *power) {
    *power = x * 0x1.71547652b82fep0 + WHOLE;
    const double n = *power - WHOLE, near = x - n * 0x1.62e42fee00000p-1;  // the product is exact
    const double r = MULTIPLY_ADD(n, -0x1.a39ef35793c76p-33, near), t = r * r;
    double even = 2.091477283224809e-09, odd = 2.510533724466521e-08;
    even = MULTIPLY_ADD(even, t, 2.755727343657049e-07);
    odd = MULTIPLY_ADD(odd, t, 2.755725511097889e-06);
    even = MULTIPLY_ADD(even, t, 2.480158732571076e-05);
    odd = MULTIPLY_ADD(odd, t, 0.00019841269875048905);
    even = MULTIPLY_ADD(even, t, 0.0013888888888883703);
    odd = MULTIPLY_ADD(odd, t, 0.00833333333332607);
    even = MULTIPLY_ADD(even, t, 0.04166666666666667);
    odd = MULTIPLY_ADD(odd, t, 0.1666666666666667);
    even = MULTIPLY_ADD(even, t, 0.5);
    return MULTIPLY_ADD(MULTIPLY_ADD(odd, r, even), t, r);
}

/// NaN stays. A conditional operator here would be a branch to the compiler for AVX2, and no loop over it of vectors.
static inline double at_least(double low, double x) { return pick(x < low, low, x); }
static inline double at_most(double high, double x) { return pick(x > high, high, x); }

/// (1 + p)·2^n of power = n + WHOLE, n in [−1200, 0]: in two steps, as the result may be subnormal.
static inline double scaled(double p, double power) { return (1 + p) * two_to_the(power, 200) * 0x1p-200; }

/// eˣ within 2 ulp, x ≤ 0: 1 of 1 + p, 0.5 of p, whose own errors count at most half.
static inline double exp_nonpositive(double x) {
    double power, p = expm1_of_rest(at_least(-746, x), &power);
    return scaled(p, power);
}

/// eˣ − 1 within 2 ulp, x ≤ 0.
static inline double expm1_nonpositive(double x) {
    double power, p = expm1_of_rest(at_least(-40, x), &power);
    const double scale = two_to_the(power, 0);
    return MULTIPLY_ADD(scale, p, scale - 1);
}

static inline double tanh_f64(double x) {
    const double t = expm1_nonpositive(-2 * fabs(x));
    return copysign(t / (t + 2), x);
}
static inline double sigmoid_f64(double x) {
    const double z = exp_nonpositive(-fabs(x));
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
static inline double softplus_f64(double x) { return at_least(0, x) + log1p_of_unit(exp_nonpositive(-fabs(x))); }
static inline double elu_f64(double x, double alpha) {
    return pick(x < 0, alpha * expm1_nonpositive(at_most(0, x)), x);
}
static inline double celu_f64(double x, double alpha) {
    return pick(x < 0, alpha * expm1_nonpositive(at_most(0, x) / alpha), x);
}
/// a·b − product of the rounded `product`, exactly: of numbers below 2^500, and where nothing is subnormal.
static inline double rest_of_product(double a, double b, double product) {
#ifdef RUNG
    return __builtin_fma(a, b, -product);
#else
    const double split = 0x1p27 + 1;  // halves of 26 bits, whose products are exact
    const double a_high = split * a - (split * a - a), b_high = split * b - (split * b - b);
    const double a_low = a - a_high, b_low = b - b_high;
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
}

/// e^(x²)·erfc(x) within 2^-52 of itself, and three roundings: 1 / (x + 4) times a polynomial in it, which is the Chebyshev
/// interpolation of degree 22 for x in [0, 28] (made with 50 digits; its error is 2^-57), written in powers. Each six of them are
/// a polynomial of their own: four need not wait for each other.
static inline double erfcx_f64(double x) {
    const double d = 1 / (x + 4), v = MULTIPLY_ADD(d, 64.0 / 7, -9.0 / 7);
    const double square = v * v, sixth = square * square * square;
    double p0 = 0.12341773040272855, p1 = -3.6030220554203866e-05, p2 = 3.271508327929644e-08, p3 = 4.8137129907447135e-11;
    p0 = MULTIPLY_ADD(p0, v, 0.2693024694460917);
    p1 = MULTIPLY_ADD(p1, v, -0.00018162518957387413);
    p2 = MULTIPLY_ADD(p2, v, -4.7911555902112786e-08);
    p3 = MULTIPLY_ADD(p3, v, 1.8985752558582383e-10);
    p0 = MULTIPLY_ADD(p0, v, 0.4935236238582715);
    p1 = MULTIPLY_ADD(p1, v, -0.0001316340107414406);
    p2 = MULTIPLY_ADD(p2, v, -3.7298122956424783e-07);
    p3 = MULTIPLY_ADD(p3, v, -7.1024676807178e-10);
    p0 = MULTIPLY_ADD(p0, v, 0.7738494586491715);
    p1 = MULTIPLY_ADD(p1, v, 0.002079364825226472);
    p2 = MULTIPLY_ADD(p2, v, 9.663007192040035e-08);
    p3 = MULTIPLY_ADD(p3, v, -2.8946683428548885e-09);
    p0 = MULTIPLY_ADD(p0, v, 1.0482634182783843);
    p1 = MULTIPLY_ADD(p1, v, 0.012770193110892255);
    p2 = MULTIPLY_ADD(p2, v, 4.210124548312526e-06);
    p3 = MULTIPLY_ADD(p3, v, 6.692889208017497e-09);
    p0 = MULTIPLY_ADD(p0, v, 1.2312883822661314);
    p1 = MULTIPLY_ADD(p1, v, 0.045844267170192174);
    p2 = MULTIPLY_ADD(p2, v, 6.459510894213542e-06);
    return d * MULTIPLY_ADD(MULTIPLY_ADD(p3, sixth, p2), sixth * sixth, MULTIPLY_ADD(p1, sixth, p0));
}

/// erf of |x| < 0.65 within 1.5 ulp: x times the Chebyshev interpolation of erf(x) / x of degree 9 in x² (2^-56).
static inline double erf_near_0(double x) {
    const double t = x * x;
    double p = -1.3532164374144134e-07;
    p = MULTIPLY_ADD(p, t, 1.6216123999750692e-06);
    p = MULTIPLY_ADD(p, t, -1.491362445242006e-05);
    p = MULTIPLY_ADD(p, t, 0.00012054975230412003);
    p = MULTIPLY_ADD(p, t, -0.0008548320413496383);
    p = MULTIPLY_ADD(p, t, 0.005223977550940325);
    p = MULTIPLY_ADD(p, t, -0.026866170640301647);
    p = MULTIPLY_ADD(p, t, 0.11283791670939211);
    p = MULTIPLY_ADD(p, t, -0.3761263890318355);
    p = MULTIPLY_ADD(p, t, 1.1283791670955126);
    return x * p;
}

/// erf within 3.5 ulp: 1 − erfc from 0.65 on, and ±1 where that rounds to it.
static inline double erf_f64(double x) {
    const double a = at_most(6, fabs(x)), square = a * a;
    double power, e = expm1_of_rest(-square, &power);
    const double tail = (1 + e) * two_to_the(power, 0) * (erfcx_f64(a) * (1 - rest_of_product(a, a, square)));
    return pick(fabs(x) < 0.65, erf_near_0(x), copysign(1 - tail, x));
}

/// x·Φ(x) within 9 ulp, Φ by erfc on either side; −0 where it vanishes.
static inline double gelu_f64(double x) {
    const double a = at_most(39, fabs(x)), half = 0.5 * a, square = a * half, u = a * 0.70710678118654752;
    double power, e = expm1_of_rest(-square, &power);
    const double tail = scaled(e, power) * erfcx_f64(u) * (1 - rest_of_product(a, half, square));
    const double near = 1 + copysign(erf_near_0(u), x), far = pick(x < 0, tail, 2 - tail);
    return pick(x < -39, -0.0, 0.5 * x * pick(u < 0.65, near, far));
}
static inline double gelu_tanh_f64(double x) {
    return pick(x < -39, -0.0, x * sigmoid_f64(2 * 0.79788456080286536 * x * (1 + 0.044715 * x * x)));
}
