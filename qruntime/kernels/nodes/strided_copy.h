/// Copying between two arrangements of the same elements: what transposing, slicing, expanding, tiling and
/// padding have in common.
#ifndef QRT_STRIDED_COPY_H
#define QRT_STRIDED_COPY_H

#include "../tensor.h"

/// Tiling needs two dimensions for each one of the tensor.
enum { QRT_COPY_RANK = 2 * QRT_MAX_RANK };

/// Element at index (i0, i1, …) goes from byte Σ i · from_stride to byte Σ i · to_stride. Source strides
/// may be zero (repeat) or negative. No two indices may have the same place in the target.
typedef struct {
    int rank;
    int64_t dims[QRT_COPY_RANK], to_strides[QRT_COPY_RANK], from_strides[QRT_COPY_RANK];
} qrt_arrangement;

void qrt_copy_strided(int num_threads, void *to, const void *from, size_t item, const qrt_arrangement *arrangement);

/// `count` runs of `bytes` each.
void qrt_copy_runs(void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t count, int64_t bytes);

/// Copy once `item` bytes to each of `count` places that follow one another. item is 1, 2, 4 or 8.
void qrt_fill(void *to, const void *value, size_t item, int64_t count);

/// Byte strides of a dense tensor.
static inline void qrt_dense_strides(int rank, const int64_t *dims, size_t item, int64_t *strides) {
    int64_t stride = (int64_t)item;
    for (int i = rank - 1; i >= 0; i--) {
        strides[i] = stride;
        stride *= dims[i];
    }
}

#endif
