/// Low-bit GEMM with quantized activations over the vocabulary of simd_*.h, after activation.inc.h, with
///
///     TILE_ROWS                 4 or 6
///     PANELS                    side by side in a tile, where they share broadcast activations
///     WIDE_BYTES, WIDE_OFFSET   the bytes of four activations that add_wide reads, and what it takes off u
///     IS_EXACT                  whether add_narrow adds to int32
///     vi add_narrow(vi sums, vi u, const void *a)   four u < 32 a lane times four activations
///     vi widened(vi sums)                           sums of add_narrow as int32
///     MOST_PRODUCTS(most)                           how often add_narrow may be called in between, when u ≤ most
///     vi add_wide(vi sums, vi u, const void *a)     four u < 256 a lane, to int32
///     vi add_short(vi sums, vi w, vi factor)        one w · factor a lane, both of 16 bits
///     vi short_factor(int32_t x)                    x as it wants it, in every lane
///
/// Activations are a − 128, so that they are signed and u need not be:
///
///     Σ (qa − zero_point_a) · (u − z)  =  Σ (qa − 128) · u  −  z · Σ (qa − 128)  −  (zero_point_a − 128) · Σ (u − z)
///
/// Sums begin with the second part where all z are one; the sums of the third were made while the weights were packed.

#include "nbits_unpack.inc.h"

/// Some hundred cycles of one row. Two cores of a Zen 5 guest, November 2026: half or twice as much is no better.
enum { PREFETCH_BYTES = 4096, GROUPS_AHEAD = 8 };

/// Weights along K of the groups that have code of their own, without loops.
enum { SHORT_GROUP = 32 };

enum { NR = QRT_NBITS_NR, PANEL_VECTORS = NR / VL, VECTORS = PANELS * PANEL_VECTORS, CODE_OFFSET = 128 };

#define IS_WIDE(kind) ((kind) == QRT_NBITS_8 || (kind) == QRT_NBITS_WIDE_TABLE)
#define QUAD_BYTES(kind) (IS_WIDE(kind) ? WIDE_BYTES : 4)

// -------------------------------------------------------------------------------------- activations

/// Codes are followed, for each group, by what its sums begin with, and by Σ (qa − 128).
static inline int32_t *row_starts(const qrt_nbits_q8_weights *w, const void *row) {
    return (int32_t *)((char *)row + qrt_nbits_q8_quads(w) * QUAD_BYTES(w->kind));
}

static int64_t row_bytes(const qrt_nbits_q8_weights *w) {
    return qrt_nbits_q8_quads(w) * QUAD_BYTES(w->kind) + 2 * w->w.num_groups * (int64_t)sizeof(int32_t);
}

/// A plain loop, which the compiler vectorizes.
static void pack_row(const qrt_nbits_q8_weights *w, const uint8_t *codes, void *row) {
    int8_t *out = row;
    int32_t *starts = row_starts(w, row), *sums = starts + w->w.num_groups;
    const int32_t centre = w->centre - (IS_WIDE(w->kind) ? WIDE_OFFSET : 0);
    for (int64_t g = 0; g < w->w.num_groups; g++) {
        int64_t count = qrt_nbits_depth(&w->w, g), padded = 4 * qrt_nbits_quads(w->kind) * qrt_nbits_q8_steps(w, g);
        int32_t sum = 0;
        for (int64_t i = 0; i < count; i++) {
            out[i] = (int8_t)(codes[i] - CODE_OFFSET);
            sum += out[i];
        }
        memset(out + count, 0, (size_t)(padded - count));
        starts[g] = -centre * sum;
        sums[g] = sum;
        codes += count;
        out += padded;
    }
}

// ------------------------------------------------------------------------------------------ weights

#define MOST_U(kind) ((kind) == QRT_NBITS_2 ? 3 : (kind) == QRT_NBITS_3 ? 7 : (kind) == QRT_NBITS_4 ? 15 : 31)

/// Chains of sums in a tile that hide the latency of a dot product, and the most that one sum is split into.
enum { CHAINS = 8, MOST_SPLIT = CHAINS / VECTORS };

