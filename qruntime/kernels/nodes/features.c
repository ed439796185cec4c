/// Preparation of features of the domain ai.onnx.ml: every element, or every row, for itself.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "arguments.h"
#include "enumerations.h"

enum { PARALLEL_ELEMS = 65536 };  ///< elements that are worth a second thread
enum { SHORT_ROW = 16 };          ///< a row of fewer elements is summed here: a call of a kernel would cost more

typedef struct {
    const qrt_tensor *x;
    void *y;
    int64_t num_rows, n, rows_per_task;
    const qrt_tensor *first, *second;  ///< parameters of each feature, or of all
    const qrt_node *node;
} feature_call;

/// Rows first … end of the last axis.
typedef void (*feature_rows_fn)(const feature_call *call, int64_t first, int64_t end);

typedef struct {
    feature_call *call;
    feature_rows_fn rows;
} feature_job;

static void run_task(void *context, int64_t task) {
    const feature_job *job = context;
    int64_t first = task * job->call->rows_per_task, end = first + job->call->rows_per_task;
    job->rows(job->call, first, end < job->call->num_rows ? end : job->call->num_rows);
}

static qrt_status run_rows(feature_call *call, qrt_run *run, feature_rows_fn rows) {
    if (call->num_rows == 0 || call->n == 0) return QRT_OK;
    bool is_shared = run->num_threads > 1 && call->num_rows * call->n > PARALLEL_ELEMS;
    int64_t num_tasks = is_shared ? 4 * (int64_t)run->num_threads : 1;
    call->rows_per_task = (call->num_rows + num_tasks - 1) / num_tasks;
    feature_job job = {call, rows};
    qrt_parallel_for(run->num_threads, (call->num_rows + call->rows_per_task - 1) / call->rows_per_task, run_task, &job);
    return QRT_OK;
}

static bool is_number(const qrt_tensor *x) {
    return qrt_is_tensor(x) && (x->dtype == QRT_F32 || x->dtype == QRT_F64 || x->dtype == QRT_I32 || x->dtype == QRT_I64);
}

/// A call over the last axis of x, which has at least one.
static feature_call over_rows(const qrt_node *node, const qrt_tensor *x) {
    int64_t n = x->dims[x->rank - 1];
    return (feature_call){.x = x, .num_rows = qrt_product(x->dims, 0, x->rank - 1), .n = n, .node = node};
}

/// One parameter for all of n features, or one for each.
static bool is_per_feature(const qrt_tensor *t, int64_t n) { return t && (t->size == 1 || t->size == n); }

/// EACH(T, C type of T's elements) for the type of x.
#define FOR_TYPE(DTYPE, EACH)                                                                                \
    switch (DTYPE) {                                                                                         \
    case QRT_F32: EACH(float) break;                                                                         \
    case QRT_F64: EACH(double) break;                                                                        \
    case QRT_I32: EACH(int32_t) break;                                                                       \
    default: EACH(int64_t) break;                                                                            \
    }

static void scale_rows(const feature_call *call, int64_t first, int64_t end) {
    const float *offset = call->first->data, *scale = call->second->data;
    const int64_t n = call->n;
    const bool each_offset = call->first->size != 1, each_scale = call->second->size != 1;
#define SCALE(T)                                                                                             \
    for (int64_t row = first; row < end; row++) {                                                            \
        const T *x = (const T *)call->x->data + row * n;                                                     \
        float *y = (float *)call->y + row * n;                                                               \
        if (each_offset && each_scale)                                                                       \
            for (int64_t j = 0; j < n; j++) y[j] = ((float)x[j] - offset[j]) * scale[j];                     \
        else                                                                                                 \
            for (int64_t j = 0; j < n; j++) y[j] = ((float)x[j] - offset[each_offset ? j : 0]) * scale[each_scale ? j : 0]; \
    }
    FOR_TYPE(call->x->dtype, SCALE)
#undef SCALE
}

/// Scaler: (x − offset) · scale. Input: float32, float64, int32 or int64 [..., F]; output: float32. packed: offset and
/// scale, float32 [1] or [F].
static qrt_status scaler(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!is_number(x) || x->rank < 1 || node->num_packed != 2) return QRT_DECLINE;
    feature_call call = over_rows(node, x);
    call.first = node->packed[0];
    call.second = node->packed[1];
    if (!is_per_feature(call.first, call.n) || !is_per_feature(call.second, call.n)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank, x->dims);
    call.y = out[0].data;
    return status == QRT_OK ? run_rows(&call, run, scale_rows) : status;
}

