/// The double GEMM kernel over any vector: define MR, NV (vectors across a strip) and the list QRT_TILES before.

enum { DL = VL / 2, NR = NV * DL };

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/// Columns of vector v among n.
ALWAYS_INLINE int64_t columns_of(int v, int64_t n) {
    int64_t left = n - v * DL;
    return left < 0 ? 0 : left < DL ? left : DL;
}

/// `rows` and `full` are constants at every call: all loops over the tile unroll into registers.
ALWAYS_INLINE void tile(const int rows, const bool full, int64_t n, int64_t k, const double *a, int64_t lda,
                        const double *b, int64_t ldb, double *c, int64_t ldc, bool accumulate) {
    vd sums[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            const double *at = c + i * ldc + v * DL;
            sums[i][v] = !accumulate ? vd_zero() : full ? vd_load(at) : vd_load_n(at, columns_of(v, n));
        }
    for (int64_t p = 0; p < k; p++, b += ldb) {
        vd row[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) row[v] = full ? vd_load(b + v * DL) : vd_load_n(b + v * DL, columns_of(v, n));
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vd element = vd_set(a[i * lda + p]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) sums[i][v] = vd_fma(element, row[v], sums[i][v]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            double *at = c + i * ldc + v * DL;
            if (full)
                vd_store(at, sums[i][v]);
            else
                vd_store_n(at, sums[i][v], columns_of(v, n));
        }
}

#define TILE(ROWS) case ROWS: tile(ROWS, full, n, k, a, lda, b, ldb, c, ldc, accumulate); break;

ALWAYS_INLINE void tiles(const bool full, int64_t m, int64_t n, int64_t k, const double *a, int64_t lda, const double *b,
                         int64_t ldb, double *c, int64_t ldc, bool accumulate) {
    for (int64_t left = (m + MR - 1) / MR; m > 0; left--) {  // tiles of nearly equal height
        int64_t rows = (m + left - 1) / left;
        switch (rows) {
            QRT_TILES
        }
        a += rows * lda;
        c += rows * ldc;
        m -= rows;
    }
}

static void strip(int64_t m, int64_t n, int64_t k, const double *a, int64_t lda, const double *b, int64_t ldb,
                  double *c, int64_t ldc, bool accumulate) {
    if (n == NR)
        tiles(true, m, n, k, a, lda, b, ldb, c, ldc, accumulate);
    else
        tiles(false, m, n, k, a, lda, b, ldb, c, ldc, accumulate);
}
