/// Products with codes of activations in clusters on AVX2: exact sums from vpmaddubsw, which saturates at int16.
///
/// Of weights of 4 bits and fewer, |w| ≤ 15, pairs of products with codes up to 255 are at most 7650, and four of them add up in int16.
/// Others are multiplied in 16 bits.
#include <math.h>
#include <string.h>

#include "../rungs.h"

#if defined(__x86_64__)

#define PANELS 1

#include "../vector/simd_avx2.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"

#include "../vector/nbits_unpack.inc.h"

enum { NR = QRT_NBITS_NR, TILE_ROWS = 4, PANEL_VECTORS = NR / VL, VECTORS = PANELS * PANEL_VECTORS, CODE_OFFSET = 0 };
enum { MOST_NARROW = INT16_MAX / (2 * UINT8_MAX * 15) };
#define HAS_NARROW 1

static inline vi less(vi u, vi zero_points) { return _mm256_sub_epi8(u, zero_points); }

static inline vi four_codes(const uint8_t *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    return vi_set(four);
}
/// Of row `rows`, that of Σ w, each is 1.
ALWAYS_INLINE vi codes_of(const int r, const int rows, const uint8_t *a, int64_t a_stride) {
    return r == rows ? vi_set(0x01010101) : four_codes(a + r * a_stride);
}
static inline vi load_weights(const int8_t *b) { return vi_load((const int32_t *)(const void *)b); }
static inline vi widened(vi pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
static inline vi add_weights(vi sums, vi w) { return vi_add(sums, widened(_mm256_maddubs_epi16(_mm256_set1_epi8(1), w))); }

ALWAYS_INLINE void add_narrow(const bool alone, const int rows, const int vectors, int64_t fours, const uint8_t *a, int64_t a_stride, const int8_t *b,
                              vi sums[TILE_ROWS][VECTORS]) {
    while (fours > 0) {
        const int64_t count = fours < MOST_NARROW ? fours : MOST_NARROW;
        vi pairs[TILE_ROWS][VECTORS];
#pragma GCC unroll 4
        for (int r = 0; r < rows + alone; r++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) pairs[r][v] = vi_set(0);
        for (int64_t i = 0; i < count; i++, a += 4, b += 4 * VL * vectors)
#pragma GCC unroll 4
            for (int r = 0; r < rows + alone; r++)
#pragma GCC unroll 2
                for (int v = 0; v < vectors; v++)
                    pairs[r][v] = _mm256_add_epi16(pairs[r][v], _mm256_maddubs_epi16(codes_of(r, rows, a, a_stride), load_weights(b + 4 * VL * v)));
#pragma GCC unroll 4
        for (int r = 0; r < rows + alone; r++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) sums[r][v] = vi_add(sums[r][v], widened(pairs[r][v]));
        fours -= count;
    }
}

/// The first and third of the bytes, and the others, in 16 bits.
ALWAYS_INLINE void add_wide(const bool alone, const int rows, const int vectors, int64_t fours, const uint8_t *a, int64_t a_stride, const int8_t *b,
                            vi sums[TILE_ROWS][VECTORS]) {
    for (int64_t i = 0; i < fours; i++, a += 4, b += 4 * VL * vectors) {
        vi even[VECTORS], odd[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            const vi w = load_weights(b + 4 * VL * v);
            even[v] = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8);
            odd[v] = _mm256_srai_epi16(w, 8);
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows + alone; r++) {
            const vi codes = codes_of(r, rows, a, a_stride), low = vi_and(codes, vi_set(0x00ff00ff)), high = _mm256_srli_epi16(codes, 8);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++)
                sums[r][v] = vi_add(sums[r][v], vi_add(_mm256_madd_epi16(low, even[v]), _mm256_madd_epi16(high, odd[v])));
        }
    }
}

ALWAYS_INLINE void add_products(const bool wide, const bool alone, const int rows, const int vectors, int64_t fours, const uint8_t *a,
                                int64_t a_stride, const int8_t *b, vi sums[TILE_ROWS][VECTORS]) {
    if (wide) add_wide(alone, rows, vectors, fours, a, a_stride, b, sums);
    else add_narrow(alone, rows, vectors, fours, a, a_stride, b, sums);
}

#include "../vector/gemm_clusters.inc.h"

#include "../vector/simd_end.h"

void qrt_avx2_gemm_clusters(qrt_kernel_table *t) {
    t->gemm_clusters = clusters;
    t->gemm_clusters.name = "avx2";
}

#endif
