/// Ensembles of decision trees, as qruntime/ops/forest.py lays them out.
///
/// Every node asks `x[feature] <= threshold` and goes to its first child when that is so, else to the second; NaN
/// goes where the node says. A leaf leads to itself, so that several walks go on in step without a branch: one step
/// waits for three loads in a row, and only walks side by side fill that time. Rows are walked side by side through
/// one tree, or where there are few, trees side by side with one row.
///
/// Votes are added in float64 in the order of the trees, whatever the walks and threads: each row for itself.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "scores.h"

enum {
    LANES = 8,              ///< walks side by side
    MAX_BLOCK_ROWS = 64,    ///< rows that walk through all trees before the next rows do
    BLOCK_ELEMS = 16384,    ///< features, or scores, of a block of rows
    PARALLEL_STEPS = 16384, ///< steps that are worth a second thread
    TREES_PER_TASK = 64,
};

enum { QRT_TREE_AGGREGATES(QRT_ENUMERATOR) };
enum { QRT_POST_TRANSFORMS(QRT_ENUMERATOR) };
enum { QRT_TREE_OUTPUTS(QRT_ENUMERATOR) };

typedef struct {
    float threshold;
    int32_t feature;
    int32_t child[2];
} node_f32;

typedef struct {
    double threshold;
    int32_t feature;
    int32_t child[2];
    int32_t unused;
} node_f64;

typedef struct {
    const void *nodes;       ///< node_f32 or node_f64, those of leaves at the end
    const uint8_t *nan_child;
    const int32_t *roots, *depths;
    int64_t num_trees, num_steps;  ///< steps of one row, at most
    int32_t first_leaf;
    const double *leaf_weights;    ///< of the one target that all votes are for, else NULL
    const int64_t *vote_starts;    ///< of each leaf, and the end
    const int32_t *vote_targets;
    const double *vote_weights;
    int64_t num_targets, target;
    int aggregate, post_transform, output;
    const double *base;
    int64_t num_base;
    // Two classes whose votes are all for one of them.
    bool is_binary, makes_other, is_probability;
    const int64_t *labels;
} forest;

typedef struct {
    forest trees;
    const qrt_tensor *x;
    int64_t num_rows, num_features, item_bytes;
    int64_t block_rows, rows_per_task;
    int64_t feature_bytes, score_bytes, task_bytes;  ///< of the scratch memory of a task
    char *scratch;
    void *scores;
    int64_t *labels;         ///< of a classifier
} ensemble_call;

/// Step LANES walks down together, at most `depth` steps, two between looks whether all have arrived.
#define WALK(NAME, NODE, T, INDEX, CHILD)                                                                    \
    static void NAME(const forest *f, const T *x, int32_t *at, int32_t depth) {                              \
        const NODE *nodes = f->nodes;                                                                        \
        const uint8_t *nan_child = f->nan_child;                                                             \
        (void)nan_child;                                                                                     \
        int32_t a[LANES];                                                                                    \
        for (int l = 0; l < LANES; l++) a[l] = at[l];                                                        \
        for (int32_t step = 0; step < depth; step += 2) {                                                    \
            int32_t least = INT32_MAX;                                                                       \
            for (int l = 0; l < LANES; l++) {                                                                \
                const NODE *n = nodes + a[l];                                                                \
                T v = x[INDEX];                                                                              \
                a[l] = n->child[CHILD];                                                                      \
            }                                                                                                \
            for (int l = 0; l < LANES; l++) {                                                                \
                const NODE *n = nodes + a[l];                                                                \
                T v = x[INDEX];                                                                              \
                a[l] = n->child[CHILD];                                                                      \
                least = a[l] < least ? a[l] : least;                                                         \
            }                                                                                                \
            if (least >= f->first_leaf) break;                                                               \
        }                                                                                                    \
        for (int l = 0; l < LANES; l++) at[l] = a[l];                                                        \
    }

/// The features of LANES rows lie side by side, or there is one row.
#define OF_ROWS (int64_t)n->feature * LANES + l
#define OF_ROW n->feature
#define PLAIN !(v <= n->threshold)
#define OR_NAN v != v ? nan_child[n - nodes] : !(v <= n->threshold)

