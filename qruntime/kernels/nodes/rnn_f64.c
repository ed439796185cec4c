/// Recurrent layers of float64: "lstm_f64", "gru_f64", "rnn_f64".
///
/// Inputs, ints, floats and the order of what is packed are those of rnn.c; only doubles are here, so range modes and the
/// greatest code do not matter. Packed are tensors [panels, 1 + k, PANEL]: of PANEL columns each the bias and then the rows of
/// the weights, in the last panel perhaps fewer.
///
/// A sum is one chain over ascending k that starts at the bias (gemm_f64.h), the input's before the hidden state's. Every
/// task takes one direction and a group of rows through all steps.
#include <string.h>

#include "../threads.h"
#include "recurrent.h"

enum { PANEL = 16 };

/// Input products are made in blocks of steps, which stay in cache until they are used.
enum { BLOCK_DOUBLES = 1 << 16, BLOCK_MIN_ROWS = 32 };

/// Fewer multiply-adds than this are not worth waking a thread.
enum { MIN_PARALLEL_WORK = 1 << 18 };

/// Every group reads all of R at every step.
enum { MIN_GROUP_ROWS = 4 };

typedef struct {
    qrt_recurrent node;
    qrt_activations_f64 activations[QRT_MAX_DIRECTIONS];
    double *h, *c;
    int64_t block_steps, num_groups, group_rows;
    double *scratch;
    int64_t projected_elems, products_elems, task_elems;  ///< of a task: block, one step, both and r ⊙ h
} layer;

/// Rows begin … end−1 of one direction, and its memory.
typedef struct {
    const layer *l;
    int direction;
    bool reverse;
    int64_t begin, end;
    double *projected, *products, *reset_h;
    int64_t row_stride, time_stride;  ///< of `projected`
} group;

/// σ, positive however small x is: a gate of 0 would make NaN of an infinite cell.
static void positive_sigmoid(const double *x, double *y, int64_t n, double p, double q) {
    qrt_kernels.pointwise.unary_f64[QRT_CLIP](x, y, n, -709, 709);
    qrt_kernels.pointwise.unary_f64[QRT_SIGMOID](y, y, n, p, q);
}

/// c[m, n] = a · weights, added to what is there or to the bias.
static void multiply(const qrt_tensor *weights, int64_t n, const double *a, int64_t lda, int64_t m, double *c, int64_t ldc,
                     bool accumulate) {
    const qrt_gemm_f64 *kernel = &qrt_kernels.gemm_f64;
    const int64_t k = weights->dims[1] - 1;
    const double *panel = weights->data;
    for (int64_t j = 0; j < n; j += PANEL, panel += (k + 1) * PANEL) {
        const int64_t columns = n - j < PANEL ? n - j : PANEL;
        for (int64_t i = 0; !accumulate && i < m; i++) memcpy(c + i * ldc + j, panel, (size_t)columns * sizeof *c);
        qrt_f64_gemm_strips(kernel, m, columns, k, a, lda, panel + PANEL, PANEL, kernel->nr, c + j, ldc, true);
    }
}

/// Input products of `steps` steps from time `first` on.
static void project(group *g, int64_t first, int64_t steps) {
    const layer *l = g->l;
    const int64_t rows = g->end - g->begin, input = l->node.input;
    const qrt_tensor *w = l->node.w[g->direction];
    g->row_stride = l->node.batch_first ? steps * l->node.gates : l->node.gates;
    g->time_stride = l->node.batch_first ? l->node.gates : rows * l->node.gates;
    const int64_t lines = l->node.batch_first ? rows : steps, line_rows = l->node.batch_first ? steps : rows;
    const int64_t line_stride = (l->node.batch_first ? l->node.time : l->node.batch) * input;
    const double *x = (const double *)l->node.x + (l->node.batch_first ? g->begin * l->node.time + first : first * l->node.batch + g->begin) * input;
    if (line_stride == line_rows * input) {  // one line after the other
        multiply(w, l->node.gates, x, input, lines * line_rows, g->projected, l->node.gates, false);
        return;
    }
    for (int64_t line = 0; line < lines; line++, x += line_stride)
        multiply(w, l->node.gates, x, input, line_rows, g->projected + line * line_rows * l->node.gates, l->node.gates, false);
}

