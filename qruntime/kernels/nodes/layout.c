/// Nodes that move elements or only rename dimensions.
#include <string.h>

#include "../nodes.h"

/// ints: allowzero. Inputs: data, shape (int64 vector).
static qrt_status reshape(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    (void)run;
    const qrt_tensor *data = in[0], *shape = in[1];
    if (shape->dtype != QRT_I64 || shape->rank != 1 || shape->size > QRT_MAX_RANK) return QRT_DECLINE;
    const int64_t *wanted = shape->data;
    int64_t dims[QRT_MAX_RANK], known = 1;
    int rank = (int)shape->size, open = -1;
    for (int i = 0; i < rank; i++) {
        int64_t d = wanted[i];
        if (d == 0 && !node->ints[0]) {
            if (i >= data->rank) return QRT_DECLINE;
            d = data->dims[i];
        } else if (d == -1) {
            if (open >= 0) return QRT_DECLINE;
            open = i;
            continue;
        } else if (d < 0) {
            return QRT_DECLINE;
        }
        dims[i] = d;
        if (__builtin_mul_overflow(known, d, &known)) return QRT_DECLINE;
    }
    if (open >= 0) {
        if (known == 0 || data->size % known) return QRT_DECLINE;
        dims[open] = data->size / known;
    } else if (known != data->size) {
        return QRT_DECLINE;
    }
    qrt_alias(&out[0], data, rank, dims);
    return QRT_OK;
}

const qrt_node_entry qrt_layout_nodes[] = {
    {"reshape", reshape},
    {NULL, NULL},
};
