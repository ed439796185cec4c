/// int8 GEMM from an instruction that adds four products of bytes to an int32 and loses nothing: vpdpbusd, sdot. Over
/// the vocabulary of simd_*.h and gemm_q8.inc.h, with NR = 2 or 3 · VL, KR a multiple of 4, QRT_TILE_ROWS = 4 or 8 rows
/// a tile, and
///
///     vi vi_codes(const void *a)                    four codes, as `quantize` packs them, for every lane
///     vi vi_dot4(vi acc, vi codes, vi weights)

enum { GROUP = 4, VECTORS = NR / VL, TILE_ROWS = QRT_TILE_ROWS };

#define ITEM uint8_t
#include "pack_codes.inc.h"

static int64_t panel_bytes(int64_t k_padded) { return k_padded * NR; }

/// Rows lie a stride apart, which no hardware foresees across pages.
enum { ROWS_AHEAD = 32 };

/// [k / 4][NR][4]
static bool pack_panel(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                       void *panel) {
    int8_t *out = panel;
    int64_t i = 0, by_rows = n == NR && col_stride_elems == 1, by_columns = row_stride_elems == 1;
    for (; by_rows && i + GROUP <= k; i += GROUP, out += GROUP * NR) {
        const int8_t *row = w + i * row_stride_elems;
        for (int r = 0; r < GROUP; r++) __builtin_prefetch(row + (r + ROWS_AHEAD) * row_stride_elems, 0, 2);
        for (int j = 0; j < NR; j++)
            for (int r = 0; r < GROUP; r++) out[j * GROUP + r] = row[r * row_stride_elems + j];
    }
    memset(out, 0, (size_t)(((k + KR - 1) / KR * KR - i) * NR));
    for (; by_columns && i + GROUP <= k; i += GROUP, out += GROUP * NR)
        for (int64_t j = 0; j < n; j++) memcpy(out + j * GROUP, w + j * col_stride_elems + i, GROUP);
    for (; i < k; i += GROUP, out += GROUP * NR) {
        int64_t rows = k - i < GROUP ? k - i : GROUP;
        for (int64_t j = 0; j < n; j++)
            for (int64_t r = 0; r < rows; r++)
                out[j * GROUP + r] = w[(i + r) * row_stride_elems + j * col_stride_elems];
    }
    return true;
}

static void unpack_panel(const void *panel, int64_t k, int64_t n, int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems) {
    const int8_t *from = panel;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < n; j++)
            w[i * row_stride_elems + j * col_stride_elems] = from[(i / GROUP * NR + j) * GROUP + i % GROUP];
}

/// An output so large is hardly in the cache: its lines are asked for before the sums are made, unless an epilogue beside
/// products writes them one by one. Asking for lines that are there costs a hundredth.
enum { FAR_FLOATS = 1 << 19 };

/// Fewer rows are done with a panel before the next could have come, and pay for asking.
enum { FETCHING_ROWS = 4, CACHE_LINE = 64 };

/// c[rows][VECTORS] += a · b over k_count; `rows` is a constant where it is inlined. Meanwhile what lies `ahead_bytes`
/// behind b is fetched.
ALWAYS_INLINE void add_products(const int rows, const uint8_t *a, int64_t stride, const int8_t *b, int64_t ahead_bytes,
                                int64_t k_count, vi c[TILE_ROWS][VECTORS]) {
    for (int64_t k = 0; k < k_count; k += GROUP, b += GROUP * NR) {
        vi w[VECTORS];
        if (rows >= FETCHING_ROWS)
            for (int line = 0; line < GROUP * NR; line += CACHE_LINE) __builtin_prefetch(b + ahead_bytes + line, 0, 2);
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) w[v] = vi_load((const int32_t *)(const void *)(b + 4 * VL * v));
        __asm__("" ::: "memory");  // else gcc loads them anew for every row of two or three
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            vi codes = vi_codes(a + r * stride + k);
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) c[r][v] = vi_dot4(c[r][v], codes, w[v]);
        }
    }
}

