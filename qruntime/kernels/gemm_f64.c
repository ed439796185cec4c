/// Blocking and packing of the double GEMM; the arithmetic is the rung's.
#include "gemm_f64.h"

#include <string.h>

/// A strip of b (KC · nr doubles) stays in the first-level cache while rows pass by, a block of a (MC · KC) in the second.
enum { KC = 256, MC = 96, SCATTERED_KC = 16, SCATTERED_DOUBLES = 16 * 1024 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

void qrt_f64_pack(const qrt_gemm_f64 *kernel, int64_t k, int64_t n, const double *b, int64_t row_stride_elems,
                  int64_t col_stride_elems, double *panels) {
    int64_t nr = kernel->nr;
    for (int64_t j = 0; j < n; j += nr, b += nr * col_stride_elems, panels += nr * k) {
        int64_t columns = min64(nr, n - j);
        if (columns < nr) memset(panels, 0, (size_t)(nr * k) * sizeof *panels);
        if (col_stride_elems == 1)
            for (int64_t p = 0; p < k; p++) memcpy(panels + p * nr, b + p * row_stride_elems, (size_t)columns * sizeof *b);
        else
            for (int64_t q = 0; q < columns; q++)
                for (int64_t p = 0; p < k; p++) panels[p * nr + q] = b[p * row_stride_elems + q * col_stride_elems];
    }
}

void qrt_f64_gemm_strips(const qrt_gemm_f64 *kernel, int64_t m, int64_t n, int64_t k, const double *a, int64_t lda,
                         const double *b, int64_t ldb, int64_t strip_stride, double *c, int64_t ldc, bool accumulate) {
    // Rows of a wide matrix lie pages apart: few at a time, then on along them.
    int64_t nr = kernel->nr, kc = ldb > 4 * nr && k > SCATTERED_DOUBLES / ldb ? SCATTERED_KC : KC;
    for (int64_t i = 0; i < m; i += MC) {
        int64_t rows = min64(MC, m - i), k0 = 0;
        do {
            int64_t depth = min64(kc, k - k0);
            for (int64_t j = 0; j < n; j += nr)
                kernel->strip(rows, min64(nr, n - j), depth, a + i * lda + k0, lda, b + j / nr * strip_stride + k0 * ldb, ldb,
                              c + i * ldc + j, ldc, accumulate || k0 > 0);
            k0 += depth;
        } while (k0 < k);
    }
}
