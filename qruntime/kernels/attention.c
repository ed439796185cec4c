#include "attention.h"

#include <math.h>
#include <string.h>

#include "kernels.h"
#include "threads.h"

/// Scores of one block of query rows stay within this many floats.
enum { SCORE_FLOATS = 16 * 1024, MAX_BLOCK_ROWS = 48 };

/// Keys for a few queries are packed this many panels at a time: what a single query is multiplied with side by side.
enum { FEW_PANELS = 4 };

/// So few rows read keys and values at the speed of memory (attention.h, few_scores).
enum { FEW_ROWS = 8 };

/// Rows that kernels take together.
enum { GROUP_ROWS = 4 };

/// More keys are not summed in integers: the float sums of their weights are no longer exact enough to bound them.
enum { MAX_INT16_KEYS = 1 << 20 };

/// Fewer multiply-adds than this are not worth waking a thread for.
enum { MIN_PARALLEL_WORK = 1 << 17 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// Codes of heads are made together, this many rows of each at a time, so that what one token has of them is read in
/// one go: rows of a single head lie a few lines apart, which no CPU foresees. They stay in the second-level cache.
enum { CODED_ROWS = 8, CODED_BYTES = 384 * 1024 };

/// Units are parts of the queries of one head; slots take runs of units and own scratch.
typedef struct {
    const qrt_attention_job *job;
    int64_t block_rows, parts, part_rows, slots;
    bool in_int16;
    bool packs;                  ///< copy k and v into panels; else read them where they lie
    int64_t heads_together;      ///< of k and v that are packed at once
    int64_t score_stride, q_stride, k_stride, v_stride;  ///< in elements: of floats, or of codes and of pairs of codes
    int64_t score_floats;        ///< of a block
    int64_t q_floats;            ///< of a block, 0 where q is read where it lies; of codes: of a head of q
    int64_t k_floats, v_floats, code_floats;  ///< of a head of k and v
    int64_t decoded_floats;      ///< of a head of k and v that are codes of a cache, else 0
    int64_t slot_floats;
    float *scratch;
} plan;

/// Where a slot keeps the heads that it has packed and the block at hand.
typedef struct {
    float *scores, *q, *k_panels, *v_panels;
    float *decoded_k, *decoded_v;             ///< the heads that are packed or read, of a cache in codes
    float *q_scales, *k_scales, *v_scales;    ///< of codes
    int16_t *k_codes;
    int64_t batch, first_head, num_heads;     ///< of k and v that are packed
} working_memory;

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

static void pack(const plan *p, const working_memory *w) {
    const qrt_attention_job *job = p->job;
    const qrt_gemm_f32 *gemm = &qrt_kernels.gemm_f32;
    const float *k = job->k.data + w->batch * job->k.batch + w->first_head * job->k.head;
    const float *v = job->v.data + w->batch * job->v.batch + w->first_head * job->v.head;
    int64_t key_step = job->k_is_transposed ? 1 : job->k.row, element_step = job->k_is_transposed ? job->k.row : 1;
    gemm->pack(job->head_size, job->num_keys, k, element_step, key_step, w->k_panels);
    gemm->pack(job->num_keys, job->value_size, v, job->v.row, 1, w->v_panels);
}

static void quantize_heads(const qrt_heads *x, int64_t batch, int64_t first, int64_t heads, int64_t rows, int64_t n,
                           int16_t *codes, int64_t stride, float *scales) {
    const float *from = x->data + batch * x->batch + first * x->head;
    for (int64_t i = 0; i < rows; i += CODED_ROWS)
        for (int64_t h = 0; h < heads; h++)
            qrt_kernels.attention_q16.quantize(min64(CODED_ROWS, rows - i), n, from + h * x->head + i * x->row, x->row,
                                               qrt_q16_limit(n), codes + (h * rows + i) * stride, stride,
                                               scales + h * rows + i);
}

/// Codes of the keys, of the values and of the queries that read them.
static void encode(const plan *p, const working_memory *w) {
    const qrt_attention_job *job = p->job;
    int64_t keys = job->num_keys, queries = job->num_queries, d = job->head_size;
    int64_t group = job->num_heads / job->num_kv_heads, q_heads = w->num_heads * group;
    quantize_heads(&job->q, w->batch, w->first_head * group, q_heads, queries, d, (int16_t *)w->q, p->q_stride, w->q_scales);
    for (int64_t i = 0; i < q_heads * queries; i++) w->q_scales[i] *= job->scale;
    quantize_heads(&job->k, w->batch, w->first_head, w->num_heads, keys, d, w->k_codes, p->k_stride, w->k_scales);
    for (int64_t h = 0; h < w->num_heads; h++) {
        const int16_t *codes = w->k_codes + h * keys * p->k_stride;  // two of which are moved in place of a float
        qrt_kernels.gemm_f32.pack(ceil_div(d, 2), keys, (const float *)codes, 1, p->k_stride / 2, w->k_panels + h * p->k_floats);
    }
    const float *v = job->v.data + w->batch * job->v.batch + w->first_head * job->v.head;
    for (int64_t i = 0; i < keys; i += CODED_ROWS)
        for (int64_t h = 0; h < w->num_heads; h++)
            qrt_kernels.attention_q16.quantize_pairs(
                min64(CODED_ROWS, keys - i), job->value_size, v + h * job->v.head + i * job->v.row, job->v.row,
                QRT_Q16_VALUES, (int32_t *)(w->v_panels + h * p->v_floats) + i / 2 * p->v_stride, p->v_stride,
                w->v_scales + h * keys + i);
}

/// Queries of one head, a block of them, with its keys and values: floats where they lie or panels, or codes.
typedef struct {
    const float *q, *k, *v;
    qrt_q16_scales scales;       ///< of codes
    int64_t rows, visible;       ///< row i sees the first visible + i keys
    qrt_mask mask;
    float tops[MAX_BLOCK_ROWS], sums[MAX_BLOCK_ROWS];
    float factors[MAX_BLOCK_ROWS];  ///< of codes: what sums of products are multiplied with
} block;

/// Weights of the first `keys` keys, before they are divided by their sums.
static void weigh(const plan *p, block *b, int64_t keys, const working_memory *w) {
    const qrt_attention_job *job = p->job;
    const qrt_gemm_f32 *gemm = &qrt_kernels.gemm_f32;
    int64_t nr = gemm->nr, d = job->head_size;
    if (p->in_int16) {
        const qrt_attention_q16 *q16 = &qrt_kernels.attention_q16;
        int64_t pairs = ceil_div(d, 2);
        for (int64_t j = 0; j < keys; j += nr)
            q16->scores(b->rows, min64(nr, keys - j), pairs, (const int16_t *)b->q, p->q_stride,
                        (const int32_t *)b->k + j * pairs, nr, (int32_t *)w->scores + j, p->score_stride);
        q16->exponentials(b->rows, keys, (int32_t *)w->scores, p->score_stride, &b->scales, &b->mask, b->visible,
                          b->tops, b->sums, b->factors);
        return;
    }
    if (!p->packs && !job->k_is_transposed && b->rows <= FEW_ROWS) {
        qrt_kernels.attention.few_scores(b->rows, keys, d, b->q, p->q_stride, b->k, job->k.row, w->scores, p->score_stride);
    } else if (p->packs) {
        qrt_f32_gemm(gemm, b->rows, keys, d, b->q, p->q_stride, b->k, NULL, w->scores, p->score_stride);
    } else if (job->k_is_transposed) {
        qrt_f32_gemm_strips(gemm, b->rows, keys, d, b->q, p->q_stride, b->k, job->k.row, nr, NULL, w->scores, p->score_stride);
    } else {
        for (int64_t j = 0; j < keys; j += FEW_PANELS * nr) {
            int64_t columns = min64(FEW_PANELS * nr, keys - j);
            gemm->pack(d, columns, b->k + j * job->k.row, 1, job->k.row, w->k_panels);
            qrt_f32_gemm(gemm, b->rows, columns, d, b->q, p->q_stride, w->k_panels, NULL, w->scores + j, p->score_stride);
        }
    }
    qrt_kernels.attention.exponentials(b->rows, keys, w->scores, p->score_stride, job->scale, &b->mask, b->visible,
                                       b->tops, b->sums);
}

/// The values of the first `keys` keys in the proportions of their weights.
static void mix(const plan *p, const block *b, int64_t keys, const working_memory *w, float *y) {
    const qrt_attention_job *job = p->job;
    const qrt_gemm_f32 *gemm = &qrt_kernels.gemm_f32;
    int64_t nr = gemm->nr, n = job->value_size;
    if (p->in_int16) {
        int64_t first = 0;
        do {
            int64_t pairs = ceil_div(min64(QRT_Q16_KEYS, keys - first), 2);
            for (int64_t j = 0; j < n; j += nr)
                qrt_kernels.attention_q16.values(
                    b->rows, min64(nr, n - j), pairs, (const int16_t *)w->scores + first, 2 * p->score_stride,
                    (const int32_t *)b->v + first / 2 * p->v_stride + j, p->v_stride, b->factors, first > 0,
                    y + j, job->y_row);
            first += QRT_Q16_KEYS;
        } while (first < keys);
        return;
    }
    int64_t row = p->packs ? nr : job->v.row, strip = p->packs ? job->num_keys * nr : nr;
    if (!p->packs && b->rows <= FEW_ROWS)
        qrt_kernels.attention.few_values(b->rows, n, keys, w->scores, p->score_stride, b->v, row, y, job->y_row);
    else
        qrt_f32_gemm_strips(gemm, b->rows, n, keys, w->scores, p->score_stride, b->v, row, strip, NULL, y, job->y_row);
    qrt_kernels.attention.divide(b->rows, n, y, job->y_row, b->sums);
}

/// What `lengths` says of a batch, cut to where it makes no difference.
static int64_t length_of(const qrt_attention_job *job, int64_t batch) {
    const qrt_tensor *lengths = job->lengths;
    int64_t length = lengths->dtype == QRT_I64 ? ((const int64_t *)lengths->data)[batch] : ((const int32_t *)lengths->data)[batch];
    return max64(-1, min64(length, job->num_keys + job->num_queries));
}

/// How many keys are there in a batch.
static int64_t keys_of(const qrt_attention_job *job, int64_t batch) {
    return job->lengths ? max64(0, min64(job->num_keys, length_of(job, batch))) : job->num_keys;
}

static void attend_block(const plan *p, int64_t batch, int64_t head, int64_t first, int64_t rows,
                         const working_memory *w) {
    const qrt_attention_job *job = p->job;
    int64_t group = job->num_heads / job->num_kv_heads, kv_head = head / group, packed = kv_head - w->first_head;
    block b = {.rows = rows, .visible = job->num_keys, .mask = job->mask};
    float *y = job->y + batch * job->y_batch + head * job->y_head + first * job->y_row;
    if (p->packs) {
        b.k = w->k_panels + packed * p->k_floats;
        b.v = w->v_panels + packed * p->v_floats;
    } else {
        b.k = job->k.data + batch * job->k.batch + kv_head * job->k.head;
        b.v = job->v.data + batch * job->v.batch + kv_head * job->v.head;
    }
    if (p->in_int16) {
        int64_t row = (head - w->first_head * group) * job->num_queries + first, key = packed * job->num_keys;
        b.q = (const float *)((const int16_t *)w->q + row * p->q_stride);
        b.scales = (qrt_q16_scales){w->q_scales + row, w->k_scales + key, w->v_scales + key};
    } else {
        b.q = job->q.data + batch * job->q.batch + head * job->q.head + first * job->q.row;
        for (int64_t i = 0; i < rows && p->q_floats; i++)
            memcpy(w->q + i * p->q_stride, b.q + i * job->q.row, (size_t)job->head_size * sizeof(float));
        if (p->q_floats) b.q = w->q;
    }
    int64_t keys = keys_of(job, batch);
    if (job->causal) {
        int64_t offset = job->lengths ? length_of(job, batch) - job->num_queries : job->causal_offset;
        b.visible = first + offset + 1;
        keys = max64(0, min64(keys, first + rows + offset));
    }
    if (b.mask.kind != QRT_MASK_NONE) {
        int64_t offset = batch * job->mask_batch + head * job->mask_head + first * b.mask.row_stride;
        b.mask.data = (const char *)b.mask.data + offset * (b.mask.kind == QRT_MASK_ADD ? (int64_t)sizeof(float) : 1);
    }
    int64_t seen = seen_keys(&b.mask, rows, keys);
    weigh(p, &b, seen, w);
    for (int64_t i = 0; i < rows && seen < keys; i++)
        if (!(b.tops[i] - b.mask.fill > FAR_BELOW)) {
            seen = keys;
            weigh(p, &b, seen, w);
        }
    if (job->dead_rows != QRT_DEAD_AS_COMPUTED)
        for (int64_t i = 0; i < rows; i++)
            if (!(b.sums[i] > 0) &&
                (job->dead_rows == QRT_DEAD_TO_ZERO || sees_nothing(&b.mask, i, min64(keys, b.visible + i)))) {
                memset(w->scores + i * p->score_stride, 0, (size_t)seen * sizeof(float));
                b.sums[i] = b.factors[i] = 1.0f;
            }
    mix(p, &b, seen, w, y);
}

/// What the codes of the heads that come next stand for.
static void decode(const qrt_coded_heads *x, int64_t batch, int64_t head, int64_t keys, float *y) {
    int64_t codes = batch * x->of_codes.batch + head * x->of_codes.head;
    int64_t ranges = batch * x->of_ranges.batch + head * x->of_ranges.head;
    const uint8_t *labels = x->labels ? x->labels + head * x->labels_head : NULL;
    qrt_kernels.cache_codes.dequantize(&x->form, keys, x->codes + codes * qrt_cache_row_bytes(&x->form),
                                       x->ranges + 2 * ranges * x->form.clusters, x->of_codes.row, labels, y);
}

static void attend_slot(void *context, int64_t slot) {
    plan own = *(const plan *)context;
    qrt_attention_job own_job = *own.job;  // whose heads of a cache in codes are the ones that this slot decodes
    own.job = &own_job;
    const plan *p = &own;
    const qrt_attention_job *job = p->job;
    int64_t group = job->num_heads / job->num_kv_heads, together = p->heads_together, keys = job->num_keys;
    working_memory w = {.scores = p->scratch + slot * p->slot_floats};
    w.q = w.scores + p->score_floats;
    w.k_panels = w.q + p->q_floats * (p->in_int16 ? together * group : 1);
    w.v_panels = w.k_panels + together * p->k_floats;
    w.k_codes = (int16_t *)(w.v_panels + together * p->v_floats);
    w.k_scales = w.v_panels + together * (p->v_floats + p->code_floats);
    w.v_scales = w.k_scales + together * keys;
    w.q_scales = w.v_scales + together * keys;
    w.decoded_k = w.v_panels + p->v_floats;
    w.decoded_v = w.decoded_k + keys * job->head_size;
    if (job->coded_k) {
        own_job.k = (qrt_heads){w.decoded_k, 0, 0, job->head_size};
        own_job.v = (qrt_heads){w.decoded_v, 0, 0, job->value_size};
    }
    int64_t units = job->num_batches * job->num_heads * p->parts, end_unit = units * (slot + 1) / p->slots;
    for (int64_t unit = units * slot / p->slots; unit < end_unit; unit++) {
        int64_t part = unit % p->parts, head = unit / p->parts % job->num_heads, batch = unit / p->parts / job->num_heads;
        int64_t kv_head = head / group;
        if ((p->packs || job->coded_k) && !(batch == w.batch && kv_head >= w.first_head && kv_head < w.first_head + w.num_heads)) {
            // As many of the heads that this slot has to come to in this batch, in equal numbers.
            int64_t last = (end_unit - 1) / p->parts - batch * job->num_heads;
            int64_t left = min64(last, job->num_heads - 1) / group - kv_head + 1;
            w.batch = batch;
            w.first_head = kv_head;
            w.num_heads = ceil_div(left, ceil_div(left, together));
            if (job->coded_k) {
                decode(job->coded_k, batch, kv_head, keys, w.decoded_k);
                decode(job->coded_v, batch, kv_head, keys, w.decoded_v);
            }
            if (p->packs) (p->in_int16 ? encode : pack)(p, &w);
        }
        int64_t end = min64(job->num_queries, (part + 1) * p->part_rows);
        for (int64_t i = part * p->part_rows; i < end; i += p->block_rows)
            attend_block(p, batch, head, i, min64(p->block_rows, end - i), &w);
    }
}

static bool multiply(int64_t a, int64_t b, int64_t *product) { return !__builtin_mul_overflow(a, b, product); }

/// The sizes of a slot; false on overflow.
static bool size_slot(plan *p) {
    const qrt_attention_job *job = p->job;
    int64_t nr = qrt_kernels.gemm_f32.nr, keys = job->num_keys, panels = ceil_div(keys, nr) * nr;
    int64_t group = job->num_heads / job->num_kv_heads;
    p->score_floats = p->block_rows * p->score_stride;
    p->heads_together = 1;
    if (!p->in_int16) {
        bool copies_q = p->block_rows > 1 && qrt_f32_rows_conflict(job->q.row);
        p->q_stride = copies_q ? qrt_f32_row_stride(job->head_size) : job->q.row;
        p->k_floats = FEW_PANELS * nr * job->head_size;
        if (copies_q && !multiply(p->block_rows, p->q_stride, &p->q_floats)) return false;
        if (p->packs && !(multiply(panels, job->head_size, &p->k_floats) &&
                          multiply(ceil_div(job->value_size, nr) * nr, keys, &p->v_floats)))
            return false;
        if (job->coded_k && !multiply(keys, job->head_size + job->value_size, &p->decoded_floats)) return false;
        return !__builtin_add_overflow(p->q_floats, p->k_floats, &p->slot_floats) &&
               !__builtin_add_overflow(p->slot_floats, p->v_floats, &p->slot_floats) &&
               !__builtin_add_overflow(p->slot_floats, p->decoded_floats, &p->slot_floats) &&
               !__builtin_add_overflow(p->slot_floats, p->score_floats, &p->slot_floats);
    }
    int64_t step = max64(nr, QRT_Q16_ROW), row = ceil_div(job->head_size, QRT_Q16_ROW) * QRT_Q16_ROW;
    int64_t q_floats, scales, head_floats = 2 * keys;
    p->q_stride = p->k_stride = row;
    p->v_stride = ceil_div(job->value_size, step) * step;
    if (!multiply(job->num_queries, row / 2, &p->q_floats) || !multiply(keys, row / 2, &p->code_floats) ||
        !multiply(panels, ceil_div(job->head_size, 2), &p->k_floats) ||
        !multiply(ceil_div(keys, 2), p->v_stride, &p->v_floats) ||
        !multiply(group, p->q_floats, &q_floats) || !multiply(group, job->num_queries, &scales))
        return false;
    const int64_t parts[] = {q_floats, scales, p->code_floats, p->k_floats, p->v_floats};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (__builtin_add_overflow(head_floats, parts[i], &head_floats)) return false;
    int64_t most = CODED_BYTES / (int64_t)sizeof(float) / max64(1, head_floats);
    p->heads_together = max64(1, min64(job->num_kv_heads, most));
    return multiply(p->heads_together, head_floats, &p->slot_floats) &&
           !__builtin_add_overflow(p->slot_floats, p->score_floats, &p->slot_floats);
}

/// A single query of heads that share keys, as the queries of one head.
static qrt_attention_job as_one_head(const qrt_attention_job *job) {
    qrt_attention_job one = *job;
    int64_t group = job->num_heads / job->num_kv_heads;
    one.num_heads = job->num_kv_heads;
    one.num_queries = group;
    one.causal = false;  // the last query, which sees all that is there
    one.q.row = job->q.head;
    one.q.head = job->q.head * group;
    one.y_row = job->y_head;
    one.y_head = job->y_head * group;
    one.mask.row_stride = job->mask_head;
    one.mask_head = job->mask_head * group;
    return one;
}

qrt_status qrt_attend(const qrt_attention_job *asked, qrt_run *run) {
    qrt_attention_job grouped;
    const qrt_attention_job *job = asked;
    bool sees_all = !job->causal || job->lengths || job->causal_offset >= job->num_keys - 1;
    if (job->num_queries == 1 && job->num_kv_heads > 0 && job->num_heads > job->num_kv_heads && sees_all && !job->in_int16) {
        grouped = as_one_head(job);
        job = &grouped;
    }
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
    int64_t mr = qrt_kernels.gemm_f32.mr;
    double work = (double)heads * (double)job->num_queries * (double)keys * (double)(job->head_size + job->value_size);
    int threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads;
    plan p = {.job = job, .parts = 1};
    p.in_int16 = job->in_int16 && !job->k_is_transposed && !job->coded_k && keys <= MAX_INT16_KEYS;
    p.packs = p.in_int16 || job->num_queries > 2 * mr;
    p.score_stride = qrt_f32_row_stride(keys);
    p.block_rows = max64(1, min64(MAX_BLOCK_ROWS, SCORE_FLOATS / p.score_stride));
    p.block_rows = max64(p.block_rows, min64(mr, MAX_BLOCK_ROWS));
    if (threads > 1 && heads < threads) p.parts = min64(ceil_div(threads, heads), ceil_div(job->num_queries, p.block_rows));
    p.part_rows = ceil_div(job->num_queries, p.parts);
    // Equal blocks of whole groups: a tile or a group of a row or two takes as long as a full one.
    int64_t equal = ceil_div(p.part_rows, ceil_div(p.part_rows, p.block_rows));
    p.block_rows = min64(ceil_div(equal, GROUP_ROWS) * GROUP_ROWS, MAX_BLOCK_ROWS);
    p.slots = threads > 1 ? min64(2 * threads, heads * p.parts) : 1;
    size_t floats, bytes;
    if (!size_slot(&p) || __builtin_mul_overflow((size_t)p.slot_floats, (size_t)p.slots, &floats) ||
        __builtin_mul_overflow(floats, sizeof(float), &bytes))
        return QRT_NO_MEMORY;
    qrt_buffer *scratch = qrt_scratch(run, bytes);
    if (!scratch) return QRT_NO_MEMORY;
    p.scratch = scratch->data;
    qrt_parallel_for(threads, p.slots, attend_slot, &p);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}
