/// Recurrent layers of float64: "lstm_f64", "gru_f64", "rnn_f64".
///
/// Inputs, ints, floats and the order of what is packed are those of rnn.c; only doubles are here, so range modes and the
/// greatest code do not matter. Packed are tensors [panels, 1 + k, PANEL]: of PANEL columns each the bias and then the rows of
/// the weights, in the last panel perhaps fewer.
///
/// A sum is one chain over ascending k that starts at the bias (gemm_f64.h), the input's before the hidden state's. Every
/// task takes one direction and a group of rows through all steps.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "arguments.h"
#include "cells.h"
#include "enumerations.h"

enum { HIDDEN, DIRECTION, LAYOUT, X_MODE, H_MODE, QMAX, WANTED, VARIANT, NUM_INTS };
enum { QRT_DIRECTIONS(QRT_ENUMERATOR) };
enum { Y, Y_H, Y_C };
enum { PANEL = 16 };

/// Input products are made in blocks of steps, which stay in cache until they are used.
enum { BLOCK_DOUBLES = 1 << 16, BLOCK_MIN_ROWS = 32 };

/// Fewer multiply-adds than this are not worth waking a thread.
enum { MIN_PARALLEL_WORK = 1 << 18 };

/// Every group reads all of R at every step.
enum { MIN_GROUP_ROWS = 4 };

typedef enum { LSTM, GRU_RESET_AFTER, GRU_RESET_BEFORE, RNN } cell_kind;

