/// Keys and values of a cache to codes and back, where attention does not read the codes itself.
#include "../cache_codes.h"

#include <math.h>

#include "../nodes.h"
#include "../threads.h"
#include "arguments.h"
#include "cache_labels.h"

/// ints: bits, clusters. Rows of a task take about this many bytes of floats.
enum { BITS, CLUSTERS, NUM_INTS, TASK_BYTES = 64 * 1024 };

typedef struct {
    qrt_cache_form form;
    int64_t rows, rows_per_task;
    float *x;
    uint8_t *codes;
    float *ranges;
    const qrt_cache_labels *labels;
    bool quantizes, fits;
} conversion;

static void convert(void *context, int64_t task) {
    const conversion *c = context;
    int64_t first = task * c->rows_per_task, end = first + c->rows_per_task < c->rows ? first + c->rows_per_task : c->rows;
    int64_t width = qrt_cache_row_bytes(&c->form);
    // Rows with the same labels go together.
    for (int64_t row = first, count; row < end; row += count) {
        count = c->labels ? qrt_rows_of_labels(c->labels, row) : end - row;
        if (count > end - row) count = end - row;
        const uint8_t *labels = c->labels ? qrt_labels_of_row(c->labels, row) : NULL;
        float *x = c->x + row * c->form.channels, *ranges = c->ranges + 2 * row * c->form.clusters;
        uint8_t *codes = c->codes + row * width;
        if (c->quantizes)
            qrt_kernels.cache_codes.quantize(&c->form, count, x, labels, c->fits, codes, ranges);
        else
            qrt_kernels.cache_codes.dequantize(&c->form, count, codes, ranges, 1, labels, x);
    }
}

static void run(conversion *c, qrt_run *run) {
    int64_t row_bytes = c->form.channels * (int64_t)sizeof(float);
    c->rows_per_task = row_bytes < TASK_BYTES ? TASK_BYTES / row_bytes : 1;
    qrt_parallel_for(run->num_threads, c->rows / c->rows_per_task + (c->rows % c->rows_per_task != 0), convert, c);
}

/// Inputs: x float32, labels uint8 (optional). Outputs: codes, ranges.
static qrt_status to_codes(const qrt_node *node, qrt_run *state, const qrt_tensor *const *in, qrt_tensor *out, bool fits) {
    const qrt_tensor *x = qrt_input(node, in, 0), *labels = qrt_input(node, in, 1);
    if (node->num_ints != NUM_INTS || node->num_outputs != 2 || !x || x->dtype != QRT_F32 || x->rank < 1) return QRT_DECLINE;
    conversion c = {.form = {node->ints[BITS], x->dims[x->rank - 1], node->ints[CLUSTERS]}, .x = x->data, .quantizes = true, .fits = fits};
    qrt_cache_labels found;
    if (!qrt_is_cache_form(&c.form)) return QRT_DECLINE;
    if (node->num_inputs > 1 ? !qrt_read_labels(labels, x, &c.form, &found) : c.form.clusters != 1) return QRT_DECLINE;
    c.labels = node->num_inputs > 1 ? &found : NULL;
    int64_t dims[QRT_MAX_RANK];
    memcpy(dims, x->dims, (size_t)x->rank * sizeof *dims);
    dims[x->rank - 1] = 2 * c.form.clusters;
    if (!qrt_is_buildable(x->rank, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(state, &out[1], QRT_F32, x->rank, dims);
    if (status != QRT_OK) return status;
    dims[x->rank - 1] = qrt_cache_row_bytes(&c.form);
    status = qrt_alloc(state, &out[0], QRT_U8, x->rank, dims);
    if (status != QRT_OK) return status;
    c.rows = x->size / c.form.channels;
    c.codes = out[0].data;
    c.ranges = out[1].data;
    run(&c, state);
    return QRT_OK;
}

static qrt_status quantize_cache(const qrt_node *node, qrt_run *state, const qrt_tensor *const *in, qrt_tensor *out) {
    return to_codes(node, state, in, out, false);
}

static qrt_status fit_cache(const qrt_node *node, qrt_run *state, const qrt_tensor *const *in, qrt_tensor *out) {
    return to_codes(node, state, in, out, true);
}

/// Inputs: codes uint8, ranges float32, labels uint8 (optional).
static qrt_status dequantize_cache(const qrt_node *node, qrt_run *state, const qrt_tensor *const *in, qrt_tensor *out) {
    conversion c = {0};
    if (node->num_ints != NUM_INTS || node->num_inputs < 2) return QRT_DECLINE;
    if (!qrt_read_cache(in[0], in[1], node->ints[BITS], node->ints[CLUSTERS], &c.form)) return QRT_DECLINE;
    qrt_tensor x = *in[0];  // as far as labels know it
    x.dims[x.rank - 1] = c.form.channels;
    qrt_cache_labels found;
    if (node->num_inputs > 2 ? !qrt_read_labels(in[2], &x, &c.form, &found) : c.form.clusters != 1) return QRT_DECLINE;
    c.labels = node->num_inputs > 2 ? &found : NULL;
    if (!qrt_is_buildable(x.rank, x.dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(state, &out[0], QRT_F32, x.rank, x.dims);
    if (status != QRT_OK) return status;
    c.rows = in[0]->size / in[0]->dims[x.rank - 1];
    c.x = out[0].data;
    c.codes = in[0]->data;
    c.ranges = in[1]->data;
    run(&c, state);
    return QRT_OK;
}

const qrt_node_entry qrt_cache_codes_nodes[] = {
    {"quantize_cache", quantize_cache},
    {"fit_cache", fit_cache},
    {"dequantize_cache", dequantize_cache},
    {NULL, NULL},
};
