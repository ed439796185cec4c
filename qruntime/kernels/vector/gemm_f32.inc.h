/// The float GEMM kernels over any vector: define MR, NV (vectors across a strip) and the list QRT_TILES before.

enum { NR = NV * VL };

/// Rows of c further apart belong to a matrix that is hardly in the cache. Its lines are asked for before the sums are
/// made, which a short sum would have to wait for.
enum { FAR_FLOATS = 2048 };

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/// Columns of vector v among n.
ALWAYS_INLINE int64_t columns_of(int v, int64_t n) {
    int64_t left = n - v * VL;
    return left < 0 ? 0 : left < VL ? left : VL;
}

/// Adds a[rows, k] · b[k, n] to the sums of a tile. `rows`, `vectors`, `full` and whether there are `places` and something
/// `ahead` are constants at every call: all loops over the tile unroll into registers. Row p of b is at b + places[p], or
/// ldb behind the one before.
ALWAYS_INLINE void add_products(const int rows, const int vectors, const bool full, int64_t n, int64_t k, const float *a,
                                int64_t lda, const float *b, int64_t ldb, const int64_t *places, const float *ahead,
                                vf sums[MR][NV]) {
    // A pointer for every third row; the rows between are reached by index, which keeps registers free.
    const float *group[(MR + 2) / 3];
#pragma GCC unroll 8
    for (int g = 0; g < (rows + 2) / 3; g++) group[g] = a + 3 * g * lda;
    for (int64_t p = 0; p < k; p++) {
        vf row[NV];
        const float *from = places ? b + places[p] : b;
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) row[v] = full ? vf_load(from + v * VL) : vf_load_n(from + v * VL, columns_of(v, n));
        if (!places) b += ldb;
        if (ahead) {
            // Weights that come from the third-level cache or memory arrive while others are multiplied: a third faster.
#pragma GCC unroll 4
            for (int line = 0; line < NR; line += 16) __builtin_prefetch(ahead + line, 0, 2);
            ahead += ldb;
        }
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vf element = vf_set(group[i / 3][i % 3 * lda]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sums[i][v] = vf_fma(element, row[v], sums[i][v]);
        }
#pragma GCC unroll 8
        for (int g = 0; g < (rows + 2) / 3; g++) group[g]++;
    }
}

ALWAYS_INLINE void tile(const int rows, const int vectors, const bool full, int64_t n, int64_t k, const float *a, int64_t lda,
                        const float *b, int64_t ldb, const int64_t *places, const float *ahead, float *c, int64_t ldc,
                        bool accumulate) {
    vf sums[MR][NV];
    if (!accumulate && ldc >= FAR_FLOATS)
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < vectors * VL; j += 16) __builtin_prefetch(c + i * ldc + j, 1, 3);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            const float *at = c + i * ldc + v * VL;
            sums[i][v] = !accumulate ? vf_zero() : full ? vf_load(at) : vf_load_n(at, columns_of(v, n));
        }
    add_products(rows, vectors, full, n, k, a, lda, b, ldb, places, ahead, sums);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            float *at = c + i * ldc + v * VL;
            if (full)
                vf_store(at, sums[i][v]);
            else
                vf_store_n(at, sums[i][v], columns_of(v, n));
        }
}

#include "f32_groups.inc.h"

/// Row 0 is row `first` of the strip.
ALWAYS_INLINE void grouped_tile(const int rows, int64_t first, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                                const qrt_f32_groups *groups, float *c, int64_t ldc, bool accumulate) {
    qrt_f32_groups group = *groups;
    if (group.begun) group.begun += first * group.begun_stride;
    if (group.zeros) group.sums += first * group.sums_stride;
    for (; k > 0; k -= group.size, a += group.size, b += group.size * ldb, accumulate = true) {
        vf sums[MR][NV];
        begin_group(rows, &group, sums);
        add_products(rows, NV, true, NR, k < group.size ? k : group.size, a, lda, b, ldb, NULL, NULL, sums);
        end_group(rows, &group, sums, c, ldc, accumulate);
    }
}

