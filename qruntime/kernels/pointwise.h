/// Elementwise kernels over contiguous runs.
#ifndef QRT_POINTWISE_H
#define QRT_POINTWISE_H

#include <stdint.h>

typedef struct qrt_pointwise {
    int placeholder;
} qrt_pointwise;

#endif