ALWAYS_INLINE void clear(const int rows, vi c[TILE_ROWS][VECTORS]) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) c[r][v] = vi_set(0);
}

ALWAYS_INLINE void store(const int rows, vi c[TILE_ROWS][VECTORS], int32_t *acc) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) vi_store(acc + r * NR + v * VL, c[r][v]);
}

/// acc[rows][NR]. The panel that follows in memory is fetched.
ALWAYS_INLINE void tile(const int rows, const uint8_t *a, int64_t stride, const int8_t *b, int64_t k_count,
                        int32_t *acc) {
    vi c[TILE_ROWS][VECTORS];
    clear(rows, c);
    add_products(rows, a, stride, b, k_count * NR, k_count, c);
    store(rows, c, acc);
}

/// Sums of a tile that await their epilogue: rows `first` on of a block against a panel.
typedef struct {
    int64_t panel;
    int first, rows;
    int32_t acc[TILE_ROWS * NR];
} pending_tile;

/// One row: the sums of consecutive steps apart, so that many chains hide the latency that few would show.
static __attribute__((noinline)) void
tile1(const uint8_t *a, int64_t stride, const int8_t *b, int64_t k_count, int32_t *acc) {
    (void)stride;
    enum { STEPS = 6 / VECTORS };
    vi c[STEPS][VECTORS];
#pragma GCC unroll 3
    for (int s = 0; s < STEPS; s++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) c[s][v] = vi_set(0);
    int64_t k = 0;
    for (; k + STEPS * GROUP <= k_count; k += STEPS * GROUP, b += STEPS * GROUP * NR) {
#pragma GCC unroll 3
        for (int s = 0; s < STEPS; s++) {
            vi codes = vi_codes(a + k + s * GROUP);
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++)
                c[s][v] = vi_dot4(c[s][v], codes, vi_load((const int32_t *)(const void *)(b + s * GROUP * NR + 4 * VL * v)));
        }
    }
    for (; k < k_count; k += GROUP, b += GROUP * NR) {
        vi codes = vi_codes(a + k);
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++)
            c[0][v] = vi_dot4(c[0][v], codes, vi_load((const int32_t *)(const void *)(b + 4 * VL * v)));
    }
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; v++) {
        vi sum = c[0][v];
#pragma GCC unroll 3
        for (int s = 1; s < STEPS; s++) sum = vi_add(sum, c[s][v]);
        vi_store(acc + v * VL, sum);
    }
}

#define TILE(rows)                                                                                                     \
    static __attribute__((noinline)) void tile##rows(const uint8_t *a, int64_t stride, const int8_t *b,                \
                                                     int64_t k_count, int32_t *acc) {                                  \
        tile(rows, a, stride, b, k_count, acc);                                                                        \
    }
TILE(2)
TILE(3)
TILE(4)
#if QRT_TILE_ROWS == 8
TILE(5)
TILE(6)
TILE(7)
TILE(8)
#endif

typedef void (*tile_fn)(const uint8_t *a, int64_t stride, const int8_t *b, int64_t k_count, int32_t *acc);
static const tile_fn tiles[TILE_ROWS + 1] = {
    NULL, tile1, tile2, tile3, tile4,
#if QRT_TILE_ROWS == 8
    tile5, tile6, tile7, tile8,
#endif
};

static void dot(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int64_t k_first, int64_t k_count,
                int32_t *acc) {
    const int8_t *b = (const int8_t *)w->panels + panel * w->panel_bytes + k_first * NR;
    const uint8_t *a = (const uint8_t *)block->a + k_first;
    for (int r = 0; r < block->num_rows; r += TILE_ROWS) {
        int rows = block->num_rows - r < TILE_ROWS ? block->num_rows - r : TILE_ROWS;
        tiles[rows](a + r * block->a_stride_bytes, block->a_stride_bytes, b, k_count, acc + r * NR);
    }
}

