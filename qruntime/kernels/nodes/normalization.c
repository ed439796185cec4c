/// Normalisation of images x [N, C, …], whose scales and biases belong to channels.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "arguments.h"

/// Elements of one task, and of a piece that is in the first-level cache when it is read again.
enum { GRAIN = 16384, PIECE = 2048 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

static bool is_vector(const qrt_tensor *t, int32_t dtype, int64_t size) {
    return t && t->dtype == dtype && t->rank == 1 && t->size == size;
}

static qrt_status allocate_over_first(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (!qrt_may_overwrite(node, in, 0)) return qrt_alloc(run, out, in[0]->dtype, in[0]->rank, in[0]->dims);
    qrt_alias(out, in[0], in[0]->rank, in[0]->dims);
    return QRT_OK;
}

/// Rows of n elements. With step 1 element i of every row is of channel i, with step 0 a row is all of one channel.
typedef struct {
    const void *x;
    void *factors, *offsets, *y;
    size_t item;                    ///< of all: floats or doubles
    bool is_half;                   ///< x and y are float16, factors and offsets floats
    qrt_binary_fn multiply, add;
    int64_t rows, n, channels, rows_per_task;
    int step;
} scaling;

/// `count` elements from `from` to `to`: y = x · factor + offset, rounded after each operation, so that bits are the same whether a
/// channel is one element or many.
static void scale_piece(const scaling *s, const void *from, int64_t channel, void *to, int64_t count) {
    const size_t of_channel = (size_t)channel * s->item;
    s->multiply(from, (const char *)s->factors + of_channel, to, count, 1, s->step);
    s->add(to, (const char *)s->offsets + of_channel, to, count, 1, s->step);
}

static void scale_rows(void *context, int64_t task) {
    const scaling *s = context;
    float wide[PIECE];
    int64_t first = task * s->rows_per_task, last = min64(first + s->rows_per_task, s->rows);
    for (int64_t row = first; row < last; row++)
        for (int64_t i = 0; i < s->n; i += PIECE) {
            const int64_t count = min64(PIECE, s->n - i), channel = s->step ? i : row % s->channels, at = row * s->n + i;
            if (s->is_half) {
                qrt_kernels.pointwise.f16_to_f32((const uint16_t *)s->x + at, wide, count);
                scale_piece(s, wide, channel, wide, count);
                qrt_kernels.pointwise.f32_to_f16(wide, (uint16_t *)s->y + at, count);
            } else {
                scale_piece(s, (const char *)s->x + (size_t)at * s->item, channel, (char *)s->y + (size_t)at * s->item, count);
            }
        }
}

/// factor = scale / √(variance + epsilon) and offset = bias − mean · factor; false unless all are finite.
#define FOLD_STATISTICS(name, T, epsilon_type)                                                                    \
    static bool name(int64_t channels, const qrt_tensor *const *in, double epsilon, T *factors, T *offsets) {     \
        const T *scale = in[1]->data, *bias = in[2]->data, *mean = in[3]->data, *variance = in[4]->data;          \
        bool finite = true;                                                                                       \
        for (int64_t c = 0; c < channels; c++) {                                                                  \
            double factor = scale[c] / sqrt((double)variance[c] + (epsilon_type)epsilon);                         \
            factors[c] = (T)factor;                                                                               \
            offsets[c] = (T)(bias[c] - mean[c] * factor);                                                         \
            finite &= isfinite(factors[c]) && isfinite(offsets[c]);                                               \
        }                                                                                                         \
        return finite;                                                                                            \
    }
FOLD_STATISTICS(fold_floats, float, float)
FOLD_STATISTICS(fold_doubles, double, double)

/// The same of float16, whose four vectors are widened to `wide` before.
static bool fold_halves(int64_t channels, const qrt_tensor *const *in, double epsilon, float *factors, float *offsets, float *wide) {
    qrt_tensor tensors[5];
    const qrt_tensor *floats[5] = {NULL};
    for (int i = 1; i < 5; i++, wide += channels) {
        qrt_kernels.pointwise.f16_to_f32(in[i]->data, wide, channels);
        tensors[i] = (qrt_tensor){.data = wide};
        floats[i] = &tensors[i];
    }
    return fold_floats(channels, floats, epsilon, factors, offsets);
}

/// (x − mean) / √(variance + epsilon) · scale + bias within 3 ε (|x · factor| + |mean · factor| + |bias|).
/// Inputs, all of float32, of float64 or of float16: x [N, C, …]; scale, bias, mean, variance [C]. floats: epsilon.
static qrt_status batch_norm(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs != 5 || node->num_floats != 1) return QRT_DECLINE;
    const qrt_tensor *x = in[0];
    if (!x || (x->dtype != QRT_F32 && x->dtype != QRT_F64 && x->dtype != QRT_F16) || x->rank < 2) return QRT_DECLINE;
    int64_t channels = x->dims[1], inner = qrt_product(x->dims, 2, x->rank);
    for (int i = 1; i < 5; i++)
        if (!is_vector(in[i], x->dtype, channels)) return QRT_DECLINE;
    const bool is_double = x->dtype == QRT_F64, is_half = x->dtype == QRT_F16;
    const size_t item = is_double ? sizeof(double) : sizeof(float), of_channels = (size_t)channels * item;
    qrt_buffer *scratch = qrt_scratch(run, (is_half ? 6 : 2) * of_channels);
    if (!scratch) return QRT_NO_MEMORY;
    char *factors = scratch->data, *offsets = factors + of_channels, *wide = offsets + of_channels;
    const double epsilon = node->floats[0];
    const bool is_finite = is_double ? fold_doubles(channels, in, epsilon, (double *)factors, (double *)offsets)
                           : is_half ? fold_halves(channels, in, epsilon, (float *)factors, (float *)offsets, (float *)wide)
                                     : fold_floats(channels, in, epsilon, (float *)factors, (float *)offsets);
    qrt_status status = is_finite ? allocate_over_first(node, run, in, &out[0]) : QRT_DECLINE;
    if (status == QRT_OK && x->size) {
        const bool vectors = inner == 1;
        const qrt_binary_fn *binary = is_double ? qrt_kernels.pointwise.binary_f64 : qrt_kernels.pointwise.binary_f32;
        scaling s = {.x = x->data, .factors = factors, .offsets = offsets, .y = out[0].data, .item = item, .is_half = is_half,
                     .multiply = binary[QRT_MUL], .add = binary[QRT_ADD], .rows = vectors ? x->dims[0] : x->dims[0] * channels,
                     .n = vectors ? channels : inner, .channels = channels, .step = vectors};
        s.rows_per_task = 1 + GRAIN / s.n;
        qrt_parallel_for(run->num_threads, (s.rows + s.rows_per_task - 1) / s.rows_per_task, scale_rows, &s);
    }
    qrt_scratch_free(run, scratch);
    return status;
}

