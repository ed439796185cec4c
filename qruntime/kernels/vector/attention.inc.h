/// The kernels of attention.h over any vector.

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/// Scores of `count` ≤ VL keys from j on. `kind` is a constant at every call.
ALWAYS_INLINE vf masked(const qrt_mask_kind kind, vf score, const qrt_mask *mask, int64_t row, int64_t j, int64_t count) {
    int64_t at = row * mask->row_stride + j * mask->key_stride;
    if (kind == QRT_MASK_NONE) return score;
    if (kind == QRT_MASK_ADD) {
        const float *added = (const float *)mask->data + at;
        return vf_add(score, mask->key_stride ? vf_load_n(added, count) : vf_set(*added));
    }
    const uint8_t *bytes = (const uint8_t *)mask->data + at;
    int32_t keep[VL] = {0};
    for (int64_t l = 0; l < count; l++) keep[l] = bytes[l * mask->key_stride];
    vf fill = vf_set(mask->fill);
    return vf_blend(vi_eq(vi_load(keep), vi_set(0)), kind == QRT_MASK_REPLACE ? fill : vf_add(score, fill), score);
}

ALWAYS_INLINE void exponentials_of(const qrt_mask_kind kind, int64_t m, int64_t n, float *s, int64_t lds, float scale,
                                   const qrt_mask *mask, int64_t visible, float *sums) {
    vf factor = vf_set(scale), lowest = vf_set(-INFINITY);
    for (int64_t i = 0; i < m; i++, s += lds) {
        int64_t seen = visible + i < 0 ? 0 : visible + i < n ? visible + i : n, j = 0;
        vf tops = lowest, total = vf_zero();
        for (; j + VL <= seen; j += VL) {
            vf score = masked(kind, vf_mul(vf_load(s + j), factor), mask, i, j, VL);
            tops = vf_max(score, tops);
            vf_store(s + j, score);
        }
        int64_t rest = seen - j;
        if (rest) {
            vf score = masked(kind, vf_mul(vf_load_n(s + j, rest), factor), mask, i, j, rest);
            tops = vf_max(vf_blend(vm_first(rest), score, lowest), tops);
            vf_store_n(s + j, score, rest);
        }
        vf top = vf_set(vf_hmax(tops));
        for (j = 0; j + VL <= seen; j += VL) {
            vf e = vf_exp_nonpositive(vf_sub(vf_load(s + j), top));
            total = vf_add(total, e);
            vf_store(s + j, e);
        }
        if (rest) {
            vf e = vf_exp_nonpositive(vf_sub(vf_load_n(s + j, rest), top));
            e = vf_blend(vm_first(rest), e, vf_zero());
            total = vf_add(total, e);
            vf_store_n(s + j, e, rest);
        }
        for (j = seen; j < n; j++) s[j] = 0.0f;
        sums[i] = vf_sum(total);
    }
}

static void exponentials(int64_t m, int64_t n, float *s, int64_t lds, float scale, const qrt_mask *mask,
                         int64_t visible, float *sums) {
    switch (mask->kind) {
    case QRT_MASK_NONE: exponentials_of(QRT_MASK_NONE, m, n, s, lds, scale, mask, visible, sums); break;
    case QRT_MASK_ADD: exponentials_of(QRT_MASK_ADD, m, n, s, lds, scale, mask, visible, sums); break;
    case QRT_MASK_REPLACE: exponentials_of(QRT_MASK_REPLACE, m, n, s, lds, scale, mask, visible, sums); break;
    case QRT_MASK_PENALIZE: exponentials_of(QRT_MASK_PENALIZE, m, n, s, lds, scale, mask, visible, sums); break;
    }
}

static void divide(int64_t m, int64_t n, float *y, int64_t ldy, const float *sums) {
    for (int64_t i = 0; i < m; i++, y += ldy) {
        vf sum = vf_set(sums[i]);
        int64_t j = 0;
        for (; j + VL <= n; j += VL) vf_store(y + j, vf_div(vf_load(y + j), sum));
        if (j < n) vf_store_n(y + j, vf_div(vf_load_n(y + j, n - j), sum), n - j);
    }
}
