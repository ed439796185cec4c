/// The integer kernels of attention_q16.h over any vector. Define before: MR, NV (vectors across a strip), the list
/// QRT_TILES and vi_pairs_add(sums, a, b), which adds both products of the 16-bit codes in every lane. A rung whose sums
/// take other registers on their way defines VI_PAIRS and the rest of what is below, too.

enum { NR = NV * VL };

#ifndef VI_PAIRS
typedef vi vi_pairs;
static inline vi_pairs vi_pairs_zero(void) { return vi_set(0); }
static inline vi vi_pairs_total(vi_pairs sums) { return sums; }
#endif

// --------------------------------------------------------------------------------------------- codes

/// Rows taken together: what comes between their largest element and their codes is a long chain.
enum { ROWS = 4 };

/// What rows are multiplied with to become codes, and their scales; NaN of what is not finite.
ALWAYS_INLINE void factors_of(int64_t n, const float *const *x, float limit, float *factors, float *scales) {
    vi most[ROWS];  // bits of magnitudes are in the order of the numbers, NaN above all
    int64_t j = 0;
    for (int i = 0; i < ROWS; i++) most[i] = vi_set(0);
    for (; j + VL <= n; j += VL)
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) most[i] = vi_max(most[i], vf_as_vi(vf_abs(vf_load(x[i] + j))));
    if (j < n)
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) most[i] = vi_max(most[i], vf_as_vi(vf_abs(vf_load_n(x[i] + j, n - j))));
    float largest[ROWS];
    vi_hmax4(most, largest);
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++) {
        factors[i] = limit / largest[i];
        scales[i] = largest[i] / limit;
    }
    for (int i = 0; i < ROWS; i++)
        if (!(largest[i] >= QRT_Q16_TINY && largest[i] <= FLT_MAX))
            factors[i] = scales[i] = largest[i] < QRT_Q16_TINY ? 0.0f : NAN;
}

ALWAYS_INLINE vi codes_of(vf x, vf factor) { return vf_to_vi(vf_mul(x, factor)); }

ALWAYS_INLINE void store_pairs(int32_t *pairs, vi even, vi odd) {
    vi_store(pairs, vi_add(vi_and(even, vi_set(0xffff)), vi_sll(odd, 16)));
}

static void quantize(int64_t m, int64_t n, const float *x, int64_t ldx, float limit, int16_t *codes, int64_t ldc,
                     float *scales) {
    for (int64_t i = 0; i < m; i += ROWS, x += ROWS * ldx) {
        int64_t rows = m - i < ROWS ? m - i : ROWS;
        const float *row[ROWS];
        float factors[ROWS], found[ROWS];
        for (int64_t r = 0; r < ROWS; r++) row[r] = x + (r < rows ? r : 0) * ldx;
        factors_of(n, row, limit, factors, found);
        for (int64_t r = 0; r < rows; r++, codes += ldc) {
            scales[i + r] = found[r];
            vf factor = vf_set(factors[r]);
            int64_t j = 0;
            for (; j + VL <= n; j += VL) vi_store_i16(codes + j, codes_of(vf_load(row[r] + j), factor));
            if (j < n) vi_store_i16(codes + j, codes_of(vf_load_n(row[r] + j, n - j), factor));
            if (isnan(factors[r])) memset(codes, 0, (size_t)(n + n % 2) * sizeof *codes);
        }
    }
}

static void quantize_pairs(int64_t m, int64_t n, const float *x, int64_t ldx, float limit, int32_t *pairs, int64_t ldp,
                           float *scales) {
    for (int64_t i = 0; i < m; i += ROWS, x += ROWS * ldx) {
        int64_t rows = m - i < ROWS ? m - i : ROWS;
        const float *row[ROWS];
        float factors[ROWS], found[ROWS];
        for (int64_t r = 0; r < ROWS; r++) row[r] = x + (r < rows ? r : 0) * ldx;
        factors_of(n, row, limit, factors, found);
        for (int64_t r = 0; r < rows; r++) scales[i + r] = found[r];
        if (rows % 2) factors[rows] = 0.0f;
        for (int64_t r = 0; r < rows; r += 2, pairs += ldp) {
            vf even = vf_set(factors[r]), odd = vf_set(factors[r + 1]);
            const float *x0 = row[r], *x1 = row[r + 1];
            int64_t j = 0;
            for (; j + VL <= n; j += VL) store_pairs(pairs + j, codes_of(vf_load(x0 + j), even), codes_of(vf_load(x1 + j), odd));
            if (j < n) store_pairs(pairs + j, codes_of(vf_load_n(x0 + j, n - j), even), codes_of(vf_load_n(x1 + j, n - j), odd));
        }
    }
}