typedef struct {
    const float *x, *scale, *bias;
    float *y, epsilon;
    int64_t rows, n, groups, channels, inner, rows_per_task;  ///< a row is a group: `channels` of `inner` elements
    bool per_group;
} grouping;

static void normalize_groups(void *context, int64_t task) {
    const grouping *g = context;
    const qrt_unary_fn affine = qrt_kernels.pointwise.unary[QRT_AFFINE];
    const qrt_norm_params params = {.epsilon = g->epsilon};
    int64_t first = task * g->rows_per_task, last = min64(first + g->rows_per_task, g->rows);
    for (int64_t row = first; row < last; row++) {
        float *y = g->y + row * g->n;
        qrt_kernels.rows.layer_norm(1, g->x + row * g->n, NULL, NULL, y, g->n, &params);
        int64_t group = row % g->groups;
        if (g->per_group) {
            affine(y, y, g->n, g->scale[group], g->bias[group]);
            continue;
        }
        for (int64_t c = group * g->channels; c < (group + 1) * g->channels; c++, y += g->inner)
            affine(y, y, g->inner, g->scale[c], g->bias[c]);
    }
}

/// Each group of channels standardized on its own, times scale plus bias.
/// Inputs: float32 x [N, C, …]; scale, bias [C], or one for each group.
/// ints: number of groups (0: every channel is one), whether scale and bias belong to groups. floats: epsilon.
static qrt_status group_norm(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs != 3 || node->num_ints != 2 || node->num_floats != 1) return QRT_DECLINE;
    const qrt_tensor *x = in[0];
    // A group can be several channels of one element each; an instance has spatial dims.
    if (!x || x->dtype != QRT_F32 || x->rank < (node->ints[0] ? 2 : 3)) return QRT_DECLINE;
    int64_t channels = x->dims[1], groups = node->ints[0] ? node->ints[0] : channels;
    bool per_group = node->ints[1];
    if (groups < 1 || channels < 1 || channels % groups) return QRT_DECLINE;
    for (int i = 1; i < 3; i++)
        if (!is_vector(in[i], QRT_F32, per_group ? groups : channels)) return QRT_DECLINE;
    qrt_status status = allocate_over_first(node, run, in, &out[0]);
    if (status != QRT_OK || out[0].size == 0) return status;
    grouping g = {
        .x = x->data, .scale = in[1]->data, .bias = in[2]->data, .y = out[0].data, .epsilon = (float)node->floats[0],
        .rows = x->dims[0] * groups, .n = x->size / (x->dims[0] * groups), .groups = groups, .channels = channels / groups,
        .inner = qrt_product(x->dims, 2, x->rank), .per_group = per_group,
    };
    g.rows_per_task = 1 + GRAIN / g.n;
    qrt_parallel_for(run->num_threads, (g.rows + g.rows_per_task - 1) / g.rows_per_task, normalize_groups, &g);
    return QRT_OK;
}