WALK(walk_rows_f32, node_f32, float, OF_ROWS, PLAIN)
WALK(walk_rows_nan_f32, node_f32, float, OF_ROWS, OR_NAN)
WALK(walk_trees_f32, node_f32, float, OF_ROW, PLAIN)
WALK(walk_trees_nan_f32, node_f32, float, OF_ROW, OR_NAN)
WALK(walk_rows_f64, node_f64, double, OF_ROWS, PLAIN)
WALK(walk_rows_nan_f64, node_f64, double, OF_ROWS, OR_NAN)
WALK(walk_trees_f64, node_f64, double, OF_ROW, PLAIN)
WALK(walk_trees_nan_f64, node_f64, double, OF_ROW, OR_NAN)

/// `count` features of a row as the trees compare them, `stride` apart; whether one is NaN.
static bool read_features(const qrt_tensor *x, int64_t first, int64_t count, void *to, int64_t stride) {
    bool has_nan = false;
#define READ(FROM, TO)                                                                                       \
    for (int64_t i = 0; i < count; i++) {                                                                    \
        TO v = (TO)((const FROM *)x->data)[first + i];                                                       \
        ((TO *)to)[i * stride] = v;                                                                          \
        has_nan |= v != v;                                                                                   \
    }
    switch (x->dtype) {
    case QRT_F32: READ(float, float); break;
    case QRT_F64: READ(double, double); break;
    case QRT_I32: READ(int32_t, float); break;
    default: READ(int64_t, float); break;
    }
#undef READ
    return has_nan;
}

static void start_scores(const forest *f, double *scores) {
    double start = f->aggregate == MIN ? INFINITY : f->aggregate == MAX ? -INFINITY : 0;
    for (int64_t t = 0; t < f->num_targets; t++) scores[t] = start;
}

/// NaN wins over any number, as in numpy's minimum and maximum.
static inline double smaller(double a, double b) { return a < b || a != a ? a : b; }
static inline double larger(double a, double b) { return a > b || a != a ? a : b; }

static inline void add_votes(const forest *f, int32_t leaf, double *scores) {
    if (f->leaf_weights) {
        scores[f->target] += f->leaf_weights[leaf];
        return;
    }
    for (int64_t v = f->vote_starts[leaf]; v < f->vote_starts[leaf + 1]; v++) {
        double *score = &scores[f->vote_targets[v]], weight = f->vote_weights[v];
        if (f->aggregate == MIN) *score = smaller(*score, weight);
        else if (f->aggregate == MAX) *score = larger(*score, weight);
        else *score += weight;
    }
}

static double exp_sum(double *scores, int64_t n, bool keeps_zero) {
    double peak = -INFINITY, total = 0;
    for (int64_t i = 0; i < n; i++) peak = larger(peak, scores[i]);
    for (int64_t i = 0; i < n; i++) {
        double s = scores[i];
        scores[i] = !keeps_zero || fabs(s) > 1e-7 ? exp(s - peak) : s * exp(-peak);
        total += scores[i];
    }
    return total;
}

static void post_transform(int transform, double *scores, int64_t n) {
    double total;
    switch (transform) {
    case LOGISTIC:
        for (int64_t i = 0; i < n; i++) scores[i] = 1 / (1 + exp(-scores[i]));
        break;
    case SOFTMAX:
        total = exp_sum(scores, n, false);
        for (int64_t i = 0; i < n; i++) scores[i] /= total;
        break;
    case SOFTMAX_ZERO:
        total = exp_sum(scores, n, true);
        for (int64_t i = 0; i < n; i++) scores[i] = total == 0 ? 0.5 : scores[i] / total;
        break;
    default: break;
    }
}

