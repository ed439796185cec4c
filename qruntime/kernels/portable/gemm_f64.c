/// Double GEMM in plain C: the definition of every element.
#include "../rungs.h"

enum { NR = 8 };

static void strip(int64_t m, int64_t n, int64_t k, const double *a, int64_t lda, const double *b, int64_t ldb,
                  double *c, int64_t ldc, bool accumulate) {
    for (int64_t i = 0; i < m; i++, a += lda, c += ldc) {
        double sums[NR] = {0};
        for (int64_t j = 0; accumulate && j < n; j++) sums[j] = c[j];
        if (n == NR)
            for (int64_t p = 0; p < k; p++)
                for (int j = 0; j < NR; j++) sums[j] += a[p] * b[p * ldb + j];
        else
            for (int64_t p = 0; p < k; p++)
                for (int64_t j = 0; j < n; j++) sums[j] += a[p] * b[p * ldb + j];
        for (int64_t j = 0; j < n; j++) c[j] = sums[j];
    }
}

void qrt_portable_gemm_f64(qrt_kernel_table *t) { t->gemm_f64 = (qrt_gemm_f64){1, NR, strip}; }
