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

#endif
