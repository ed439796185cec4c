/// Linear classifiers and regressors: the product with packed coefficients, and what becomes of the scores.
#include "../threads.h"
#include "../weights.h"
#include "scores.h"

/// How labels are found: not at all, by the greatest score, by whether the only score is above a threshold; or the
/// output is the sign of the scores. As in qruntime/ops/linear_models.py.
enum { QRT_DECISIONS(QRT_ENUMERATOR) NUM_DECISIONS };

typedef struct {
    int64_t transform, decision;
    float threshold;
    int64_t num_rows, num_scores, rows_per_task;
    float *scores;
    const int64_t *names;    ///< labels of classes; of ABOVE what is not the class stands first
    int64_t *labels;
} linear_call;

static void finish_rows(void *context, int64_t task) {
    const linear_call *call = context;
    const int64_t n = call->num_scores, first = task * call->rows_per_task;
    int64_t end = first + call->rows_per_task;
    if (end > call->num_rows) end = call->num_rows;
    float *scores = call->scores + first * n;
    for (int64_t row = first; row < end && call->decision != NO_LABELS; row++) {
        float *of_row = call->scores + row * n;
        if (call->decision == BEST) call->labels[row] = call->names[qrt_best_class(of_row, n)];
        else if (call->decision == ABOVE) call->labels[row] = call->names[of_row[0] > call->threshold];
        else for (int64_t i = 0; i < n; i++) of_row[i] = of_row[i] > 0 ? 1.0f : -1.0f;
    }
    qrt_transform_scores(call->transform, scores, end - first, n);
}

/// Input: rows of features [N, F] or [F]; float32, int32 or int64. Outputs: float32 scores [N, C], of a classifier
/// behind the labels int64 [N]. ints: transform, decision. floats: threshold. packed: coefficients qrt_weights
/// [F, C], labels int64 or NULL.
static qrt_status linear_model(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_ints != 2 || node->num_floats != 1 || node->num_packed != 2) return QRT_DECLINE;
    const qrt_weights *w = node->packed[0];
    const qrt_tensor *labels = node->packed[1];
    linear_call call = {
        .transform = node->ints[0], .decision = node->ints[1], .threshold = (float)node->floats[0],
        .num_scores = w->n, .names = labels ? labels->data : NULL,
    };
    const bool is_classifier = call.decision == BEST || call.decision == ABOVE;
    if (call.decision < 0 || call.decision >= NUM_DECISIONS || is_classifier != (labels != NULL)) return QRT_DECLINE;
    if (is_classifier && labels->size < (call.decision == ABOVE ? 2 : w->n)) return QRT_DECLINE;
    if (node->num_outputs != 1 + is_classifier) return QRT_DECLINE;
    qrt_features x;
    qrt_status status = qrt_read_features(qrt_input(node, in, 0), run, &x);
    if (status != QRT_OK) return status;
    call.num_rows = x.num_rows;
    status = x.num_features == w->k ? qrt_alloc_scores(run, QRT_F32, x.num_rows, w->n, is_classifier, out) : QRT_DECLINE;
    if (status == QRT_OK && x.num_rows > 0) {
        call.scores = out[is_classifier].data;
        call.labels = is_classifier ? out[0].data : NULL;
        const qrt_layer layer = {.w = w, .epilogue = {.activation = QRT_ACT_NONE}, .y = call.scores, .ldy_elems = w->n};
        status = qrt_linear(&layer, 1, run, x.data, w->k, x.num_rows, QRT_Q8_ANY_GRID);
        call.rows_per_task = qrt_rows_per_task(run, x.num_rows, 8 * w->n);
        int64_t num_tasks = (x.num_rows + call.rows_per_task - 1) / call.rows_per_task;
        if (status == QRT_OK) qrt_parallel_for(run->num_threads, num_tasks, finish_rows, &call);
    }
    qrt_features_free(run, &x);
    return status;
}

const qrt_node_entry qrt_linear_model_nodes[] = {
    {"linear_model", linear_model},
    {NULL, NULL},
};