// ------------------------------------------------------------------------------------------ products

/// `rows` and `wanted`, what becomes of the sums, are constants at every call.
typedef enum { SUMS, VALUES, MORE_VALUES } result;

ALWAYS_INLINE void tile(const int rows, const result wanted, int64_t n, int64_t k, const int16_t *a, int64_t lda,
                        const int32_t *b, int64_t ldb, const float *factors, float *c, int64_t ldc) {
    vi_pairs sums[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) sums[i][v] = vi_pairs_zero();
    // A pointer for every third row; the rows between are reached by index, which keeps registers free.
    const int16_t *group[(MR + 2) / 3];
#pragma GCC unroll 8
    for (int g = 0; g < (rows + 2) / 3; g++) group[g] = a + 3 * g * lda;
    for (int64_t p = 0; p < k; p++, b += ldb) {
        vi row[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) row[v] = vi_load(b + v * VL);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            int32_t pair;
            memcpy(&pair, group[i / 3] + i % 3 * lda, sizeof pair);
            vi element = vi_set(pair);
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) sums[i][v] = vi_pairs_add(sums[i][v], element, row[v]);
        }
#pragma GCC unroll 8
        for (int g = 0; g < (rows + 2) / 3; g++) group[g] += 2;
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            int64_t count = clamp(n - v * VL, VL);
            float *at = c + i * ldc + v * VL;
            vi total = vi_pairs_total(sums[i][v]);
            vf y = wanted == SUMS ? vi_as_vf(total) : vf_mul(vi_to_vf(total), vf_set(factors[i]));
            if (wanted == MORE_VALUES) y = vf_add(count == VL ? vf_load(at) : vf_load_n(at, count), y);
            if (count == VL)
                vf_store(at, y);
            else
                vf_store_n(at, y, count);
        }
}

#define TILE(ROWS) case ROWS: tile(ROWS, wanted, n, k, a, lda, b, ldb, factors, c, ldc); break;

ALWAYS_INLINE void tiles(const result wanted, int64_t m, int64_t n, int64_t k, const int16_t *a, int64_t lda,
                         const int32_t *b, int64_t ldb, const float *factors, float *c, int64_t ldc) {
    for (int64_t left = (m + MR - 1) / MR; m > 0; left--) {  // of nearly equal height
        int64_t rows = (m + left - 1) / left;
        switch (rows) {
            QRT_TILES
        }
        a += rows * lda;
        c += rows * ldc;
        factors += wanted == SUMS ? 0 : rows;
        m -= rows;
    }
}

static void scores(int64_t m, int64_t n, int64_t k, const int16_t *a, int64_t lda, const int32_t *b, int64_t ldb,
                   int32_t *sums, int64_t lds) {
    tiles(SUMS, m, n, k, a, lda, b, ldb, NULL, (float *)sums, lds);
}

static void values(int64_t m, int64_t n, int64_t k, const int16_t *a, int64_t lda, const int32_t *b, int64_t ldb,
                   const float *factors, bool accumulate, float *y, int64_t ldy) {
    if (accumulate)
        tiles(MORE_VALUES, m, n, k, a, lda, b, ldb, factors, y, ldy);
    else
        tiles(VALUES, m, n, k, a, lda, b, ldb, factors, y, ldy);
}

#define ATTENTION_Q16 ((qrt_attention_q16){NR, quantize, quantize_pairs, scores, values, code_exponentials})
