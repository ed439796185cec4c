/// The float GEMM kernels over any vector: define MR and NV (vectors across a strip) before.

enum { NR = NV * VL };

/// `rows`, `full` are constants at every call: all loops over the tile unroll into registers.
QRT_INLINE void tile(const int rows, const bool full, int64_t n, int64_t k, const float *a, int64_t lda,
                     const float *b, int64_t ldb, float *c, int64_t ldc, bool accumulate) {
    vf sums[MR][NV];
    vmask lanes[NV];
    for (int v = 0; v < NV; v++) lanes[v] = vf_first(n - v * VL);
    // A pointer for every third row; the rows between are reached by index, which keeps registers free.
    const float *group[(MR + 2) / 3];
#pragma GCC unroll 8
    for (int g = 0; g < (rows + 2) / 3; g++) group[g] = a + 3 * g * lda;
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            const float *at = c + i * ldc + v * VL;
            sums[i][v] = !accumulate ? vf_zero() : full ? vf_load(at) : vf_load_lanes(at, lanes[v]);
        }
    for (int64_t p = 0; p < k; p++) {
        vf row[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) row[v] = full ? vf_load(b + v * VL) : vf_load_lanes(b + v * VL, lanes[v]);
        b += ldb;
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vf element = vf_set1(group[i / 3][i % 3 * lda]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) sums[i][v] = vf_fma(element, row[v], sums[i][v]);
        }
#pragma GCC unroll 8
        for (int g = 0; g < (rows + 2) / 3; g++) group[g]++;
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            float *at = c + i * ldc + v * VL;
            if (full)
                vf_store(at, sums[i][v]);
            else
                vf_store_lanes(at, lanes[v], sums[i][v]);
        }
}

#define TILE(ROWS) case ROWS: tile(ROWS, full, n, k, a, lda, b, ldb, c, ldc, accumulate); break;

QRT_INLINE void tiles(const bool full, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                      const float *b, int64_t ldb, float *c, int64_t ldc, bool accumulate) {
    // Tiles of nearly equal height: 8 rows are 4 + 4, not 6 + 2.
    for (int64_t left = (m + MR - 1) / MR; m > 0; left--) {
        int64_t rows = (m + left - 1) / left;
        switch (rows) {
            QRT_TILES
        }
        a += rows * lda;
        c += rows * ldc;
        m -= rows;
    }
}

static void strip(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                  float *c, int64_t ldc, bool accumulate) {
    if (n == NR)
        tiles(true, m, n, k, a, lda, b, ldb, c, ldc, accumulate);
    else
        tiles(false, m, n, k, a, lda, b, ldb, c, ldc, accumulate);
}

/// `rows` times `panels` tiles of one row: enough independent chains to keep the multipliers busy.
QRT_INLINE void flow(const int rows, const int panels, int64_t n, int64_t k, const float *a, int64_t lda,
                     const float *b, float *c, int64_t ldc) {
    vf sums[4][4][NV];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < panels; j++)
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) sums[i][j][v] = vf_zero();
    const float *second = b + k * NR, *third = second + k * NR, *fourth = third + k * NR;
    for (int64_t p = 0; p < k; p++, b += NR, second += NR, third += NR, fourth += NR) {
        const float *at[4] = {b, second, third, fourth};
#pragma GCC unroll 4
        for (int j = 0; j < panels; j++)
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) {
                vf column = vf_load(at[j] + v * VL);
#pragma GCC unroll 4
                for (int i = 0; i < rows; i++)
                    sums[i][j][v] = vf_fma(vf_set1(a[i * lda + p]), column, sums[i][j][v]);
            }
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < panels; j++)
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) {
                int64_t column = j * NR + v * VL;
                if (n - column >= VL)
                    vf_store(c + i * ldc + column, sums[i][j][v]);
                else
                    vf_store_lanes(c + i * ldc + column, vf_first(n - column), sums[i][j][v]);
            }
}

QRT_INLINE void flows(const int rows, const int panels, int64_t n, int64_t k, const float *a, int64_t lda,
                      const float *b, float *c, int64_t ldc) {
    for (; n > (panels - 1) * NR; n -= panels * NR, b += panels * k * NR, c += panels * NR)
        flow(rows, panels, n, k, a, lda, b, c, ldc);
    for (; n > 0; n -= NR, b += k * NR, c += NR) flow(rows, 1, n, k, a, lda, b, c, ldc);
}

