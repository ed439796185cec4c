/// Elementwise kernels in plain C over libm: the definition.
#include <math.h>
#include <string.h>

#include "../half.h"
#include "../rungs.h"

#define X(enumerator, name) #name,
const char *const qrt_unary_names[] = {QRT_UNARY_OPS(X) NULL};
const char *const qrt_binary_names[] = {QRT_BINARY_OPS(X) NULL};
#undef X

static uint16_t f16_of_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x3ff));
    if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520 and more round to inf
    if (bits < 0x38800000) {                       // below 2^-14: a multiple of 2^-24
        memcpy(&x, &bits, sizeof x);
        return (uint16_t)(sign | (uint16_t)rintf(x * 0x1p24f));
    }
    bits += 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | (bits - (112u << 23)) >> 13);
}

static inline float sigmoid(float x) {
    float z = expf(-fabsf(x));
    return (x < 0 ? z : 1) / (1 + z);
}
static inline float softplus(float x) { return (x < 0 ? 0 : x) + log1pf(expf(-fabsf(x))); }
static inline float elu(float x, float alpha) { return x < 0 ? alpha * expm1f(x) : x; }
/// x·Φ(x), Φ by erfc where 1 + erf would cancel; its limit at −inf.
static inline float gelu(float x) {
    if (x < -20) return 0;
    return x * (float)(0.5 * erfc(x * -0.70710678118654752));
}
static inline float gelu_tanh(float x) {
    if (x < -20) return -0.0f;
    return x * sigmoid(1.59576912f * x * (1 + 0.044715f * x * x));
}
static inline float clip(float x, float low, float high) {
    float y = x < low ? low : x;
    return y > high ? high : y;
}
static inline float shrink(float x, float p, float q) { return x < -p ? x + q : x > p ? x - q : 0; }
static inline float sign(float x) { return x > 0 ? 1 : x < 0 ? -1 : x == 0 ? 0 : x; }

#define UNARY(name, expression)                                                                \
    static void unary_##name(const float *input, float *y, int64_t n, float p, float q) {      \
        (void)p, (void)q;                                                                      \
        for (int64_t i = 0; i < n; i++) {                                                      \
            float x = input[i];                                                                \
            y[i] = expression;                                                                 \
        }                                                                                      \
    }                                                                                          \
    static void half_unary_##name(const uint16_t *input, uint16_t *y, int64_t n, float p, float q) { \
        (void)p, (void)q;                                                                      \
        for (int64_t i = 0; i < n; i++) {                                                      \
            float x = qrt_f32_of_f16(input[i]);                                                \
            y[i] = f16_of_f32(expression);                                                     \
        }                                                                                      \
    }

UNARY(relu, x < 0 ? 0 : x)
UNARY(leaky_relu, x < 0 ? p * x : x)
UNARY(exp, expf(x))
UNARY(log, logf(x))
UNARY(sqrt, sqrtf(x))
UNARY(reciprocal, 1 / x)
UNARY(neg, -x)
UNARY(abs, fabsf(x))
UNARY(tanh, tanhf(x))
UNARY(sigmoid, sigmoid(x))
UNARY(erf, erff(x))
UNARY(gelu, gelu(x))
UNARY(gelu_tanh, gelu_tanh(x))
UNARY(silu, x * sigmoid(x))
UNARY(softplus, softplus(x))
UNARY(elu, elu(x, p))
UNARY(selu, q * elu(x, p))
UNARY(hard_sigmoid, clip(fmaf(p, x, q), 0, 1))
UNARY(hard_swish, x * clip(fmaf(1.0f / 6, x, 0.5f), 0, 1))
UNARY(celu, x < 0 ? p * expm1f(x / p) : x)
UNARY(thresholded_relu, x > p ? x : 0)
UNARY(shrink, shrink(x, p, q))
UNARY(affine, fmaf(p, x, q))
UNARY(scaled_tanh, p * tanhf(q * x))
UNARY(floor, floorf(x))
UNARY(ceil, ceilf(x))
UNARY(round, rintf(x))
UNARY(sin, sinf(x))
UNARY(cos, cosf(x))
UNARY(clip, clip(x, p, q))
UNARY(sign, sign(x))
UNARY(softsign, x / (1 + fabsf(x)))
UNARY(mish, x * tanhf(softplus(x)))
UNARY(square, x * x)
UNARY(quick_gelu, x * sigmoid(p * x))

#define BINARY(name, result, expression)                                                                     \
    static void f32_##name(const void *va, const void *vb, void *vy, int64_t n, int a_step, int b_step) {    \
        const float *pa = va, *pb = vb;                                                                      \
        result *y = vy;                                                                                      \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            float a = pa[i * a_step], b = pb[i * b_step];                                                    \
            y[i] = expression;                                                                               \
        }                                                                                                    \
    }

BINARY(add, float, a + b)
BINARY(sub, float, a - b)
BINARY(mul, float, a * b)
BINARY(div, float, a / b)
BINARY(min, float, isnan(a) || a < b ? a : b)
BINARY(max, float, isnan(a) || a > b ? a : b)
BINARY(fmod, float, fmodf(a, b))
BINARY(prelu, float, a < 0 ? a * b : a)
BINARY(general_pow, float, powf(a, b))
BINARY(equal, uint8_t, a == b)
BINARY(less, uint8_t, a < b)
BINARY(less_equal, uint8_t, a <= b)
BINARY(greater, uint8_t, a > b)
BINARY(greater_equal, uint8_t, a >= b)

/// The exponents that models use are cheap; the square root keeps powf's answers at −0 and −inf.
static void f32_pow(const void *va, const void *vb, void *vy, int64_t n, int a_step, int b_step) {
    const float *a = va, *b = vb;
    float *y = vy;
    float exponent = n && !b_step && a_step ? *b : NAN;
    if (exponent == 2) {
        for (int64_t i = 0; i < n; i++) y[i] = a[i] * a[i];
    } else if (exponent == 3) {
        for (int64_t i = 0; i < n; i++) y[i] = a[i] * a[i] * a[i];
    } else if (exponent == 0.5f) {
        for (int64_t i = 0; i < n; i++) {
            float x = a[i];
            y[i] = x == -INFINITY ? INFINITY : sqrtf(x + 0.0f);
        }
    } else {
        f32_general_pow(va, vb, vy, n, a_step, b_step);
    }
}

#include "../vector/integer.inc.h"
#include "../vector/float64.inc.h"

static void f16_to_f32(const uint16_t *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = qrt_f32_of_f16(x[i]);
}

static void f32_to_f16(const float *x, uint16_t *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = f16_of_f32(x[i]);
}

void qrt_portable_pointwise(qrt_kernel_table *t) {
    qrt_pointwise *table = &t->pointwise;
#define X(enumerator, name)                             \
    table->unary[QRT_##enumerator] = unary_##name;      \
    table->unary_f16[QRT_##enumerator] = half_unary_##name;
    QRT_UNARY_OPS(X)
#undef X
#define SET(enumerator, name) table->binary_f32[QRT_##enumerator] = f32_##name;
    SET(ADD, add) SET(SUB, sub) SET(MUL, mul) SET(DIV, div) SET(MIN, min) SET(MAX, max) SET(POW, pow) SET(FMOD, fmod)
    SET(PRELU, prelu)
    SET(EQUAL, equal) SET(LESS, less) SET(LESS_EQUAL, less_equal)
    SET(GREATER, greater) SET(GREATER_EQUAL, greater_equal)
#undef SET
    set_integer_slots(table);
    set_f64_slots(table);
    table->f16_to_f32 = f16_to_f32;
    table->f32_to_f16 = f32_to_f16;
}