/// acc[rows][NR] of the first `vectors` of a panel; all but `k_count` are constants where it is inlined.
ALWAYS_INLINE void narrow_tile(const int rows, const int vectors, const uint8_t *a, int64_t stride, const int8_t *b, int64_t k_count,
                               int32_t *acc) {
    vi c[2 * TILE_ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) c[r][v] = vi_set(0);
    for (int64_t k = 0; k < k_count; k += GROUP, b += GROUP * NR) {
        vi w[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) w[v] = vi_load((const int32_t *)(const void *)(b + 4 * VL * v));
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            vi codes = vi_codes(a + r * stride + k);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) c[r][v] = vi_dot4(c[r][v], codes, w[v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) vi_store(acc + r * NR + v * VL, c[r][v]);
}

/// As many rows as keep the adders busy, then one by one.
#define NARROW(rows, vectors)                                                                                          \
    static __attribute__((noinline)) void narrow_##rows##_##vectors(const uint8_t *a, int64_t stride, const int8_t *b, \
                                                                    int64_t k_count, int32_t *acc) {                   \
        narrow_tile(rows, vectors, a, stride, b, k_count, acc);                                                        \
    }
NARROW(1, 1)
NARROW(1, 2)
#if QRT_TILE_ROWS == 8
NARROW(8, 2)
NARROW(16, 1)
static const tile_fn whole_narrow[] = {NULL, narrow_16_1, narrow_8_2};
#else
NARROW(4, 2)
NARROW(8, 1)
static const tile_fn whole_narrow[] = {NULL, narrow_8_1, narrow_4_2};
#endif
static const tile_fn single_narrow[] = {NULL, narrow_1_1, narrow_1_2};

/// So many rows by themselves take no longer than a tile of all columns: each is one chain of sums.
enum { MOST_SINGLES = 2 };

static inline int64_t vectors_left(const qrt_q8_weights *w, int64_t panel) { return (w->base.n - panel * NR + VL - 1) / VL; }

/// The last panel may have fewer vectors of columns.
static void sums_of_columns(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int32_t *acc) {
    const int64_t vectors = vectors_left(w, panel), stride = block->a_stride_bytes;
    if (vectors >= VECTORS) {
        dot(w, block, panel, 0, w->k_padded, acc);
        return;
    }
    const int8_t *b = (const int8_t *)w->panels + panel * w->panel_bytes;
    const uint8_t *a = block->a;
    const int rows = block->num_rows, step = vectors == 1 ? 2 * TILE_ROWS : TILE_ROWS;
    int r = 0;
    for (; r + step <= rows; r += step) whole_narrow[vectors](a + r * stride, stride, b, w->k_padded, acc + r * NR);
    while (rows - r > MOST_SINGLES) {
        const int count = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
        tiles[count](a + r * stride, stride, b, w->k_padded, acc + r * NR);
        r += count;
    }
    for (; r < rows; r++) single_narrow[vectors](a + r * stride, stride, b, w->k_padded, acc + r * NR);
}

/// c[rows][VECTORS] += windows · the first `vectors` of a panel; `rows` and `vectors` are constants where it is inlined.
ALWAYS_INLINE void add_windows(const int rows, const int vectors, const uint8_t *codes, const qrt_q8_windows *windows, const int8_t *b,
                               vi c[2 * TILE_ROWS][VECTORS]) {
    const int64_t step = windows->step_bytes, piece_bytes = windows->piece_bytes, num_pieces = windows->num_pieces;
    const int64_t ahead_bytes = num_pieces * piece_bytes * NR;
    const int64_t *places = windows->places;
    for (int64_t p = 0; p < num_pieces; p++) {
        const uint8_t *a = codes + places[p];
        for (int64_t k = 0; k < piece_bytes; k += GROUP, b += GROUP * NR) {
            vi w[VECTORS];
            if (rows >= FETCHING_ROWS && vectors == VECTORS)
                for (int line = 0; line < GROUP * NR; line += CACHE_LINE) __builtin_prefetch(b + ahead_bytes + line, 0, 2);
#pragma GCC unroll 3
            for (int v = 0; v < vectors; v++) w[v] = vi_load((const int32_t *)(const void *)(b + 4 * VL * v));
            __asm__("" ::: "memory");  // as in add_products
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                vi group = vi_codes(a + r * step + k);
#pragma GCC unroll 3
                for (int v = 0; v < vectors; v++) c[r][v] = vi_dot4(c[r][v], group, w[v]);
            }
        }
    }
}

