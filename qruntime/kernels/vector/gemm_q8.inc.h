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

/// An activation of a block that clips.
#define CLIP (QRT_ACT_TANH + 1)

static inline int activation_of(const qrt_q8_block *block) { return block->clips ? CLIP : (int)block->epilogue.activation; }

/// `activation` is a constant at every call.
ALWAYS_INLINE vf activated(vf x, const int activation, vf low, vf high) {
    return activation == CLIP ? vf_min(high, vf_max(low, x)) : vf_activate(x, (qrt_activation)activation);
}

/// A row of what is added to y, or NULL.
static inline const float *added_row(const float *from, int64_t row, int64_t stride) { return from ? from + row * stride : NULL; }

/// The epilogue of sums acc[rows][NR], in registers. `activation` and `whole`, whether all columns of the panel exist,
/// are constants at every call. What all rows share is loaded before y, which may alias anything, is written.
ALWAYS_INLINE void finish_with(const int activation, const bool whole, const qrt_q8_weights *w,
                               const qrt_q8_block *block, int64_t panel, int first, int rows, const int32_t *acc) {
    const qrt_epilogue *e = &block->epilogue;
    const int64_t column = panel * NR, left = w->base.n - column;
    const bool has_bias = w->bias, has_zero_points = w->zero_points;
    vf scales[NR / VL], bias[NR / VL];
    vi col_sums[NR / VL], zero_points[NR / VL];
    const vf low = vf_set(block->low), high = vf_set(block->high);
    int64_t places[NR / VL];
#pragma GCC unroll 4
    for (int v = 0; v < NR / VL; v++) {
        scales[v] = vf_load(w->scales + column + v * VL);
        bias[v] = has_bias ? vf_load(w->bias + column + v * VL) : vf_zero();
        col_sums[v] = vi_load(w->col_sums + column + v * VL);
        zero_points[v] = has_zero_points ? vi_load(w->zero_points + column + v * VL) : vi_set(0);
        places[v] = qrt_q8_column(block, column + v * VL);
    }
    float *y = block->y + first * block->ldy_elems;
    const float *residual = added_row(e->residual, first, e->residual_stride_elems);
    const float *addend = added_row(e->addend, first, e->addend_stride_elems);
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
            if (addend) x = vf_add(x, count >= VL ? vf_load(addend + places[v]) : vf_load_n(addend + places[v], count));
            x = activated(x, activation, low, high);
            if (count >= VL) {
                if (residual) x = vf_add(x, vf_load(residual + places[v]));
                vf_store(y + places[v], x);
            } else {
                if (residual) x = vf_add(x, vf_load_n(residual + places[v], count));
                vf_store_n(y + places[v], x, count);
            }
        }
        if (residual) residual += e->residual_stride_elems;
        if (addend) addend += e->addend_stride_elems;
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
    switch (activation_of(block)) {
        FINISH(QRT_ACT_NONE) FINISH(QRT_ACT_RELU) FINISH(QRT_ACT_GELU) FINISH(QRT_ACT_GELU_TANH)
        FINISH(QRT_ACT_SILU) FINISH(QRT_ACT_SIGMOID) FINISH(QRT_ACT_TANH) FINISH(CLIP)
    }
}

/// From t, free of zero points, to y, for row r of the block.
static void finish(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int r, const float *t) {
    const qrt_epilogue *e = &block->epilogue;
    float *y = block->y + r * block->ldy_elems;
    const float *residual = added_row(e->residual, r, e->residual_stride_elems);
    const float *addend = added_row(e->addend, r, e->addend_stride_elems);
    for (int64_t column = panel * NR; column < w->base.n && column < (panel + 1) * NR; column += VL, t += VL) {
        int64_t count = w->base.n - column < VL ? w->base.n - column : VL, place = qrt_q8_column(block, column);
        vf x = vf_mul(vf_load(t), vf_mul(vf_set(block->rows[r].scale), vf_load(w->scales + column)));
        if (w->bias) x = vf_add(x, vf_load(w->bias + column));
        if (addend) x = vf_add(x, vf_load_n(addend + place, count));
        x = activated(x, activation_of(block), vf_set(block->low), vf_set(block->high));
        if (residual) x = vf_add(x, vf_load_n(residual + place, count));
        vf_store_n(y + place, x, count);
    }
}
