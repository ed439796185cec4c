/// Products with codes of activations in clusters (gemm_clusters.h) over the vocabulary of simd_*.h, after activation.inc.h and
/// nbits_unpack.inc.h, with
///
///     PANELS                            side by side in a tile, where they share broadcast activations
///     CODE_OFFSET                       what add_products takes off codes of activations
///     vi less(vi u, vi zero_points)     bytes u − zero point, modulo 256
///     vi add_weights(vi sums, vi w)     the four w of a lane added to its sum
///     void add_products(bool wide, bool alone, int rows, int vectors, int64_t fours, const uint8_t *a, int64_t a_stride,
///                       const int8_t *b, vi sums[TILE_ROWS][VECTORS])
///                                       products of so many fours; b: `vectors` of w for each of them; `wide`: w may be all of int8;
///                                       `alone`: the w themselves too, to sums[rows]
///
/// For each few panels weights become bytes w = u − zero point in scratch, from where all rows of a block are multiplied by them.
/// With a' = a − CODE_OFFSET sums begin with what a' leaves out, of which a row or two add up Σ w themselves:
///
///     Σ (a − zero_point) · w  =  Σ a' · w  +  (CODE_OFFSET − zero_point) · Σ w

/// Of codes, as in gemm_nbits_q8.inc.h.
enum { PREFETCH_BYTES = 4096, LONE_ROWS = 2 };

/// A strip of weights: [k / 4][columns][4], and where sums begin: [clusters][columns], `columns` being those of its panels.
typedef struct {
    int8_t *weights;
    int32_t *starts;
} strip;

/// Whole steps are unpacked.
static inline int64_t strip_k(const qrt_cluster_weights *w) {
    return (w->w.base.k + QRT_NBITS_MAX_STEP - 1) / QRT_NBITS_MAX_STEP * QRT_NBITS_MAX_STEP;
}

static size_t scratch_bytes(const qrt_cluster_weights *w) {
    return (size_t)(PANELS * NR * (strip_k(w) + w->num_clusters * (int64_t)sizeof(int32_t)));
}

ALWAYS_INLINE void unpack_panels(const int kind, const qrt_cluster_weights *w, int64_t panel, int panels, int8_t *weights) {
    const int quads = qrt_nbits_quads(kind);
    const int64_t steps = (w->w.base.k + 4 * quads - 1) / (4 * quads), four_bytes = 4 * NR * panels;
    for (int p = 0; p < panels; p++)
        for (int v = 0; v < PANEL_VECTORS; v++) {
            const vi zeros = vi_mul(vi_load_bytes(w->weight_zeros + (panel + p) * NR + v * VL), vi_set(0x01010101));
            const uint8_t *from = qrt_nbits_codes(&w->w, panel + p, 0);
            int8_t *to = weights + 4 * (p * NR + v * VL);
            for (int64_t s = 0; s < steps; s++, from += STEP_BYTES(kind), to += quads * four_bytes) {
                __builtin_prefetch(from + PREFETCH_BYTES, 0, 3);
                const step_codes codes = load_step(kind, from, v * VL);
#pragma GCC unroll 4
                for (int q = 0; q < quads; q++)
                    vi_store((int32_t *)(void *)(to + q * four_bytes), less(unpack(kind, &codes, q, zeros), zeros));
            }
        }
}

