/// Float GEMM.
///
/// Every output element is one chain of fused (portable: separate) multiply-adds over ascending k,
/// whichever tile computes it. Hence a row never depends on how many rows come with it, and zero-padded
/// k adds exactly nothing.
#ifndef QRT_GEMM_F32_H
#define QRT_GEMM_F32_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gemm_q8.h"
#include "tensor.h"

struct qrt_gemm_f32;

/// Right-hand side [k, n], packed for one rung, with an optional bias. Immutable once made.
typedef struct qrt_f32_weights {
    const struct qrt_gemm_f32 *kernel;
    int64_t k, n;
    float *panels;
    float *bias;          ///< padded to a multiple of nr, or NULL
    qrt_buffer *buffer;
} qrt_f32_weights;

qrt_f32_weights *qrt_f32_pack(const struct qrt_gemm_f32 *kernel, const float *w,
                              int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n, const float *bias);
void qrt_f32_free(qrt_f32_weights *w);

/// y = activation(a · w + bias) + residual, as qrt_q8_linear.
qrt_status qrt_f32_linear(const qrt_f32_weights *w, qrt_run *run, const float *a, int64_t lda_elems, int64_t m,
                          const qrt_q8_epilogue *epilogue, float *y, int64_t ldy_elems);
void qrt_f32_linear_serial(const qrt_f32_weights *w, const float *a, int64_t lda_elems, int64_t m,
                           const qrt_q8_epilogue *epilogue, float *y, int64_t ldy_elems);

typedef struct qrt_gemm_f32 {
    const char *name;
    int mr, nr;
} qrt_gemm_f32;

#endif
