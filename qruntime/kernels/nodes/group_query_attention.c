/// GroupQueryAttention of com.microsoft: rotary embedding, cache and attention of tokens that come together, in float32.
#include <math.h>
#include <string.h>

#include "../attention.h"
#include "../nodes.h"
#include "append.h"
#include "arguments.h"
#include "rotary.h"

enum { QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, ENDS, TOTAL, COS, SIN, POSITIONS, BIAS, NUM_INPUTS };
enum { NUM_HEADS, NUM_KV_HEADS, CAUSAL, ROTARY, INTERLEAVED, NUM_INTS };

/// Tokens of q, k or v: element (b, s, h, d) lies at data + (b · length + s) · row + h · size + d.
typedef struct {
    const float *data;
    int64_t row;
} projection;

typedef struct {
    const int64_t *p;  ///< the ints
    int64_t batches, length, size, total;
    projection q, k, v;
    const qrt_tensor *ends, *cos, *sin, *positions, *bias;
    bool all_follow;   ///< every sequence has its new tokens right behind the whole past
} call;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/// How many tokens sequence b has with the new ones, and how many of those it brings.
static int64_t end_of(const call *c, int64_t b) { return qrt_index(c->ends, b) + 1; }
static int64_t new_of(const call *c, int64_t b) { return least(c->length, end_of(c, b)); }

/// q, k and v apart, or packed in q.
static bool read_projections(const qrt_node *node, const qrt_tensor *const *in, call *c) {
    const qrt_tensor *q = qrt_input(node, in, QUERY), *k = qrt_input(node, in, KEY), *v = qrt_input(node, in, VALUE);
    int64_t heads = c->p[NUM_HEADS], kv_heads = c->p[NUM_KV_HEADS];
    if (heads < 1 || heads > 1 << 20 || kv_heads < 1 || heads % kv_heads) return false;
    if (!qrt_is_tensor(q) || q->dtype != QRT_F32 || q->rank != 3 || (k == NULL) != (v == NULL)) return false;
    c->batches = q->dims[0];
    c->length = q->dims[1];
    int64_t width = q->dims[2], parts = k ? heads : heads + 2 * kv_heads;
    if (width < 1 || width % parts) return false;
    c->size = width / parts;
    c->q = (projection){q->data, width};
    c->k = (projection){(const float *)q->data + heads * c->size, width};
    c->v = (projection){(const float *)q->data + (heads + kv_heads) * c->size, width};
    if (!k) return true;
    const int64_t expected[3] = {c->batches, c->length, kv_heads * c->size};
    const qrt_tensor *given[2] = {k, v};
    for (int i = 0; i < 2; i++)
        if (given[i]->dtype != QRT_F32 || given[i]->rank != 3 || memcmp(given[i]->dims, expected, sizeof expected)) return false;
    c->k = (projection){k->data, expected[2]};
    c->v = (projection){v->data, expected[2]};
    return true;
}

static bool is_past(const qrt_tensor *past, const call *c) {
    return !past || (past->dtype == QRT_F32 && past->rank == 4 && past->dims[0] == c->batches &&
                     past->dims[1] == c->p[NUM_KV_HEADS] && past->dims[3] == c->size && (!past->room || past->room_axis == 2));
}

/// Lengths that fit the pasts, and what comes with them.
static bool read_lengths(const qrt_node *node, const qrt_tensor *const *in, call *c) {
    const qrt_tensor *pasts[2] = {qrt_input(node, in, PAST_KEY), qrt_input(node, in, PAST_VALUE)};
    c->ends = qrt_input(node, in, ENDS);
    if (!qrt_is_index(c->ends) || c->ends->size != c->batches) return false;
    if (!qrt_input(node, in, TOTAL) || !qrt_read_int(qrt_input(node, in, TOTAL), &c->total)) return false;
    if ((pasts[0] == NULL) != (pasts[1] == NULL) || !is_past(pasts[0], c) || !is_past(pasts[1], c)) return false;
    int64_t rows = pasts[0] ? pasts[0]->dims[2] : 0;
    if (pasts[1] && pasts[1]->dims[2] != rows) return false;
    c->all_follow = c->total == rows + c->length;
    for (int64_t b = 0; b < c->batches; b++) {
        if (end_of(c, b) < 1 || end_of(c, b) > c->total || end_of(c, b) - new_of(c, b) > rows) return false;
        c->all_follow &= end_of(c, b) == c->total;
    }
    c->bias = qrt_input(node, in, BIAS);
    if (!c->bias) return true;
    const int64_t *dims = c->bias->dims;
    return c->bias->dtype == QRT_F32 && c->bias->rank == 4 && (dims[0] == 1 || dims[0] == c->batches) &&
           (dims[1] == 1 || dims[1] == c->p[NUM_HEADS]) && dims[2] == c->length && dims[3] == c->total;
}