/// Sums of votes become what the operator gives for `row`.
static void finish_row(const ensemble_call *call, double *scores, int64_t row) {
    const forest *f = &call->trees;
    const int64_t n = f->num_targets;
    for (int64_t t = 0; t < n; t++) {
        if (f->aggregate == AVERAGE && f->num_trees) scores[t] /= (double)f->num_trees;
        // A target without votes.
        if (f->aggregate == MIN && scores[t] == INFINITY) scores[t] = 0;
        if (f->aggregate == MAX && scores[t] == -INFINITY) scores[t] = 0;
    }
    if (f->num_base)
        for (int64_t t = 0; t < n; t++) scores[t] += f->base[f->num_base == 1 ? 0 : t];
    if (f->output == CLASSIFIER) {
        int64_t best = 0;
        if (f->is_binary) {
            double score = scores[f->target];
            best = score > (f->is_probability ? 0.5 : 0);
            if (f->makes_other) {
                scores[0] = f->is_probability && f->post_transform == NONE ? 1 - score : -score;
                scores[1] = score;
            }
        } else {
            for (int64_t t = 1; t < n && scores[best] == scores[best]; t++)
                if (scores[t] > scores[best] || scores[t] != scores[t]) best = t;
        }
        call->labels[row] = f->labels[best];
    }
    post_transform(f->post_transform, scores, n);
    if (f->output == SAME_TYPE && call->x->dtype == QRT_F64) {
        memcpy((double *)call->scores + row * n, scores, (size_t)n * sizeof(double));
        return;
    }
    float *to = (float *)call->scores + row * n;
    for (int64_t t = 0; t < n; t++) to[t] = (float)scores[t];
}

/// Leaves that one row reaches in trees `first` … `end`, LANES trees at a time.
static void walk_trees(const ensemble_call *call, const void *features, bool has_nan, int64_t first, int64_t end, int32_t *leaves) {
    const forest *f = &call->trees;
    for (int64_t tree = first; tree < end; tree += LANES) {
        int32_t at[LANES], depth = 0;
        int count = end - tree < LANES ? (int)(end - tree) : LANES;
        for (int l = 0; l < LANES; l++) {
            int64_t t = tree + (l < count ? l : 0);
            at[l] = f->roots[t];
            depth = f->depths[t] > depth ? f->depths[t] : depth;
        }
        if (call->x->dtype == QRT_F64) (has_nan ? walk_trees_nan_f64 : walk_trees_f64)(f, features, at, depth);
        else (has_nan ? walk_trees_nan_f32 : walk_trees_f32)(f, features, at, depth);
        for (int l = 0; l < count; l++) leaves[tree + l] = at[l] - f->first_leaf;
    }
}


/// Working memory of a task, one after the other.
typedef struct {
    char *features;      ///< of a block of rows
    double *scores;      ///< of a block of rows
    int32_t *leaves;     ///< of one row
} task_scratch;

static task_scratch scratch_of(const ensemble_call *call, int64_t task) {
    char *at = call->scratch + task * call->task_bytes;
    return (task_scratch){at, (double *)(at + call->feature_bytes), (int32_t *)(at + call->feature_bytes + call->score_bytes)};
}

/// A row by itself.
static void run_row(const ensemble_call *call, int64_t row, const task_scratch *scratch) {
    const forest *f = &call->trees;
    bool has_nan = read_features(call->x, row * call->num_features, call->num_features, scratch->features, 1);
    walk_trees(call, scratch->features, has_nan, 0, f->num_trees, scratch->leaves);
    start_scores(f, scratch->scores);
    for (int64_t tree = 0; tree < f->num_trees; tree++) add_votes(f, scratch->leaves[tree], scratch->scores);
    finish_row(call, scratch->scores, row);
}

/// `num_groups` times LANES rows: all of them through one tree, then through the next, which the cache holds meanwhile.
static void run_block(const ensemble_call *call, int64_t row, int num_groups, const task_scratch *scratch) {
    const forest *f = &call->trees;
    const int64_t n = f->num_targets, group_bytes = call->num_features * LANES * call->item_bytes;
    bool has_nan[MAX_BLOCK_ROWS / LANES] = {false};
    for (int r = 0; r < num_groups * LANES; r++) {
        char *to = scratch->features + r / LANES * group_bytes + r % LANES * call->item_bytes;
        has_nan[r / LANES] |= read_features(call->x, (row + r) * call->num_features, call->num_features, to, LANES);
        start_scores(f, scratch->scores + r * n);
    }
    for (int64_t tree = 0; tree < f->num_trees; tree++) {
        for (int g = 0; g < num_groups; g++) {
            const void *features = scratch->features + g * group_bytes;
            int32_t at[LANES], depth = f->depths[tree];
            for (int l = 0; l < LANES; l++) at[l] = f->roots[tree];
            if (call->x->dtype == QRT_F64) (has_nan[g] ? walk_rows_nan_f64 : walk_rows_f64)(f, features, at, depth);
            else (has_nan[g] ? walk_rows_nan_f32 : walk_rows_f32)(f, features, at, depth);
            for (int l = 0; l < LANES; l++) add_votes(f, at[l] - f->first_leaf, scratch->scores + (g * LANES + l) * n);
        }
    }
    for (int r = 0; r < num_groups * LANES; r++) finish_row(call, scratch->scores + r * n, row + r);
}