/// `starts` are left out where rows add up weights themselves.
static __attribute__((noinline)) void fill_strip(const qrt_cluster_weights *w, int64_t panel, int panels, bool has_starts, const strip *to) {
    switch (w->kind) {
    case QRT_NBITS_2: unpack_panels(QRT_NBITS_2, w, panel, panels, to->weights); break;
    case QRT_NBITS_3: unpack_panels(QRT_NBITS_3, w, panel, panels, to->weights); break;
    case QRT_NBITS_4: unpack_panels(QRT_NBITS_4, w, panel, panels, to->weights); break;
    default: unpack_panels(QRT_NBITS_8, w, panel, panels, to->weights);
    }
    const int64_t columns = (int64_t)NR * panels;
    const int8_t *b = to->weights;
    int32_t *start = to->starts;
    for (int64_t c = 0; has_starts && c < w->num_clusters; c++, start += columns) {
        const vi offset = vi_set(CODE_OFFSET - w->zero_points[c]);
        for (int64_t j = 0; j < columns; j += VL) {
            vi sums = vi_set(0);
            for (int64_t i = 0; i < w->fours[c]; i++) sums = add_weights(sums, vi_load((const int32_t *)(const void *)(b + 4 * (i * columns + j))));
            vi_store(start + j, vi_mul(sums, offset));
        }
        b += 4 * columns * w->fours[c];
    }
}

// -------------------------------------------------------------------------------------------- tiles

/// Totals of `rows` rows and all columns of the strip; all but w, from, a and its stride are constants where it is inlined. Rows that
/// are `alone` add up weights themselves.
ALWAYS_INLINE void tile(const bool wide, const bool alone, const int rows, const int panels, const qrt_cluster_weights *w, const strip *from,
                        const uint8_t *a, int64_t a_stride, float *totals) {
    const int vectors = panels * PANEL_VECTORS;
    const int8_t *b = from->weights;
    const int32_t *start = from->starts;
    vf total[TILE_ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) total[r][v] = vf_zero();
    for (int64_t c = 0; c < w->num_clusters; c++, start += NR * panels) {
        const int64_t fours = w->fours[c];
        const vf scale = vf_set(w->scales[c]);
        vi sums[TILE_ROWS][VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            sums[0][v] = alone ? vi_set(0) : vi_load(start + v * VL);
#pragma GCC unroll 8
            for (int r = 1; r < rows; r++) sums[r][v] = sums[0][v];
        }
        if (alone)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sums[rows][v] = vi_set(0);
        add_products(wide, alone, rows, vectors, fours, a, a_stride, b, sums);
        if (alone)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                const vi offset = vi_mul(sums[rows][v], vi_set(CODE_OFFSET - w->zero_points[c]));
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) sums[r][v] = vi_add(sums[r][v], offset);
            }
        a += 4 * fours;
        b += 4 * fours * NR * panels;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) total[r][v] = vf_add(total[r][v], vf_mul(vi_to_vf(sums[r][v]), scale));
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) vf_store(totals + r * PANELS * NR + v * VL, total[r][v]);
}

typedef void (*tile_fn)(const qrt_cluster_weights *w, const strip *from, const uint8_t *a, int64_t a_stride, float *totals);

#define TILE(name, is_wide, is_alone, rows, panels)                                                                    \
    static __attribute__((noinline)) void tile_##name##_##rows##_##panels(const qrt_cluster_weights *w, const strip *from, \
                                                                          const uint8_t *a, int64_t a_stride, float *totals) { \
        tile(is_wide, is_alone, rows, panels, w, from, a, a_stride, totals);                                           \
    }
