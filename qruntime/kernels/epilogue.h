/// What follows the sums of a layer: y = activation(sums + bias + addend) + residual.
#ifndef QRT_EPILOGUE_H
#define QRT_EPILOGUE_H

#include <stdint.h>

#include "pointwise.h"

/// X(enumerator, name) of what is applied in registers.
#define QRT_ACTIVATIONS(X) \
    X(NONE, none) X(RELU, relu) X(GELU, gelu) X(GELU_TANH, gelu_tanh) X(SILU, silu) X(SIGMOID, sigmoid) X(TANH, tanh)

typedef enum {
#define X(enumerator, name) QRT_ACT_##enumerator,
    QRT_ACTIVATIONS(X)
#undef X
} qrt_activation;
#define QRT_NUM_ACTIVATIONS (QRT_ACT_TANH + 1)

/// The bias belongs to the weights.
typedef struct {
    qrt_activation activation;
    const float *addend;            ///< [m, n] or NULL; for weights whose qrt_weights_ops takes one
    int64_t addend_stride_elems;    ///< 0: all rows get the same one
    const float *residual;          ///< [m, n] added after the activation, or NULL
    int64_t residual_stride_elems;  ///< 0: all rows get the same one
    qrt_elementwise map;            ///< in place of an activation: applied to blocks of results while they are in the cache
} qrt_epilogue;

#endif