#define FOR_SUMS(split)                                                                                                \
    _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)                                                             \
    _Pragma("GCC unroll 4") for (int v = 0; v < VECTORS; v++)                                                          \
    _Pragma("GCC unroll 4") for (int c = 0; c < (split); c++)

/// sums[rows][VECTORS][split] += products of `steps` steps; consecutive groups of four k go to the splits in turn. All but
/// pointers and strides are constants where it is inlined. From one panel to the next are `panel_stride` bytes.
ALWAYS_INLINE void add_steps(const int kind, const int rows, const int steps, const int split, const uint8_t *b,
                             int64_t panel_stride, int64_t ahead, const uint8_t *a, int64_t a_stride, vi table,
                             vi sums[TILE_ROWS][VECTORS][MOST_SPLIT]) {
    const int quads = qrt_nbits_quads(kind);
#pragma GCC unroll 8
    for (int s = 0; s < steps; s++, b += STEP_BYTES(kind), a += quads * QUAD_BYTES(kind)) {
        for (int p = 0; p < PANELS; p++) __builtin_prefetch(b + p * panel_stride + ahead, 0, 3);
        step_codes codes[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) codes[v] = load_step(kind, b + v / PANEL_VECTORS * panel_stride, v % PANEL_VECTORS * VL);
#pragma GCC unroll 4
        for (int q = 0; q < quads; q++) {
            vi u[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) u[v] = unpack(kind, &codes[v], q, table);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                const uint8_t *four = a + r * a_stride + q * QUAD_BYTES(kind);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++) {
                    vi *sum = &sums[r][v][(s * quads + q) % split];
                    *sum = IS_WIDE(kind) ? add_wide(*sum, u[v], four) : add_narrow(*sum, u[v], four);
                }
            }
        }
    }
}

/// sums[rows][VECTORS] += products of a group. Known steps need no split sums: the next group is independent of this one.
ALWAYS_INLINE void add_group(const int kind, const int rows, const int known_steps, int64_t steps, const uint8_t *b,
                             int64_t panel_stride, int64_t ahead, const uint8_t *a, int64_t a_stride, vi table,
                             vi sums[TILE_ROWS][VECTORS]) {
    const bool direct = IS_EXACT || IS_WIDE(kind);
    const int quads = qrt_nbits_quads(kind), step_bytes = STEP_BYTES(kind), step_quads = quads * QUAD_BYTES(kind);
    const int split = IS_EXACT && !known_steps && rows * VECTORS < CHAINS ? CHAINS / VECTORS / rows : 1;
    const int together = direct && known_steps ? known_steps : split > quads ? split / quads : 1;
    const int64_t most = direct ? INT64_MAX : MOST_PRODUCTS(MOST_U(kind)) / quads;
    while (steps > 0) {
        int64_t count = steps < most ? steps : most;
        steps -= count;
        vi partial[TILE_ROWS][VECTORS][MOST_SPLIT];
        FOR_SUMS(split) partial[r][v][c] = direct && c == 0 ? sums[r][v] : vi_set(0);
        for (; count >= together; count -= together, b += together * step_bytes, a += together * step_quads)
            add_steps(kind, rows, together, split, b, panel_stride, ahead, a, a_stride, table, partial);
        if (together > 1 && !known_steps)
            for (; count > 0; count--, b += step_bytes, a += step_quads)
                add_steps(kind, rows, 1, split, b, panel_stride, ahead, a, a_stride, table, partial);
        FOR_SUMS(1) sums[r][v] = direct ? partial[r][v][0] : vi_add(sums[r][v], widened(partial[r][v][0]));
        FOR_SUMS(split) if (c > 0) sums[r][v] = vi_add(sums[r][v], partial[r][v][c]);
    }
}

// -------------------------------------------------------------------------------------------- tiles

/// Weights on their way from memory, before a tile needs them: with one tile in a block those some way ahead, else a
/// share of the panels that come next.
typedef struct {
    int64_t first, last;         ///< groups whose counterparts are fetched
    bool near;
} fetching;

