/// Rows of quantized embedding tables: row = scale · q + offset, each operation rounded.
#include "../threads.h"
#include "arguments.h"

/// Rows are looked up in parallel above this many elements.
enum { PARALLEL_ELEMENTS = 64 * 1024 };

typedef struct {
    const uint8_t *codes;
    const float *scales, *offsets;
    const qrt_tensor *indices;
    float *to;
    int64_t num_rows, row_bytes, rows_per_task;
    bool packed;  ///< two codes to a byte: column j in the low half, column j + row_bytes in the high half
} lookup;

static void look_up_rows(void *context, int64_t task) {
    const lookup *l = context;
    const int64_t bytes = l->row_bytes, columns = l->packed ? 2 * bytes : bytes;
    int64_t end = (task + 1) * l->rows_per_task;
    if (end > l->indices->size) end = l->indices->size;
    for (int64_t at = task * l->rows_per_task; at < end; at++) {
        int64_t row = qrt_index(l->indices, at);
        if (row < 0) row += l->num_rows;
        const uint8_t *codes = l->codes + row * bytes;
        const float scale = l->scales[row], offset = l->offsets[row];
        float *restrict to = l->to + at * columns;
        if (l->packed) {
            for (int64_t j = 0; j < bytes; j++) to[j] = (float)(codes[j] & 15) * scale + offset;
            for (int64_t j = 0; j < bytes; j++) to[bytes + j] = (float)(codes[j] >> 4) * scale + offset;
        } else {
            for (int64_t j = 0; j < bytes; j++) to[j] = (float)codes[j] * scale + offset;
        }
    }
}

/// ints: bits of a code (8 or 4). Inputs: codes uint8 [N, bytes], scales and offsets float32 of N elements, indices.
static qrt_status embedding(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *codes = qrt_input(node, in, 0), *scales = qrt_input(node, in, 1), *offsets = qrt_input(node, in, 2);
    const qrt_tensor *indices = qrt_input(node, in, 3);
    if (node->num_ints < 1 || (node->ints[0] != 8 && node->ints[0] != 4)) return QRT_DECLINE;
    if (!codes || codes->dtype != QRT_U8 || codes->rank != 2 || !scales || scales->dtype != QRT_F32 || !offsets ||
        offsets->dtype != QRT_F32)
        return QRT_DECLINE;
    const int64_t rows = codes->dims[0], bytes = codes->dims[1];
    const bool packed = node->ints[0] == 4;
    if (scales->size != rows || offsets->size != rows || !qrt_is_index(indices) || !qrt_indices_fit(indices, rows))
        return QRT_DECLINE;
    int64_t dims[QRT_MAX_RANK];
    int rank = indices->rank + 1;
    if (rank > QRT_MAX_RANK) return QRT_DECLINE;
    for (int i = 0; i < indices->rank; i++) dims[i] = indices->dims[i];
    dims[rank - 1] = packed ? 2 * bytes : bytes;
    if (!qrt_is_buildable(rank, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, rank, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    lookup l = {codes->data, scales->data, offsets->data, indices, out[0].data, rows, bytes, indices->size, packed};
    int64_t tasks = out[0].size < PARALLEL_ELEMENTS ? 1 : 4 * (int64_t)run->num_threads;
    l.rows_per_task = (indices->size + tasks - 1) / tasks;
    qrt_parallel_for(run->num_threads, (indices->size + l.rows_per_task - 1) / l.rows_per_task, look_up_rows, &l);
    return QRT_OK;
}

const qrt_node_entry qrt_embedding_nodes[] = {
    {"embedding", embedding},
    {NULL, NULL},
};
