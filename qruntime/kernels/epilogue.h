/// What follows the sums of a layer: y = activation(sums + bias) + residual.
#ifndef QRT_EPILOGUE_H
#define QRT_EPILOGUE_H

#include <stdint.h>

#include "pointwise.h"

typedef enum {
    QRT_ACT_NONE, QRT_ACT_RELU, QRT_ACT_GELU, QRT_ACT_GELU_TANH, QRT_ACT_SILU, QRT_ACT_SIGMOID, QRT_ACT_TANH
} qrt_activation;
#define QRT_NUM_ACTIVATIONS (QRT_ACT_TANH + 1)

/// The bias belongs to the weights.
typedef struct {
    qrt_activation activation;
    const float *residual;          ///< [m, n] added after the activation, or NULL
    int64_t residual_stride_elems;
    qrt_elementwise map;            ///< in place of an activation: applied to blocks of results while they are in the cache
} qrt_epilogue;

#endif