/// What a tile reads, from some group on.
typedef struct {
    const qrt_nbits_q8_weights *w;
    const fetching *fetch;
    const uint8_t *b, *end;      ///< codes of the first panel, and where they end
    int64_t panel_stride;        ///< in bytes from one panel to the next
    int64_t at, group_stride;    ///< scales and sums of the first panel, and from there to the next
    const uint8_t *a;
    int64_t a_stride, start_stride;
    const int32_t *starts;       ///< and with them Σ (qa − 128), num_groups further on
    const qrt_q8_row *row;
} place;

/// Fetches the counterparts of scales and sums of group g. Returns how many bytes ahead its codes are to be fetched; near the
/// end of a panel that is in the one behind those of this tile.
ALWAYS_INLINE int64_t fetch_group(const place *in, int64_t g) {
    const qrt_nbits_weights *w = &in->w->w;
    if (g < in->fetch->first || g >= in->fetch->last) return 0;
    int64_t bytes = PANELS * w->panel_bytes, groups = PANELS * w->num_groups;
    if (in->fetch->near) {
        bytes = PREFETCH_BYTES + (in->b + PREFETCH_BYTES < in->end ? 0 : (PANELS - 1) * w->panel_bytes);
        groups = GROUPS_AHEAD + (g + GROUPS_AHEAD < w->num_groups ? 0 : (PANELS - 1) * w->num_groups);
    }
    for (int p = 0; p < PANELS; p++) {
        const int64_t there = in->at + p * in->group_stride + groups * NR;
        if (w->half_scales) __builtin_prefetch(w->half_scales + there, 0, 3);
        else __builtin_prefetch(w->scales + there, 0, 3);
        if (in->w->short_sums) __builtin_prefetch(in->w->short_sums + there, 0, 3);
    }
    return bytes;
}

/// Sums begin with all that the products of codes do not say.
ALWAYS_INLINE void start_sums(const int rows, const bool are_short, const place *in, int64_t g, vi sums[TILE_ROWS][VECTORS]) {
    const qrt_nbits_q8_weights *w = in->w;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
        const int64_t here = in->at + v / PANEL_VECTORS * in->group_stride + v % PANEL_VECTORS * VL;
        const vi weights = are_short ? vi_load_i16(w->short_sums + here) : vi_load(w->sums + here);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const int32_t offset = CODE_OFFSET - in->row[r].zero_point;
            const vi start = vi_set(in->starts[r * in->start_stride + g]);
            sums[r][v] = are_short ? add_short(start, weights, short_factor(offset)) : vi_add(start, vi_mul(weights, vi_set(offset)));
        }
        if (!w->zero_points) continue;
        const vi zero_points = vi_load_bytes(w->zero_points + here);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const int32_t activations = in->starts[r * in->start_stride + w->w.num_groups + g];
            sums[r][v] = vi_sub(sums[r][v], vi_mul(zero_points, vi_set(activations)));
        }
    }
}

/// total[r][v] += float(t) · scale of groups g … last-1. `steps` are those of each of them where they are known, else 0.
ALWAYS_INLINE void add_groups(const int kind, const int rows, const int known_steps, place *in, int64_t g, int64_t last,
                              vf total[TILE_ROWS][VECTORS]) {
    const qrt_nbits_q8_weights *w = in->w;
    const vi table = IS_TABLE(kind) ? vi_table16(w->table) : vi_set(0);
    for (; g < last; g++, in->at += NR) {
        const int64_t steps = known_steps ? known_steps : qrt_nbits_q8_steps(w, g), ahead = fetch_group(in, g);
        vi sums[TILE_ROWS][VECTORS];
        if (known_steps || w->short_sums) start_sums(rows, true, in, g, sums);
        else start_sums(rows, false, in, g, sums);
        add_group(kind, rows, known_steps, steps, in->b, in->panel_stride, ahead, in->a, in->a_stride, table, sums);
        in->b += steps * STEP_BYTES(kind);
        in->a += steps * qrt_nbits_quads(kind) * QUAD_BYTES(kind);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            const int64_t here = in->at + v / PANEL_VECTORS * in->group_stride + v % PANEL_VECTORS * VL;
            const vf scales = w->w.half_scales ? vf_load_f16(w->w.half_scales + here) : vf_load(w->w.scales + here);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) total[r][v] = vf_add(total[r][v], vf_mul(vi_to_vf(sums[r][v]), scales));
        }
    }
}