enum { QRT_NORMS(QRT_ENUMERATOR) };

static float norm_of(const float *x, int64_t n, int64_t norm) {
    static const qrt_reduce_op ops[] = {QRT_REDUCE_MAX, QRT_REDUCE_L1, QRT_REDUCE_SUM_SQUARE};
    float size = 0;
    if (n >= SHORT_ROW) size = qrt_kernels.rows.reduce[ops[norm]](x, n);
    else if (norm == NORM_MAX) {
        size = x[0];
        for (int64_t j = 1; j < n && size == size; j++) size = x[j] <= size ? size : x[j];
    } else if (norm == NORM_L1) for (int64_t j = 0; j < n; j++) size += fabsf(x[j]);
    else for (int64_t j = 0; j < n; j++) size += x[j] * x[j];
    size = norm == NORM_L2 ? sqrtf(size) : size;
    return size == 0 ? 1 : size;
}

static void normalize_rows(const feature_call *call, int64_t first, int64_t end) {
    const int64_t n = call->n;
    for (int64_t row = first; row < end; row++) {
        float *y = (float *)call->y + row * n;
        const float *x = y;
#define WIDEN(T)                                                                                             \
    for (int64_t j = 0; j < n; j++) y[j] = (float)((const T *)call->x->data)[row * n + j];
        if (call->x->dtype == QRT_F32) x = (const float *)call->x->data + row * n;
        else FOR_TYPE(call->x->dtype, WIDEN)
#undef WIDEN
        float size = norm_of(x, n, call->node->ints[0]);
        for (int64_t j = 0; j < n; j++) y[j] = x[j] / size;
    }
}

/// Normalizer: each row over its norm. Input as of scaler, [N, F] or [F]; output: float32. ints: norm.
static qrt_status normalizer(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!is_number(x) || x->rank < 1 || x->rank > 2 || node->ints[0] < NORM_MAX || node->ints[0] > NORM_L2) return QRT_DECLINE;
    feature_call call = over_rows(node, x);
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank, x->dims);
    call.y = out[0].data;
    return status == QRT_OK ? run_rows(&call, run, normalize_rows) : status;
}

static void impute_rows(const feature_call *call, int64_t first, int64_t end) {
    const int64_t n = call->n;
    const bool is_each = call->first->size != 1;
    const double replaced_float = call->node->floats[0];
    const int64_t replaced_int = call->node->ints[0];
#define IMPUTE(T, P, MISSING)                                                                                \
    for (int64_t row = first; row < end; row++) {                                                            \
        const T *x = (const T *)call->x->data + row * n;                                                     \
        const P *values = call->first->data;                                                                 \
        T *y = (T *)call->y + row * n;                                                                       \
        for (int64_t j = 0; j < n; j++) y[j] = MISSING ? (T)values[is_each ? j : 0] : x[j];                  \
    }
    switch (call->x->dtype) {
    case QRT_F32:
        if (isnan(replaced_float)) IMPUTE(float, double, x[j] != x[j])
        else IMPUTE(float, double, x[j] == (float)replaced_float)
        break;
    case QRT_F64:
        if (isnan(replaced_float)) IMPUTE(double, double, x[j] != x[j])
        else IMPUTE(double, double, x[j] == replaced_float)
        break;
    case QRT_I32: IMPUTE(int32_t, int64_t, x[j] == replaced_int) break;
    default: IMPUTE(int64_t, int64_t, x[j] == replaced_int) break;
    }
#undef IMPUTE
}

/// Imputer: one value, perhaps NaN, replaced by that of the feature. Input: float32, float64, int32 or int64 [..., F].
/// ints, floats: the value to replace. packed: float64 and int64 [1] or [F], either NULL.
static qrt_status imputer(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!is_number(x) || x->rank < 1 || node->num_packed != 2) return QRT_DECLINE;
    feature_call call = over_rows(node, x);
    call.first = node->packed[x->dtype == QRT_I32 || x->dtype == QRT_I64];
    if (!is_per_feature(call.first, call.n)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, x->rank, x->dims);
    call.y = out[0].data;
    return status == QRT_OK ? run_rows(&call, run, impute_rows) : status;
}