/// acc[rows][NR]
ALWAYS_INLINE void window_tile(const int rows, const int vectors, const uint8_t *codes, const qrt_q8_windows *windows, const int8_t *b,
                               int32_t *acc) {
    vi c[2 * TILE_ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) c[r][v] = vi_set(0);
    add_windows(rows, vectors, codes, windows, b, c);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) vi_store(acc + r * NR + v * VL, c[r][v]);
}

typedef void (*window_fn)(const uint8_t *codes, const qrt_q8_windows *windows, const int8_t *b, int32_t *acc);

#define WINDOWS(rows, vectors)                                                                                                  \
    static __attribute__((noinline)) void windows_##rows##_##vectors(const uint8_t *codes, const qrt_q8_windows *windows,       \
                                                                     const int8_t *b, int32_t *acc) {                           \
        window_tile(rows, vectors, codes, windows, b, acc);                                                                     \
    }
#define ALL_VECTORS(rows)                                                                                                       \
    static __attribute__((noinline)) void windows_##rows(const uint8_t *codes, const qrt_q8_windows *windows, const int8_t *b,  \
                                                         int32_t *acc) {                                                        \
        window_tile(rows, VECTORS, codes, windows, b, acc);                                                                     \
    }
ALL_VECTORS(1)
ALL_VECTORS(2)
ALL_VECTORS(3)
ALL_VECTORS(4)
#if QRT_TILE_ROWS == 8
ALL_VECTORS(5)
ALL_VECTORS(6)
ALL_VECTORS(7)
ALL_VECTORS(8)
WINDOWS(8, 2)
WINDOWS(16, 1)
WINDOWS(8, 1)
static const window_fn narrow_windows[] = {NULL, windows_8_1, windows_8_2}, most_narrow_windows = windows_16_1;
#else
WINDOWS(4, 2)
WINDOWS(8, 1)
WINDOWS(4, 1)
static const window_fn narrow_windows[] = {NULL, windows_4_1, windows_4_2}, most_narrow_windows = windows_8_1;
#endif
static const window_fn all_windows[TILE_ROWS + 1] = {
    NULL, windows_1, windows_2, windows_3, windows_4,
#if QRT_TILE_ROWS == 8
    windows_5, windows_6, windows_7, windows_8,
#endif
};

/// At least TILE_ROWS windows against a panel that has fewer vectors of columns. The last tile may do some of them again.
static void narrow_window_sums(const qrt_q8_windows *windows, int64_t vectors, const int8_t *b, int32_t *acc) {
    const int64_t step = windows->step_bytes;
    const int all = windows->num_windows;
    int r = 0;
    for (; vectors == 1 && r + 2 * TILE_ROWS <= all; r += 2 * TILE_ROWS) most_narrow_windows(windows->codes + r * step, windows, b, acc + r * NR);
    for (; r < all; r += TILE_ROWS) {
        if (r > all - TILE_ROWS) r = all - TILE_ROWS;
        narrow_windows[vectors](windows->codes + r * step, windows, b, acc + r * NR);
    }
}

