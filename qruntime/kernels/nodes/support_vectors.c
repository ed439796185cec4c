/// Support vector machines: the kernel function of every row with every support vector, weighted sums of them, and for
/// classifiers the votes of the pairs of classes and the probabilities that fit the pairs best.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "../weights.h"
#include "scores.h"

enum { BLOCK_ELEMS = 32768 };  ///< values of the kernel function at a time: they stay in the second-level cache

enum { QRT_VECTOR_KERNELS(QRT_ENUMERATOR) NUM_KERNELS };
enum { QRT_VECTOR_OUTPUTS(QRT_ENUMERATOR) NUM_OUTPUT_KINDS };

enum { KERNEL, OUTPUT, TRANSFORM, NUM_CLASSES, NUM_INTS };
enum { GAMMA, COEF0, DEGREE, NUM_FLOATS };
enum { VECTORS, SQUARES, WEIGHTS, LABELS, PROBABILITIES, NUM_PACKED };

typedef struct {
    int64_t kernel, output, transform;
    float gamma, coef0, degree;
    const qrt_weights *vectors;  ///< [F, S]
    const float *squares;            ///< of the support vectors [S]
    const qrt_weights *weights;  ///< [S, pairs], the offset of each pair as bias
    int64_t num_classes, num_pairs, num_scores;
    const int64_t *names;
    const double *a, *b;             ///< a pair's share is 1 / (1 + e^(a·score + b)); NULL without probabilities
    qrt_features x;
    int64_t rows_per_task, block_rows, task_bytes;
    char *scratch;
    float *scores;
    int64_t *labels;
} svm_call;

/// Working memory of a task, one after the other.
typedef struct {
    double *q, *products, *shares;  ///< [C, C], [C], [C]
    int64_t *votes;                 ///< [C]
    float *values, *pairs;          ///< [block, S], [block, pairs]
} svm_scratch;

static svm_scratch scratch_of(const svm_call *call, int64_t task) {
    const int64_t c = call->num_classes;
    svm_scratch s;
    s.q = (double *)(call->scratch + task * call->task_bytes);
    s.products = s.q + c * c;
    s.shares = s.products + c;
    s.votes = (int64_t *)(s.shares + c);
    s.values = (float *)(s.votes + c);
    s.pairs = s.values + call->block_rows * call->vectors->n;
    return s;
}

static int64_t scratch_bytes(const svm_call *call) {
    const int64_t c = call->num_classes;
    int64_t bytes = (c * c + 3 * c) * (int64_t)sizeof(double);
    bytes += call->block_rows * (call->vectors->n + call->num_pairs) * (int64_t)sizeof(float);
    return (bytes + 63) / 64 * 64;
}

/// y = y to a power that is nearly always a small integer, when products are much faster.
static void raise_to(float *y, int64_t n, float degree) {
    float base[256];
    const int exponent = degree >= 1 && degree <= 8 ? (int)degree : 0;
    if (exponent == 0 || (float)exponent != degree) {
        qrt_kernels.pointwise.binary_f32[QRT_POW](y, &degree, y, n, 1, 0);
        return;
    }
    for (int64_t i = 0; i < n; i += 256) {
        int64_t count = n - i < 256 ? n - i : 256;
        memcpy(base, y + i, (size_t)count * sizeof(float));
        for (int e = 1; e < exponent; e++) qrt_kernels.pointwise.binary_f32[QRT_MUL](y + i, base, y + i, count, 1, 1);
    }
}

/// Products of rows with support vectors become values of the kernel function.
static void apply_kernel(const svm_call *call, const float *x, int64_t num_rows, float *values) {
    const int64_t k = call->vectors->k, num_vectors = call->vectors->n, n = num_rows * num_vectors;
    const float gamma = call->gamma;
    switch (call->kernel) {
    case RBF:
        for (int64_t row = 0; row < num_rows; row++) {
            float *v = values + row * num_vectors, square = qrt_kernels.rows.reduce[QRT_REDUCE_SUM_SQUARE](x + row * k, k);
            for (int64_t i = 0; i < num_vectors; i++) {
                float distance = square - 2 * v[i] + call->squares[i];
                v[i] = -gamma * (distance < 0 ? 0 : distance);
            }
        }
        qrt_kernels.pointwise.unary[QRT_EXP](values, values, n, 0, 0);
        break;
    case POLY:
    case SIGMOID:
        qrt_kernels.pointwise.unary[QRT_AFFINE](values, values, n, gamma, call->coef0);
        if (call->kernel == POLY) raise_to(values, n, call->degree);
        else qrt_kernels.pointwise.unary[QRT_TANH](values, values, n, 0, 0);
        break;
    default: break;
    }
}