#define TILES_OF(name, is_wide, panels)                                                                                \
    TILE(name, is_wide, false, 1, panels) TILE(name, is_wide, false, 2, panels) TILE(name, is_wide, false, 3, panels)  \
    TILE(name, is_wide, false, 4, panels) TILE(name##_alone, is_wide, true, 1, panels) TILE(name##_alone, is_wide, true, 2, panels)
#define NAMES_OF(name, panels)                                                                                         \
    {{tile_##name##_1_##panels, tile_##name##_2_##panels, tile_##name##_3_##panels, tile_##name##_4_##panels},         \
     {tile_##name##_alone_1_##panels, tile_##name##_alone_2_##panels}}

#if PANELS == 3
#define TILES(name, is_wide) TILES_OF(name, is_wide, 1) TILES_OF(name, is_wide, 2) TILES_OF(name, is_wide, 3)
#define NAMES(name) {NAMES_OF(name, 1), NAMES_OF(name, 2), NAMES_OF(name, 3)}
#else
#define TILES(name, is_wide) TILES_OF(name, is_wide, 1)
#define NAMES(name) {NAMES_OF(name, 1)}
#endif

/// By whether they are wide, how many panels there are, whether they are alone, and how many rows.
#if HAS_NARROW
TILES(narrow, false) TILES(wide, true)
static const tile_fn tiles[2][PANELS][2][TILE_ROWS] = {NAMES(narrow), NAMES(wide)};
#else
TILES(any, true)
static const tile_fn tiles[1][PANELS][2][TILE_ROWS] = {NAMES(any)};
#endif

// ----------------------------------------------------------------------------------------- epilogue

ALWAYS_INLINE void finish_with(const qrt_activation activation, const qrt_cluster_weights *w, const qrt_q8_block *block,
                               int64_t panel, int panels, int first, int rows, const float *totals) {
    const int64_t column = panel * NR, left = w->w.base.n - column, residual_stride = block->epilogue.residual_stride_elems;
    const int64_t columns = left < panels * NR ? left : panels * NR;
    const float *residual = block->epilogue.residual, *bias = w->w.bias ? w->w.bias + column : NULL;
    float *y = block->y + first * block->ldy_elems + column;
    if (residual) residual += first * residual_stride + column;
    for (int64_t j = 0; j < columns; j += VL) {
        const int64_t count = columns - j < VL ? columns - j : VL;
        const vf scale = w->w.half_scales ? vf_load_f16(w->w.half_scales + column + j) : vf_load(w->w.scales + column + j);
        for (int r = 0; r < rows; r++) {
            vf x = vf_mul(vf_load(totals + r * PANELS * NR + j), scale);
            if (bias) x = vf_add(x, vf_load(bias + j));
            x = vf_activate(x, activation);
            if (residual) x = vf_add(x, vf_load_n(residual + r * residual_stride + j, count));
            if (count == VL) vf_store(y + r * block->ldy_elems + j, x);  // as in gemm_nbits_q8.inc.h
            else vf_store_n(y + r * block->ldy_elems + j, x, count);
        }
    }
}

#define FINISH(activation)                                                                                             \
    case activation: finish_with(activation, w, block, panel, panels, first, rows, totals); return;

static __attribute__((noinline)) void finish_tile(const qrt_cluster_weights *w, const qrt_q8_block *block, int64_t panel, int panels,
                                                  int first, int rows, const float *totals) {
    switch (block->epilogue.activation) {
        FINISH(QRT_ACT_NONE) FINISH(QRT_ACT_RELU) FINISH(QRT_ACT_GELU) FINISH(QRT_ACT_GELU_TANH)
        FINISH(QRT_ACT_SILU) FINISH(QRT_ACT_SIGMOID) FINISH(QRT_ACT_TANH)
    }
}

static void multiply(const qrt_cluster_weights *w, const qrt_q8_block *block, int64_t first, int64_t last, void *scratch) {
    const strip to = {.weights = scratch, .starts = (int32_t *)(void *)((int8_t *)scratch + PANELS * NR * strip_k(w))};
    const bool alone = block->num_rows <= LONE_ROWS;
    for (int64_t panel = first; panel < last; panel += PANELS) {
        const int panels = last - panel < PANELS ? (int)(last - panel) : PANELS;
        const tile_fn *of_rows = tiles[HAS_NARROW && w->kind == QRT_NBITS_8][panels - 1][alone];
        fill_strip(w, panel, panels, !alone, &to);
        for (int r = 0, rows; r < block->num_rows; r += rows) {
            rows = block->num_rows - r < TILE_ROWS ? block->num_rows - r : TILE_ROWS;
            float totals[TILE_ROWS * PANELS * NR];
            of_rows[rows - 1](w, &to, (const uint8_t *)block->a + r * block->a_stride_bytes, block->a_stride_bytes, totals);
            finish_tile(w, block, panel, panels, r, rows, totals);
        }
    }
}

static const qrt_gemm_clusters clusters = {.panels = PANELS, .scratch_bytes = scratch_bytes, .multiply = multiply};
