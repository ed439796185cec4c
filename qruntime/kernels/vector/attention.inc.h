/// The kernels of attention.h over any vector, and the exponentials of attention_q16.h.

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/// Rows taken together: the chain from maximum to exponentials to sum is long, and theirs overlap.
enum { GROUP = 4 };

/// Scores of `count` ≤ VL keys from j on. `row` is that row of the mask, `kind` a constant at every call.
ALWAYS_INLINE vf masked(const qrt_mask_kind kind, vf score, const void *row, bool varies, vf fill, int64_t j, int64_t count) {
    if (kind == QRT_MASK_NONE) return score;
    if (kind == QRT_MASK_ADD) {
        const float *added = row;
        if (!varies) return vf_add(score, vf_set(*added));
        return vf_add(score, count == VL ? vf_load(added + j) : vf_load_n(added + j, count));
    }
    const uint8_t *bytes = row;
    vf hidden = kind == QRT_MASK_REPLACE ? fill : vf_add(score, fill);
    if (!varies) return *bytes ? score : hidden;
    return vf_blend(count == VL ? vm_load_bytes(bytes + j) : vm_load_bytes_n(bytes + j, count), score, hidden);
}

ALWAYS_INLINE int64_t clamp(int64_t x, int64_t limit) { return x < 0 ? 0 : x < limit ? x : limit; }

/// What becomes of a block of scores, and what it leaves: see attention.h, and attention_q16.h for what is coded.
typedef struct {
    float *s;
    int64_t n, lds;
    float scale;
    const qrt_q16_scales *scales;  ///< of coded scores
    const qrt_mask *mask;
    int64_t visible;
    float *tops, *sums, *factors;
} block_of_scores;

/// `count` ≤ VL scores before the mask.
ALWAYS_INLINE vf score_of(const bool coded, const float *s, vf factor, const float *keys, int64_t count) {
    vf score = count == VL ? vf_load(s) : vf_load_n(s, count);
    if (!coded) return vf_mul(score, factor);
    return vf_mul(vf_mul(vi_to_vf(vf_as_vi(score)), factor), count == VL ? vf_load(keys) : vf_load_n(keys, count));
}

/// Masked scores and their maximum: `rows` rows from row `first` on. `kind`, `rows` and `coded` are constants at every
/// call, here and below.
ALWAYS_INLINE void mask_group(const qrt_mask_kind kind, const int rows, const bool coded, const block_of_scores *b,
                              int64_t first) {
    vf lowest = vf_set(-INFINITY), factors[GROUP], highest[GROUP];
    // Stores of scores may alias anything: what the loops need is in variables.
    int64_t lds = b->lds, seen[GROUP], j = 0;
    float *s = b->s + first * lds;
    const float *keys = coded ? b->scales->keys : s;
    const void *mask_rows[GROUP];
    const bool varies = b->mask->key_stride != 0;
    vf fill = vf_set(b->mask->fill);
    for (int i = 0; i < rows; i++) {
        seen[i] = clamp(b->visible + first + i, b->n);
        factors[i] = vf_set(coded ? b->scales->rows[first + i] : b->scale);
        highest[i] = lowest;
        int64_t item = kind == QRT_MASK_ADD ? sizeof(float) : 1;
        mask_rows[i] = (const char *)b->mask->data + (first + i) * b->mask->row_stride * item;
    }
    int64_t whole = seen[0] / VL * VL, most = seen[rows - 1];  // a row sees no less than the one before
    for (; j < whole; j += VL)
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            vf score = score_of(coded, s + i * lds + j, factors[i], keys + j, VL);
            score = masked(kind, score, mask_rows[i], varies, fill, j, VL);
            highest[i] = vf_max(score, highest[i]);
            vf_store(s + i * lds + j, score);
        }
    for (; j < most; j += VL)
        for (int i = 0; i < rows; i++) {
            int64_t count = clamp(seen[i] - j, VL);
            vf score = score_of(coded, s + i * lds + j, factors[i], keys + j, count);
            score = masked(kind, score, mask_rows[i], varies, fill, j, count);
            highest[i] = vf_max(vf_blend(vm_first(count), score, lowest), highest[i]);
            vf_store_n(s + i * lds + j, score, count);
        }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) b->tops[first + i] = vf_hmax(highest[i]);
}

ALWAYS_INLINE vf exponential_of(const bool coded, vf x) { return coded ? vf_exp_coarse(x) : vf_exp_nonpositive(x); }

