/// What the vector rungs of the int8 GEMM share: range of a row, epilogue of a tile. Over the vocabulary of
/// simd_*.h, with MR, NR, a multiple of VL, and CODE_OFFSET defined: the sums are of q − CODE_OFFSET.

static void range(const float *a, int64_t k, float *lo, float *hi) {
    enum { CHAINS = 4 };
    vf low[CHAINS], high[CHAINS];
    for (int c = 0; c < CHAINS; c++) {
        low[c] = vf_set(*lo);
        high[c] = vf_set(*hi);
    }
    vm nan = vf_is_nan(low[0]);
    int64_t i = 0;
    for (; i + CHAINS * VL <= k; i += CHAINS * VL) {
        vf x[CHAINS];
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; c++) {
            x[c] = vf_load(a + i + c * VL);
            low[c] = vf_min(low[c], x[c]);
            high[c] = vf_max(high[c], x[c]);
        }
        nan = vm_or(nan, vm_or(vf_unordered(x[0], x[1]), vf_unordered(x[2], x[3])));
    }
    for (; i < k; i += VL) {
        vf x = vf_load_n(a + i, k - i < VL ? k - i : VL);  // what is missing is 0, which every range contains
        low[0] = vf_min(low[0], x);
        high[0] = vf_max(high[0], x);
        nan = vm_or(nan, vf_is_nan(x));
    }
    bool any = vm_bits(nan) != 0;
    *lo = any ? NAN : vf_hmin(vf_min(vf_min(low[0], low[1]), vf_min(low[2], low[3])));
    *hi = any ? NAN : vf_hmax(vf_max(vf_max(high[0], high[1]), vf_max(high[2], high[3])));
}

/// From t, free of zero points, to y, for `rows` rows of NR columns from row `first` of the block on; t is overwritten.
static inline void finish_rows(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int first, int rows,
                               float *t) {
    int64_t left = w->n - panel * NR;
    for (int j = 0; j < NR && j < left; j += VL) {
        int64_t column = panel * NR + j;
        vf scales = vf_load(w->scales + column);
        for (int r = 0; r < rows; r++) {
            vf x = vf_mul(vf_load(t + r * NR + j), vf_mul(vf_set(block->rows[first + r].scale), scales));
            if (w->bias) x = vf_add(x, vf_load(w->bias + column));
            vf_store(t + r * NR + j, x);
        }
    }
    activate_vectors(t, (int64_t)rows * NR, block->epilogue.activation);
    for (int r = 0; r < rows; r++) {
        float *y = block->y + (first + r) * block->ldy_elems + panel * NR;
        const float *residual = block->epilogue.residual;
        if (residual) residual += (first + r) * block->epilogue.residual_stride_elems + panel * NR;
        for (int j = 0; j < NR && j < left; j += VL) {
            vf x = vf_load(t + r * NR + j);
            if (left - j >= VL) {
                if (residual) x = vf_add(x, vf_load(residual + j));
                vf_store(y + j, x);
            } else {
                if (residual) x = vf_add(x, vf_load_n(residual + j, left - j));
                vf_store_n(y + j, x, left - j);
            }
        }
    }
}

static inline vf row_of_tile(const qrt_q8_weights *w, const qrt_q8_row *row, int64_t column, const int32_t *acc) {
    vi x = vi_sub(vi_load(acc), vi_mul(vi_set(row->zero_point - CODE_OFFSET), vi_load(w->col_sums + column)));
    if (w->zero_points) x = vi_sub(x, vi_mul(vi_set((int32_t)row->sum), vi_load(w->zero_points + column)));
    return vi_to_vf(x);
}

/// Whole panels without a polynomial, straight from the sums to y.
static inline void finish_plain(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int first, int rows,
                                const int32_t *acc) {
    bool relu = block->epilogue.activation == QRT_ACT_RELU;
    for (int r = 0; r < rows; r++) {
        const qrt_q8_row *row = &block->rows[first + r];
        vf scale = vf_set(row->scale);
        float *y = block->y + (first + r) * block->ldy_elems + panel * NR;
        const float *residual = block->epilogue.residual;
        if (residual) residual += (first + r) * block->epilogue.residual_stride_elems + panel * NR;
#pragma GCC unroll 4
        for (int j = 0; j < NR; j += VL) {
            int64_t column = panel * NR + j;
            vf x = row_of_tile(w, row, column, acc + r * NR + j);
            x = vf_mul(x, vf_mul(scale, vf_load(w->scales + column)));
            if (w->bias) x = vf_add(x, vf_load(w->bias + column));
            if (relu) x = vf_max(vf_zero(), x);
            if (residual) x = vf_add(x, vf_load(residual + j));
            vf_store(y + j, x);
        }
    }
}

/// The epilogue of sums acc[rows][NR].
static inline void finish_tile(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int first, int rows,
                               const int32_t *acc) {
    if (block->epilogue.activation <= QRT_ACT_RELU && (panel + 1) * NR <= w->n) {
        finish_plain(w, block, panel, first, rows, acc);
        return;
    }
    float t[MR * NR];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < NR; j += VL)
            vf_store(t + r * NR + j, row_of_tile(w, &block->rows[first + r], panel * NR + j, acc + r * NR + j));
    finish_rows(w, block, panel, first, rows, t);
}

static void finish(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int r, const float *t) {
    float copy[NR];
    memcpy(copy, t, sizeof copy);
    finish_rows(w, block, panel, r, 1, copy);
}