#define TILE(ROWS) case ROWS: tile(ROWS, vectors, full, n, k, a, lda, b, ldb, places, ahead, c, ldc, accumulate); break;

ALWAYS_INLINE void tiles(const int vectors, const bool full, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                         const float *b, int64_t ldb, const int64_t *places, const float *ahead, float *c, int64_t ldc,
                         bool accumulate) {
    // Tiles of nearly equal height: 8 rows are 4 + 4, not 6 + 2.
    for (int64_t left = (m + MR - 1) / MR; m > 0; left--) {
        int64_t rows = (m + left - 1) / left;
        switch (rows) {
            QRT_TILES
        }
        a += rows * lda;
        c += rows * ldc;
        m -= rows;
        ahead = b;  // the first tile has fetched it
    }
}

static void strip(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                  const float *ahead, float *c, int64_t ldc, bool accumulate) {
    if (n == NR)
        tiles(NV, true, m, n, k, a, lda, b, ldb, NULL, ahead, c, ldc, accumulate);
    else if (n > VL)
        tiles(NV, false, m, n, k, a, lda, b, ldb, NULL, ahead, c, ldc, accumulate);
    else
        tiles(1, false, m, n, k, a, lda, b, ldb, NULL, ahead, c, ldc, accumulate);
}

static void scattered_strip(int64_t m, int64_t k, const float *a, int64_t lda, const float *b, const int64_t *rows,
                            float *c, int64_t ldc, bool accumulate) {
    tiles(NV, true, m, NR, k, a, lda, b, 0, rows, b, c, ldc, accumulate);
}

#undef TILE
#define TILE(ROWS) case ROWS: grouped_tile(ROWS, first, k, a, lda, b, ldb, groups, c, ldc, accumulate); break;

static void grouped_strip(int64_t m, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                          const qrt_f32_groups *groups, float *c, int64_t ldc, bool accumulate) {
    int64_t first = 0;
    for (int64_t left = (m + MR - 1) / MR; m > 0; left--) {
        int64_t rows = (m + left - 1) / left;
        switch (rows) {
            QRT_TILES
        }
        a += rows * lda;
        c += rows * ldc;
        m -= rows;
        first += rows;
    }
}

/// `rows` times `panels` tiles of one row: enough independent chains to keep the multipliers busy.
ALWAYS_INLINE void flow(const int rows, const int panels, int64_t n, int64_t k, const float *a, int64_t lda,
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
        vf elements[4];
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) elements[i] = vf_set(a[i * lda + p]);
#pragma GCC unroll 4
        for (int j = 0; j < panels; j++)
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) {
                vf column = vf_load(at[j] + v * VL);
                if (rows > 1) __asm__("" ::: "memory");  // else gcc loads it anew for every row
#pragma GCC unroll 4
                for (int i = 0; i < rows; i++) sums[i][j][v] = vf_fma(elements[i], column, sums[i][j][v]);
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
                    vf_store_n(c + i * ldc + column, sums[i][j][v], columns_of(0, n - column));
            }
}

