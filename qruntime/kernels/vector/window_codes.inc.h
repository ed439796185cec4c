/// Windows to codes without a way through memory: their sums begin with what the columns bring along and are requantized in registers.
/// Over the vocabulary of gemm_q8_dot4.inc.h, with vi_saturated_bytes.

/// Steps of K of one vector of columns by twos: a weight of either step in turn, and their codes in turn. So two chains of sums
/// share what is loaded of a window, which for a single vector would take longer than its products.
ALWAYS_INLINE void add_pairs(const int rows, const uint8_t *codes, const qrt_q8_windows *windows, const int8_t *b, vi c[TILE_ROWS][2]) {
    enum { PAIR = 2 * GROUP };
    const int64_t step = windows->step_bytes, piece_bytes = windows->piece_bytes, num_pieces = windows->num_pieces;
    const int64_t *places = windows->places;
    for (int64_t p = 0; p < num_pieces; p++) {
        const uint8_t *a = codes + places[p];
        for (int64_t k = 0; k < piece_bytes; k += PAIR, b += PAIR * NR) {
            const bool is_pair = k + GROUP < piece_bytes;
            const vi first = vi_load((const int32_t *)(const void *)b);
            const vi second = is_pair ? vi_load((const int32_t *)(const void *)(b + GROUP * NR)) : vi_set(0);
            const vi low = vi_low_pairs(first, second), high = vi_high_pairs(first, second);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                const vi group = is_pair ? vi_code_pairs(a + r * step + k) : vi_codes(a + r * step + k);
                c[r][0] = vi_dot4(c[r][0], group, low);
                c[r][1] = vi_dot4(c[r][1], group, high);
            }
            if (!is_pair) b -= GROUP * NR;
        }
    }
}

/// The first `vectors` of a panel for `rows` windows, which are those of `to` from `first` on; both numbers are constants where it is inlined.
ALWAYS_INLINE void code_tile(const int rows, const int vectors, const uint8_t *codes, const qrt_q8_windows *windows, const int8_t *b,
                             const qrt_code_tile *to, int64_t first, uint8_t *y, int64_t ldy_elems) {
    const int64_t columns = to->columns;
    vi c[2 * TILE_ROWS][VECTORS];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) {
        const int64_t left = columns - v * VL;
        const vi base = left >= VL ? vi_load(to->base + v * VL) : vi_load_n(to->base + v * VL, left);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) c[r][v] = base;
    }
    if (vectors == 1) {
        vi pairs[TILE_ROWS][2];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) pairs[r][0] = pairs[r][1] = vi_set(0);
        add_pairs(rows, codes, windows, b, pairs);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) c[r][0] = vi_add(c[r][0], vi_sums_of_pairs(pairs[r][0], pairs[r][1]));
    } else {
        add_windows(rows, vectors, codes, windows, b, c);
    }
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
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) c[r][v] = vi_sub(c[r][v], vi_mul(vi_set((int32_t)to->rows[first + r].sum), zeros));
    }
    const vf high = vf_set(to->to.high);
    const vi zero = vi_set(to->to.zero * 0x10001), flip = vi_set(to->to.flip * 0x01010101);
#pragma GCC unroll 8
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
CODE_TILES(1)
CODE_TILES(2)
CODE_TILES(3)

#define CODE_TILES_OF(vectors)                                                                                                  \
    {NULL, code_tile_1_##vectors, code_tile_2_##vectors, code_tile_3_##vectors, code_tile_4_##vectors, code_tile_5_##vectors,   \
     code_tile_6_##vectors, code_tile_7_##vectors, code_tile_8_##vectors}
static const code_tile_fn code_tiles[VECTORS][TILE_ROWS + 1] = {CODE_TILES_OF(1), CODE_TILES_OF(2), CODE_TILES_OF(3)};

static void window_codes(const qrt_q8_weights *w, const qrt_q8_windows *windows, int64_t panel, const qrt_code_tile *to, uint8_t *y,
                         int64_t ldy_elems) {
    const int8_t *b = (const int8_t *)w->panels + panel * w->panel_bytes;
    const int64_t vectors = vectors_left(w, panel), step = windows->step_bytes;
    const code_tile_fn *tiles_of = code_tiles[(vectors < VECTORS ? vectors : VECTORS) - 1];
    for (int r = 0, all = windows->num_windows; r < all;) {
        const int left = all - r, rows = left <= TILE_ROWS ? left : left < 2 * TILE_ROWS ? (left + 1) / 2 : TILE_ROWS;
        tiles_of[rows](windows->codes + r * step, windows, b, to, r, y + r * ldy_elems, ldy_elems);
        r += rows;
    }
}

#define WINDOW_CODES window_codes