/// Scores become e, or sv · e, of which `largest` and `weighted` are the largest and the sum.
ALWAYS_INLINE void raise_group(const int rows, const bool coded, const block_of_scores *b, int64_t first,
                               float *largest_of, float *weighted_of) {
    vf tops[GROUP], totals[GROUP], weighted[GROUP], largest[GROUP];
    int64_t n = b->n, lds = b->lds, seen[GROUP], j = 0;
    float *s = b->s + first * lds;
    const float *values = coded ? b->scales->values : NULL;
    for (int i = 0; i < rows; i++) {
        seen[i] = clamp(b->visible + first + i, n);
        tops[i] = vf_set(b->tops[first + i]);
        totals[i] = weighted[i] = largest[i] = vf_zero();
    }
    for (int64_t whole = seen[0] / VL * VL; j < whole; j += VL)
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            vf e = exponential_of(coded, vf_sub(vf_load(s + i * lds + j), tops[i]));
            totals[i] = vf_add(totals[i], e);
            if (coded) {
                e = vf_mul(e, vf_load(values + j));
                weighted[i] = vf_add(weighted[i], e);
                largest[i] = vf_max(largest[i], e);
            }
            vf_store(s + i * lds + j, e);
        }
    for (; j < n; j += VL)
        for (int i = 0; i < rows; i++) {
            int64_t count = clamp(seen[i] - j, VL);
            vf e = vf_zero();
            if (count) {
                e = exponential_of(coded, vf_sub(vf_load_n(s + i * lds + j, count), tops[i]));
                e = vf_blend(vm_first(count), e, vf_zero());
                totals[i] = vf_add(totals[i], e);
                if (coded) {
                    e = vf_mul(e, vf_load_n(values + j, count));
                    weighted[i] = vf_add(weighted[i], e);
                    largest[i] = vf_max(largest[i], e);
                }
            }
            vf_store_n(s + i * lds + j, e, clamp(n - j, VL));
        }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        b->sums[first + i] = vf_sum(totals[i]);
        if (coded) {
            largest_of[i] = vf_hmax(largest[i]);
            weighted_of[i] = vf_sum(weighted[i]);
        }
    }
}

/// What is multiplied by `factor` becomes codes.
ALWAYS_INLINE void encode_row(float *row, int64_t n, float factor) {
    int16_t *codes = (int16_t *)row;
    if (isnan(factor)) {
        memset(row, 0, (size_t)n * sizeof *row);
        return;
    }
    vf c = vf_set(factor);
    int64_t j = 0;
#ifdef VI_STORE_I16_TWICE
    for (; j + 2 * VL <= n; j += 2 * VL) {
        const vi first = vf_to_vi(vf_mul(vf_load(row + j), c)), second = vf_to_vi(vf_mul(vf_load(row + j + VL), c));
        vi_store_i16_twice(codes + j, first, second);
    }
#endif
    for (; j + VL <= n; j += VL) vi_store_i16(codes + j, vf_to_vi(vf_mul(vf_load(row + j), c)));
    if (j < n) vi_store_i16(codes + j, vf_to_vi(vf_mul(vf_load_n(row + j, n - j), c)));
}

/// One step for many rows, then the next: what comes last in a row is a long chain, and those of the rows overlap. But so many that
/// they stay in the first-level cache from one step to the next.
enum { TOGETHER = 4 * GROUP, TOGETHER_FLOATS = 1 << 13 };

ALWAYS_INLINE void groups_of(const qrt_mask_kind kind, const bool coded, const block_of_scores *b, int64_t m) {
    const int64_t together = b->n <= TOGETHER_FLOATS / TOGETHER ? TOGETHER : b->n <= TOGETHER_FLOATS / (2 * GROUP) ? 2 * GROUP : GROUP;
    for (int64_t start = 0; start < m; start += together) {
        int64_t end = m - start < together ? m : start + together, i = start;
        float largest[TOGETHER], weighted[TOGETHER];
        for (; i + GROUP <= end; i += GROUP) mask_group(kind, GROUP, coded, b, i);
        for (; i < end; i++) mask_group(kind, 1, coded, b, i);
        for (i = start; i + GROUP <= end; i += GROUP) raise_group(GROUP, coded, b, i, largest + i - start, weighted + i - start);
        for (; i < end; i++) raise_group(1, coded, b, i, largest + i - start, weighted + i - start);
        if (!coded) continue;
        for (i = start; i < end; i++) {
            float c = qrt_q16_weight_factor(largest[i - start], weighted[i - start]);
            b->factors[i] = 1.0f / ((c == 0.0f ? 1.0f : c) * b->sums[i]);
            encode_row(b->s + i * b->lds, b->n, c);
        }
    }
}

ALWAYS_INLINE void all_groups(const bool coded, const block_of_scores *b, int64_t m) {
    switch (b->mask->kind) {
    case QRT_MASK_NONE: groups_of(QRT_MASK_NONE, coded, b, m); break;
    case QRT_MASK_ADD: groups_of(QRT_MASK_ADD, coded, b, m); break;
    case QRT_MASK_REPLACE: groups_of(QRT_MASK_REPLACE, coded, b, m); break;
    case QRT_MASK_PENALIZE: groups_of(QRT_MASK_PENALIZE, coded, b, m); break;
    }
}

static void exponentials(int64_t m, int64_t n, float *s, int64_t lds, float scale, const qrt_mask *mask,
                         int64_t visible, float *tops, float *sums) {
    block_of_scores b = {s, n, lds, scale, NULL, mask, visible, tops, sums, NULL};
    all_groups(false, &b, m);
}

static void code_exponentials(int64_t m, int64_t n, int32_t *s, int64_t lds, const qrt_q16_scales *scales,
                              const qrt_mask *mask, int64_t visible, float *tops, float *sums, float *factors) {
    block_of_scores b = {(float *)s, n, lds, 1.0f, scales, mask, visible, tops, sums, factors};
    all_groups(true, &b, m);
}

static void divide(int64_t m, int64_t n, float *y, int64_t ldy, const float *sums) {
    for (int64_t i = 0; i < m; i++, y += ldy) {
        vf factor = vf_set(1.0f / sums[i]);
        int64_t j = 0;
        for (; j + VL <= n; j += VL) vf_store(y + j, vf_mul(vf_load(y + j), factor));
        if (j < n) vf_store_n(y + j, vf_mul(vf_load_n(y + j, n - j), factor), n - j);
    }
}