/// totals[rows][PANELS · NR] of rows `first` … of the block; of panels up to last-1, an odd one beside itself.
ALWAYS_INLINE void tile(const int kind, const int rows, const qrt_nbits_q8_weights *w, const qrt_q8_block *block,
                        int64_t panel, int64_t last, int first, const fetching *fetch, float *totals) {
    const int64_t a_stride = block->a_stride_bytes, num_groups = w->w.num_groups;
    const bool beside = PANELS > 1 && panel + 1 < last;
    const uint8_t *b = w->w.codes + panel * w->w.panel_bytes, *a = (const uint8_t *)block->a + first * a_stride;
    place in = {
        .w = w, .fetch = fetch, .b = b, .end = b + w->w.panel_bytes, .panel_stride = beside ? w->w.panel_bytes : 0,
        .at = panel * num_groups * NR, .group_stride = beside ? num_groups * NR : 0,
        .a = a, .a_stride = a_stride, .start_stride = a_stride / (int64_t)sizeof(int32_t),
        .starts = row_starts(w, a), .row = block->rows + first,
    };
    vf total[TILE_ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) total[r][v] = vf_zero();
    const int short_steps = SHORT_GROUP / (4 * qrt_nbits_quads(kind));
    const int64_t short_groups = w->group_steps == short_steps && w->short_sums ? num_groups - 1 : 0;
    add_groups(kind, rows, short_steps, &in, 0, short_groups, total);
    add_groups(kind, rows, 0, &in, short_groups, num_groups, total);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) vf_store(totals + r * PANELS * NR + v * VL, total[r][v]);
}

typedef void (*tile_fn)(const qrt_nbits_q8_weights *w, const qrt_q8_block *block, int64_t panel, int64_t last, int first,
                        const fetching *fetch, float *totals);