/// The class with the most votes of its pairs, the first of them.
static int64_t most_voted(const svm_call *call, const float *pairs, int64_t *votes) {
    const int64_t c = call->num_classes;
    int64_t pair = 0, best = 0;
    memset(votes, 0, (size_t)c * sizeof *votes);
    for (int64_t i = 0; i < c; i++)
        for (int64_t j = i + 1; j < c; j++, pair++) votes[pairs[pair] > 0 ? i : j]++;
    for (int64_t i = 1; i < c; i++)
        if (votes[i] > votes[best]) best = i;
    return best;
}

static double clipped(double share) { return share < 1e-7 ? 1e-7 : share > 1 - 1e-7 ? 1 - 1e-7 : share; }

/// The matrix of which class probabilities make the quadratic form least: −r[i, j] · r[j, i], and on the diagonal sums of
/// squares; r[i, j] is the share of class i of the pair.
static void quadratic_form(const svm_call *call, const float *pairs, double *q) {
    const int64_t c = call->num_classes;
    for (int64_t i = 0; i < c; i++) q[i * c + i] = 0;
    for (int64_t i = 0, pair = 0; i < c; i++)
        for (int64_t j = i + 1; j < c; j++, pair++) {
            double share = clipped(1 / (1 + exp((double)pairs[pair] * call->a[pair] + call->b[pair]))), other = 1 - share;
            q[i * c + j] = q[j * c + i] = -share * other;
            q[i * c + i] += other * other;
            q[j * c + j] += share * share;
        }
}

/// Class probabilities p that fit the pairs best: the second method of Wu, Lin and Weng (2004).
static void couple(const double *q, int64_t c, double *products, double *p) {
    for (int64_t i = 0; i < c; i++) p[i] = 1 / (double)c;
    for (int64_t round = 0; round < (c > 100 ? c : 100); round++) {
        double total = 0, worst = 0;
        for (int64_t i = 0; i < c; i++) {
            products[i] = 0;
            for (int64_t j = 0; j < c; j++) products[i] += q[i * c + j] * p[j];
            total += p[i] * products[i];
        }
        for (int64_t i = 0; i < c; i++) {
            double error = fabs(products[i] - total);
            if (error > worst || error != error) worst = error;
            if (worst != worst) return;
        }
        if (worst < 0.005 / (double)c) return;
        for (int64_t t = 0; t < c; t++) {
            const double *row = q + t * c;
            double step = (total - products[t]) / row[t], scale = 1 + step;
            p[t] += step;
            total = (total + step * (step * row[t] + 2 * products[t])) / (scale * scale);
            for (int64_t j = 0; j < c; j++) {
                products[j] = (products[j] + step * row[j]) / scale;
                p[j] /= scale;
            }
        }
    }
}

static void finish_row(const svm_call *call, const float *pairs, int64_t row, const svm_scratch *s) {
    float *scores = call->scores + row * call->num_scores;
    if (call->output == CLASSIFIER) call->labels[row] = call->names[most_voted(call, pairs, s->votes)];
    if (call->output == ONE_CLASS) {
        scores[0] = pairs[0] > 0 ? 1.0f : -1.0f;
    } else if (call->a) {
        quadratic_form(call, pairs, s->q);
        couple(s->q, call->num_classes, s->products, s->shares);
        for (int64_t i = 0; i < call->num_classes; i++) scores[i] = (float)s->shares[i];
    } else if (call->output == CLASSIFIER && call->num_pairs == 1) {
        scores[0] = -pairs[0];
        scores[1] = pairs[0];
    } else {
        memcpy(scores, pairs, (size_t)call->num_pairs * sizeof(float));
    }
}

static void run_rows(void *context, int64_t task) {
    const svm_call *call = context;
    const svm_scratch s = scratch_of(call, task);
    const qrt_epilogue plain = {.activation = QRT_ACT_NONE};
    const qrt_weights *vectors = call->vectors, *weights = call->weights;
    int64_t row = task * call->rows_per_task, end = row + call->rows_per_task;
    if (end > call->x.num_rows) end = call->x.num_rows;
    while (row < end) {
        int64_t count = end - row < call->block_rows ? end - row : call->block_rows;
        const float *x = call->x.data + row * vectors->k;
        qrt_linear_serial(vectors, x, vectors->k, count, QRT_Q8_ANY_GRID, &plain, s.values, vectors->n, NULL);
        apply_kernel(call, x, count, s.values);
        qrt_linear_serial(weights, s.values, weights->k, count, QRT_Q8_ANY_GRID, &plain, s.pairs, weights->n, NULL);
        for (int64_t i = 0; i < count; i++) finish_row(call, s.pairs + i * call->num_pairs, row + i, &s);
        qrt_transform_scores(call->transform, call->scores + row * call->num_scores, count, call->num_scores);
        row += count;
    }
}

