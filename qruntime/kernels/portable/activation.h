/// Activations of the portable rung, after libm.
#ifndef QRT_PORTABLE_ACTIVATION_H
#define QRT_PORTABLE_ACTIVATION_H

#include <math.h>

#include "../epilogue.h"

static inline float qrt_activate(float x, qrt_activation activation) {
    switch (activation) {
    case QRT_ACT_NONE: return x;
    case QRT_ACT_RELU: return x < 0.0f ? 0.0f : x;
    case QRT_ACT_GELU: return x * (0.5f + 0.5f * erff(x * 0.70710678118654752f));
    case QRT_ACT_GELU_TANH: {
        float inner = 0.79788456080286536f * (x + 0.044715f * (x * x * x));
        return x * (0.5f + 0.5f * tanhf(inner));
    }
    case QRT_ACT_SILU: return x / (1.0f + expf(-x));
    case QRT_ACT_SIGMOID: return 1.0f / (1.0f + expf(-x));
    case QRT_ACT_TANH: return tanhf(x);
    }
    return x;
}

#endif