#define TILE(kind, rows)                                                                                               \
    static __attribute__((noinline)) void tile_##kind##_##rows(const qrt_nbits_q8_weights *w,                          \
                                                               const qrt_q8_block *block, int64_t panel, int64_t last, \
                                                               int first, const fetching *fetch, float *totals) {      \
        tile(QRT_NBITS_##kind, rows, w, block, panel, last, first, fetch, totals);                                     \
    }
#if TILE_ROWS == 6
#define TILES(kind) TILE(kind, 1) TILE(kind, 2) TILE(kind, 3) TILE(kind, 4) TILE(kind, 6)
#define NAMES(kind) \
    {NULL, tile_##kind##_1, tile_##kind##_2, tile_##kind##_3, tile_##kind##_4, [6] = tile_##kind##_6}
#else
#define TILES(kind) TILE(kind, 1) TILE(kind, 2) TILE(kind, 3) TILE(kind, 4)
#define NAMES(kind) {NULL, tile_##kind##_1, tile_##kind##_2, tile_##kind##_3, tile_##kind##_4}
#endif

TILES(2) TILES(3) TILES(4) TILES(TABLE) TILES(8) TILES(WIDE_TABLE)

static const tile_fn tiles[QRT_NUM_NBITS_KINDS][TILE_ROWS + 1] = {
    [QRT_NBITS_2] = NAMES(2), [QRT_NBITS_3] = NAMES(3), [QRT_NBITS_4] = NAMES(4), [QRT_NBITS_TABLE] = NAMES(TABLE),
    [QRT_NBITS_8] = NAMES(8), [QRT_NBITS_WIDE_TABLE] = NAMES(WIDE_TABLE),
};

// ----------------------------------------------------------------------------------------- epilogue

ALWAYS_INLINE void finish_with(const qrt_activation activation, const qrt_nbits_q8_weights *w, const qrt_q8_block *block,
                               int64_t panel, int64_t last, int first, int rows, const float *totals) {
    const int64_t column = panel * NR, residual_stride = block->epilogue.residual_stride_elems;
    const int64_t end = w->w.base.n < last * NR ? w->w.base.n : last * NR;
    const int64_t columns = end - column < PANELS * NR ? end - column : PANELS * NR;
    float *y = block->y + first * block->ldy_elems + column;
    const float *residual = block->epilogue.residual, *bias = w->w.bias ? w->w.bias + column : NULL;
    if (residual) residual += first * residual_stride + column;
    for (int r = 0; r < rows; r++, totals += PANELS * NR, y += block->ldy_elems) {
        const vf scale = vf_set(block->rows[first + r].scale);
        for (int64_t j = 0; j < columns; j += VL) {
            const int64_t count = columns - j < VL ? columns - j : VL;
            vf x = vf_mul(vf_load(totals + j), scale);
            if (bias) x = vf_add(x, vf_load(bias + j));
            x = vf_activate(x, activation);
            if (residual) x = vf_add(x, vf_load_n(residual + j, count));
            if (count == VL) vf_store(y + j, x);  // one with a mask that misses the caches holds up all others on Zen 5
            else vf_store_n(y + j, x, count);
        }
        if (residual) residual += residual_stride;
    }
}

#define FINISH(activation)                                                                                             \
    case activation: finish_with(activation, w, block, panel, last, first, rows, totals); return;

static __attribute__((noinline)) void finish_tile(const qrt_nbits_q8_weights *w, const qrt_q8_block *block, int64_t panel,
                                                  int64_t last, int first, int rows, const float *totals) {
    switch (block->epilogue.activation) {
        FINISH(QRT_ACT_NONE) FINISH(QRT_ACT_RELU) FINISH(QRT_ACT_GELU) FINISH(QRT_ACT_GELU_TANH)
        FINISH(QRT_ACT_SILU) FINISH(QRT_ACT_SIGMOID) FINISH(QRT_ACT_TANH)
    }
}

/// What the end of the next tile reads and writes: stores that miss the caches hold up those of sums.
static inline void fetch_outputs(const qrt_q8_block *block, int64_t panel, int first) {
    const qrt_epilogue *epilogue = &block->epilogue;
    const int last = first + TILE_ROWS < block->num_rows ? first + TILE_ROWS : block->num_rows;
    for (int i = first; i < last; i++)
        for (int p = 0; p < PANELS; p++) {
            __builtin_prefetch(block->y + i * block->ldy_elems + (panel + p) * NR, 1, 3);
            if (epilogue->residual) __builtin_prefetch(epilogue->residual + i * epilogue->residual_stride_elems + (panel + p) * NR, 0, 3);
        }
}

static void multiply(const qrt_nbits_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    const bool near = block->num_rows <= TILE_ROWS;
    for (int64_t panel = first; panel < last; panel += PANELS)
        for (int r = 0, rows; r < block->num_rows; r += rows) {
            const int left = block->num_rows - r;
            rows = left >= TILE_ROWS ? TILE_ROWS : left > 4 ? 4 : left;
            float totals[TILE_ROWS * PANELS * NR];
            if (r + rows < block->num_rows) fetch_outputs(block, panel, r + rows);
            else fetch_outputs(block, panel + PANELS, 0);
            const fetching fetch = {r * w->w.num_groups / block->num_rows, (r + rows) * w->w.num_groups / block->num_rows, near};
            tiles[w->kind][rows](w, block, panel, last, r, &fetch, totals);
            finish_tile(w, block, panel, last, r, rows, totals);
        }
}

static const qrt_gemm_nbits_q8 nbits_q8 = {
    .mr = TILE_ROWS, .row_bytes = row_bytes, .pack_row = pack_row, .multiply = multiply,
};
