/// The products of attention for a few queries over any vector: keys and values are read once, as they lie, at the speed of memory.
///
/// Every score and every element of the result is the chain of multiply-adds that the strips of the float GEMM make.

/// Rows of queries that go through a tile together; keys in a tile; values that all of them take before the next group of rows does.
enum { FEW_TOGETHER = 4, TILE_KEYS = 2 * VL, VALUES_TOGETHER = 128, VALUE_VECTORS = 4 };

/// What is read so many rows later is asked for now: what a CPU foresees by itself is too little for rows of a few lines.
enum { KEYS_AHEAD = 2 * TILE_KEYS, VALUES_AHEAD = 32 };

/// Columns p … p + 3 of `count` ≤ VL keys, zeros below them.
ALWAYS_INLINE void key_columns(const float *keys, int64_t stride, int64_t count, vf *columns) {
    if (count == VL) {
        vf_transpose4(keys, stride, columns);
        return;
    }
    float copy[VL * 4] = {0};
    for (int64_t i = 0; i < count; i++) memcpy(copy + 4 * i, keys + i * stride, 4 * sizeof *keys);
    vf_transpose4(copy, 4, columns);
}

/// One column, for the last of a size that 4 does not divide.
ALWAYS_INLINE vf key_column(const float *keys, int64_t stride, int64_t count) {
    float copy[VL] = {0};
    for (int64_t i = 0; i < count; i++) copy[i] = keys[i * stride];
    return vf_load(copy);
}

/// Scores of `rows` queries, a constant at every call, and `count` ≤ TILE_KEYS keys.
ALWAYS_INLINE void score_tile(const int rows, int64_t count, int64_t d, const float *q, int64_t ldq, const float *k, int64_t ldk,
                              bool fetches, float *s, int64_t lds) {
    vf sums[FEW_TOGETHER][2];
    int64_t counts[2] = {clamp(count, VL), clamp(count - VL, VL)}, p = 0;
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = vf_zero();
    for (; p + 4 <= d; p += 4) {
        vf columns[2][4];
        if (fetches && p % 16 == 0)
            for (int64_t j = 0; j < TILE_KEYS; j++) __builtin_prefetch(k + (KEYS_AHEAD + j) * ldk + p, 0, 3);
        key_columns(k + p, ldk, counts[0], columns[0]);
        key_columns(k + VL * ldk + p, ldk, counts[1], columns[1]);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++)
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) {
                vf element = vf_set(q[i * ldq + p + c]);
                sums[i][0] = vf_fma(element, columns[0][c], sums[i][0]);
                sums[i][1] = vf_fma(element, columns[1][c], sums[i][1]);
            }
    }
    for (; p < d; p++) {
        vf first = key_column(k + p, ldk, counts[0]), second = key_column(k + VL * ldk + p, ldk, counts[1]);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            vf element = vf_set(q[i * ldq + p]);
            sums[i][0] = vf_fma(element, first, sums[i][0]);
            sums[i][1] = vf_fma(element, second, sums[i][1]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < 2; v++) {
            if (counts[v] == VL)
                vf_store(s + i * lds + v * VL, sums[i][v]);
            else if (counts[v])
                vf_store_n(s + i * lds + v * VL, sums[i][v], counts[v]);
        }
}

static void few_scores(int64_t m, int64_t n, int64_t d, const float *q, int64_t ldq, const float *k, int64_t ldk, float *s, int64_t lds) {
    for (int64_t j = 0; j < n; j += TILE_KEYS) {
        int64_t count = clamp(n - j, TILE_KEYS);
        for (int64_t i = 0; i < m; i += FEW_TOGETHER) {
            const float *rows = q + i * ldq, *keys = k + j * ldk;
            float *scores = s + i * lds + j;
            switch (m - i) {
            case 1: score_tile(1, count, d, rows, ldq, keys, ldk, i == 0, scores, lds); break;
            case 2: score_tile(2, count, d, rows, ldq, keys, ldk, i == 0, scores, lds); break;
            case 3: score_tile(3, count, d, rows, ldq, keys, ldk, i == 0, scores, lds); break;
            default: score_tile(4, count, d, rows, ldq, keys, ldk, i == 0, scores, lds); break;
            }
        }
    }
}

/// Adds the values of `keys` keys to y: `rows` queries and `vectors` vectors of columns, constants at every call; n columns in all.
ALWAYS_INLINE void value_tile(const int rows, const int vectors, int64_t n, int64_t keys, const float *w, int64_t ldw, const float *v,
                              int64_t ldv, bool fetches, bool accumulate, float *y, int64_t ldy) {
    vf sums[FEW_TOGETHER][VALUE_VECTORS];
    bool whole = n >= vectors * VL;
    int64_t last = n - (vectors - 1) * VL;  // columns of the last vector
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) {
            const float *at = y + i * ldy + c * VL;
            sums[i][c] = !accumulate ? vf_zero() : whole || c < vectors - 1 ? vf_load(at) : vf_load_n(at, last);
        }
    for (int64_t j = 0; j < keys; j++, v += ldv) {
        vf row[VALUE_VECTORS];
        if (fetches)
#pragma GCC unroll 4
            for (int line = 0; line < vectors * VL; line += 16) __builtin_prefetch(v + VALUES_AHEAD * ldv + line, 0, 3);
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) row[c] = whole || c < vectors - 1 ? vf_load(v + c * VL) : vf_load_n(v + c * VL, last);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            vf weight = vf_set(w[i * ldw + j]);
#pragma GCC unroll 4
            for (int c = 0; c < vectors; c++) sums[i][c] = vf_fma(weight, row[c], sums[i][c]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) {
            float *at = y + i * ldy + c * VL;
            if (whole || c < vectors - 1)
                vf_store(at, sums[i][c]);
            else
                vf_store_n(at, sums[i][c], last);
        }
}

ALWAYS_INLINE void value_rows(const int rows, int64_t n, int64_t keys, const float *w, int64_t ldw, const float *v, int64_t ldv,
                              bool fetches, bool accumulate, float *y, int64_t ldy) {
    int64_t c = 0;
    for (; c + (VALUE_VECTORS - 1) * VL < n; c += VALUE_VECTORS * VL)
        value_tile(rows, VALUE_VECTORS, n - c, keys, w, ldw, v + c, ldv, fetches, accumulate, y + c, ldy);
    for (; c < n; c += VL) value_tile(rows, 1, n - c, keys, w, ldw, v + c, ldv, fetches, accumulate, y + c, ldy);
}

static void few_values(int64_t m, int64_t n, int64_t keys, const float *w, int64_t ldw, const float *v, int64_t ldv, float *y, int64_t ldy) {
    int64_t j = 0;
    do {
        int64_t count = clamp(keys - j, VALUES_TOGETHER);
        for (int64_t i = 0; i < m; i += FEW_TOGETHER) {
            const float *weights = w + i * ldw + j, *values = v + j * ldv;
            float *to = y + i * ldy;
            switch (m - i) {
            case 1: value_rows(1, n, count, weights, ldw, values, ldv, i == 0, j > 0, to, ldy); break;
            case 2: value_rows(2, n, count, weights, ldw, values, ldv, i == 0, j > 0, to, ldy); break;
            case 3: value_rows(3, n, count, weights, ldw, values, ldv, i == 0, j > 0, to, ldy); break;
            default: value_rows(4, n, count, weights, ldw, values, ldv, i == 0, j > 0, to, ldy); break;
            }
        }
        j += VALUES_TOGETHER;
    } while (j < keys);
}
