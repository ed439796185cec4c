/// The activations of a linear layer over the vocabulary of simd_*.h; after math.inc.h.
#ifndef QRT_ACTIVATION_INC_H
#define QRT_ACTIVATION_INC_H

static inline vf vf_activate(vf x, qrt_activation activation) {
    switch (activation) {
    case QRT_ACT_NONE: return x;
    case QRT_ACT_RELU: return vf_max(vf_zero(), x);
    case QRT_ACT_GELU: return vf_gelu(x);
    case QRT_ACT_GELU_TANH: return vf_gelu_tanh(x);
    case QRT_ACT_SILU: return vf_silu(x);
    case QRT_ACT_SIGMOID: return vf_sigmoid(x);
    case QRT_ACT_TANH: return vf_tanh(x);
    }
    return x;
}

/// In place, on a whole number of vectors: three at a time, for the polynomials are long chains.
#define ACTIVATE_ALL(function)                                                                                         \
    do {                                                                                                               \
        for (; n >= 3 * VL; n -= 3 * VL, x += 3 * VL) {                                                                \
            vf x0 = function(vf_load(x)), x1 = function(vf_load(x + VL)), x2 = function(vf_load(x + 2 * VL));          \
            vf_store(x, x0);                                                                                           \
            vf_store(x + VL, x1);                                                                                      \
            vf_store(x + 2 * VL, x2);                                                                                  \
        }                                                                                                              \
        for (; n > 0; n -= VL, x += VL) vf_store(x, function(vf_load(x)));                                             \
    } while (0)

static void activate_vectors(float *x, int64_t n, qrt_activation activation) {
    switch (activation) {
    case QRT_ACT_NONE: return;
    case QRT_ACT_RELU:
        for (; n > 0; n -= VL, x += VL) vf_store(x, vf_max(vf_zero(), vf_load(x)));
        return;
    case QRT_ACT_GELU: ACTIVATE_ALL(vf_gelu); return;
    case QRT_ACT_GELU_TANH: ACTIVATE_ALL(vf_gelu_tanh); return;
    case QRT_ACT_SILU: ACTIVATE_ALL(vf_silu); return;
    case QRT_ACT_SIGMOID: ACTIVATE_ALL(vf_sigmoid); return;
    case QRT_ACT_TANH: ACTIVATE_ALL(vf_tanh); return;
    }
}

#endif