/// Gates and state of one row, once the products are there; `x` is overwritten.
static void update_row(const group *g, int64_t row, double *x, double *product, double *h, double *y) {
    const layer *l = g->l;
    const qrt_activations_f64 *by = &l->activations[g->direction];
    const int64_t hidden = l->node.hidden;
    switch (l->node.kind) {
    case QRT_LSTM: {
        const double *peepholes = l->node.peepholes;
        if (peepholes) peepholes += g->direction * 3 * hidden;
        const qrt_lstm_options_f64 options = {peepholes, l->node.clip, l->node.variant};
        double *c = l->c + g->direction * l->node.state_direction_stride + row * l->node.state_row_stride;
        qrt_lstm_cell_f64(by, x, hidden, &options, c, h, y);
        break;
    }
    case QRT_GRU_RESET_AFTER: qrt_gru_reset_after_cell_f64(by, x, product, hidden, l->node.clip, h, y); break;
    case QRT_GRU_RESET_BEFORE: qrt_gru_update_cell_f64(by, x, x + 2 * hidden, hidden, l->node.clip, h, y); break;
    case QRT_RNN: qrt_rnn_cell_f64(by, x, hidden, l->node.clip, h, y); break;
    }
}

/// Step `t` of rows begin … end−1, whose input products start at `x`.
static void run_step(const group *g, int64_t t, int64_t begin, int64_t end, double *x) {
    const layer *l = g->l;
    const int64_t hidden = l->node.hidden, rows = end - begin, h_stride = l->node.state_row_stride;
    double *h = l->h + g->direction * l->node.state_direction_stride + begin * h_stride, *product = g->products;
    const qrt_tensor *r = l->node.r[g->direction];
    if (l->node.kind == QRT_GRU_RESET_AFTER) {
        multiply(r, l->node.gates, h, h_stride, rows, product, l->node.gates, false);
    } else if (l->node.kind != QRT_GRU_RESET_BEFORE) {
        multiply(r, l->node.gates, h, h_stride, rows, x, g->row_stride, true);
    } else {
        multiply(r, 2 * hidden, h, h_stride, rows, x, g->row_stride, true);
        for (int64_t i = 0; i < rows; i++)
            qrt_gru_reset_cell_f64(&l->activations[g->direction], x + i * g->row_stride, hidden, l->node.clip, h + i * h_stride,
                                   g->reset_h + i * hidden);
        multiply(l->node.r_candidate[g->direction], hidden, g->reset_h, hidden, rows, x + 2 * hidden, g->row_stride, true);
    }
    double *y = l->node.y;
    for (int64_t i = 0; i < rows; i++)
        if (qrt_is_running(&l->node, begin + i, t))
            update_row(g, begin + i, x + i * g->row_stride, product + i * l->node.gates, h + i * h_stride,
                       y ? y + qrt_place_in_y(&l->node, g->direction, t, begin + i) : NULL);
}

static void run_block(group *g, int64_t first, int64_t steps) {
    const layer *l = g->l;
    project(g, first, steps);
    for (int64_t s = 0; s < steps; s++) {
        const int64_t local = g->reverse ? steps - 1 - s : s, t = first + local;
        int64_t begin = g->begin, end = g->end;
        qrt_narrow_to_running(&l->node, g->direction, t, &begin, &end);
        if (begin < end) run_step(g, t, begin, end, g->projected + local * g->time_stride + (begin - g->begin) * g->row_stride);
    }
}

/// Task of one direction and one group of rows.
static void run_group(void *context, int64_t task) {
    const layer *l = context;
    double *memory = l->scratch + task * l->task_elems;
    group g = {.l = l, .direction = (int)(task / l->num_groups), .begin = task % l->num_groups * l->group_rows,
               .projected = memory, .products = memory + l->projected_elems,
               .reset_h = memory + l->projected_elems + l->products_elems};
    g.end = g.begin + l->group_rows < l->node.batch ? g.begin + l->group_rows : l->node.batch;
    g.reverse = qrt_is_reverse(&l->node, g.direction);
    for (int64_t done = 0, steps; done < l->node.time; done += steps) {
        steps = l->node.time - done < l->block_steps ? l->node.time - done : l->block_steps;
        run_block(&g, g.reverse ? l->node.time - done - steps : done, steps);
    }
}

static bool fits(const void *packed, int64_t k, int64_t n) {
    const qrt_tensor *t = packed;
    return t && t->dtype == QRT_F64 && t->rank == 3 && t->dims[0] == (n + PANEL - 1) / PANEL && t->dims[1] == k + 1 && t->dims[2] == PANEL;
}

