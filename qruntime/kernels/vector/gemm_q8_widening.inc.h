/// int8 GEMM whose codes and weights are multiplied as int16. Over gemm_q8.inc.h; define MR, NR and KR before, how panels are packed, and
///
///     tile(rows, a, stride, b, k_count, acc)   acc[rows][NR] = codes a, `stride` apart, times a panel; `rows` is a constant

#define TILE(rows)                                                                                                     \
    static __attribute__((noinline)) void tile##rows(const int16_t *a, int64_t stride, const int8_t *b,                \
                                                     int64_t k_count, int32_t *acc) {                                  \
        tile(rows, a, stride, b, k_count, acc);                                                                        \
    }
QRT_TILES

typedef void (*tile_fn)(const int16_t *a, int64_t stride, const int8_t *b, int64_t k_count, int32_t *acc);
#undef TILE
#define TILE(rows) tile##rows,
static const tile_fn tiles[MR + 1] = {NULL, QRT_TILES};

static void dot(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int64_t k_first, int64_t k_count,
                int32_t *acc) {
    const int8_t *b = (const int8_t *)w->panels + panel * w->panel_bytes + k_first * NR;
    int64_t stride = block->a_stride_bytes / (int64_t)sizeof(int16_t);
    const int16_t *a = (const int16_t *)block->a + k_first;
    for (int r = 0; r < block->num_rows; r += MR) {
        int rows = block->num_rows - r < MR ? block->num_rows - r : MR;
        tiles[rows](a + r * stride, stride, b, k_count, acc + r * NR);
    }
}

static void multiply(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    int64_t stride = block->a_stride_bytes / (int64_t)sizeof(int16_t);
    for (int64_t panel = first; panel < last; panel++) {
        const int8_t *b = (const int8_t *)w->panels + panel * w->panel_bytes;
        for (int r = 0; r < block->num_rows;) {
            int left = block->num_rows - r;
            // Two tiles of much the same height rather than a full one and a sliver.
            int rows = left <= MR ? left : left < 2 * MR ? (left + 1) / 2 : MR;
            int32_t acc[MR * NR];
            tiles[rows]((const int16_t *)block->a + r * stride, stride, b, w->k_padded, acc);
            finish_tile(w, block, panel, r, rows, acc);
            r += rows;
        }
    }
}

#define WIDENING_GEMM_Q8                                                                                               \
    .mr = MR, .nr = NR, .kr = KR, .item_bytes = sizeof(int16_t), .block_rows = QRT_Q8_BLOCK_ROWS,                      \
    .block_bytes = QRT_Q8_BLOCK_BYTES, .codes = {range, quantize, pack_codes, NULL}, .panel_bytes = panel_bytes,       \
    .pack_panel = pack_panel, .unpack_panel = unpack_panel, .multiply = multiply, .dot = dot, .finish = finish
