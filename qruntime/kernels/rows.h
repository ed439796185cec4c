/// Kernels over rows: softmax, normalisation, reductions along the last axis.
#ifndef QRT_ROWS_H
#define QRT_ROWS_H

#include <stdint.h>

typedef struct qrt_rows {
    int placeholder;
} qrt_rows;

#endif