static void run_rows_task(void *context, int64_t task) {
    const ensemble_call *call = context;
    const task_scratch scratch = scratch_of(call, task);
    int64_t row = task * call->rows_per_task, end = row + call->rows_per_task;
    if (end > call->num_rows) end = call->num_rows;
    while (end - row >= LANES) {
        int64_t count = end - row < call->block_rows ? end - row : call->block_rows;
        run_block(call, row, (int)(count / LANES), &scratch);
        row += count / LANES * LANES;
    }
    for (; row < end; row++) run_row(call, row, &scratch);
}

/// Trees of the one row whose features and leaves the scratch memory of the first task holds.
typedef struct {
    const ensemble_call *call;
    const task_scratch *scratch;
    bool has_nan;
} row_call;

static void walk_trees_task(void *context, int64_t task) {
    const row_call *r = context;
    int64_t first = task * TREES_PER_TASK, end = first + TREES_PER_TASK, num_trees = r->call->trees.num_trees;
    walk_trees(r->call, r->scratch->features, r->has_nan, first, end < num_trees ? end : num_trees, r->scratch->leaves);
}

/// A few rows and so many trees that several threads walk those of each row.
static void run_few_rows(const ensemble_call *call, int num_threads) {
    const forest *f = &call->trees;
    const task_scratch scratch = scratch_of(call, 0);
    for (int64_t row = 0; row < call->num_rows; row++) {
        bool has_nan = read_features(call->x, row * call->num_features, call->num_features, scratch.features, 1);
        row_call r = {call, &scratch, has_nan};
        qrt_parallel_for(num_threads, (f->num_trees + TREES_PER_TASK - 1) / TREES_PER_TASK, walk_trees_task, &r);
        start_scores(f, scratch.scores);
        for (int64_t tree = 0; tree < f->num_trees; tree++) add_votes(f, scratch.leaves[tree], scratch.scores);
        finish_row(call, scratch.scores, row);
    }
}

enum { NODES_F32, NODES_F64, NAN_CHILD, ROOTS, DEPTHS, LEAF_WEIGHTS, VOTE_STARTS, VOTE_TARGETS, VOTE_WEIGHTS, BASE, LABELS, NUM_PACKED };
enum { FIRST_LEAF, NUM_FEATURES, NUM_STEPS, NUM_TARGETS, TARGET, AGGREGATE, POST_TRANSFORM, OUTPUT, IS_BINARY, MAKES_OTHER, IS_PROBABILITY, NUM_INTS };

static const void *array_of(const qrt_node *node, int i) {
    const qrt_tensor *t = node->packed[i];
    return t ? t->data : NULL;
}

static forest forest_of(const qrt_node *node, int32_t dtype) {
    const int64_t *ints = node->ints;
    const qrt_tensor *roots = node->packed[ROOTS], *base = node->packed[BASE];
    return (forest){
        .nodes = array_of(node, dtype == QRT_F64 ? NODES_F64 : NODES_F32),
        .nan_child = array_of(node, NAN_CHILD),
        .roots = roots->data,
        .depths = array_of(node, DEPTHS),
        .num_trees = roots->size,
        .num_steps = ints[NUM_STEPS],
        .first_leaf = (int32_t)ints[FIRST_LEAF],
        .leaf_weights = array_of(node, LEAF_WEIGHTS),
        .vote_starts = array_of(node, VOTE_STARTS),
        .vote_targets = array_of(node, VOTE_TARGETS),
        .vote_weights = array_of(node, VOTE_WEIGHTS),
        .num_targets = ints[NUM_TARGETS],
        .target = ints[TARGET],
        .aggregate = (int)ints[AGGREGATE],
        .post_transform = (int)ints[POST_TRANSFORM],
        .output = (int)ints[OUTPUT],
        .base = base ? base->data : NULL,
        .num_base = base ? base->size : 0,
        .is_binary = ints[IS_BINARY] != 0,
        .makes_other = ints[MAKES_OTHER] != 0,
        .is_probability = ints[IS_PROBABILITY] != 0,
        .labels = array_of(node, LABELS),
    };
}