typedef struct {
    cell_kind kind;
    int64_t time, batch, input, hidden, gates;  ///< `gates`: columns of all gates together
    int num_directions, first_direction;
    bool batch_first, variant;
    const qrt_tensor *w[2], *r[2], *r_candidate[2];
    const double *x, *peepholes;
    const int32_t *lengths;
    double clip;
    qrt_activations_f64 activations[2];
    double *y, *h, *c;
    int64_t state_row_stride, state_direction_stride;
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

static bool is_running(const layer *l, int64_t row, int64_t t) { return !l->lengths || t < l->lengths[row]; }

static double *y_row(const layer *l, int direction, int64_t t, int64_t row) {
    if (!l->y) return NULL;
    int64_t d = l->num_directions;
    int64_t at = l->batch_first ? (row * l->time + t) * d + direction : (t * d + direction) * l->batch + row;
    return l->y + at * l->hidden;
}

/// Input products of `steps` steps from time `first` on.
static void project(group *g, int64_t first, int64_t steps) {
    const layer *l = g->l;
    const int64_t rows = g->end - g->begin, input = l->input;
    const qrt_tensor *w = l->w[g->direction];
    g->row_stride = l->batch_first ? steps * l->gates : l->gates;
    g->time_stride = l->batch_first ? l->gates : rows * l->gates;
    const int64_t lines = l->batch_first ? rows : steps, line_rows = l->batch_first ? steps : rows;
    const int64_t line_stride = (l->batch_first ? l->time : l->batch) * input;
    const double *x = l->x + (l->batch_first ? g->begin * l->time + first : first * l->batch + g->begin) * input;
    if (line_stride == line_rows * input) {  // one line after the other
        multiply(w, l->gates, x, input, lines * line_rows, g->projected, l->gates, false);
        return;
    }
    for (int64_t line = 0; line < lines; line++, x += line_stride)
        multiply(w, l->gates, x, input, line_rows, g->projected + line * line_rows * l->gates, l->gates, false);
}

/// Gates and state of one row, once the products are there; `x` is overwritten.
static void update_row(const group *g, int64_t row, double *x, double *product, double *h, double *y) {
    const layer *l = g->l;
    const qrt_activations_f64 *by = &l->activations[g->direction];
    const int64_t hidden = l->hidden;
    switch (l->kind) {
    case LSTM: {
        const double *peepholes = l->peepholes ? l->peepholes + g->direction * 3 * hidden : NULL;
        const qrt_lstm_options_f64 options = {peepholes, l->clip, l->variant};
        double *c = l->c + g->direction * l->state_direction_stride + row * l->state_row_stride;
        qrt_lstm_cell_f64(by, x, hidden, &options, c, h, y);
        break;
    }
    case GRU_RESET_AFTER: qrt_gru_reset_after_cell_f64(by, x, product, hidden, l->clip, h, y); break;
    case GRU_RESET_BEFORE: qrt_gru_update_cell_f64(by, x, x + 2 * hidden, hidden, l->clip, h, y); break;
    case RNN: qrt_rnn_cell_f64(by, x, hidden, l->clip, h, y); break;
    }
}

/// Step `t` of rows begin … end−1, whose input products start at `x`.
static void run_step(const group *g, int64_t t, int64_t begin, int64_t end, double *x) {
    const layer *l = g->l;
    const int64_t hidden = l->hidden, rows = end - begin, h_stride = l->state_row_stride;
    double *h = l->h + g->direction * l->state_direction_stride + begin * h_stride, *product = g->products;
    const qrt_tensor *r = l->r[g->direction];
    if (l->kind == GRU_RESET_AFTER) {
        multiply(r, l->gates, h, h_stride, rows, product, l->gates, false);
    } else if (l->kind != GRU_RESET_BEFORE) {
        multiply(r, l->gates, h, h_stride, rows, x, g->row_stride, true);
    } else {
        multiply(r, 2 * hidden, h, h_stride, rows, x, g->row_stride, true);
        for (int64_t i = 0; i < rows; i++)
            qrt_gru_reset_cell_f64(&l->activations[g->direction], x + i * g->row_stride, hidden, l->clip, h + i * h_stride,
                                   g->reset_h + i * hidden);
        multiply(l->r_candidate[g->direction], hidden, g->reset_h, hidden, rows, x + 2 * hidden, g->row_stride, true);
    }
    for (int64_t i = 0; i < rows; i++)
        if (is_running(l, begin + i, t))
            update_row(g, begin + i, x + i * g->row_stride, product + i * l->gates, h + i * h_stride,
                       y_row(l, g->direction, t, begin + i));
}

static void run_block(group *g, int64_t first, int64_t steps) {
    const layer *l = g->l;
    project(g, first, steps);
    for (int64_t s = 0; s < steps; s++) {
        const int64_t local = g->reverse ? steps - 1 - s : s, t = first + local;
        int64_t begin = g->begin, end = g->end;
        while (begin < end && !is_running(l, begin, t)) begin++;
        while (begin < end && !is_running(l, end - 1, t)) end--;
        for (int64_t b = g->begin; l->lengths && l->y && b < g->end; b++)
            if (!is_running(l, b, t)) memset(y_row(l, g->direction, t, b), 0, (size_t)l->hidden * sizeof(double));
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
    g.end = g.begin + l->group_rows < l->batch ? g.begin + l->group_rows : l->batch;
    g.reverse = l->first_direction + g.direction == 1;
    for (int64_t done = 0, steps; done < l->time; done += steps) {
        steps = l->time - done < l->block_steps ? l->time - done : l->block_steps;
        run_block(&g, g.reverse ? l->time - done - steps : done, steps);
    }
}

static bool has_shape(const qrt_tensor *t, int32_t dtype, int32_t rank, const int64_t *dims) {
    if (t->dtype != dtype || t->rank != rank) return false;
    for (int i = 0; i < rank; i++)
        if (t->dims[i] != dims[i]) return false;
    return true;
}

static bool is_packed(const qrt_tensor *t, int64_t k, int64_t n) {
    return t && has_shape(t, QRT_F64, 3, (int64_t[]){(n + PANEL - 1) / PANEL, k + 1, PANEL});
}

/// What the activations are; false when they do not fit.
static bool read_activations(layer *l, const qrt_node *node) {
    static const int64_t standard[] = {QRT_SIGMOID, QRT_TANH, QRT_TANH};
    const int each = l->kind == LSTM ? 3 : l->kind == RNN ? 1 : 2, count = each * l->num_directions;
    const bool is_standard = node->num_ints == NUM_INTS;
    if (!is_standard && node->num_ints != NUM_INTS + count) return false;
    if (node->num_floats != (is_standard ? 1 : 1 + 2 * count)) return false;
    for (int i = 0; i < count; i++) {
        qrt_activations_f64 *by = &l->activations[i / each];
        int64_t op = is_standard ? standard[l->kind == RNN ? 1 : i % each] : node->ints[NUM_INTS + i];
        if (op < 0 || op >= QRT_NUM_UNARY || !qrt_kernels.pointwise.unary_f64[op]) return false;
        by->functions[i % each] = op == QRT_SIGMOID ? positive_sigmoid : qrt_kernels.pointwise.unary_f64[op];
        if (is_standard) continue;
        by->p[i % each] = node->floats[1 + 2 * i];
        by->q[i % each] = node->floats[2 + 2 * i];
    }
    return true;
}

static bool read_packed(layer *l, const qrt_node *node) {
    const bool splits_r = l->kind == GRU_RESET_BEFORE;
    const int each = splits_r ? 3 : 2;
    if (node->num_packed != l->num_directions * each) return false;
    for (int d = 0; d < l->num_directions; d++) {
        void *const *packed = node->packed + d * each;
        l->w[d] = packed[0];
        l->r[d] = packed[1];
        if (!is_packed(l->w[d], l->input, l->gates)) return false;
        if (!is_packed(l->r[d], l->hidden, splits_r ? 2 * l->hidden : l->gates)) return false;
        if (!splits_r) continue;
        l->r_candidate[d] = packed[2];
        if (!is_packed(l->r_candidate[d], l->hidden, l->hidden)) return false;
    }
    return true;
}

/// The optional inputs; false when they do not fit.
static bool read_inputs(layer *l, const qrt_node *node, const qrt_tensor *const *in) {
    const int64_t d = l->num_directions;
    const int64_t state[3] = {l->batch_first ? l->batch : d, l->batch_first ? d : l->batch, l->hidden};
    const qrt_tensor *lengths = qrt_input(node, in, 1), *h = qrt_input(node, in, 2);
    const qrt_tensor *c = qrt_input(node, in, 3), *p = qrt_input(node, in, 4);
    if (lengths && !has_shape(lengths, QRT_I32, 1, &l->batch)) return false;
    if (h && !has_shape(h, QRT_F64, 3, state)) return false;
    if (l->kind != LSTM && (c || p)) return false;
    if (c && !has_shape(c, QRT_F64, 3, state)) return false;
    if (p && !has_shape(p, QRT_F64, 2, (int64_t[]){d, 3 * l->hidden})) return false;
    l->x = in[0]->data;
    l->peepholes = p ? p->data : NULL;
    l->lengths = lengths ? lengths->data : NULL;
    for (int64_t b = 0; lengths && b < l->batch; b++)
        if (l->lengths[b] < 0 || l->lengths[b] > l->time) return false;
    l->state_row_stride = l->batch_first ? d * l->hidden : l->hidden;
    l->state_direction_stride = l->batch_first ? l->hidden : l->batch * l->hidden;
    return true;
}

/// Fill in what follows from the parameters, the packed weights and the inputs; false when anything does not fit.
static bool describe(layer *l, const qrt_node *node, const qrt_tensor *const *in) {
    if (node->num_ints < NUM_INTS || node->num_floats < 1 || node->num_inputs < 1) return false;
    const int64_t *ints = node->ints;
    if (ints[DIRECTION] < 0 || ints[DIRECTION] > BIDIRECTIONAL || ints[LAYOUT] < 0 || ints[LAYOUT] > 1) return false;
    const qrt_tensor *x = in[0];
    if (!x || x->dtype != QRT_F64 || x->rank != 3) return false;
    l->batch_first = ints[LAYOUT];
    l->time = x->dims[l->batch_first];
    l->batch = x->dims[!l->batch_first];
    l->input = x->dims[2];
    l->hidden = ints[HIDDEN];
    l->num_directions = ints[DIRECTION] == BIDIRECTIONAL ? 2 : 1;
    l->first_direction = ints[DIRECTION] == REVERSE;
    l->variant = ints[VARIANT];
    l->clip = node->floats[0];
    if (!(l->clip >= 0) || l->hidden < 1 || l->hidden > 1 << 20 || l->batch > INT32_MAX || l->time > INT32_MAX) return false;
    l->gates = (l->kind == LSTM ? 4 : l->kind == RNN ? 1 : 3) * l->hidden;
    int64_t total;
    if (!qrt_num_elements(4, (int64_t[]){l->time, l->batch, l->num_directions, 4 * l->hidden}, &total) || total >> 56) return false;
    return read_activations(l, node) && read_packed(l, node) && read_inputs(l, node, in);
}

/// Groups of rows, steps of a block and what a task needs.
static void divide(layer *l, int num_threads) {
    const double work = (double)l->time * (double)l->batch * (double)l->hidden * (double)l->gates;
    int64_t groups = num_threads / l->num_directions;
    if (groups > l->batch / MIN_GROUP_ROWS) groups = l->batch / MIN_GROUP_ROWS;
    if (groups < 1 || work < MIN_PARALLEL_WORK) groups = 1;
    l->group_rows = (l->batch + groups - 1) / groups;
    l->num_groups = l->group_rows ? (l->batch + l->group_rows - 1) / l->group_rows : 0;

    int64_t rows = BLOCK_DOUBLES / l->gates;
    if (rows < BLOCK_MIN_ROWS) rows = BLOCK_MIN_ROWS;
    l->block_steps = l->group_rows && rows > l->group_rows ? rows / l->group_rows : 1;
    if (l->block_steps > l->time) l->block_steps = l->time;
    l->projected_elems = (l->block_steps * l->group_rows * l->gates + 7) / 8 * 8;
    l->products_elems = l->kind == GRU_RESET_AFTER ? (l->group_rows * l->gates + 7) / 8 * 8 : 0;
    l->task_elems = l->projected_elems + l->products_elems;
    if (l->kind == GRU_RESET_BEFORE) l->task_elems += (l->group_rows * l->hidden + 7) / 8 * 8;
}

static void start_state(double *state, const qrt_tensor *initial, int64_t size) {
    if (initial)
        memcpy(state, initial->data, (size_t)size * sizeof *state);
    else
        memset(state, 0, (size_t)size * sizeof *state);
}

static qrt_status allocate_outputs(layer *l, const qrt_node *node, qrt_run *run, qrt_tensor *out) {
    const int64_t d = l->num_directions;
    int64_t y_dims[4] = {l->time, d, l->batch, l->hidden}, state_dims[3] = {d, l->batch, l->hidden};
    if (l->batch_first) {
        memcpy(y_dims, (int64_t[]){l->batch, l->time, d, l->hidden}, sizeof y_dims);
        memcpy(state_dims, (int64_t[]){l->batch, d, l->hidden}, sizeof state_dims);
    }
    for (int i = 0; i < (l->kind == LSTM ? 3 : 2) && i < node->num_outputs; i++) {
        if (!(node->ints[WANTED] >> i & 1)) continue;
        qrt_status status = qrt_alloc(run, &out[i], QRT_F64, i == Y ? 4 : 3, i == Y ? y_dims : state_dims);
        if (status != QRT_OK) return status;
        *(i == Y ? &l->y : i == Y_H ? &l->h : &l->c) = out[i].data;
    }
    return QRT_OK;
}

static qrt_status recurrent(layer *l, const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (!describe(l, node, in)) return QRT_DECLINE;
    divide(l, run->num_threads);
    qrt_status status = allocate_outputs(l, node, run, out);
    if (status != QRT_OK) return status;
    const int64_t tasks = l->num_directions * l->num_groups, states = l->num_directions * l->batch * l->hidden;
    qrt_buffer *memory = qrt_scratch(run, (size_t)(tasks * l->task_elems + 2 * states) * sizeof(double));
    if (!memory) return QRT_NO_MEMORY;
    l->scratch = memory->data;
    if (!l->h) l->h = l->scratch + tasks * l->task_elems;
    if (!l->c) l->c = l->scratch + tasks * l->task_elems + states;
    start_state(l->h, qrt_input(node, in, 2), states);
    if (l->kind == LSTM) start_state(l->c, qrt_input(node, in, 3), states);
    const double work = (double)l->time * (double)l->batch * (double)l->hidden * (double)l->gates * l->num_directions;
    qrt_parallel_for(work < MIN_PARALLEL_WORK ? 1 : run->num_threads, tasks, run_group, l);
    qrt_scratch_free(run, memory);
    return QRT_OK;
}

static qrt_status lstm(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    layer l = {.kind = LSTM};
    return recurrent(&l, node, run, in, out);
}

static qrt_status gru(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_ints < NUM_INTS) return QRT_DECLINE;
    layer l = {.kind = node->ints[VARIANT] ? GRU_RESET_AFTER : GRU_RESET_BEFORE};
    return recurrent(&l, node, run, in, out);
}

static qrt_status rnn(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    layer l = {.kind = RNN};
    return recurrent(&l, node, run, in, out);
}

const qrt_node_entry qrt_rnn_f64_nodes[] = {
    {"lstm_f64", lstm},
    {"gru_f64", gru},
    {"rnn_f64", rnn},
    {NULL, NULL},
};