/// Where token s of sequence b is; padding is at 0.
static int64_t position_of(const call *c, int64_t b, int64_t s) {
    if (c->positions) return c->positions->size == 1 ? qrt_index(c->positions, 0) + s : qrt_index(c->positions, b * c->length + s);
    return s < new_of(c, b) ? end_of(c, b) - new_of(c, b) + s : 0;
}

static bool read_angles(const qrt_node *node, const qrt_tensor *const *in, call *c) {
    if (!c->p[ROTARY]) return true;
    c->cos = qrt_input(node, in, COS);
    c->sin = qrt_input(node, in, SIN);
    c->positions = qrt_input(node, in, POSITIONS);
    if (!c->cos || !c->sin || c->cos->dtype != QRT_F32 || c->sin->dtype != QRT_F32 || c->cos->rank != 2 || c->sin->rank != 2) return false;
    if (memcmp(c->cos->dims, c->sin->dims, 2 * sizeof *c->cos->dims) || c->cos->dims[1] < 1 || c->cos->dims[1] > c->size / 2) return false;
    const qrt_tensor *positions = c->positions;
    if (positions && !qrt_is_index(positions)) return false;
    if (positions && positions->size != 1 &&
        (positions->rank != 2 || positions->dims[0] != c->batches || positions->dims[1] != c->length))
        return false;
    for (int64_t b = 0; b < c->batches; b++)
        for (int64_t s = 0; s < c->length; s++) {
            int64_t position = position_of(c, b, s);
            if (position < 0 || position >= c->cos->dims[0]) return false;
        }
    return true;
}

/// One head of one token, turned where the node turns.
static void place(const call *c, const float *from, int64_t position, bool turns, float *to) {
    if (!turns) {
        memcpy(to, from, (size_t)c->size * sizeof *to);
        return;
    }
    int64_t half = c->cos->dims[1];
    qrt_rotate(from, (const float *)c->cos->data + position * half, (const float *)c->sin->data + position * half, half, c->size,
               c->p[INTERLEAVED] != 0, to);
}

/// The cache with the new tokens in it: a longer one when the past is full, in its room where it has some; else one of the same size.
static qrt_status present_of(const call *c, qrt_run *run, const qrt_tensor *past, const projection *added, bool turns, qrt_tensor *out) {
    int64_t heads = c->p[NUM_KV_HEADS], rows = past ? past->dims[2] : 0, capacity = rows > c->total ? rows : c->total;
    const int64_t dims[4] = {c->batches, heads, capacity, c->size};
    if (!qrt_is_buildable(4, dims) || capacity > INT64_MAX / 4) return QRT_DECLINE;
    qrt_status status = past && c->all_follow && c->length ? qrt_grow(run, past, 2, capacity, out) : qrt_alloc(run, out, QRT_F32, 4, dims);
    if (status != QRT_OK) return status;
    int64_t strides[QRT_MAX_RANK];
    qrt_strides(out, strides);
    if (!past || out->data != past->data) {
        for (int64_t i = 0; i < c->batches * heads && capacity > rows; i++)
            memset((float *)out->data + i / heads * strides[0] + i % heads * strides[1] + rows * strides[2], 0,
                   (size_t)((capacity - rows) * c->size) * sizeof(float));
        if (past) qrt_copy_past(run, past, 2, out);
    }
    for (int64_t b = 0; b < c->batches; b++)
        for (int64_t s = 0; s < new_of(c, b); s++)
            for (int64_t h = 0; h < heads; h++) {
                const float *from = added->data + (b * c->length + s) * added->row + h * c->size;
                int64_t at = end_of(c, b) - new_of(c, b) + s, position = turns ? position_of(c, b, s) : 0;
                place(c, from, position, turns, (float *)out->data + b * strides[0] + h * strides[1] + at * strides[2]);
            }
    return QRT_OK;
}