/// Neighbouring channels of images [images, channels, inner].
typedef struct {
    const float *x;
    float *y, *scratch;              ///< for each task the squares of all channels in a piece, and what divides one of them
    int64_t images, channels, inner, pieces, tasks;
    int64_t before, after;           ///< neighbours that count
    float factor, beta, bias;
} response;

enum { RESPONSE_PIECE = 256 };

static void normalize_responses(void *context, int64_t task) {
    const response *r = context;
    const qrt_binary_fn *binary = qrt_kernels.pointwise.binary_f32;
    float *squares = r->scratch + task * (r->channels + 1) * RESPONSE_PIECE, *divisor = squares + r->channels * RESPONSE_PIECE;
    const int64_t units = r->images * r->pieces;
    for (int64_t unit = units * task / r->tasks; unit < units * (task + 1) / r->tasks; unit++) {
        const int64_t first = unit % r->pieces * RESPONSE_PIECE, n = min64(RESPONSE_PIECE, r->inner - first);
        const int64_t at = unit / r->pieces * r->channels * r->inner + first;
        for (int64_t c = 0; c < r->channels; c++) {
            const float *x = r->x + at + c * r->inner;
            binary[QRT_MUL](x, x, squares + c * RESPONSE_PIECE, n, 1, 1);
        }
        for (int64_t c = 0; c < r->channels; c++) {
            const int64_t low = c > r->before ? c - r->before : 0, high = min64(r->channels, c + r->after + 1);
            memcpy(divisor, squares + low * RESPONSE_PIECE, (size_t)n * sizeof(float));
            for (int64_t i = low + 1; i < high; i++) binary[QRT_ADD](divisor, squares + i * RESPONSE_PIECE, divisor, n, 1, 1);
            binary[QRT_MUL](divisor, &r->factor, divisor, n, 1, 0);
            binary[QRT_ADD](divisor, &r->bias, divisor, n, 1, 0);
            binary[QRT_POW](divisor, &r->beta, divisor, n, 1, 0);
            binary[QRT_DIV](r->x + at + c * r->inner, divisor, r->y + at + c * r->inner, n, 1, 1);
        }
    }
}

/// x / (bias + alpha / size · sum of squares over `size` neighbouring channels) ** beta.
/// Input: float32 x [N, C, …]. ints: size. floats: alpha, beta, bias.
static qrt_status lrn(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!qrt_is_tensor(x) || x->dtype != QRT_F32 || x->rank < 2 || node->num_ints != 1 || node->num_floats != 3) return QRT_DECLINE;
    const int64_t size = node->ints[0];
    if (size < 1) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank, x->dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    response r = {
        .x = x->data, .y = out[0].data, .images = x->dims[0], .channels = x->dims[1], .inner = qrt_product(x->dims, 2, x->rank),
        .before = (size - 1) / 2, .after = size / 2, .factor = (float)(node->floats[0] / (double)size),
        .beta = (float)node->floats[1], .bias = (float)node->floats[2],
    };
    r.before = min64(r.before, r.channels);
    r.after = min64(r.after, r.channels);
    r.pieces = (r.inner + RESPONSE_PIECE - 1) / RESPONSE_PIECE;
    r.tasks = min64(x->size < GRAIN ? 1 : 4 * (int64_t)run->num_threads, r.images * r.pieces);
    qrt_buffer *scratch = qrt_scratch(run, (size_t)(r.tasks * (r.channels + 1) * RESPONSE_PIECE) * sizeof(float));
    if (!scratch) return QRT_NO_MEMORY;
    r.scratch = scratch->data;
    qrt_parallel_for(run->num_threads, r.tasks, normalize_responses, &r);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

const qrt_node_entry qrt_normalization_nodes[] = {
    {"batch_norm", batch_norm},
    {"group_norm", group_norm},
    {"lrn", lrn},
    {NULL, NULL},
};