static bool read_parameters(const qrt_node *node, svm_call *call) {
    if (node->num_ints != NUM_INTS || node->num_floats != NUM_FLOATS || node->num_packed != NUM_PACKED) return false;
    const qrt_tensor *squares = node->packed[SQUARES], *labels = node->packed[LABELS], *ab = node->packed[PROBABILITIES];
    const int64_t *ints = node->ints, c = ints[NUM_CLASSES];
    *call = (svm_call){
        .kernel = ints[KERNEL], .output = ints[OUTPUT], .transform = ints[TRANSFORM], .num_classes = c,
        .gamma = (float)node->floats[GAMMA], .coef0 = (float)node->floats[COEF0], .degree = (float)node->floats[DEGREE],
        .vectors = node->packed[VECTORS], .squares = squares ? squares->data : NULL, .weights = node->packed[WEIGHTS],
        .names = labels ? labels->data : NULL,
    };
    if (call->kernel < 0 || call->kernel >= NUM_KERNELS || call->output < 0 || call->output >= NUM_OUTPUT_KINDS) return false;
    const int64_t pairs = call->num_pairs = call->weights->n;
    // Float weights multiply without working memory.
    if (call->vectors->ops != &qrt_f32_ops || call->weights->ops != &qrt_f32_ops) return false;
    if (call->weights->k != call->vectors->n || (call->kernel == RBF && (!squares || squares->size != call->vectors->n))) return false;
    if (call->output == CLASSIFIER ? (c < 2 || pairs != c * (c - 1) / 2 || !labels || labels->size != c) : pairs != 1 || ab) return false;
    if (ab) {
        if (ab->dtype != QRT_F64 || ab->size != 2 * pairs) return false;
        call->a = ab->data;
        call->b = call->a + pairs;
    }
    call->num_scores = call->output != CLASSIFIER ? 1 : ab ? c : pairs == 1 ? 2 : pairs;
    return node->num_outputs == 1 + (call->output == CLASSIFIER);
}

/// Sets where scores and labels go.
static qrt_status allocate(qrt_run *run, svm_call *call, qrt_tensor *out) {
    const bool has_labels = call->output == CLASSIFIER;
    qrt_status status = qrt_alloc_scores(run, QRT_F32, call->x.num_rows, call->num_scores, has_labels, out);
    call->scores = status == QRT_OK ? out[has_labels].data : NULL;
    call->labels = status == QRT_OK && has_labels ? out[0].data : NULL;
    return status;
}

static qrt_status run_all(svm_call *call, qrt_run *run, qrt_tensor *out) {
    const int64_t num_rows = call->x.num_rows, num_vectors = call->vectors->n;
    if (call->x.num_features != call->vectors->k) return QRT_DECLINE;
    if (num_rows == 0) return allocate(run, call, out);
    call->rows_per_task = qrt_rows_per_task(run, num_rows, num_vectors * (call->vectors->k + 8));
    call->block_rows = BLOCK_ELEMS / num_vectors < 4 ? 4 : BLOCK_ELEMS / num_vectors;
    if (call->block_rows > call->rows_per_task) call->block_rows = call->rows_per_task;
    call->task_bytes = scratch_bytes(call);
    int64_t num_tasks = (num_rows + call->rows_per_task - 1) / call->rows_per_task;
    qrt_buffer *scratch = qrt_scratch(run, (size_t)(num_tasks * call->task_bytes));
    if (!scratch) return QRT_NO_MEMORY;
    call->scratch = scratch->data;
    qrt_status status = allocate(run, call, out);
    if (status == QRT_OK) qrt_parallel_for(run->num_threads, num_tasks, run_rows, call);
    qrt_scratch_free(run, scratch);
    return status;
}

/// Input: rows of features [N, F] or [F]; float32, int32 or int64. Outputs: float32 [N, 1]; of a classifier labels int64
/// [N] and float32 scores, [N, classes] with probabilities, else those of the pairs, and of one pair both signs.
/// ints, floats and packed as the enumerations above name them.
static qrt_status support_vectors(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    svm_call call;
    if (!read_parameters(node, &call)) return QRT_DECLINE;
    qrt_status status = qrt_read_features(qrt_input(node, in, 0), run, &call.x);
    if (status != QRT_OK) return status;
    status = run_all(&call, run, out);
    qrt_features_free(run, &call.x);
    return status;
}

const qrt_node_entry qrt_support_vectors_nodes[] = {
    {"support_vectors", support_vectors},
    {NULL, NULL},
};