/// The queries of all sequences, turned: in scratch [B, S, N, H] where the node turns, else where they lie.
static qrt_status turn_queries(const call *c, qrt_run *run, projection *q, qrt_buffer **scratch) {
    *q = c->q;
    *scratch = NULL;
    if (!c->p[ROTARY]) return QRT_OK;
    int64_t heads = c->p[NUM_HEADS];
    q->row = heads * c->size;
    *scratch = qrt_scratch(run, (size_t)(c->batches * c->length * q->row) * sizeof(float));
    if (!*scratch) return QRT_NO_MEMORY;
    float *to = (*scratch)->data;
    for (int64_t i = 0; i < c->batches * c->length; i++)
        for (int64_t h = 0; h < heads; h++)
            place(c, c->q.data + i * c->q.row + h * c->size, position_of(c, i / c->length, i % c->length), true, to + i * q->row + h * c->size);
    q->data = to;
    return QRT_OK;
}

/// Attention of sequence b over its keys and values in the caches.
static qrt_status attend_sequence(const call *c, qrt_run *run, const projection *q, const qrt_tensor *keys, const qrt_tensor *values,
                                  float scale, int64_t b, float *y) {
    int64_t strides[2][QRT_MAX_RANK], heads = c->p[NUM_HEADS], row = heads * c->size, added = new_of(c, b);
    qrt_strides(keys, strides[0]);
    qrt_strides(values, strides[1]);
    qrt_attention_job job = {
        .q = {q->data + b * c->length * q->row, 0, c->size, q->row},
        .k = {(const float *)keys->data + b * strides[0][0], 0, strides[0][1], strides[0][2]},
        .v = {(const float *)values->data + b * strides[1][0], 0, strides[1][1], strides[1][2]},
        .y = y + b * c->length * row, .y_head = c->size, .y_row = row,
        .num_batches = 1, .num_heads = heads, .num_kv_heads = c->p[NUM_KV_HEADS], .num_queries = added, .num_keys = end_of(c, b),
        .head_size = c->size, .value_size = c->size, .scale = scale,
        .causal = c->p[CAUSAL] != 0, .causal_offset = end_of(c, b) - added,
    };
    if (c->bias) {
        int64_t of_head = c->length * c->total, of_batch = c->bias->dims[1] * of_head;
        job.mask = (qrt_mask){QRT_MASK_ADD, (const float *)c->bias->data + (c->bias->dims[0] == 1 ? 0 : b * of_batch), c->total, 1, 0.0f};
        job.mask_head = c->bias->dims[1] == 1 ? 0 : of_head;
    }
    memset(y + (b * c->length + added) * row, 0, (size_t)((c->length - added) * row) * sizeof *y);
    return qrt_attend(&job, run);
}

/// Inputs as those of the operator up to the bias; floats: scale, 0 for 1 / √size. Outputs: y, present keys and values (optional).
static qrt_status group_query_attention(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    call c = {.p = node->ints};
    if (node->num_inputs < COS || node->num_inputs > NUM_INPUTS || node->num_ints != NUM_INTS || node->num_floats != 1) return QRT_DECLINE;
    if (!read_projections(node, in, &c) || !read_lengths(node, in, &c) || !read_angles(node, in, &c)) return QRT_DECLINE;
    qrt_tensor unread[2] = {0}, *keys = node->num_outputs > 1 ? &out[1] : &unread[0], *values = node->num_outputs > 2 ? &out[2] : &unread[1];
    qrt_buffer *scratch = NULL;
    projection q = c.q;
    qrt_status status = present_of(&c, run, qrt_input(node, in, PAST_KEY), &c.k, c.p[ROTARY] != 0, keys);
    if (status == QRT_OK) status = present_of(&c, run, qrt_input(node, in, PAST_VALUE), &c.v, false, values);
    if (status == QRT_OK)
        status = qrt_alloc(run, &out[0], QRT_F32, 3, (const int64_t[]){c.batches, c.length, c.p[NUM_HEADS] * c.size});
    if (status == QRT_OK) status = turn_queries(&c, run, &q, &scratch);
    float scale = (float)node->floats[0];
    if (scale == 0.0f) scale = (float)(1.0 / sqrt((double)c.size));
    for (int64_t b = 0; b < c.batches && status == QRT_OK; b++)
        status = attend_sequence(&c, run, &q, keys, values, scale, b, out[0].data);
    if (scratch) qrt_scratch_free(run, scratch);
    for (int i = 0; i < 2; i++)
        if (unread[i].dtype) qrt_release(run, &unread[i]);
    return status;
}

const qrt_node_entry qrt_group_query_attention_nodes[] = {
    {"group_query_attention", group_query_attention},
    {NULL, NULL},
};