static void binarize_rows(const feature_call *call, int64_t first, int64_t end) {
    const double threshold = call->node->floats[0];
#define BINARIZE(T)                                                                                          \
    for (int64_t i = first; i < end; i++) ((T *)call->y)[i] = (double)((const T *)call->x->data)[i] > threshold;
    FOR_TYPE(call->x->dtype, BINARIZE)
#undef BINARIZE
}

/// Binarizer: whether elements are above a threshold, 1 or 0 in their type. floats: threshold.
static qrt_status binarizer(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!is_number(x)) return QRT_DECLINE;
    feature_call call = {.x = x, .num_rows = x->size, .n = 1, .node = node};
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, x->rank, x->dims);
    call.y = out[0].data;
    return status == QRT_OK ? run_rows(&call, run, binarize_rows) : status;
}

/// The element as an integer, cut towards zero; what int64 does not hold is the least of them, as numpy has it.
static int64_t as_category(const qrt_tensor *x, int64_t i) {
    if (qrt_is_index(x)) return qrt_index(x, i);
    double v = x->dtype == QRT_F32 ? ((const float *)x->data)[i] : ((const double *)x->data)[i];
    return v >= -0x1p63 && v < 0x1p63 ? (int64_t)v : INT64_MIN;
}

static void one_hot_rows(const feature_call *call, int64_t first, int64_t end) {
    const int64_t *categories = call->first->data, n = call->n;
    for (int64_t row = first; row < end; row++) {
        float *y = (float *)call->y + row * n;
        const int64_t category = as_category(call->x, row);
        for (int64_t j = 0; j < n; j++) y[j] = categories[j] == category;
    }
}

/// OneHotEncoder. Input: as of scaler, of any shape; output: float32 [*shape, C]. ints: whether a value without a
/// category is all zeros, else it is declined. packed: categories int64 [C].
static qrt_status one_hot_encoder(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    int64_t dims[QRT_MAX_RANK];
    if (!is_number(x) || x->rank >= QRT_MAX_RANK || node->num_packed != 1 || !node->packed[0] || !node->ints[0]) return QRT_DECLINE;
    feature_call call = {.x = x, .num_rows = x->size, .first = node->packed[0], .node = node};
    call.n = dims[x->rank] = call.first->size;
    for (int i = 0; i < x->rank; i++) dims[i] = x->dims[i];
    if (!qrt_is_buildable(x->rank + 1, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank + 1, dims);
    call.y = out[0].data;
    return status == QRT_OK ? run_rows(&call, run, one_hot_rows) : status;
}

static void extract_rows(const feature_call *call, int64_t first, int64_t end) {
    const qrt_tensor *x = call->x, *columns = call->first;
    const int64_t width = x->dims[x->rank - 1], n = call->n;
    const size_t item = qrt_itemsize(x->dtype);
#define EXTRACT(T)                                                                                           \
    for (int64_t row = first; row < end; row++)                                                              \
        for (int64_t j = 0; j < n; j++) ((T *)call->y)[row * n + j] = ((const T *)x->data)[row * width + qrt_index(columns, j)];
    switch (item) {
    case 1: EXTRACT(uint8_t) break;
    case 2: EXTRACT(uint16_t) break;
    case 4: EXTRACT(uint32_t) break;
    default: EXTRACT(uint64_t) break;
    }
#undef EXTRACT
}

/// ArrayFeatureExtractor: columns of the last axis. Inputs: x [..., F] of any element type; the columns, int32 or int64.
static qrt_status array_feature_extractor(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *columns = qrt_input(node, in, 1);
    int64_t dims[QRT_MAX_RANK] = {1};
    if (!qrt_is_tensor(x) || x->rank < 1 || !qrt_is_index(columns)) return QRT_DECLINE;
    for (int64_t j = 0; j < columns->size; j++)
        if (qrt_index(columns, j) < 0 || qrt_index(columns, j) >= x->dims[x->rank - 1]) return QRT_DECLINE;
    int rank = x->rank == 1 ? 2 : x->rank;
    for (int i = 0; i < x->rank - 1; i++) dims[i] = x->dims[i];
    dims[rank - 1] = columns->size;
    if (!qrt_is_buildable(rank, dims)) return QRT_DECLINE;
    feature_call call = over_rows(node, x);
    call.n = columns->size;
    call.first = columns;
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, rank, dims);
    call.y = out[0].data;
    return status == QRT_OK ? run_rows(&call, run, extract_rows) : status;
}