/// What the activations are; false when there is no kernel of one.
static bool choose_activations(layer *l) {
    static const int64_t standard[] = {QRT_SIGMOID, QRT_TANH, QRT_TANH};
    const qrt_recurrent *n = &l->node;
    for (int d = 0; d < n->num_directions; d++)
        for (int i = 0; i < n->num_activations; i++) {
            qrt_activations_f64 *by = &l->activations[d];
            const int64_t op = !n->is_standard ? n->operators[d][i] : standard[n->kind == QRT_RNN ? 1 : i];
            if (!qrt_kernels.pointwise.unary_f64[op]) return false;
            by->functions[i] = op == QRT_SIGMOID ? positive_sigmoid : qrt_kernels.pointwise.unary_f64[op];
            by->p[i] = n->p[d][i];
            by->q[i] = n->q[d][i];
        }
    return true;
}

/// Groups of rows, steps of a block and what a task needs.
static void divide(layer *l, int num_threads) {
    const double work = (double)l->node.time * (double)l->node.batch * (double)l->node.hidden * (double)l->node.gates;
    int64_t groups = num_threads / l->node.num_directions;
    if (groups > l->node.batch / MIN_GROUP_ROWS) groups = l->node.batch / MIN_GROUP_ROWS;
    if (groups < 1 || work < MIN_PARALLEL_WORK) groups = 1;
    l->group_rows = (l->node.batch + groups - 1) / groups;
    l->num_groups = l->group_rows ? (l->node.batch + l->group_rows - 1) / l->group_rows : 0;

    int64_t rows = BLOCK_DOUBLES / l->node.gates;
    if (rows < BLOCK_MIN_ROWS) rows = BLOCK_MIN_ROWS;
    l->block_steps = l->group_rows && rows > l->group_rows ? rows / l->group_rows : 1;
    if (l->block_steps > l->node.time) l->block_steps = l->node.time;
    l->projected_elems = (l->block_steps * l->group_rows * l->node.gates + 7) / 8 * 8;
    l->products_elems = l->node.kind == QRT_GRU_RESET_AFTER ? (l->group_rows * l->node.gates + 7) / 8 * 8 : 0;
    l->task_elems = l->projected_elems + l->products_elems;
    if (l->node.kind == QRT_GRU_RESET_BEFORE) l->task_elems += (l->group_rows * l->node.hidden + 7) / 8 * 8;
}

static qrt_status recurrent(qrt_cell_kind kind, const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    layer made = {0}, *l = &made;
    if (!qrt_read_recurrent(node, in, kind, QRT_F64, fits, &l->node) || !choose_activations(l)) return QRT_DECLINE;
    divide(l, run->num_threads);
    qrt_status status = qrt_allocate_recurrent(&l->node, node, run, out);
    if (status != QRT_OK) return status;
    const int64_t tasks = l->node.num_directions * l->num_groups, states = l->node.num_directions * l->node.batch * l->node.hidden;
    qrt_buffer *memory = qrt_scratch(run, (size_t)(tasks * l->task_elems + 2 * states) * sizeof(double));
    if (!memory) return QRT_NO_MEMORY;
    l->scratch = memory->data;
    l->h = l->node.h ? l->node.h : l->scratch + tasks * l->task_elems;
    l->c = l->node.c ? l->node.c : l->scratch + tasks * l->task_elems + states;
    qrt_start_states(&l->node, l->h, l->c);
    const double work = (double)l->node.time * (double)l->node.batch * (double)l->node.hidden * (double)l->node.gates * l->node.num_directions;
    qrt_parallel_for(work < MIN_PARALLEL_WORK ? 1 : run->num_threads, tasks, run_group, l);
    qrt_scratch_free(run, memory);
    return QRT_OK;
}

static qrt_status lstm(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return recurrent(QRT_LSTM, node, run, in, out);
}

static qrt_status gru(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_ints < QRT_RNN_NUM_INTS) return QRT_DECLINE;
    return recurrent(node->ints[QRT_RNN_VARIANT] ? QRT_GRU_RESET_AFTER : QRT_GRU_RESET_BEFORE, node, run, in, out);
}

static qrt_status rnn(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return recurrent(QRT_RNN, node, run, in, out);
}

const qrt_node_entry qrt_rnn_f64_nodes[] = {
    {"lstm_f64", lstm},
    {"gru_f64", gru},
    {"rnn_f64", rnn},
    {NULL, NULL},
};
