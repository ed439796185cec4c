/// Fused scaled dot-product attention: the scores of a few query rows at a time, never the whole S × S.
#include <math.h>

#include "../attention.h"
#include "../nodes.h"
#include "arguments.h"
#include "cache_labels.h"

/// A tensor of heads is laid out
///   BHSD: [B, H, S, D], or [B, S, D] with one head;
///   BSR:  [B, S, …] whose trailing dims, R elements in all, form a row: head h starts at offset + h · head_stride.
///         So [B, S, H·D], [B, S, H, D] and slices of a fused [B, S, 3·H·D] are read where they lie.
///   BSHD: [B, S, H, D], or [B, S, N, H, D] of which the offset chooses one of N; the sizes are in the dims.
typedef enum { BHSD, BSR, BSHD } layout;

/// The ints, in this order. Sizes given as 0 are taken from the tensors.
enum {
    K_IS_TRANSPOSED,   ///< k is [B, H, D, S] (BHSD only)
    Q_LAYOUT, K_LAYOUT, V_LAYOUT, OUT_LAYOUT,  ///< out BHSD: [B, H, S, Dv] ([B, S, Dv] when q is); BSR: [B, S, H·Dv];
                                               ///< BSHD: [B, S, H, Dv]
    NUM_HEADS, NUM_KV_HEADS,  ///< needed for BSR
    HEAD_SIZE, VALUE_SIZE,    ///< BSR: 0 means the row of a [B, S, R] divided by the number of heads
    Q_OFFSET, K_OFFSET, V_OFFSET,                 ///< BSR: elements before head 0 in a row
    Q_HEAD_STRIDE, K_HEAD_STRIDE, V_HEAD_STRIDE,  ///< BSR: 0 means the head size
    CAUSAL,            ///< query i sees keys j ≤ i + causal_offset
    CAUSAL_OFFSET,     ///< −1: number of keys minus number of queries; with lengths always that of the batch
    BOOL_MASK_ADDS,    ///< a false in a boolean mask adds the fill value; else it replaces the score
    NUM_INTS,
    DEAD_ROWS = NUM_INTS,  ///< optional: a qrt_dead_rows
    IN_INT16,          ///< optional: products of 16-bit codes
    REPEATS            ///< optional: so many heads of q for every head of k, times those that shapes say; 0: whatever divides
};
/// The floats: scale (NaN: 1 / √head size), fill value of a boolean mask.

/// Resolve one tensor; false when it does not fit.
static bool heads_of(const qrt_tensor *t, int64_t wanted, int64_t num_heads, int64_t size, int64_t offset, int64_t stride,
                     bool transposed, qrt_heads *heads, int64_t *batches, int64_t *found_heads, int64_t *length, int64_t *found_size) {
    if (!t || t->dtype != QRT_F32 || num_heads < 0 || size < 0 || offset < 0 || stride < 0) return false;
    heads->data = t->data;
    int64_t strides[QRT_MAX_RANK];
    qrt_strides(t, strides);
    if (wanted == BHSD) {
        if (t->rank != 3 && t->rank != 4) return false;
        *batches = t->dims[0];
        *found_heads = t->rank == 4 ? t->dims[1] : 1;
        *length = t->dims[t->rank - (transposed ? 1 : 2)];
        *found_size = t->dims[t->rank - (transposed ? 2 : 1)];
        if ((num_heads && num_heads != *found_heads) || (size && size != *found_size)) return false;
        if (t->size == 0) return true;
        heads->row = strides[t->rank - 2];
        heads->head = strides[t->rank - 3];
        heads->batch = strides[0];
        return true;
    }
    if (wanted == BSHD) {
        if (transposed || t->rank < 4 || t->rank > 5 || offset >= (t->rank == 5 ? t->dims[2] : 1)) return false;
        if ((num_heads && num_heads != t->dims[t->rank - 2]) || (size && size != t->dims[t->rank - 1])) return false;
        *batches = t->dims[0];
        *length = t->dims[1];
        *found_heads = t->dims[t->rank - 2];
        *found_size = t->dims[t->rank - 1];
        if (t->size == 0) return true;
        heads->head = strides[t->rank - 2];
        heads->row = strides[1];
        heads->batch = strides[0];
        heads->data += offset * *found_heads * *found_size;
        return true;
    }
    if (wanted != BSR || transposed || t->rank < 3 || num_heads == 0 || t->room) return false;
    int64_t row, last;
    if (!qrt_num_elements(t->rank - 2, t->dims + 2, &row)) return false;
    if (size == 0) {
        if (t->rank != 3 || offset || stride || row == 0 || row % num_heads) return false;
        size = row / num_heads;
    }
    if (stride == 0) stride = size;
    if (__builtin_mul_overflow(num_heads - 1, stride, &last) || __builtin_add_overflow(last, size, &last) ||
        __builtin_add_overflow(last, offset, &last) || last > row)
        return false;
    *batches = t->dims[0];
    *found_heads = num_heads;
    *length = t->dims[1];
    *found_size = size;
    if (t->size == 0) return true;
    heads->data += offset;
    heads->head = stride;
    heads->row = row;
    heads->batch = t->dims[1] * row;
    return true;
}

