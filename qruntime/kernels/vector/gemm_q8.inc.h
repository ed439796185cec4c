/// What the vector rungs of the int8 GEMM share: range of a row, epilogue of a tile. Over the vocabulary of
/// simd_*.h, with MR, NR, a multiple of VL, and CODE_OFFSET defined: the sums are of q − CODE_OFFSET.

/// Bits of floats as integers: with a sign, no number ≥ 0 has greater ones than the greatest; without, no negative one
/// has greater ones than the least. NaN lies beyond Inf on both sides, so that it stays.
static void range(const float *a, int64_t k, float *lo, float *hi) {
    enum { CHAINS = 4 };
    vi least[CHAINS], greatest[CHAINS];
#pragma GCC unroll 4
    for (int c = 0; c < CHAINS; c++) {
        least[c] = vf_as_vi(vf_set(*lo));
        greatest[c] = vf_as_vi(vf_set(*hi));
    }
    int64_t i = 0;
    for (; i + CHAINS * VL <= k; i += CHAINS * VL) {
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; c++) {
            vi bits = vf_as_vi(vf_load(a + i + c * VL));
            least[c] = vi_max_unsigned(least[c], bits);
            greatest[c] = vi_max(greatest[c], bits);
        }
    }
    for (; i < k; i += VL) {
        vi bits = vf_as_vi(vf_load_n(a + i, k - i < VL ? k - i : VL));  // what is missing is 0, which every range contains
        least[0] = vi_max_unsigned(least[0], bits);
        greatest[0] = vi_max(greatest[0], bits);
    }
    vf low = vi_as_vf(vi_max_unsigned(vi_max_unsigned(least[0], least[1]), vi_max_unsigned(least[2], least[3])));
    vf high = vi_as_vf(vi_max(vi_max(greatest[0], greatest[1]), vi_max(greatest[2], greatest[3])));
    bool any_nan = vm_bits(vf_unordered(low, high)) != 0;
    *lo = any_nan ? NAN : vf_hmin(vf_min(low, vf_zero()));
    *hi = any_nan ? NAN : vf_hmax(high);
}

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/// The epilogue of sums acc[rows][NR], in registers. `activation` and `whole`, whether all columns of the panel exist,
/// are constants at every call. What all rows share is loaded before y, which may alias anything, is written.
ALWAYS_INLINE void finish_with(const qrt_activation activation, const bool whole, const qrt_q8_weights *w,
                               const qrt_q8_block *block, int64_t panel, int first, int rows, const int32_t *acc) {
    const int64_t column = panel * NR, left = w->base.n - column, residual_stride = block->epilogue.residual_stride_elems;
    const bool has_bias = w->bias, has_zero_points = w->zero_points;
    vf scales[NR / VL], bias[NR / VL];
    vi col_sums[NR / VL], zero_points[NR / VL];
#pragma GCC unroll 4
    for (int v = 0; v < NR / VL; v++) {
        scales[v] = vf_load(w->scales + column + v * VL);
        bias[v] = has_bias ? vf_load(w->bias + column + v * VL) : vf_zero();
        col_sums[v] = vi_load(w->col_sums + column + v * VL);
        zero_points[v] = has_zero_points ? vi_load(w->zero_points + column + v * VL) : vi_set(0);
    }
    float *y = block->y + first * block->ldy_elems + column;
    const float *residual = block->epilogue.residual;
    if (residual) residual += first * residual_stride + column;
    const qrt_q8_row *row = block->rows + first, *end = row + rows;
    for (; row < end; row++, acc += NR, y += block->ldy_elems) {
        vf scale = vf_set(row->scale);
        vi zero_point = vi_set(row->zero_point - CODE_OFFSET), sum = vi_set((int32_t)row->sum);
#pragma GCC unroll 4
        for (int v = 0; v < NR / VL; v++) {
            int64_t count = whole ? VL : left - v * VL;
            if (count <= 0) continue;
            vi t = vi_sub(vi_load(acc + v * VL), vi_mul(zero_point, col_sums[v]));
            if (has_zero_points) t = vi_sub(t, vi_mul(sum, zero_points[v]));
            vf x = vf_mul(vi_to_vf(t), vf_mul(scale, scales[v]));
            if (has_bias) x = vf_add(x, bias[v]);
            x = vf_activate(x, activation);
            if (count >= VL) {
                if (residual) x = vf_add(x, vf_load(residual + v * VL));
                vf_store(y + v * VL, x);
            } else {
                if (residual) x = vf_add(x, vf_load_n(residual + v * VL, count));
                vf_store_n(y + v * VL, x, count);
            }
        }
        if (residual) residual += residual_stride;
    }
}

#define FINISH(ACTIVATION)                                                                                             \
    case ACTIVATION:                                                                                                   \
        if ((panel + 1) * NR <= w->base.n)                                                                                  \
            finish_with(ACTIVATION, true, w, block, panel, first, rows, acc);                                          \
        else                                                                                                           \
            finish_with(ACTIVATION, false, w, block, panel, first, rows, acc);                                         \
        return;

static __attribute__((noinline)) void finish_tile(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel,
                                                  int first, int rows, const int32_t *acc) {
    switch (block->epilogue.activation) {
        FINISH(QRT_ACT_NONE) FINISH(QRT_ACT_RELU) FINISH(QRT_ACT_GELU) FINISH(QRT_ACT_GELU_TANH)
        FINISH(QRT_ACT_SILU) FINISH(QRT_ACT_SIGMOID) FINISH(QRT_ACT_TANH)
    }
}

/// From t, free of zero points, to y, for row r of the block.
static void finish(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int r, const float *t) {
    float *y = block->y + r * block->ldy_elems;
    const float *residual = block->epilogue.residual;
    if (residual) residual += r * block->epilogue.residual_stride_elems;
    for (int64_t column = panel * NR; column < w->base.n && column < (panel + 1) * NR; column += VL, t += VL) {
        int64_t count = w->base.n - column < VL ? w->base.n - column : VL;
        vf x = vf_mul(vf_load(t), vf_mul(vf_set(block->rows[r].scale), vf_load(w->scales + column)));
        if (w->bias) x = vf_add(x, vf_load(w->bias + column));
        x = vf_activate(x, block->epilogue.activation);
        if (residual) x = vf_add(x, vf_load_n(residual + column, count));
        vf_store_n(y + column, x, count);
    }
}
