/// int8 GEMM from vpdpbusd, which adds four products to an int32 and loses nothing. Over the vocabulary of simd_*.h
/// and gemm_q8.inc.h, with NR = 3 · VL, MR, and
///
///     vi vi_dot4(vi acc, vi codes, vi weights)      unsigned · signed bytes
///     vi vi_codes(const uint8_t *a)                 four codes in every lane

enum { KR = 4, VECTORS = NR / VL };

static int64_t panel_bytes(int64_t k_padded) { return k_padded * NR; }

/// [k / 4][NR][4]
static bool pack_panel(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                       const int32_t *zero_points, void *panel) {
    (void)zero_points;
    int8_t *out = panel;
    int64_t i = 0;
    if (n == NR && col_stride_elems == 1)
        for (; i + KR <= k; i += KR, out += KR * NR) {
            const int8_t *row = w + i * row_stride_elems;
            for (int j = 0; j < NR; j++)
                for (int r = 0; r < KR; r++) out[j * KR + r] = row[r * row_stride_elems + j];
        }
    memset(out, 0, (size_t)((k - i + KR - 1) / KR * KR * NR));
    for (; i < k; i += KR, out += KR * NR) {
        int64_t rows = k - i < KR ? k - i : KR;
        for (int64_t j = 0; j < n; j++)
            for (int64_t r = 0; r < rows; r++)
                out[j * KR + r] = w[(i + r) * row_stride_elems + j * col_stride_elems];
    }
    return true;
}

/// acc[rows][NR], `rows` a constant where it is inlined.
static inline __attribute__((always_inline)) void
tile(const int rows, const uint8_t *a, int64_t stride, const int8_t *b, int64_t k_count, int32_t *acc) {
    vi c[MR][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) c[r][v] = vi_set(0);
    for (int64_t k = 0; k < k_count; k += KR, b += KR * NR) {
        vi w[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) w[v] = vi_load((const int32_t *)(const void *)(b + 4 * VL * v));
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            vi codes = vi_codes(a + r * stride + k);
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) c[r][v] = vi_dot4(c[r][v], codes, w[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) vi_store(acc + r * NR + v * VL, c[r][v]);
}

/// One row: sums of even and odd steps apart, so that six chains hide the latency that three would show.
static __attribute__((noinline)) void
tile1(const uint8_t *a, int64_t stride, const int8_t *b, int64_t k_count, int32_t *acc) {
    (void)stride;
    vi c[2][VECTORS];
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; v++) c[0][v] = c[1][v] = vi_set(0);
    int64_t k = 0;
    for (; k + 2 * KR <= k_count; k += 2 * KR, b += 2 * KR * NR) {
        vi even = vi_codes(a + k), odd = vi_codes(a + k + KR);
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) {
            c[0][v] = vi_dot4(c[0][v], even, vi_load((const int32_t *)(const void *)(b + 4 * VL * v)));
            c[1][v] = vi_dot4(c[1][v], odd, vi_load((const int32_t *)(const void *)(b + KR * NR + 4 * VL * v)));
        }
    }
    if (k < k_count) {
        vi codes = vi_codes(a + k);
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++)
            c[0][v] = vi_dot4(c[0][v], codes, vi_load((const int32_t *)(const void *)(b + 4 * VL * v)));
    }
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; v++) vi_store(acc + v * VL, vi_add(c[0][v], c[1][v]));
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
static const tile_fn tiles[MR + 1] = {
    NULL, tile1, tile2, tile3, tile4,
#if QRT_TILE_ROWS == 8
    tile5, tile6, tile7, tile8,
#endif
};

static void dot(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int64_t k_first, int64_t k_count,
                int32_t *acc) {
    const int8_t *b = (const int8_t *)w->panels + panel * w->panel_bytes + k_first * NR;
    const uint8_t *a = (const uint8_t *)block->a + k_first;
    for (int r = 0; r < block->num_rows; r += MR) {
        int rows = block->num_rows - r < MR ? block->num_rows - r : MR;
        tiles[rows](a + r * block->a_stride_bytes, block->a_stride_bytes, b, k_count, acc + r * NR);
    }
}

static void multiply(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    int64_t stride = block->a_stride_bytes;
    for (int64_t panel = first; panel < last; panel++) {
        const int8_t *b = (const int8_t *)w->panels + panel * w->panel_bytes;
        for (int r = 0; r < block->num_rows;) {
            int left = block->num_rows - r;
            // Two tiles of much the same height rather than a full one and a sliver.
            int rows = left <= MR ? left : left < 2 * MR ? (left + 1) / 2 : MR;
            int32_t acc[MR * NR];
            tiles[rows]((const uint8_t *)block->a + r * stride, stride, b, w->k_padded, acc);
            finish_tile(w, block, panel, r, rows, acc);
            r += rows;
        }
    }
}