/// Strides of the mask for the dims of the scores, aligned to the right.
static bool mask_of(const qrt_tensor *mask, bool has_head_dim, bool adds, float fill, qrt_attention_job *job) {
    const int64_t all[4] = {job->num_batches, job->num_heads, job->num_queries, job->num_keys};
    int64_t *strides[4] = {&job->mask_batch, &job->mask_head, &job->mask.row_stride, &job->mask.key_stride};
    if (mask->dtype != QRT_F32 && mask->dtype != QRT_BOOL) return false;
    if (mask->rank > (has_head_dim ? 4 : 3)) return false;
    int64_t stride = 1;
    for (int d = mask->rank - 1, axis = 3; d >= 0; d--, axis--) {
        if (axis == 1 && !has_head_dim) axis = 0;
        if (mask->dims[d] != 1 && mask->dims[d] != all[axis]) return false;
        *strides[axis] = mask->dims[d] == 1 ? 0 : stride;
        if (mask->size) stride *= mask->dims[d];
    }
    job->mask.data = mask->data;
    job->mask.kind = mask->dtype == QRT_F32 ? QRT_MASK_ADD : adds ? QRT_MASK_PENALIZE : QRT_MASK_REPLACE;
    job->mask.fill = fill;
    return true;
}

/// What is the same for keys and values of any form, once the heads of a job are known: scale, mask and output.
static qrt_status attend(qrt_attention_job *job, qrt_run *run, const qrt_node *node, const qrt_tensor *q,
                         const qrt_tensor *mask, const qrt_tensor *scale, int64_t q_layout, int64_t out_layout,
                         bool mask_adds, qrt_tensor *out) {
    if (job->num_heads > 0 && (job->num_kv_heads == 0 || job->num_heads % job->num_kv_heads)) return QRT_DECLINE;
    job->scale = (float)node->floats[0];
    if (isnan(node->floats[0])) job->scale = job->head_size ? (float)(1.0 / sqrt((double)job->head_size)) : 1.0f;
    if (scale) {
        if (scale->dtype != QRT_F32 || scale->size != 1) return QRT_DECLINE;
        job->scale *= *(const float *)scale->data;
    }
    bool has_head_dim = q_layout != BHSD || q->rank == 4;
    if (mask && !mask_of(mask, has_head_dim, mask_adds, (float)node->floats[1], job)) return QRT_DECLINE;

    int64_t width;
    if (__builtin_mul_overflow(job->num_heads, job->value_size, &width)) return QRT_DECLINE;
    const int64_t by_row[] = {job->num_batches, job->num_queries, job->num_heads, job->value_size};
    const int64_t by_head[] = {job->num_batches, job->num_heads, job->num_queries, job->value_size};
    qrt_status status;
    if (out_layout == BSR)
        status = qrt_alloc(run, &out[0], QRT_F32, 3, (const int64_t[]){job->num_batches, job->num_queries, width});
    else if (out_layout == BSHD)
        status = qrt_alloc(run, &out[0], QRT_F32, 4, by_row);
    else if (has_head_dim)
        status = qrt_alloc(run, &out[0], QRT_F32, 4, by_head);
    else
        status = qrt_alloc(run, &out[0], QRT_F32, 3, (const int64_t[]){job->num_batches, job->num_queries, job->value_size});
    if (status != QRT_OK || out[0].size == 0) return status;
    job->y = out[0].data;
    job->y_batch = job->num_queries * width;
    bool heads_lie_in_rows = out_layout != BHSD;
    job->y_row = heads_lie_in_rows ? width : job->value_size;
    job->y_head = heads_lie_in_rows ? job->value_size : job->num_queries * job->value_size;
    return qrt_attend(job, run);
}

