/// What the vector rungs of the int8 GEMM share: range of a row, epilogue of a tile. Over the vocabulary of
/// simd_*.h, with NR defined, a multiple of VL.

static void range(const float *a, int64_t k, float *lo, float *hi) {
    vf low0 = vf_set(*lo), low1 = low0, high0 = vf_set(*hi), high1 = high0;
    vm nan = vf_is_nan(low0);
    int64_t i = 0;
    for (; i + 2 * VL <= k; i += 2 * VL) {
        vf x0 = vf_load(a + i), x1 = vf_load(a + i + VL);
        low0 = vf_min(low0, x0);
        low1 = vf_min(low1, x1);
        high0 = vf_max(high0, x0);
        high1 = vf_max(high1, x1);
        nan = vm_or(nan, vf_unordered(x0, x1));
    }
    for (; i < k; i += VL) {
        vf x = vf_load_n(a + i, k - i < VL ? k - i : VL);  // what is missing is 0, which every range contains
        low0 = vf_min(low0, x);
        high0 = vf_max(high0, x);
        nan = vm_or(nan, vf_is_nan(x));
    }
    bool any = vm_bits(nan) != 0;
    *lo = any ? NAN : vf_hmin(vf_min(low0, low1));
    *hi = any ? NAN : vf_hmax(vf_max(high0, high1));
}

/// From t, free of zero points, to y: columns j … j + VL - 1 of row r, of which n count.
static inline void finish_vector(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t column, int64_t n, int r, vf t) {
    vf x = vf_mul(t, vf_mul(vf_set(block->rows[r].scale), vf_load(w->scales + column)));
    if (w->bias) x = vf_add(x, vf_load(w->bias + column));
    x = vf_activate(x, block->epilogue.activation);
    const float *residual = block->epilogue.residual;
    float *y = block->y + r * block->ldy_elems + column;
    if (residual) residual += r * block->epilogue.residual_stride_elems + column;
    if (n >= VL) {
        if (residual) x = vf_add(x, vf_load(residual));
        vf_store(y, x);
    } else {
        if (residual) x = vf_add(x, vf_load_n(residual, n));
        vf_store_n(y, x, n);
    }
}

/// The epilogue of `rows` rows of sums from row `first` of the block on.
static inline void finish_tile(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int first, int rows,
                               const int32_t *acc) {
    for (int j = 0; j < NR; j += VL) {
        int64_t column = panel * NR + j, n = w->n - column;
        if (n <= 0) return;
        vi sums = vi_load(w->col_sums + column);
        for (int r = 0; r < rows; r++) {
            const qrt_q8_row *row = &block->rows[first + r];
            vi t = vi_sub(vi_load(acc + r * NR + j), vi_mul(vi_set(row->zero_point), sums));
            if (w->zero_points)
                t = vi_sub(t, vi_mul(vi_set((int32_t)row->sum), vi_load(w->zero_points + column)));
            finish_vector(w, block, column, n, first + r, vi_to_vf(t));
        }
    }
}

static void finish(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int r, const float *t) {
    for (int j = 0; j < NR; j += VL) {
        int64_t column = panel * NR + j, n = w->n - column;
        if (n <= 0) return;
        finish_vector(w, block, column, n, r, vf_load(t + j));
    }
}