static void window_sums(const qrt_q8_weights *w, const qrt_q8_windows *windows, int64_t panel, int32_t *acc) {
    const int8_t *b = (const int8_t *)w->panels + panel * w->panel_bytes;
    const int64_t vectors = vectors_left(w, panel), step = windows->step_bytes;
    const int all = windows->num_windows;
    if (vectors < VECTORS && all >= TILE_ROWS) {
        narrow_window_sums(windows, vectors, b, acc);
        return;
    }
    for (int r = 0; r < all;) {
        // Two tiles of much the same height rather than a full one and a sliver.
        const int left = all - r, rows = left <= TILE_ROWS ? left : left < 2 * TILE_ROWS ? (left + 1) / 2 : TILE_ROWS;
        all_windows[rows](windows->codes + r * step, windows, b, acc + r * NR);
        r += rows;
    }
}

#ifdef VI_SATURATED_BYTES
#include "window_codes.inc.h"
#else
#define WINDOW_CODES NULL
#endif

typedef void (*tile_beside_fn)(const uint8_t *a, int64_t stride, const int8_t *b, const qrt_q8_weights *w,
                               const qrt_q8_block *block, const pending_tile *before, int32_t *acc);

#ifdef VF_LOOKUP_SIZE
/// A tile of all rows and, a vector at a time amid its products, the epilogue of the tile before, of which all columns
/// exist: products use half the vector units of a core, and an epilogue by itself leaves those idle.
ALWAYS_INLINE void tile_beside(const int activation, const uint8_t *a, int64_t stride, const int8_t *b,
                               const qrt_q8_weights *w, const qrt_q8_block *block, const pending_tile *before,
                               int32_t *acc) {
    const int vectors = before->rows * VECTORS;
    const qrt_epilogue *e = &block->epilogue;
    const int64_t k = w->k_padded, ahead_bytes = k * NR, step = k / GROUP / vectors * GROUP;
    vi c[TILE_ROWS][VECTORS];
    clear(TILE_ROWS, c);
    for (int i = 0; i < vectors; i++, a += step, b += step * NR) {
        add_products(TILE_ROWS, a, stride, b, ahead_bytes, step, c);
        int r = before->first + i / VECTORS;
        int64_t column = before->panel * NR + i % VECTORS * VL, place = qrt_q8_column(block, column);
        const qrt_q8_row *row = block->rows + r;
        vi zero_point = vi_set(row->zero_point - CODE_OFFSET);
        vi t = vi_sub(vi_load(before->acc + i * VL), vi_mul(zero_point, vi_load(w->col_sums + column)));
        vf x = vf_mul(vi_to_vf(t), vf_mul(vf_set(row->scale), vf_load(w->scales + column)));
        if (w->bias) x = vf_add(x, vf_load(w->bias + column));
        if (e->addend) x = vf_add(x, vf_load(e->addend + r * e->addend_stride_elems + place));
        x = activated(x, activation, vf_set(block->low), vf_set(block->high));
        if (e->residual) x = vf_add(x, vf_load(e->residual + r * e->residual_stride_elems + place));
        vf_store(block->y + r * block->ldy_elems + place, x);
    }
    add_products(TILE_ROWS, a, stride, b, ahead_bytes, k - step * vectors, c);
    store(TILE_ROWS, c, acc);
}

#define TILE_BESIDE(name, activation)                                                                                  \
    static __attribute__((noinline)) void tile_beside_##name(                                                          \
        const uint8_t *a, int64_t stride, const int8_t *b, const qrt_q8_weights *w, const qrt_q8_block *block,         \
        const pending_tile *before, int32_t *acc) {                                                                    \
        tile_beside(activation, a, stride, b, w, block, before, acc);                                                  \
    }
TILE_BESIDE(none, QRT_ACT_NONE)
TILE_BESIDE(relu, QRT_ACT_RELU)
TILE_BESIDE(gelu, QRT_ACT_GELU)
TILE_BESIDE(clip, CLIP)