static void set_causal(qrt_attention_job *job, int64_t causal, int64_t offset) {
    job->causal = causal != 0;
    if (!job->causal) return;
    job->causal_offset = offset == -1 ? job->num_keys - job->num_queries : offset;
    if (job->causal_offset < -job->num_queries) job->causal_offset = -job->num_queries;
    if (job->causal_offset > job->num_keys) job->causal_offset = job->num_keys;
}

static bool set_lengths(qrt_attention_job *job, const qrt_tensor *lengths) {
    job->lengths = lengths;
    return !lengths || (qrt_is_index(lengths) && lengths->rank == 1 && lengths->dims[0] == job->num_batches);
}

static bool dead_rows_of(int64_t given, qrt_attention_job *job) {
    if (given < QRT_DEAD_AS_COMPUTED || given > QRT_DEAD_MASKED_TO_ZERO) return false;
    job->dead_rows = (qrt_dead_rows)given;
    return true;
}

/// Whether shape [rank], an int64 or int32 vector, says `dims`, or `open` in place of any of them (−1 of at most one).
static bool says(const qrt_tensor *shape, int rank, const int64_t *dims, int64_t open) {
    int64_t given[5];
    if (rank > 5 || qrt_read_ints(shape, given, rank) != rank) return false;
    int left_open = 0;
    for (int d = 0; d < rank; d++)
        if (given[d] != dims[d] && (given[d] != open || (left_open++ && open < 0))) return false;
    return true;
}

/// Whether to expand [B, H, 1, S, size] to the first of two shapes and to reshape that to the second repeats heads to
/// `num_heads`; a 1 in a shape to expand to leaves what is there, and one −1 in a shape stands for what is left.
static bool repeats_heads(const qrt_tensor *const *shapes, const qrt_attention_job *job, int64_t size, int64_t num_heads) {
    int64_t heads = job->num_kv_heads;
    if (!shapes[0] || !shapes[1] || !heads || num_heads % heads || !job->num_batches || !job->num_keys || !size) return false;
    const int64_t wide[5] = {job->num_batches, heads, num_heads / heads, job->num_keys, size};
    const int64_t final[4] = {job->num_batches, num_heads, job->num_keys, size};
    return says(shapes[0], 5, wide, 1) && qrt_index(shapes[0], 2) == wide[2] && says(shapes[1], 4, final, -1);
}

/// Whether the heads of k and v, repeated as the shapes from input `first` on say if there are any, and then `repeats` times, are
/// as many as those of q.
static bool repeats_fit(const qrt_node *node, const qrt_tensor *const *in, int first, int64_t repeats, const qrt_attention_job *job) {
    if (repeats < 0 || (repeats && job->num_heads % repeats)) return false;
    const qrt_tensor *shapes[4];
    for (int i = 0; i < 4; i++) shapes[i] = qrt_input(node, in, first + i);
    int64_t num_heads = job->num_heads / (repeats ? repeats : 1);
    if (shapes[0] || shapes[1] || shapes[2] || shapes[3])
        return repeats_heads(shapes, job, job->head_size, num_heads) && repeats_heads(shapes + 2, job, job->value_size, num_heads);
    return !repeats || num_heads == job->num_kv_heads || job->num_kv_heads == 1;
}

