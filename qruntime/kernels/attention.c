#include "attention.h"

#include <math.h>
#include <string.h>

#include "kernels.h"
#include "threads.h"

/// Scores of one block of query rows stay within this many floats.
enum { SCORE_FLOATS = 16 * 1024, MAX_BLOCK_ROWS = 48 };

/// Keys for a few queries are packed this many panels at a time: what a single query is multiplied with side by side.
enum { FEW_PANELS = 4 };

/// Fewer multiply-adds than this are not worth waking a thread for.
enum { MIN_PARALLEL_WORK = 1 << 17 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// Units are parts of the queries of one head; slots take runs of units and own scratch.
typedef struct {
    const qrt_attention_job *job;
    int64_t block_rows, parts, part_rows, slots;
    bool packs;                  ///< copy k and v into panels; else read them where they lie
    int64_t score_stride, q_stride, q_floats, k_floats, v_floats, slot_floats;  ///< q_floats: 0 when q is read where it lies
    float *scratch;
} plan;

/// Whether the mask hides the first `keys` keys from row `row`.
static bool sees_nothing(const qrt_mask *mask, int64_t row, int64_t keys) {
    int64_t at = row * mask->row_stride;
    for (int64_t j = 0; j < keys; j++, at += mask->key_stride) {
        bool hidden = mask->kind == QRT_MASK_ADD ? ((const float *)mask->data)[at] == -INFINITY
                    : mask->kind != QRT_MASK_NONE && !((const uint8_t *)mask->data)[at] && mask->fill == -INFINITY;
        if (!hidden) return false;
    }
    return true;
}

/// A score this much below the maximum has an e of exactly 0; a penalty of FAR_PENALTY brings every score there.
#define FAR_BELOW 104.0f
#define FAR_PENALTY (-1e38f)

/// Number of leading bytes up to the last that is not 0.
static int64_t last_set(const uint8_t *bytes, int64_t count) {
    for (uint64_t eight; count >= 8; count -= 8) {
        memcpy(&eight, bytes + count - 8, 8);
        if (eight) break;
    }
    while (count > 0 && !bytes[count - 1]) count--;
    return count;
}

/// How many of the first `keys` keys the mask leaves to look at for rows 0 … rows − 1: all when a row sees none of them,
/// for then hidden keys have weights.
static int64_t seen_keys(const qrt_mask *mask, int64_t rows, int64_t keys) {
    bool hides = mask->kind == QRT_MASK_REPLACE || (mask->kind == QRT_MASK_PENALIZE && mask->fill <= FAR_PENALTY);
    if (!hides || mask->key_stride == 0) return keys;
    int64_t most = 0;
    for (int64_t i = rows - 1; i >= 0; i--) {
        const uint8_t *bytes = (const uint8_t *)mask->data + i * mask->row_stride;
        most += last_set(bytes + most, keys - most);
        if (last_set(bytes, most) == 0) return keys;
        if (mask->row_stride == 0) break;
    }
    return most;
}

/// Weights of the first `keys` keys, before they are divided by their sums.
static void weigh(const plan *p, int64_t rows, int64_t keys, const float *q, const float *k, float *k_panels,
                  const qrt_mask *mask, int64_t visible, float *weights, float *tops, float *sums) {
    const qrt_attention_job *job = p->job;
    const qrt_gemm_f32 *gemm = &qrt_kernels.gemm_f32;
    int64_t nr = gemm->nr, d = job->head_size;
    if (p->packs) {
        qrt_f32_gemm(gemm, rows, keys, d, q, p->q_stride, k_panels, NULL, weights, p->score_stride);
    } else if (job->k_is_transposed) {
        qrt_f32_gemm_strips(gemm, rows, keys, d, q, p->q_stride, k, job->k.row, nr, NULL, weights, p->score_stride);
    } else {
        for (int64_t j = 0; j < keys; j += FEW_PANELS * nr) {
            int64_t columns = min64(FEW_PANELS * nr, keys - j);
            gemm->pack(d, columns, k + j * job->k.row, 1, job->k.row, k_panels);
            qrt_f32_gemm(gemm, rows, columns, d, q, p->q_stride, k_panels, NULL, weights + j, p->score_stride);
        }
    }
    qrt_kernels.attention.exponentials(rows, keys, weights, p->score_stride, job->scale, mask, visible, tops, sums);
}

static void attend_block(const plan *p, int64_t batch, int64_t head, int64_t first, int64_t rows,
                         const float *k, const float *v, float *k_panels, const float *v_panels, float *weights,
                         float *q_copy) {
    const qrt_attention_job *job = p->job;
    const qrt_gemm_f32 *gemm = &qrt_kernels.gemm_f32;
    const float *q = job->q.data + batch * job->q.batch + head * job->q.head + first * job->q.row;
    float *y = job->y + batch * job->y_batch + head * job->y_head + first * job->y_row;
    if (p->q_floats) {
        for (int64_t i = 0; i < rows; i++)
            memcpy(q_copy + i * p->q_stride, q + i * job->q.row, (size_t)job->head_size * sizeof(float));
        q = q_copy;
    }
    int64_t keys = job->num_keys, visible = keys;
    if (job->causal) {
        visible = first + job->causal_offset + 1;
        keys = max64(0, min64(keys, first + rows + job->causal_offset));
    }
    qrt_mask mask = job->mask;
    if (mask.kind != QRT_MASK_NONE) {
        int64_t offset = batch * job->mask_batch + head * job->mask_head + first * mask.row_stride;
        mask.data = (const char *)mask.data + offset * (mask.kind == QRT_MASK_ADD ? (int64_t)sizeof(float) : 1);
    }
    float tops[MAX_BLOCK_ROWS], sums[MAX_BLOCK_ROWS];
    int64_t seen = seen_keys(&mask, rows, keys);
    weigh(p, rows, seen, q, k, k_panels, &mask, visible, weights, tops, sums);
    for (int64_t i = 0; i < rows && seen < keys; i++)
        if (!(tops[i] - mask.fill > FAR_BELOW)) {
            seen = keys;
            weigh(p, rows, seen, q, k, k_panels, &mask, visible, weights, tops, sums);
        }
    if (job->dead_rows != QRT_DEAD_AS_COMPUTED)
        for (int64_t i = 0; i < rows; i++)
            if (!(sums[i] > 0) && (job->dead_rows == QRT_DEAD_TO_ZERO || sees_nothing(&mask, i, min64(keys, visible + i)))) {
                memset(weights + i * p->score_stride, 0, (size_t)seen * sizeof(float));
                sums[i] = 1.0f;
            }
    if (p->packs)
        qrt_f32_gemm_strips(gemm, rows, job->value_size, seen, weights, p->score_stride, v_panels, gemm->nr,
                            job->num_keys * gemm->nr, NULL, y, job->y_row);
    else
        qrt_f32_gemm_strips(gemm, rows, job->value_size, seen, weights, p->score_stride, v, job->v.row, gemm->nr,
                            NULL, y, job->y_row);
    qrt_kernels.attention.divide(rows, job->value_size, y, job->y_row, sums);
}

static void attend_slot(void *context, int64_t slot) {
    const plan *p = context;
    const qrt_attention_job *job = p->job;
    const qrt_gemm_f32 *gemm = &qrt_kernels.gemm_f32;
    float *scores = p->scratch + slot * p->slot_floats, *k_panels = scores + p->block_rows * p->score_stride;
    float *v_panels = k_panels + p->k_floats, *q_copy = v_panels + p->v_floats;
    int64_t units = job->num_batches * job->num_heads * p->parts, group = job->num_heads / job->num_kv_heads;
    int64_t packed_for = -1;
    for (int64_t unit = units * slot / p->slots; unit < units * (slot + 1) / p->slots; unit++) {
        int64_t part = unit % p->parts, head = unit / p->parts % job->num_heads, batch = unit / p->parts / job->num_heads;
        int64_t kv_head = head / group;
        const float *k = job->k.data + batch * job->k.batch + kv_head * job->k.head;
        const float *v = job->v.data + batch * job->v.batch + kv_head * job->v.head;
        if (p->packs && packed_for != batch * job->num_kv_heads + kv_head) {
            packed_for = batch * job->num_kv_heads + kv_head;
            if (job->k_is_transposed)
                gemm->pack(job->head_size, job->num_keys, k, job->k.row, 1, k_panels);
            else
                gemm->pack(job->head_size, job->num_keys, k, 1, job->k.row, k_panels);
            gemm->pack(job->num_keys, job->value_size, v, job->v.row, 1, v_panels);
        }
        int64_t end = min64(job->num_queries, (part + 1) * p->part_rows);
        for (int64_t i = part * p->part_rows; i < end; i += p->block_rows)
            attend_block(p, batch, head, i, min64(p->block_rows, end - i), k, v, k_panels, v_panels, scores, q_copy);
    }
}

qrt_status qrt_attend(const qrt_attention_job *job, qrt_run *run) {
    int64_t heads = job->num_batches * job->num_heads, keys = job->num_keys;
    if (heads == 0 || job->num_queries == 0 || job->value_size == 0) return QRT_OK;
    if (keys == 0) {
        for (int64_t i = 0; i < heads * job->num_queries; i++) {
            int64_t row = i % job->num_queries, head = i / job->num_queries % job->num_heads;
            int64_t batch = i / job->num_queries / job->num_heads;
            memset(job->y + batch * job->y_batch + head * job->y_head + row * job->y_row, 0,
                   (size_t)job->value_size * sizeof(float));
        }
        return QRT_OK;
    }
    int64_t mr = qrt_kernels.gemm_f32.mr, nr = qrt_kernels.gemm_f32.nr;
    double work = (double)heads * (double)job->num_queries * (double)keys * (double)(job->head_size + job->value_size);
    int threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads;
    plan p = {.job = job, .packs = job->num_queries > 2 * mr, .parts = 1};
    p.score_stride = qrt_f32_row_stride(keys);
    p.block_rows = max64(1, min64(MAX_BLOCK_ROWS, SCORE_FLOATS / p.score_stride));
    if (p.block_rows > mr) p.block_rows -= p.block_rows % mr;
    p.block_rows = max64(p.block_rows, min64(mr, MAX_BLOCK_ROWS));
    if (threads > 1 && heads < threads) p.parts = min64(ceil_div(threads, heads), ceil_div(job->num_queries, p.block_rows));
    p.part_rows = ceil_div(job->num_queries, p.parts);
    p.block_rows = min64(p.block_rows, p.part_rows);
    bool copies_q = p.block_rows > 1 && qrt_f32_rows_conflict(job->q.row);
    p.q_stride = copies_q ? qrt_f32_row_stride(job->head_size) : job->q.row;
    p.slots = threads > 1 ? min64(2 * threads, heads * p.parts) : 1;
    size_t floats, bytes;
    int64_t key_panels = ceil_div(keys, nr) * nr, value_panels = ceil_div(job->value_size, nr) * nr;
    if (p.packs) {
        if (__builtin_mul_overflow(key_panels, job->head_size, &p.k_floats) ||
            __builtin_mul_overflow(value_panels, keys, &p.v_floats))
            return QRT_NO_MEMORY;
    } else {
        p.k_floats = FEW_PANELS * nr * job->head_size;
    }
    if ((copies_q && __builtin_mul_overflow(p.block_rows, p.q_stride, &p.q_floats)) ||
        __builtin_add_overflow(p.k_floats, p.v_floats, &p.slot_floats) ||
        __builtin_add_overflow(p.slot_floats, p.q_floats, &p.slot_floats) ||
        __builtin_add_overflow(p.slot_floats, p.block_rows * p.score_stride, &p.slot_floats) ||
        __builtin_mul_overflow((size_t)p.slot_floats, (size_t)p.slots, &floats) ||
        __builtin_mul_overflow(floats, sizeof(float), &bytes))
        return QRT_NO_MEMORY;
    qrt_buffer *scratch = qrt_scratch(run, bytes);
    if (!scratch) return QRT_NO_MEMORY;
    p.scratch = scratch->data;
    qrt_parallel_for(threads, p.slots, attend_slot, &p);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}
