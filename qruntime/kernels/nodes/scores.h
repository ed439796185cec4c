/// What the nodes of the domain ai.onnx.ml share: rows of features, and what becomes of scores.
#ifndef QRT_SCORES_H
#define QRT_SCORES_H

#include "arguments.h"
#include "enumerations.h"

/// X [N, F], or [F] as one row, in float32.
typedef struct {
    const float *data;
    int64_t num_rows, num_features;
    qrt_buffer *copy;        ///< of integers
} qrt_features;

/// Reads float32, int32 and int64. Give it back with qrt_features_free.
qrt_status qrt_read_features(const qrt_tensor *x, qrt_run *run, qrt_features *features);
void qrt_features_free(qrt_run *run, qrt_features *features);

/// Makes the outputs of a node: labels int64 [num_rows] first where it has them, then scores [num_rows, num_scores].
qrt_status qrt_alloc_scores(qrt_run *run, int32_t dtype, int64_t num_rows, int64_t num_scores, bool has_labels, qrt_tensor *out);

/// The place of the greatest of n > 0 scores: the first of them, or the first NaN.
int64_t qrt_best_class(const float *scores, int64_t n);

/// A value of QRT_POST_TRANSFORMS on num_rows rows of n scores, in place; a row's result does not depend on the other rows.
void qrt_transform_scores(int64_t transform, float *scores, int64_t num_rows, int64_t n);

/// Rows that one task finishes: `work` is a measure, in operations, of a row.
int64_t qrt_rows_per_task(const qrt_run *run, int64_t num_rows, int64_t work);

#endif