/// Inputs: q, k, v float32; optional mask, float32 or bool, that broadcasts to [B, H, Sq, Sk] ([B, Sq, Sk] when q
/// has no head dim); optional scale, one float32, that multiplies the constant one; optional shapes that k and v are expanded
/// and reshaped to; optional lengths [B], int64 or int32, of what is there of k and v. H is a multiple of the number of key heads.
static qrt_status attention(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const int64_t *p = node->ints;
    if (node->num_inputs < 3 || node->num_ints < NUM_INTS || node->num_floats < 2) return QRT_DECLINE;
    qrt_attention_job job = {.k_is_transposed = p[K_IS_TRANSPOSED] != 0};
    int64_t k_batches, v_batches, v_heads, v_length, k_size;
    if (!heads_of(in[0], p[Q_LAYOUT], p[NUM_HEADS], p[HEAD_SIZE], p[Q_OFFSET], p[Q_HEAD_STRIDE], false,
                  &job.q, &job.num_batches, &job.num_heads, &job.num_queries, &job.head_size) ||
        !heads_of(in[1], p[K_LAYOUT], p[NUM_KV_HEADS], p[HEAD_SIZE], p[K_OFFSET], p[K_HEAD_STRIDE], job.k_is_transposed,
                  &job.k, &k_batches, &job.num_kv_heads, &job.num_keys, &k_size) ||
        !heads_of(in[2], p[V_LAYOUT], p[NUM_KV_HEADS], p[VALUE_SIZE], p[V_OFFSET], p[V_HEAD_STRIDE], false,
                  &job.v, &v_batches, &v_heads, &v_length, &job.value_size))
        return QRT_DECLINE;
    if (k_batches != job.num_batches || v_batches != job.num_batches || k_size != job.head_size ||
        v_heads != job.num_kv_heads || v_length != job.num_keys)
        return QRT_DECLINE;
    set_causal(&job, p[CAUSAL], p[CAUSAL_OFFSET]);
    if (node->num_ints > DEAD_ROWS && !dead_rows_of(p[DEAD_ROWS], &job)) return QRT_DECLINE;
    if (node->num_ints > REPEATS && !repeats_fit(node, in, 5, p[REPEATS], &job)) return QRT_DECLINE;
    job.in_int16 = node->num_ints > IN_INT16 && p[IN_INT16] != 0;
    if (!set_lengths(&job, qrt_input(node, in, 9))) return QRT_DECLINE;
    return attend(&job, run, node, in[0], qrt_input(node, in, 3), qrt_input(node, in, 4), p[Q_LAYOUT], p[OUT_LAYOUT],
                  p[BOOL_MASK_ADDS] != 0, out);
}

/// The ints of attention over codes, in this order; kv_repeats heads of q for every head of k, times those of the shapes.
enum { C_Q_LAYOUT, C_K_LAYOUT, C_V_LAYOUT, C_OUT_LAYOUT, C_Q_OFFSET, C_MASK_ADDS, C_DEAD_ROWS, C_REPEATS, C_BITS, C_CLUSTERS, C_CAUSAL, C_CAUSAL_OFFSET, C_NUM_INTS };

/// Of codes or of ranges, which are one row of the last dimension for each token and head.
static void strides_of_rows(const qrt_tensor *t, int64_t wanted, qrt_row_strides *found) {
    int64_t strides[QRT_MAX_RANK], width = t->dims[t->rank - 1] > 0 ? t->dims[t->rank - 1] : 1;
    qrt_strides(t, strides);
    int row = t->rank == 4 && wanted == BSHD ? 1 : t->rank - 2, head = t->rank == 4 && wanted == BSHD ? 2 : t->rank - 3;
    *found = (qrt_row_strides){strides[0] / width, strides[head] / width, strides[row] / width};
}

