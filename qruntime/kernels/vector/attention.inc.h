/// The kernels of attention.h over any vector.

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/// Rows taken together: the chain from maximum to exponentials to sum is long, and theirs overlap.
enum { GROUP = 4 };

/// Scores of `count` ≤ VL keys from j on. `kind` is a constant at every call.
ALWAYS_INLINE vf masked(const qrt_mask_kind kind, vf score, const qrt_mask *mask, int64_t row, int64_t j, int64_t count) {
    if (kind == QRT_MASK_NONE) return score;
    int64_t at = row * mask->row_stride + j * mask->key_stride;
    if (kind == QRT_MASK_ADD) {
        const float *added = (const float *)mask->data + at;
        if (!mask->key_stride) return vf_add(score, vf_set(*added));
        return vf_add(score, count == VL ? vf_load(added) : vf_load_n(added, count));
    }
    const uint8_t *bytes = (const uint8_t *)mask->data + at;
    vf fill = vf_set(mask->fill), hidden = kind == QRT_MASK_REPLACE ? fill : vf_add(score, fill);
    if (!mask->key_stride) return *bytes ? score : hidden;
    return vf_blend(count == VL ? vm_load_bytes(bytes) : vm_load_bytes_n(bytes, count), score, hidden);
}

ALWAYS_INLINE int64_t clamp(int64_t x, int64_t limit) { return x < 0 ? 0 : x < limit ? x : limit; }

/// `rows` rows from row `first` of the mask on; `kind` and `rows` are constants at every call.
ALWAYS_INLINE void group_of(const qrt_mask_kind kind, const int rows, int64_t first, int64_t n, float *s, int64_t lds,
                            float scale, const qrt_mask *mask, int64_t visible, float *tops, float *sums) {
    vf factor = vf_set(scale), lowest = vf_set(-INFINITY), highest[GROUP], totals[GROUP];
    int64_t seen[GROUP], j = 0;
    for (int i = 0; i < rows; i++) {
        seen[i] = clamp(visible + i, n);
        highest[i] = lowest;
        totals[i] = vf_zero();
    }
    int64_t whole = seen[0] / VL * VL, most = seen[rows - 1];  // a row sees no less than the one before
    for (; j < whole; j += VL)
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            vf score = masked(kind, vf_mul(vf_load(s + i * lds + j), factor), mask, first + i, j, VL);
            highest[i] = vf_max(score, highest[i]);
            vf_store(s + i * lds + j, score);
        }
    for (; j < most; j += VL)
        for (int i = 0; i < rows; i++) {
            int64_t count = clamp(seen[i] - j, VL);
            vf score = masked(kind, vf_mul(vf_load_n(s + i * lds + j, count), factor), mask, first + i, j, count);
            highest[i] = vf_max(vf_blend(vm_first(count), score, lowest), highest[i]);
            vf_store_n(s + i * lds + j, score, count);
        }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        tops[i] = vf_hmax(highest[i]);
        highest[i] = vf_set(tops[i]);
    }
    for (j = 0; j < whole; j += VL)
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            vf e = vf_exp_nonpositive(vf_sub(vf_load(s + i * lds + j), highest[i]));
            totals[i] = vf_add(totals[i], e);
            vf_store(s + i * lds + j, e);
        }
    for (; j < n; j += VL)
        for (int i = 0; i < rows; i++) {
            int64_t count = clamp(seen[i] - j, VL);
            vf e = vf_zero();
            if (count) {
                e = vf_exp_nonpositive(vf_sub(vf_load_n(s + i * lds + j, count), highest[i]));
                e = vf_blend(vm_first(count), e, vf_zero());
                totals[i] = vf_add(totals[i], e);
            }
            vf_store_n(s + i * lds + j, e, clamp(n - j, VL));
        }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) sums[i] = vf_sum(totals[i]);
}

ALWAYS_INLINE void exponentials_of(const qrt_mask_kind kind, int64_t m, int64_t n, float *s, int64_t lds, float scale,
                                   const qrt_mask *mask, int64_t visible, float *tops, float *sums) {
    int64_t i = 0;
    for (; i + GROUP <= m; i += GROUP)
        group_of(kind, GROUP, i, n, s + i * lds, lds, scale, mask, visible + i, tops + i, sums + i);
    for (; i < m; i++) group_of(kind, 1, i, n, s + i * lds, lds, scale, mask, visible + i, tops + i, sums + i);
}

static void exponentials(int64_t m, int64_t n, float *s, int64_t lds, float scale, const qrt_mask *mask,
                         int64_t visible, float *tops, float *sums) {
    switch (mask->kind) {
    case QRT_MASK_NONE: exponentials_of(QRT_MASK_NONE, m, n, s, lds, scale, mask, visible, tops, sums); break;
    case QRT_MASK_ADD: exponentials_of(QRT_MASK_ADD, m, n, s, lds, scale, mask, visible, tops, sums); break;
    case QRT_MASK_REPLACE: exponentials_of(QRT_MASK_REPLACE, m, n, s, lds, scale, mask, visible, tops, sums); break;
    case QRT_MASK_PENALIZE: exponentials_of(QRT_MASK_PENALIZE, m, n, s, lds, scale, mask, visible, tops, sums); break;
    }
}

static void divide(int64_t m, int64_t n, float *y, int64_t ldy, const float *sums) {
    for (int64_t i = 0; i < m; i++, y += ldy) {
        vf factor = vf_set(1.0f / sums[i]);
        int64_t j = 0;
        for (; j + VL <= n; j += VL) vf_store(y + j, vf_mul(vf_load(y + j), factor));
        if (j < n) vf_store_n(y + j, vf_mul(vf_load_n(y + j, n - j), factor), n - j);
    }
}
