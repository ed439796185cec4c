/// Windows to codes without a way through memory: their sums begin with what the columns bring along and are requantized in registers.
/// Over the vocabulary of gemm_q8_dot4.inc.h, with vi_saturated_bytes.

/// The first `vectors` of a panel for `rows` windows, which are those of `to` from `first` on; both numbers are constants where it is inlined.
ALWAYS_INLINE void code_tile(const int rows, const int vectors, const uint8_t *codes, const qrt_q8_windows *windows, const int8_t *b,
                             const qrt_code_tile *to, int64_t first, uint8_t *y, int64_t ldy_elems) {
    const int64_t columns = to->columns;
    vi c[2 * TILE_ROWS][VECTORS];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) {
        const int64_t left = columns - v * VL;
        const vi base = left >= VL ? vi_load(to->base + v * VL) : vi_load_n(to->base + v * VL, left);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) c[r][v] = base;
    }
    add_windows(rows, vectors, codes, windows, b, c);
    vf multipliers[VECTORS];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) {
        const int64_t left = columns - v * VL;
        multipliers[v] = left >= VL ? vf_load(to->multipliers + v * VL) : vf_load_n(to->multipliers + v * VL, left);
    }
    const bool has_zeros = to->weight_zeros;
#pragma GCC unroll 3
    for (int v = 0; has_zeros && v < vectors; v++) {
        const int64_t left = columns - v * VL;
        const vi zeros = left >= VL ? vi_load(to->weight_zeros + v * VL) : vi_load_n(to->weight_zeros + v * VL, left);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) c[r][v] = vi_sub(c[r][v], vi_mul(vi_set((int32_t)to->rows[first + r].sum), zeros));
    }
    const vf high = vf_set(to->to.high);
    const vi zero = vi_set(to->to.zero * 0x10001), flip = vi_set(to->to.flip * 0x01010101);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++, y += ldy_elems) {
        vf x[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) x[v] = vf_min(vf_mul(vi_to_vf(c[r][v]), multipliers[v]), high);
        vi_store_64_bytes(y, vi_xor(vi_saturated_bytes(x, zero), flip), columns);
    }
}

typedef void (*code_tile_fn)(const uint8_t *codes, const qrt_q8_windows *windows, const int8_t *b, const qrt_code_tile *to,
                             int64_t first, uint8_t *y, int64_t ldy_elems);

#define CODE_TILE(rows, vectors)                                                                                                \
    static __attribute__((noinline)) void code_tile_##rows##_##vectors(const uint8_t *codes, const qrt_q8_windows *windows,     \
                                                                       const int8_t *b, const qrt_code_tile *to,                \
                                                                       int64_t first, uint8_t *y, int64_t ldy_elems) {          \
        code_tile(rows, vectors, codes, windows, b, to, first, y, ldy_elems);                                                   \
    }
#define CODE_TILES(vectors) CODE_TILE(1, vectors) CODE_TILE(2, vectors) CODE_TILE(3, vectors) CODE_TILE(4, vectors) CODE_TILE(5, vectors) \
    CODE_TILE(6, vectors) CODE_TILE(7, vectors) CODE_TILE(8, vectors)
CODE_TILES(3)
CODE_TILE(8, 2)
CODE_TILE(8, 1)
CODE_TILE(16, 1)

static const code_tile_fn all_code_tiles[TILE_ROWS + 1] = {
    NULL, code_tile_1_3, code_tile_2_3, code_tile_3_3, code_tile_4_3, code_tile_5_3, code_tile_6_3, code_tile_7_3, code_tile_8_3,
};

static void window_codes(const qrt_q8_weights *w, const qrt_q8_windows *windows, int64_t panel, const qrt_code_tile *to, uint8_t *y,
                         int64_t ldy_elems) {
    const int8_t *b = (const int8_t *)w->panels + panel * w->panel_bytes;
    const int64_t vectors = vectors_left(w, panel), step = windows->step_bytes;
    const int all = windows->num_windows;
    const bool is_narrow = vectors < VECTORS && all >= TILE_ROWS;
    int r = 0;
    for (; is_narrow && vectors == 1 && r + 2 * TILE_ROWS <= all; r += 2 * TILE_ROWS)
        code_tile_16_1(windows->codes + r * step, windows, b, to, r, y + r * ldy_elems, ldy_elems);
    for (; is_narrow && r < all; r += TILE_ROWS) {
        if (r > all - TILE_ROWS) r = all - TILE_ROWS;  // some again
        (vectors == 1 ? code_tile_8_1 : code_tile_8_2)(windows->codes + r * step, windows, b, to, r, y + r * ldy_elems, ldy_elems);
    }
    while (r < all) {
        const int left = all - r, rows = left <= TILE_ROWS ? left : left < 2 * TILE_ROWS ? (left + 1) / 2 : TILE_ROWS;
        all_code_tiles[rows](windows->codes + r * step, windows, b, to, r, y + r * ldy_elems, ldy_elems);
        r += rows;
    }
}

#define WINDOW_CODES window_codes