/// Heads of codes in one of the layouts BHSD and BSHD, with their sizes.
static bool coded_heads_of(const qrt_tensor *codes, const qrt_tensor *ranges, const qrt_tensor *labels, int64_t wanted,
                           int64_t bits, int64_t clusters, qrt_coded_heads *heads, int64_t *batches, int64_t *num_heads,
                           int64_t *length) {
    if (!qrt_read_cache(codes, ranges, bits, clusters, &heads->form)) return false;
    if (!(wanted == BHSD && (codes->rank == 3 || codes->rank == 4)) && !(wanted == BSHD && codes->rank == 4)) return false;
    const int64_t *dims = codes->dims;
    *batches = dims[0];
    *num_heads = codes->rank == 3 ? 1 : dims[wanted == BSHD ? 2 : 1];
    *length = codes->rank == 3 ? dims[1] : dims[wanted == BSHD ? 1 : 2];
    heads->codes = codes->data;
    heads->ranges = ranges->data;
    strides_of_rows(codes, wanted, &heads->of_codes);
    strides_of_rows(ranges, wanted, &heads->of_ranges);
    if (heads->of_codes.row != heads->of_ranges.row) return false;
    if (!labels) return clusters == 1;
    qrt_tensor x = *codes;  // as far as labels know it
    x.dims[x.rank - 1] = heads->form.channels;
    qrt_cache_labels found;
    if (!qrt_read_labels(labels, &x, &heads->form, &found)) return false;
    int at = codes->rank == 3 ? -1 : wanted == BSHD ? 2 : 1;
    for (int d = 0; d < found.rank; d++)
        if (d != at && found.strides[d]) return false;
    heads->labels = labels->data;
    heads->labels_head = at < 0 ? 0 : found.strides[at];
    return true;
}

/// Inputs: q; codes and ranges of k and of v; optional mask and scale as of attention; optional labels of k and of v; optional
/// shapes that k and v are expanded and reshaped to.
static qrt_status cached_attention(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    enum { Q, K_CODES, K_RANGES, V_CODES, V_RANGES, MASK, SCALE, K_LABELS, V_LABELS, SHAPES, LENGTHS = SHAPES + 4 };
    const int64_t *p = node->ints;
    if (node->num_inputs <= V_RANGES || node->num_ints != C_NUM_INTS || node->num_floats < 2) return QRT_DECLINE;
    qrt_attention_job job = {0};
    qrt_coded_heads k = {0}, v = {0};
    int64_t k_batches, v_batches, v_heads, v_length;
    if (!heads_of(in[Q], p[C_Q_LAYOUT], 0, 0, p[C_Q_OFFSET], 0, false, &job.q, &job.num_batches, &job.num_heads,
                  &job.num_queries, &job.head_size) ||
        !coded_heads_of(in[K_CODES], in[K_RANGES], qrt_input(node, in, K_LABELS), p[C_K_LAYOUT], p[C_BITS], p[C_CLUSTERS], &k,
                        &k_batches, &job.num_kv_heads, &job.num_keys) ||
        !coded_heads_of(in[V_CODES], in[V_RANGES], qrt_input(node, in, V_LABELS), p[C_V_LAYOUT], p[C_BITS], p[C_CLUSTERS], &v,
                        &v_batches, &v_heads, &v_length))
        return QRT_DECLINE;
    if (in[K_CODES]->rank != in[V_CODES]->rank || (in[Q]->rank == 3) != (in[K_CODES]->rank == 3)) return QRT_DECLINE;
    job.value_size = v.form.channels;
    if (k_batches != job.num_batches || v_batches != job.num_batches || k.form.channels != job.head_size ||
        v_heads != job.num_kv_heads || v_length != job.num_keys)
        return QRT_DECLINE;
    if (!repeats_fit(node, in, SHAPES, p[C_REPEATS], &job)) return QRT_DECLINE;
    if (!dead_rows_of(p[C_DEAD_ROWS], &job) || !set_lengths(&job, qrt_input(node, in, LENGTHS))) return QRT_DECLINE;
    set_causal(&job, p[C_CAUSAL], p[C_CAUSAL_OFFSET]);
    job.coded_k = &k;
    job.coded_v = &v;
    return attend(&job, run, node, in[Q], qrt_input(node, in, MASK), qrt_input(node, in, SCALE), p[C_Q_LAYOUT],
                  p[C_OUT_LAYOUT], p[C_MASK_ADDS] != 0, out);
}

const qrt_node_entry qrt_attention_nodes[] = {
    {"attention", attention},
    {"cached_attention", cached_attention},
    {NULL, NULL},
};