/// Outputs: float32 scores [rows, targets] (float64 for v5 and float64 rows), behind the labels [rows] of a classifier.
/// Sets where scores and labels go.
static qrt_status allocate(qrt_run *run, ensemble_call *call, qrt_tensor *out) {
    const forest *f = &call->trees;
    const bool has_labels = f->output == CLASSIFIER, is_wide = f->output == SAME_TYPE && call->x->dtype == QRT_F64;
    qrt_status status = qrt_alloc_scores(run, is_wide ? QRT_F64 : QRT_F32, call->num_rows, f->num_targets, has_labels, out);
    call->scores = status == QRT_OK ? out[has_labels].data : NULL;
    call->labels = status == QRT_OK && has_labels ? out[0].data : NULL;
    return status;
}

/// Input: rows of features [N, F] or [F]; float32, float64 (each when its form of the nodes is there), int32, int64,
/// which are compared as float32. ints and packed as the enumerations above name them.
static qrt_status tree_ensemble(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!qrt_is_tensor(x) || x->rank < 1 || x->rank > 2 || node->num_ints != NUM_INTS || node->num_packed != NUM_PACKED) return QRT_DECLINE;
    if (x->dtype != QRT_F32 && x->dtype != QRT_F64 && x->dtype != QRT_I32 && x->dtype != QRT_I64) return QRT_DECLINE;
    ensemble_call call = {
        .trees = forest_of(node, x->dtype),
        .x = x,
        .num_rows = x->rank == 2 ? x->dims[0] : 1,
        .num_features = x->dims[x->rank - 1],
        .item_bytes = x->dtype == QRT_F64 ? sizeof(double) : sizeof(float),
    };
    const forest *f = &call.trees;
    if (!f->nodes || call.num_features < node->ints[NUM_FEATURES]) return QRT_DECLINE;
    if (f->output == SAME_TYPE && x->dtype != QRT_F32 && x->dtype != QRT_F64) return QRT_DECLINE;
    if (node->num_outputs != 1 + (f->output == CLASSIFIER)) return QRT_DECLINE;
    if (call.num_rows == 0 || f->num_targets == 0) return allocate(run, &call, out);

    int64_t widest = call.num_features > f->num_targets ? call.num_features : f->num_targets;
    int64_t groups = BLOCK_ELEMS / (widest * LANES + 1);
    call.block_rows = groups < 1 ? LANES : groups * LANES > MAX_BLOCK_ROWS ? MAX_BLOCK_ROWS : groups * LANES;
    bool is_shared = (double)f->num_steps * (double)call.num_rows > PARALLEL_STEPS && run->num_threads > 1;
    int64_t num_tasks = is_shared ? 4 * (int64_t)run->num_threads : 1;
    call.rows_per_task = (call.num_rows + num_tasks - 1) / num_tasks;
    call.rows_per_task = (call.rows_per_task + LANES - 1) / LANES * LANES;
    num_tasks = (call.num_rows + call.rows_per_task - 1) / call.rows_per_task;

    int64_t rows = call.num_rows < LANES ? 1 : call.block_rows;
    call.feature_bytes = (rows * call.num_features * call.item_bytes + 7) / 8 * 8;
    call.score_bytes = rows * f->num_targets * (int64_t)sizeof(double);
    call.task_bytes = (call.feature_bytes + call.score_bytes + f->num_trees * (int64_t)sizeof(int32_t) + 63) / 64 * 64;
    qrt_buffer *scratch = qrt_scratch(run, (size_t)(num_tasks * call.task_bytes));
    if (!scratch) return QRT_NO_MEMORY;
    call.scratch = scratch->data;
    qrt_status status = allocate(run, &call, out);
    if (status == QRT_OK) {
        if (is_shared && num_tasks == 1) run_few_rows(&call, run->num_threads);
        else qrt_parallel_for(run->num_threads, num_tasks, run_rows_task, &call);
    }
    qrt_scratch_free(run, scratch);
    return status;
}

const qrt_node_entry qrt_tree_ensemble_nodes[] = {
    {"tree_ensemble", tree_ensemble},
    {NULL, NULL},
};
