#include "scores.h"

#include <math.h>

/// Operations that are worth a second thread.
enum { PARALLEL_WORK = 1 << 17 };

enum { SHORT_ROW = 16 };

qrt_status qrt_read_features(const qrt_tensor *x, qrt_run *run, qrt_features *features) {
    if (!qrt_is_tensor(x) || x->rank < 1 || x->rank > 2) return QRT_DECLINE;
    *features = (qrt_features){x->data, x->rank == 2 ? x->dims[0] : 1, x->dims[x->rank - 1], NULL};
    if (x->dtype == QRT_F32) return QRT_OK;
    if (x->dtype != QRT_I32 && x->dtype != QRT_I64) return QRT_DECLINE;
    if (!(features->copy = qrt_scratch(run, (size_t)x->size * sizeof(float)))) return QRT_NO_MEMORY;
    float *to = features->copy->data;
    for (int64_t i = 0; i < x->size; i++) to[i] = (float)qrt_index(x, i);
    features->data = to;
    return QRT_OK;
}

void qrt_features_free(qrt_run *run, qrt_features *features) {
    if (features->copy) qrt_scratch_free(run, features->copy);
}

qrt_status qrt_alloc_scores(qrt_run *run, int32_t dtype, int64_t num_rows, int64_t num_scores, bool has_labels, qrt_tensor *out) {
    int64_t dims[2] = {num_rows, num_scores};
    if (!qrt_is_buildable(2, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[has_labels], dtype, 2, dims);
    if (status == QRT_OK && has_labels) status = qrt_alloc(run, &out[0], QRT_I64, 1, dims);
    return status;
}

int64_t qrt_best_class(const float *scores, int64_t n) {
    // Without a branch on the scores, which nobody could predict.
    int64_t best = 0;
    float top = scores[0];
    bool has_nan = top != top;
    for (int64_t i = 1; i < n; i++) {
        bool is_better = scores[i] > top;
        best = is_better ? i : best;
        top = is_better ? scores[i] : top;
        has_nan |= scores[i] != scores[i];
    }
    if (has_nan)
        for (best = 0; scores[best] == scores[best];) best++;
    return best;
}

/// Softmax of rows so short that a call of the kernel for each would cost more than the row.
static void softmax_of_short_rows(float *scores, int64_t num_rows, int64_t n) {
    for (int64_t row = 0; row < num_rows; row++) {
        float *x = scores + row * n, peak = x[0];
        for (int64_t i = 1; i < n; i++) peak = x[i] > peak ? x[i] : peak;  // a NaN stays one in what follows
        for (int64_t i = 0; i < n; i++) x[i] -= peak;
    }
    qrt_kernels.pointwise.unary[QRT_EXP](scores, scores, num_rows * n, 0, 0);
    for (int64_t row = 0; row < num_rows; row++) {
        float *x = scores + row * n, total = 0;
        for (int64_t i = 0; i < n; i++) total += x[i];
        for (int64_t i = 0; i < n; i++) x[i] /= total;
    }
}

/// Softmax in which scores of (nearly) zero stay so small.
static void softmax_zero(float *scores, int64_t n) {
    float peak = scores[qrt_best_class(scores, n)], total = 0;
    for (int64_t i = 0; i < n; i++) {
        scores[i] = fabsf(scores[i]) <= 1e-7f ? scores[i] * expf(-peak) : expf(scores[i] - peak);
        total += scores[i];
    }
    for (int64_t i = 0; i < n; i++) scores[i] = total == 0 ? 0.5f : scores[i] / total;
}

enum { QRT_POST_TRANSFORMS(QRT_ENUMERATOR) };

void qrt_transform_scores(int64_t transform, float *scores, int64_t num_rows, int64_t n) {
    switch (transform) {
    case LOGISTIC: qrt_kernels.pointwise.unary[QRT_SIGMOID](scores, scores, num_rows * n, 0, 0); break;
    case SOFTMAX:
        if (n < SHORT_ROW) softmax_of_short_rows(scores, num_rows, n);
        else
            for (int64_t i = 0; i < num_rows; i++) qrt_kernels.rows.softmax(scores + i * n, scores + i * n, n);
        break;
    case SOFTMAX_ZERO:
        for (int64_t i = 0; i < num_rows; i++) softmax_zero(scores + i * n, n);
        break;
    default: break;
    }
}

int64_t qrt_rows_per_task(const qrt_run *run, int64_t num_rows, int64_t work) {
    bool is_shared = run->num_threads > 1 && (double)num_rows * (double)work > PARALLEL_WORK;
    int64_t num_tasks = is_shared ? 4 * (int64_t)run->num_threads : 1;
    return num_rows > num_tasks ? (num_rows + num_tasks - 1) / num_tasks : 1;
}
