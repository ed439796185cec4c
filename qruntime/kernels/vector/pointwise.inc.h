/// Elementwise kernels, written once: include after simd_*.h and math.inc.h, with RUNG defined.
#include "../kernels.h"
#include "half.inc.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

typedef vf (*unary_step)(vf x, vf p, vf q);
typedef vf (*binary_step)(vf a, vf b);
typedef vm (*compare_step)(vf a, vf b);

static inline __attribute__((always_inline)) void map_unary(unary_step f, bool half, const void *x, void *y, int64_t n,
                                                            float p, float q) {
    vf vp = vf_set(p), vq = vf_set(q);
    int64_t i = 0;
    for (; i + 2 * VL <= n; i += 2 * VL) {
        vf first = f(load_of(half, x, i), vp, vq), second = f(load_of(half, x, i + VL), vp, vq);
        store_of(half, y, i, first);
        store_of(half, y, i + VL, second);
    }
    if (i + VL <= n) {
        store_of(half, y, i, f(load_of(half, x, i), vp, vq));
        i += VL;
    }
    if (i < n) store_of_n(half, y, i, f(load_of_n(half, x, i, n - i), vp, vq), n - i);
}

#define UNARY(name, expression)                                                              \
    static inline vf unary_##name##_step(vf x, vf p, vf q) {                                 \
        (void)p, (void)q;                                                                    \
        return expression;                                                                   \
    }                                                                                        \
    static void unary_##name(const float *x, float *y, int64_t n, float p, float q) {        \
        map_unary(unary_##name##_step, false, x, y, n, p, q);                                \
    }                                                                                        \
    static void half_unary_##name(const uint16_t *x, uint16_t *y, int64_t n, float p, float q) { \
        map_unary(unary_##name##_step, true, x, y, n, p, q);                                 \
    }

static inline vf below_zero(vf x, vf negative, vf positive) {
    return vf_blend(vf_lt(x, vf_zero()), negative, positive);
}
static inline vf nonpositive(vf x) { return vf_min(vf_zero(), x); }
static inline vf unit(vf x) { return vf_min(vf_set(1.0f), vf_max(vf_zero(), x)); }
static inline vf shrink(vf x, vf p, vf q) {
    vf above = vf_blend(vf_lt(p, x), vf_sub(x, q), vf_zero());
    return vf_blend(vf_lt(x, vf_neg(p)), vf_add(x, q), above);
}
static inline vf sign(vf x) {
    vf one = vf_blend(vf_eq(x, vf_zero()), vf_zero(), vf_with_sign(vf_set(1.0f), x));
    return vf_blend(vf_is_nan(x), x, one);
}

UNARY(relu, vf_max(vf_zero(), x))
UNARY(leaky_relu, below_zero(x, vf_mul(p, x), x))
UNARY(exp, vf_exp(x))
UNARY(log, vf_log(x))
UNARY(sqrt, vf_sqrt(x))
UNARY(reciprocal, vf_div(vf_set(1.0f), x))
UNARY(neg, vf_neg(x))
UNARY(abs, vf_abs(x))
UNARY(tanh, vf_tanh(x))
UNARY(sigmoid, vf_sigmoid(x))
UNARY(erf, vf_erf(x))
UNARY(gelu, vf_gelu(x))
UNARY(gelu_tanh, vf_gelu_tanh(x))
UNARY(silu, vf_silu(x))
UNARY(softplus, vf_softplus(x))
UNARY(elu, below_zero(x, vf_mul(p, vf_expm1_nonpositive(nonpositive(x))), x))
UNARY(selu, vf_mul(q, below_zero(x, vf_mul(p, vf_expm1_nonpositive(nonpositive(x))), x)))
UNARY(hard_sigmoid, unit(vf_fma(p, x, q)))
UNARY(hard_swish, vf_mul(x, unit(vf_fma(vf_set(1.0f / 6), x, vf_set(0.5f)))))
UNARY(celu, below_zero(x, vf_mul(p, vf_expm1_nonpositive(vf_div(nonpositive(x), p))), x))
UNARY(thresholded_relu, vf_blend(vf_lt(p, x), x, vf_zero()))
UNARY(shrink, shrink(x, p, q))
UNARY(affine, vf_fma(p, x, q))
UNARY(scaled_tanh, vf_mul(p, vf_tanh(vf_mul(q, x))))
UNARY(floor, vf_floor(x))
UNARY(ceil, vf_ceil(x))
UNARY(round, vf_round(x))
UNARY(sin, vf_sin(x))
UNARY(cos, vf_cos(x))
UNARY(clip, vf_min(q, vf_max(p, x)))
UNARY(sign, sign(x))
UNARY(softsign, vf_div(x, vf_add(vf_set(1.0f), vf_abs(x))))
UNARY(mish, vf_mul(x, vf_tanh(vf_softplus(x))))
UNARY(square, vf_mul(x, x))
UNARY(quick_gelu, vf_mul(x, vf_sigmoid(vf_mul(p, x))))