/// For other activations a tile leaves too few registers.
static const tile_beside_fn tiles_beside[CLIP + 1] = {
    [QRT_ACT_NONE] = tile_beside_none, [QRT_ACT_RELU] = tile_beside_relu, [QRT_ACT_GELU] = tile_beside_gelu, [CLIP] = tile_beside_clip,
};
#else
static const tile_beside_fn tiles_beside[CLIP + 1] = {NULL};
#endif

static void finish_pending(const qrt_q8_weights *w, const qrt_q8_block *block, const pending_tile *sums) {
    finish_tile(w, block, sums->panel, sums->first, sums->rows, sums->acc);
}

/// Amid the few products of shorter sums an epilogue takes longer than by itself.
enum { LEAST_BESIDE = 256 };

enum { NARROW_ROWS = 2 * TILE_ROWS };

/// Many rows against a panel that has fewer vectors of columns.
static void multiply_narrow(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel) {
    for (int r = 0; r < block->num_rows; r += NARROW_ROWS) {
        int32_t acc[NARROW_ROWS * NR];
        qrt_q8_block rows = *block;
        rows.a = (const uint8_t *)block->a + r * block->a_stride_bytes;
        rows.num_rows = block->num_rows - r < NARROW_ROWS ? block->num_rows - r : NARROW_ROWS;
        sums_of_columns(w, &rows, panel, acc);
        finish_tile(w, block, panel, r, rows.num_rows, acc);
    }
}

static void multiply_rows(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    int64_t stride = block->a_stride_bytes;
    if (last > first && block->num_rows >= NARROW_ROWS && vectors_left(w, last - 1) < VECTORS) multiply_narrow(w, block, --last);
    tile_beside_fn beside = w->zero_points || w->k_padded < LEAST_BESIDE ? NULL : tiles_beside[activation_of(block)];
    bool is_far = !beside && block->num_rows * block->ldy_elems >= FAR_FLOATS;
    pending_tile pair[2], *sums = pair, *before = NULL;
    for (int64_t panel = first; panel < last; panel++) {
        const int8_t *b = (const int8_t *)w->panels + panel * w->panel_bytes;
        for (int r = 0; r < block->num_rows; r += sums->rows) {
            int left = block->num_rows - r;
            // Two tiles of much the same height rather than a full one and a sliver.
            int rows = left <= TILE_ROWS ? left : left < 2 * TILE_ROWS ? (left + 1) / 2 : TILE_ROWS;
            for (int i = r; is_far && i < r + rows; i++)
                for (int j = 0; j < NR; j += CACHE_LINE / (int)sizeof(float))
                    __builtin_prefetch(block->y + i * block->ldy_elems + qrt_q8_column(block, panel * NR + j), 1, 2);
            sums = sums == pair ? pair + 1 : pair;
            sums->panel = panel;
            sums->first = r;
            sums->rows = rows;
            const uint8_t *a = (const uint8_t *)block->a + r * stride;
            if (before && rows == TILE_ROWS) {
                beside(a, stride, b, w, block, before, sums->acc);
            } else {
                if (before) finish_pending(w, block, before);
                tiles[rows](a, stride, b, w->k_padded, sums->acc);
            }
            before = beside && (panel + 1) * NR <= w->base.n ? sums : NULL;
            if (!before) finish_pending(w, block, sums);
        }
    }
    if (before) finish_pending(w, block, before);
}

static const qrt_gemm_q8 dot4_gemm_q8 = {
    .mr = MR, .nr = NR, .kr = KR, .item_bytes = 1,
        .block_rows = QRT_Q8_BLOCK_ROWS, .block_bytes = QRT_Q8_BLOCK_BYTES,
    .codes = {range, quantize, pack_codes, NULL}, .panel_bytes = panel_bytes, .pack_panel = pack_panel,
    .unpack_panel = unpack_panel,
    .multiply = multiply_rows, .dot = dot, .sums = sums_of_columns, .window_sums = window_sums, .window_codes = WINDOW_CODES, .finish = finish, .takes_codes = CODE_OFFSET == 0,
};