ALWAYS_INLINE void flows(const int rows, const int panels, int64_t n, int64_t k, const float *a, int64_t lda,
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

ALWAYS_INLINE vf activate(const qrt_activation activation, vf x) {
    switch (activation) {
    case QRT_ACT_RELU: return vf_max(vf_zero(), x);
    case QRT_ACT_GELU: return vf_gelu(x);
    case QRT_ACT_GELU_TANH: return vf_gelu_tanh(x);
    case QRT_ACT_SILU: return vf_silu(x);
    case QRT_ACT_SIGMOID: return vf_sigmoid(x);
    case QRT_ACT_TANH: return vf_tanh(x);
    default: return x;
    }
}

/// Whole vectors are loaded and stored plainly: masked stores cost some CPUs a dozen cycles.
ALWAYS_INLINE vf load_part(const float *p, int64_t count) { return count == VL ? vf_load(p) : vf_load_n(p, count); }
ALWAYS_INLINE void store_part(float *p, vf v, int64_t count) {
    if (count == VL)
        vf_store(p, v);
    else
        vf_store_n(p, v, count);
}

ALWAYS_INLINE void finish_with(const qrt_activation activation, int64_t m, int64_t n, float *c, int64_t ldc,
                               const qrt_f32_epilogue *e) {
    vf alpha = vf_set(e->alpha);
    for (int64_t i = 0; i < m; i++, c += ldc) {
        const float *addend = e->addend ? e->addend + i * e->addend_stride_elems : NULL;
        const float *residual = e->residual ? e->residual + i * e->residual_stride_elems : NULL;
        vf row_bias = vf_set(e->row_bias ? e->row_bias[i] : 0.0f);
        for (int64_t j = 0; j < n; j += VL) {
            int64_t count = columns_of(0, n - j);
            vf y = vf_mul(load_part(c + j, count), alpha);
            if (e->row_bias) y = vf_add(y, row_bias);
            if (e->column_bias) y = vf_add(y, load_part(e->column_bias + j, count));
            if (addend) y = vf_add(y, load_part(addend + j, count));
            y = activate(activation, y);
            if (residual) y = vf_add(y, load_part(residual + j, count));
            store_part(c + j, y, count);
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

/// Columns 0 … 3 of the first `rows` < VL rows, zeros below them.
static void transpose_few(const float *p, int64_t stride, int64_t rows, vf *columns) {
    float copy[VL * 4] = {0};
    for (int64_t i = 0; i < rows; i++) memcpy(copy + 4 * i, p + i * stride, 4 * sizeof *p);
    vf_transpose4(copy, 4, columns);
}

static void pack(int64_t k, int64_t n, const float *b, int64_t row_stride, int64_t col_stride, float *panels) {
    for (int64_t j = 0; j < n; j += NR, b += NR * col_stride, panels += k * NR) {
        int64_t columns = n - j < NR ? n - j : NR, p = 0;
        if (col_stride == 1) {
            for (; p < k; p++)
#pragma GCC unroll 4
                for (int v = 0; v < NV; v++) {
                    const float *from = b + p * row_stride + v * VL;
                    vf_store(panels + p * NR + v * VL, columns == NR ? vf_load(from) : vf_load_n(from, columns_of(v, columns)));
                }
        } else if (row_stride == 1) {
            for (int v = 0; v < NV; v++) {  // the lines of few rows are used up before others take their place
                const float *from = b + v * VL * col_stride;
                int64_t count = columns_of(v, columns);
                for (p = 0; p + 4 <= k; p += 4) {
                    vf rows[4];
                    if (count == VL)
                        vf_transpose4(from + p, col_stride, rows);
                    else
                        transpose_few(from + p, col_stride, count, rows);
#pragma GCC unroll 4
                    for (int r = 0; r < 4; r++) vf_store(panels + (p + r) * NR + v * VL, rows[r]);
                }
            }
        }
        for (; p < k; p++)
            for (int64_t q = 0; q < NR; q++)
                panels[p * NR + q] = q < columns ? b[p * row_stride + q * col_stride] : 0.0f;
    }
}

/// y[j] = Σ_t w[t] · x[offsets[t] + j]
static void taps(int64_t n, int64_t num_taps, const float *w, const int64_t *offsets, const float *x, float *y) {
    for (; n >= 4 * VL; n -= 4 * VL, x += 4 * VL, y += 4 * VL) {
        vf sums[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
        for (int64_t t = 0; t < num_taps; t++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) sums[v] = vf_fma(vf_set(w[t]), vf_load(x + offsets[t] + v * VL), sums[v]);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) vf_store(y + v * VL, sums[v]);
    }
    for (; n > 0; n -= VL, x += VL, y += VL) {
        int64_t count = columns_of(0, n);
        vf sum = vf_zero();
        for (int64_t t = 0; t < num_taps; t++) sum = vf_fma(vf_set(w[t]), load_part(x + offsets[t], count), sum);
        store_part(y, sum, count);
    }
}
