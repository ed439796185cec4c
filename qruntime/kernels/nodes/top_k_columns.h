/// The best few of every column of a matrix, for all columns at once.
#ifndef QRT_TOP_K_COLUMNS_H
#define QRT_TOP_K_COLUMNS_H

#include <stdbool.h>
#include <stdint.h>

/// So few that a sorted list of them takes less than a heap; columns that are taken together.
enum { QRT_TOP_K_FEW = 32, QRT_TOP_K_LANES = 4 };

/// Columns of four-byte elements, floats or int32: n elements, `stride` apart, of `count` columns side by side.
typedef struct {
    const uint32_t *x;
    int64_t n, count, stride;
    bool is_float, is_largest;
} qrt_columns;

/// Bytes, aligned to 16, that qrt_top_k_columns works in.
static inline int64_t qrt_top_k_room(int64_t count, int64_t k) {
    return (count + QRT_TOP_K_LANES - 1) / QRT_TOP_K_LANES * QRT_TOP_K_LANES * k * 2 * (int64_t)sizeof(int32_t);
}

/// The j-th best of column c to values[j · stride + c], its index to indices; NaN is the largest, zeros are equal, and of
/// equals the first is better. 0 < k ≤ n ≤ INT32_MAX, count > 0.
void qrt_top_k_columns(const qrt_columns *columns, int64_t k, void *room, uint32_t *values, int64_t *indices, int64_t stride);

#endif
