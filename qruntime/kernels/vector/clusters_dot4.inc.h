/// What gemm_clusters.inc.h asks for, of an instruction that adds four products of bytes to an int32 and loses nothing, with
///
///     vi four_codes(const uint8_t *a)                   four codes less CODE_OFFSET in every lane
///     vi add_four(vi sums, vi codes, vi w)              four products a lane; w is signed

#define HAS_NARROW 0

static inline vi add_weights(vi sums, vi w) { return add_four(sums, vi_set(0x01010101), w); }

ALWAYS_INLINE void add_products(const bool wide, const bool alone, const int rows, const int vectors, int64_t fours, const uint8_t *a,
                                int64_t a_stride, const int8_t *b, vi sums[TILE_ROWS][VECTORS]) {
    (void)wide;
    for (int64_t i = 0; i < fours; i++, a += 4, b += 4 * VL * vectors) {
        vi w[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) w[v] = vi_load((const int32_t *)(const void *)(b + 4 * VL * v));
        __asm__("" ::: "memory");  // as in gemm_q8_dot4.inc.h
        if (alone)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sums[rows][v] = add_weights(sums[rows][v], w[v]);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const vi codes = four_codes(a + r * a_stride);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sums[r][v] = add_four(sums[r][v], codes, w[v]);
        }
    }
}