static inline __attribute__((always_inline)) void map_binary(binary_step f, const float *a, const float *b, float *y,
                                                             int64_t n, int a_step, int b_step) {
    int64_t i = 0;
    if (a_step && b_step) {
        for (; i + VL <= n; i += VL) vf_store(y + i, f(vf_load(a + i), vf_load(b + i)));
        if (i < n) vf_store_n(y + i, f(vf_load_n(a + i, n - i), vf_load_n(b + i, n - i)), n - i);
    } else if (a_step) {
        vf vb = n ? vf_set(*b) : vf_zero();
        for (; i + VL <= n; i += VL) vf_store(y + i, f(vf_load(a + i), vb));
        if (i < n) vf_store_n(y + i, f(vf_load_n(a + i, n - i), vb), n - i);
    } else {
        vf va = n ? vf_set(*a) : vf_zero();
        if (!b_step) {
            for (; i < n; i++) vf_store_n(y + i, f(va, vf_set(*b)), 1);
            return;
        }
        for (; i + VL <= n; i += VL) vf_store(y + i, f(va, vf_load(b + i)));
        if (i < n) vf_store_n(y + i, f(va, vf_load_n(b + i, n - i)), n - i);
    }
}

static inline __attribute__((always_inline)) void map_compare(compare_step f, const float *a, const float *b,
                                                              uint8_t *y, int64_t n, int a_step, int b_step) {
    int64_t i = 0;
    vf va = n && !a_step ? vf_set(*a) : vf_zero(), vb = n && !b_step ? vf_set(*b) : vf_zero();
    for (; i + VL <= n; i += VL) vm_store_bytes(y + i, f(a_step ? vf_load(a + i) : va, b_step ? vf_load(b + i) : vb));
    if (i == n) return;
    uint8_t lanes[VL];
    vm_store_bytes(lanes, f(a_step ? vf_load_n(a + i, n - i) : va, b_step ? vf_load_n(b + i, n - i) : vb));
    for (int64_t j = i; j < n; j++) y[j] = lanes[j - i];
}

#define BINARY(name, expression)                                                                             \
    static inline vf binary_##name##_step(vf a, vf b) { return expression; }                                 \
    static void f32_##name(const void *a, const void *b, void *y, int64_t n, int a_step, int b_step) {       \
        map_binary(binary_##name##_step, a, b, y, n, a_step, b_step);                                        \
    }
#define COMPARE(name, expression)                                                                            \
    static inline vm compare_##name##_step(vf a, vf b) { return expression; }                                \
    static void f32_##name(const void *a, const void *b, void *y, int64_t n, int a_step, int b_step) {       \
        map_compare(compare_##name##_step, a, b, y, n, a_step, b_step);                                      \
    }

BINARY(add, vf_add(a, b))
BINARY(sub, vf_sub(a, b))
BINARY(mul, vf_mul(a, b))
BINARY(div, vf_div(a, b))
BINARY(min, vf_min_nan(a, b))
BINARY(max, vf_max_nan(a, b))
BINARY(prelu, below_zero(a, vf_mul(a, b), a))
COMPARE(equal, vf_eq(a, b))
COMPARE(less, vf_lt(a, b))
COMPARE(less_equal, vf_le(a, b))
COMPARE(greater, vf_lt(b, a))
COMPARE(greater_equal, vf_le(b, a))

#include "integer.inc.h"
#include "float64.inc.h"

static void f16_to_f32(const uint16_t *x, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(y + i, load_of(true, x, i));
    if (i < n) vf_store_n(y + i, load_of_n(true, x, i, n - i), n - i);
}

static void f32_to_f16(const float *x, uint16_t *y, int64_t n) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) store_of(true, y, i, vf_load(x + i));
    if (i < n) store_of_n(true, y, i, vf_load_n(x + i, n - i), n - i);
}

void JOIN(qrt_, JOIN(RUNG, _pointwise))(qrt_kernel_table *t) {
    qrt_pointwise *table = &t->pointwise;
#define X(enumerator, name)                             \
    table->unary[QRT_##enumerator] = unary_##name;      \
    table->unary_f16[QRT_##enumerator] = half_unary_##name;
    QRT_UNARY_OPS(X)
#undef X
#define SET(enumerator, name) table->binary_f32[QRT_##enumerator] = f32_##name;
    SET(ADD, add) SET(SUB, sub) SET(MUL, mul) SET(DIV, div) SET(MIN, min) SET(MAX, max) SET(PRELU, prelu)
    SET(EQUAL, equal) SET(LESS, less) SET(LESS_EQUAL, less_equal)
    SET(GREATER, greater) SET(GREATER_EQUAL, greater_equal)
#undef SET
    set_integer_slots(table);
    set_f64_slots(table);
    table->f16_to_f32 = f16_to_f32;
    table->f32_to_f16 = f32_to_f16;
}
