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

/// What becomes of the sums of all columns of a panel, as registers have it.
typedef struct {
    vi base[VECTORS], zero, flip;
    vf multipliers[VECTORS], high;
} panel_codes;

/// A step of K of rows 0 … TILE_ROWS − 1: those up to `step` are of the tile at `a`, and the others of the one before, which ends with them. Row
/// `step` of that becomes codes at y before its first sum of the new one. `step` is a constant where it is inlined.
ALWAYS_INLINE void staggered_step(const int step, const uint8_t *a, const uint8_t *before, int64_t stride, const int8_t *b, int64_t ahead_bytes,
                                  const panel_codes *p, uint8_t *y, vi c[TILE_ROWS][VECTORS]) {
    vi w[VECTORS];
    if (step < TILE_ROWS) {
        vf x[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) {
            x[v] = vf_min(vf_mul(vi_to_vf(c[step][v]), p->multipliers[v]), p->high);
            c[step][v] = p->base[v];
        }
        vi_store_64_bytes(y, vi_xor(vi_saturated_bytes(x, p->zero), p->flip), NR);
    }
    for (int line = 0; line < GROUP * NR; line += CACHE_LINE) __builtin_prefetch(b + ahead_bytes + line, 0, 2);
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; v++) w[v] = vi_load((const int32_t *)(const void *)(b + 4 * VL * v));
    __asm__("" ::: "memory");  // as in add_products
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; r++) {
        const vi group = vi_codes((r <= step ? a : before) + r * stride);
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) c[r][v] = vi_dot4(c[r][v], group, w[v]);
    }
}

/// Whole tiles one behind the other against a panel of all columns. A row of sums ends in the middle of K, one step of K behind the row above
/// it, and goes on with the next tile: so it becomes codes amid products. Where all rows end at once, products wait for codes.
static __attribute__((noinline)) void staggered_tiles(const qrt_q8_windows *windows, int num_tiles, const int8_t *b, const panel_codes *p,
                                                      uint8_t *y, int64_t ldy_elems) {
    const int64_t stride = windows->step_bytes, piece_bytes = windows->piece_bytes, num_pieces = windows->num_pieces;
    const int64_t ahead_bytes = num_pieces * piece_bytes * NR, *places = windows->places;
    const uint8_t *a = windows->codes, *before = a;
    uint8_t nowhere[TILE_ROWS * NR], *to = nowhere;  // for sums that were before the first
    int64_t ld = NR;
    vi c[TILE_ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) c[r][v] = p->base[v];
    for (int t = 0;; t++) {
        const int8_t *weights = b;
        const uint8_t *from = a + places[0], *last = from + piece_bytes, *old = before + places[0];
#pragma GCC unroll 8
        for (int step = 0; step < TILE_ROWS; step++)
            staggered_step(step, from + step * GROUP, old + step * GROUP, stride, weights + step * GROUP * NR, ahead_bytes, p, to + step * ld, c);
        if (t == num_tiles) return;
        weights += TILE_ROWS * GROUP * NR;
        from += TILE_ROWS * GROUP;
        for (int64_t i = 1;; i++) {
            for (; from < last; from += GROUP, weights += GROUP * NR)
                staggered_step(TILE_ROWS, from, from, stride, weights, ahead_bytes, p, NULL, c);
            if (i == num_pieces) break;
            from = a + places[i];
            last = from + piece_bytes;
        }
        to = y;
        ld = ldy_elems;
        y += TILE_ROWS * ldy_elems;
        before = a;
        if (t + 1 < num_tiles) a += TILE_ROWS * stride;  // else what comes is nothing, and any will do
    }
}

enum { LEAST_TILES = 4 };

static int num_staggered(const qrt_q8_windows *windows, const qrt_code_tile *to) {
    // The last tiles have much the same height rather than one a sliver.
    const int tiles = windows->num_windows / TILE_ROWS - (windows->num_windows % TILE_ROWS != 0);
    const bool suits = to->columns == NR && !to->weight_zeros && windows->piece_bytes >= TILE_ROWS * GROUP;
    return suits && tiles >= LEAST_TILES ? tiles : 0;
}

static panel_codes codes_of_panel(const qrt_code_tile *to) {
    panel_codes p = {.zero = vi_set(to->to.zero * 0x10001), .flip = vi_set(to->to.flip * 0x01010101), .high = vf_set(to->to.high)};
    for (int v = 0; v < VECTORS; v++) {
        p.base[v] = vi_load(to->base + v * VL);
        p.multipliers[v] = vf_load(to->multipliers + v * VL);
    }
    return p;
}

static void window_codes(const qrt_q8_weights *w, const qrt_q8_windows *windows, int64_t panel, const qrt_code_tile *to, uint8_t *y,
                         int64_t ldy_elems) {
    const int8_t *b = (const int8_t *)w->panels + panel * w->panel_bytes;
    const int64_t vectors = vectors_left(w, panel), step = windows->step_bytes;
    const code_tile_fn *tiles_of = code_tiles[(vectors < VECTORS ? vectors : VECTORS) - 1];
    const int tiles = num_staggered(windows, to);
    if (tiles) {
        const panel_codes p = codes_of_panel(to);
        staggered_tiles(windows, tiles, b, &p, y, ldy_elems);
    }
    for (int r = tiles * TILE_ROWS, all = windows->num_windows; r < all;) {
        const int left = all - r, rows = left <= TILE_ROWS ? left : left < 2 * TILE_ROWS ? (left + 1) / 2 : TILE_ROWS;
        tiles_of[rows](windows->codes + r * step, windows, b, to, r, y + r * ldy_elems, ldy_elems);
        r += rows;
    }
}

#define WINDOW_CODES window_codes