/// FeatureVectorizer: inputs [N, Fi] or [N] side by side in float32. ints: the width of each, 0 columns filling what is
/// wider, or none: each as wide as it is.
static qrt_status feature_vectorizer(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    int64_t dims[2] = {0, 0};
    if (node->num_inputs < 1 || (node->num_ints && node->num_ints != node->num_inputs)) return QRT_DECLINE;
    for (int i = 0; i < node->num_inputs; i++) {
        if (!is_number(in[i]) || in[i]->rank < 1 || in[i]->rank > 2 || in[i]->dims[0] != in[0]->dims[0]) return QRT_DECLINE;
        int64_t width = node->num_ints ? node->ints[i] : in[i]->rank == 2 ? in[i]->dims[1] : 1;
        if (width < 0 || __builtin_add_overflow(dims[1], width, &dims[1])) return QRT_DECLINE;
    }
    const int64_t rows = dims[0] = in[0]->dims[0], n = dims[1];
    if (!qrt_is_buildable(2, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, 2, dims);
    if (status != QRT_OK) return status;
    float *y = out[0].data;
    for (int i = 0; i < node->num_inputs; i++) {
        const int64_t own = in[i]->rank == 2 ? in[i]->dims[1] : 1, width = node->num_ints ? node->ints[i] : own;
        const int64_t used = own < width ? own : width;
        for (int64_t row = 0; row < rows; row++) {
#define PLACE(T)                                                                                             \
    for (int64_t j = 0; j < used; j++) y[row * n + j] = (float)((const T *)in[i]->data)[row * own + j];
            FOR_TYPE(in[i]->dtype, PLACE)
#undef PLACE
            for (int64_t j = used; j < width; j++) y[row * n + j] = 0;
        }
        y += width;
    }
    return QRT_OK;
}

static void encode_rows(const feature_call *call, int64_t first, int64_t end) {
    const int64_t num_keys = call->first->size;
    const size_t item = qrt_itemsize(call->second->dtype);
    const char *values = call->second->data;
#define ENCODE(T, K)                                                                                         \
    {                                                                                                        \
        const K *keys = call->first->data;                                                                   \
        for (int64_t i = first; i < end; i++) {                                                              \
            const K x = ((const T *)call->x->data)[i];                                                       \
            int64_t at = 0;                                                                                  \
            for (int64_t left = num_keys; left > 1;) {                                                       \
                int64_t half = left / 2;                                                                     \
                at += keys[at + half] <= x ? half : 0;                                                       \
                left -= half;                                                                                \
            }                                                                                                \
            int64_t place = num_keys && keys[at] == x ? at : num_keys + (x != x);    \
            memcpy((char *)call->y + i * (int64_t)item, values + place * (int64_t)item, item);               \
        }                                                                                                    \
    }                                                                                                        \
    break;
    switch (call->x->dtype) {
    case QRT_F32: ENCODE(float, double)
    case QRT_F64: ENCODE(double, double)
    case QRT_I32: ENCODE(int32_t, int64_t)
    default: ENCODE(int64_t, int64_t)
    }
#undef ENCODE
}

/// LabelEncoder of numbers. Input: integers where the keys are int64, floats where they are float64. packed: keys,
/// ascending; values of any numeric type, behind them the default and the value of NaN.
static qrt_status label_encoder(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!is_number(x) || node->num_packed != 2) return QRT_DECLINE;
    feature_call call = {.x = x, .num_rows = x->size, .n = 1, .first = node->packed[0], .second = node->packed[1], .node = node};
    if (call.first->dtype != (qrt_is_index(x) ? QRT_I64 : QRT_F64)) return QRT_DECLINE;
    if (call.second->size != call.first->size + 2) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], call.second->dtype, x->rank, x->dims);
    call.y = out[0].data;
    return status == QRT_OK ? run_rows(&call, run, encode_rows) : status;
}

const qrt_node_entry qrt_features_nodes[] = {
    {"scaler", scaler},
    {"normalizer", normalizer},
    {"imputer", imputer},
    {"binarizer", binarizer},
    {"one_hot_encoder", one_hot_encoder},
    {"array_feature_extractor", array_feature_extractor},
    {"feature_vectorizer", feature_vectorizer},
    {"label_encoder", label_encoder},
    {NULL, NULL},
};