static void stream(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *panels,
                   float *c, int64_t ldc) {
    switch (m) {
    case 1: flows(1, 4, n, k, a, lda, panels, c, ldc); break;
    case 2: flows(2, 2, n, k, a, lda, panels, c, ldc); break;
    case 3: flows(3, 2, n, k, a, lda, panels, c, ldc); break;
    default: flows(4, 1, n, k, a, lda, panels, c, ldc); break;
    }
}

QRT_INLINE vf activate(const qrt_activation activation, vf x) {
    vf one = vf_set1(1.0f), half = vf_set1(0.5f);
    switch (activation) {
    case QRT_ACT_RELU: return vf_max(vf_zero(), x);
    case QRT_ACT_GELU: return vf_mul(vf_mul(half, x), vf_add(one, vf_erf(vf_mul(x, vf_set1(0.70710678f)))));
    case QRT_ACT_GELU_TANH: {
        vf cube = vf_mul(vf_mul(vf_mul(vf_set1(0.044715f), x), x), x);
        return vf_mul(vf_mul(half, x), vf_add(one, vf_tanh(vf_mul(vf_set1(0.79788456f), vf_add(x, cube)))));
    }
    case QRT_ACT_SILU: return vf_div(x, vf_add(one, vf_exp(vf_sub(vf_zero(), x))));
    case QRT_ACT_SIGMOID: return vf_sigmoid(x);
    case QRT_ACT_TANH: return vf_tanh(x);
    default: return x;
    }
}

QRT_INLINE void finish_with(const qrt_activation activation, int64_t m, int64_t n, float *c, int64_t ldc,
                            const qrt_f32_epilogue *e) {
    vf alpha = vf_set1(e->alpha);
    for (int64_t i = 0; i < m; i++, c += ldc) {
        const float *residual = e->residual ? e->residual + i * e->residual_stride_elems : NULL;
        vf row_bias = vf_set1(e->row_bias ? e->row_bias[i] : 0.0f);
        for (int64_t j = 0; j < n; j += VL) {
            vmask lanes = vf_first(n - j);
            vf y = vf_mul(vf_load_lanes(c + j, lanes), alpha);
            if (e->row_bias) y = vf_add(y, row_bias);
            if (e->column_bias) y = vf_add(y, vf_load_lanes(e->column_bias + j, lanes));
            y = activate(activation, y);
            if (residual) y = vf_add(y, vf_load_lanes(residual + j, lanes));
            vf_store_lanes(c + j, lanes, y);
        }
    }
}

#define FINISH(ACTIVATION) case ACTIVATION: finish_with(ACTIVATION, m, n, c, ldc, e); break;

static void finish(int64_t m, int64_t n, float *c, int64_t ldc, const qrt_f32_epilogue *e) {
    switch (e->activation) {
        FINISH(QRT_ACT_NONE) FINISH(QRT_ACT_RELU) FINISH(QRT_ACT_GELU) FINISH(QRT_ACT_GELU_TANH)
        FINISH(QRT_ACT_SILU) FINISH(QRT_ACT_SIGMOID) FINISH(QRT_ACT_TANH)
    }
}

static void pack(int64_t k, int64_t n, const float *b, int64_t row_stride, int64_t col_stride, float *panels) {
    for (int64_t j = 0; j < n; j += NR, b += NR * col_stride, panels += k * NR) {
        int64_t columns = n - j < NR ? n - j : NR, p = 0;
        if (col_stride == 1 && columns == NR) {
            for (; p < k; p++)
#pragma GCC unroll 4
                for (int v = 0; v < NV; v++) vf_store(panels + p * NR + v * VL, vf_load(b + p * row_stride + v * VL));
        } else if (row_stride == 1 && columns == NR) {
            for (; p + 8 <= k; p += 8)
                for (int q = 0; q < NR; q += 8) transpose_8x8(b + p + q * col_stride, col_stride, panels + p * NR + q, NR);
        }
        for (; p < k; p++)
            for (int64_t q = 0; q < NR; q++)
                panels[p * NR + q] = q < columns ? b[p * row_stride + q * col_stride] : 0.0f;
    }
}
