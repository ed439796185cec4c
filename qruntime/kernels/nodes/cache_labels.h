/// Reading the tensors of a cache in codes: what they hold, and which labels a row has.
#ifndef QRT_CACHE_LABELS_H
#define QRT_CACHE_LABELS_H

#include <string.h>

#include "../cache_codes.h"
#include "../nodes.h"

/// Labels that broadcast to rows of `dims`; strides of broadcast dims are 0.
typedef struct {
    const uint8_t *data;
    int rank;                     ///< of the leading dims
    int64_t dims[QRT_MAX_RANK], strides[QRT_MAX_RANK];
} qrt_cache_labels;

/// Whether `labels` broadcast to x [..., channels] and are all below the number of clusters.
static inline bool qrt_read_labels(const qrt_tensor *labels, const qrt_tensor *x, const qrt_cache_form *form,
                                   qrt_cache_labels *found) {
    if (!labels || labels->dtype != QRT_U8 || labels->rank < 1 || labels->rank > x->rank) return false;
    if (labels->dims[labels->rank - 1] != form->channels) return false;
    *found = (qrt_cache_labels){.data = labels->data, .rank = x->rank - 1};
    int64_t stride = form->channels;
    for (int d = x->rank - 2, own = labels->rank - 2; d >= 0; d--, own--) {
        int64_t size = own < 0 ? 1 : labels->dims[own];
        if (size != 1 && size != x->dims[d]) return false;
        found->dims[d] = x->dims[d];
        found->strides[d] = size == 1 ? 0 : stride;
        stride *= size;
    }
    for (int64_t i = 0; i < labels->size; i++)
        if (found->data[i] >= form->clusters) return false;
    return true;
}

static inline const uint8_t *qrt_labels_of_row(const qrt_cache_labels *labels, int64_t row) {
    const uint8_t *data = labels->data;
    for (int d = labels->rank - 1; d >= 0; row /= labels->dims[d], d--) data += row % labels->dims[d] * labels->strides[d];
    return data;
}

/// How many rows from `row` on have its labels, at least.
static inline int64_t qrt_rows_of_labels(const qrt_cache_labels *labels, int64_t row) {
    int64_t same = 1;
    for (int d = labels->rank - 1; d >= 0 && labels->strides[d] == 0; d--) same *= labels->dims[d];
    return same - row % same;
}

/// Whether codes [..., bytes] and ranges [..., 2 · clusters] fit each other; their form.
static inline bool qrt_read_cache(const qrt_tensor *codes, const qrt_tensor *ranges, int64_t bits, int64_t clusters,
                                  qrt_cache_form *form) {
    if (!codes || !ranges || codes->dtype != QRT_U8 || ranges->dtype != QRT_F32) return false;
    if (codes->rank < 1 || ranges->rank != codes->rank || codes->dims[codes->rank - 1] > INT32_MAX / 8) return false;
    if (bits != 2 && bits != 4 && bits != 8) return false;
    *form = (qrt_cache_form){bits, codes->dims[codes->rank - 1] * 8 / bits, clusters};
    for (int d = 0; d < codes->rank - 1; d++)
        if (codes->dims[d] != ranges->dims[d]) return false;
    return qrt_is_cache_form(form) && ranges->dims[codes->rank - 1] == 2 * clusters;
}

#endif
