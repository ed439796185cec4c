/// Products of pairs of bfloat16 in tiles as those of the float GEMM: define MR, NV and the list QRT_TILES before, and
/// vf_dot_pairs(sum, a, b): sum + a₁·b₁ + a₀·b₀ of the upper and the lower halves, each of the two sums rounded, the upper first.

#define ALWAYS_INLINE static inline __attribute__((always_inline))

#include "f32_groups.inc.h"

/// Adds a[rows, k] · b[k, NV · VL] to the sums of a tile; `rows` is a constant at every call.
ALWAYS_INLINE void add_pairs(const int rows, int64_t k, const int32_t *a, int64_t lda, const int32_t *b, int64_t ldb, vf sums[MR][NV]) {
    // A pointer for every third row; the rows between are reached by index, which keeps registers free.
    const int32_t *group[(MR + 2) / 3];
#pragma GCC unroll 8
    for (int g = 0; g < (rows + 2) / 3; g++) group[g] = a + 3 * g * lda;
    for (int64_t p = 0; p < k; p++, b += ldb) {
        vi row[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) row[v] = vi_load(b + v * VL);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vi pair = vi_set(group[i / 3][i % 3 * lda]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) sums[i][v] = vf_dot_pairs(sums[i][v], pair, row[v]);
        }
#pragma GCC unroll 8
        for (int g = 0; g < (rows + 2) / 3; g++) group[g]++;
    }
}

ALWAYS_INLINE void pair_tile(const int rows, int64_t k, const int32_t *a, int64_t lda, const int32_t *b, int64_t ldb, float *c,
                             int64_t ldc, bool accumulate) {
    vf sums[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) sums[i][v] = accumulate ? vf_load(c + i * ldc + v * VL) : vf_zero();
    add_pairs(rows, k, a, lda, b, ldb, sums);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) vf_store(c + i * ldc + v * VL, sums[i][v]);
}

ALWAYS_INLINE void grouped_pair_tile(const int rows, int64_t first, int64_t k, const int32_t *a, int64_t lda, const int32_t *b,
                                     int64_t ldb, const qrt_f32_groups *groups, float *c, int64_t ldc, bool accumulate) {
    qrt_f32_groups group = *groups;
    if (group.begun) group.begun += first * group.begun_stride;
    if (group.zeros) group.sums += first * group.sums_stride;
    for (; k > 0; k -= group.size, a += group.size, b += group.size * ldb, accumulate = true) {
        vf sums[MR][NV];
        begin_group(rows, &group, sums);
        add_pairs(rows, k < group.size ? k : group.size, a, lda, b, ldb, sums);
        end_group(rows, &group, sums, c, ldc, accumulate);
    }
}

#define TILE(ROWS) \
    case ROWS: \
        if (in_groups) grouped_pair_tile(ROWS, first, k, a, lda, b, ldb, groups, c, ldc, accumulate); \
        else pair_tile(ROWS, k, a, lda, b, ldb, c, ldc, accumulate); \
        break;

/// Tiles of nearly equal height; `in_groups` is a constant at every call.
ALWAYS_INLINE void pair_tiles(const bool in_groups, int64_t m, int64_t k, const int32_t *a, int64_t lda, const int32_t *b, int64_t ldb,
                              const qrt_f32_groups *groups, float *c, int64_t ldc, bool accumulate) {
    for (int64_t first = 0, left = (m + MR - 1) / MR, rows; first < m; first += rows, left--) {
        rows = (m - first + left - 1) / left;
        switch (rows) {
            QRT_TILES
        }
        a += rows * lda;
        c += rows * ldc;
    }
}

static void pair_strip(int64_t m, int64_t k, const int32_t *a, int64_t lda, const int32_t *b, int64_t ldb, float *c, int64_t ldc,
                       bool accumulate) {
    pair_tiles(false, m, k, a, lda, b, ldb, NULL, c, ldc, accumulate);
}

static void grouped_pair_strip(int64_t m, int64_t k, const int32_t *a, int64_t lda, const int32_t *b, int64_t ldb,
                               const qrt_f32_groups *groups, float *c, int64_t ldc, bool accumulate) {
    pair_tiles(true, m, k, a, lda, b, ldb, groups, c, ldc, accumulate);
}
