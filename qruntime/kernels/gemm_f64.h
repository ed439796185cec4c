/// Double GEMM, as gemm_f32.h without its epilogues and packed weights.
///
/// Every output element is one chain of fused (portable: separate) multiply-adds over ascending k that starts at zero,
/// or at what is there, whichever tile computes it. Error bound: |y − exact| ≤ K · ε · Σ_k |a·w|. Sums of integers below 2^53
/// are exact.
#ifndef QRT_GEMM_F64_H
#define QRT_GEMM_F64_H

#include <stdbool.h>
#include <stdint.h>

typedef struct qrt_gemm_f64 {
    int mr, nr;

    /// c[m, n] = (accumulate ? c : 0) + a[m, k] · b[k, n] for any m and n ≤ nr; row k of b starts at b + k · ldb.
    void (*strip)(int64_t m, int64_t n, int64_t k, const double *a, int64_t lda, const double *b, int64_t ldb,
                  double *c, int64_t ldc, bool accumulate);
} qrt_gemm_f64;

/// Write b[k, n] at strides (row, column) as panels of nr columns, k rows each. Columns beyond n become zero.
void qrt_f64_pack(const qrt_gemm_f64 *kernel, int64_t k, int64_t n, const double *b, int64_t row_stride_elems,
                  int64_t col_stride_elems, double *panels);

/// c[m, n] = (accumulate ? c : 0) + a · b on the calling thread: strips of nr columns of b, `ldb` doubles between two rows of
/// a strip, `strip_stride` between two strips.
void qrt_f64_gemm_strips(const qrt_gemm_f64 *kernel, int64_t m, int64_t n, int64_t k, const double *a, int64_t lda,
                         const double *b, int64_t ldb, int64_t strip_stride, double *c, int64_t ldc, bool accumulate);

#endif
