/// Fused scaled dot-product attention: the scores of a few query rows at a time, never the whole S × S.
#include <math.h>

#include "../attention.h"
#include "../nodes.h"

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
    CAUSAL_OFFSET,     ///< −1: number of keys minus number of queries
    BOOL_MASK_ADDS,    ///< a false in a boolean mask adds the fill value; else it replaces the score
    NUM_INTS,
    DEAD_ROWS = NUM_INTS,  ///< optional: a qrt_dead_rows
    IN_INT16               ///< optional: products of 16-bit codes
};
/// The floats: scale (NaN: 1 / √head size), fill value of a boolean mask.

/// Resolve one tensor; false when it does not fit.
static bool heads_of(const qrt_tensor *t, int64_t wanted, int64_t num_heads, int64_t size, int64_t offset, int64_t stride,
                     bool transposed, qrt_heads *heads, int64_t *batches, int64_t *found_heads, int64_t *length, int64_t *found_size) {
    if (!t || t->dtype != QRT_F32 || num_heads < 0 || size < 0 || offset < 0 || stride < 0) return false;
    heads->data = t->data;
    if (wanted == BHSD) {
        if (t->rank != 3 && t->rank != 4) return false;
        *batches = t->dims[0];
        *found_heads = t->rank == 4 ? t->dims[1] : 1;
        *length = t->dims[t->rank - (transposed ? 1 : 2)];
        *found_size = t->dims[t->rank - (transposed ? 2 : 1)];
        if ((num_heads && num_heads != *found_heads) || (size && size != *found_size)) return false;
        if (t->size == 0) return true;
        heads->row = t->dims[t->rank - 1];
        heads->head = *length * *found_size;
        heads->batch = *found_heads * heads->head;
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
        heads->head = *found_size;
        heads->row = *found_heads * *found_size * (t->rank == 5 ? t->dims[2] : 1);
        heads->batch = *length * heads->row;
        heads->data += offset * *found_heads * *found_size;
        return true;
    }
    if (wanted != BSR || transposed || t->rank < 3 || num_heads == 0) return false;
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

/// Inputs: q, k, v float32; optional mask, float32 or bool, that broadcasts to [B, H, Sq, Sk] ([B, Sq, Sk] when q
/// has no head dim); optional scale, one float32, that multiplies the constant one. H is a multiple of the number of
/// key heads.
static qrt_status attention(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const int64_t *p = node->ints;
    if (node->num_inputs < 3 || node->num_ints < NUM_INTS || node->num_floats < 2) return QRT_DECLINE;
    qrt_attention_job job = {.scale = (float)node->floats[0], .k_is_transposed = p[K_IS_TRANSPOSED] != 0};
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
    if (job.num_heads > 0 && (job.num_kv_heads == 0 || job.num_heads % job.num_kv_heads)) return QRT_DECLINE;
    job.causal = p[CAUSAL] != 0;
    if (job.causal) {
        job.causal_offset = p[CAUSAL_OFFSET] == -1 ? job.num_keys - job.num_queries : p[CAUSAL_OFFSET];
        if (job.causal_offset < -job.num_queries) job.causal_offset = -job.num_queries;
        if (job.causal_offset > job.num_keys) job.causal_offset = job.num_keys;
    }
    if (isnan(node->floats[0])) job.scale = job.head_size ? (float)(1.0 / sqrt((double)job.head_size)) : 1.0f;
    if (node->num_ints > DEAD_ROWS) {
        if (p[DEAD_ROWS] < QRT_DEAD_AS_COMPUTED || p[DEAD_ROWS] > QRT_DEAD_MASKED_TO_ZERO) return QRT_DECLINE;
        job.dead_rows = (qrt_dead_rows)p[DEAD_ROWS];
    }
    job.in_int16 = node->num_ints > IN_INT16 && p[IN_INT16] != 0;
    if (node->num_inputs > 4 && in[4]) {
        if (in[4]->dtype != QRT_F32 || in[4]->size != 1) return QRT_DECLINE;
        job.scale *= *(const float *)in[4]->data;
    }
    bool has_head_dim = p[Q_LAYOUT] != BHSD || in[0]->rank == 4;
    const qrt_tensor *mask = node->num_inputs > 3 ? in[3] : NULL;
    if (mask && !mask_of(mask, has_head_dim, p[BOOL_MASK_ADDS] != 0, (float)node->floats[1], &job)) return QRT_DECLINE;

    int64_t width;
    if (__builtin_mul_overflow(job.num_heads, job.value_size, &width)) return QRT_DECLINE;
    qrt_status status;
    if (p[OUT_LAYOUT] == BSR)
        status = qrt_alloc(run, &out[0], QRT_F32, 3, (const int64_t[]){job.num_batches, job.num_queries, width});
    else if (p[OUT_LAYOUT] == BSHD)
        status = qrt_alloc(run, &out[0], QRT_F32, 4,
                           (const int64_t[]){job.num_batches, job.num_queries, job.num_heads, job.value_size});
    else if (has_head_dim)
        status = qrt_alloc(run, &out[0], QRT_F32, 4,
                           (const int64_t[]){job.num_batches, job.num_heads, job.num_queries, job.value_size});
    else
        status = qrt_alloc(run, &out[0], QRT_F32, 3, (const int64_t[]){job.num_batches, job.num_queries, job.value_size});
    if (status != QRT_OK || out[0].size == 0) return status;
    job.y = out[0].data;
    job.y_batch = job.num_queries * width;
    bool by_row = p[OUT_LAYOUT] != BHSD;
    job.y_row = by_row ? width : job.value_size;
    job.y_head = by_row ? job.value_size : job.num_queries * job.value_size;
    return qrt_attend(&job, run);
}

const qrt_node_entry qrt_attention_nodes[] = {
    {"attention", attention},
    {NULL, NULL},
};
