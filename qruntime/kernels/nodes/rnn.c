/// Recurrent layers: "lstm", "gru", "rnn", with the semantics of ONNX 7 … 22.
///
/// inputs: X, sequence_lens, initial_h, and for LSTM initial_c, P (ONNX order without W, R, B; all but X optional)
/// ints:
///   0 hidden     size H of the hidden state
///   1 direction  0 forward, 1 reverse, 2 bidirectional
///   2 layout     0: X [T, B, I], Y [T, D, B, H], states [D, B, H];  1: X [B, T, I], Y [B, T, D, H], states [B, D, H]
///   3 x mode     qrt_range_mode of X, for weights W that quantize it
///   4 h mode     the same for R and the hidden state
///   5 qmax       the greatest code of both
///   6 wanted     bit i: output i (Y, Y_h, Y_c) is read; the others stay empty
///   7 variant    LSTM: 1 couples the forget gate to the input gate (input_forget); GRU: linear_before_reset
///   8 …          unless activations are the standard ones: for each direction the opcodes (qrt_unary_op) of LSTM f g h,
///                GRU f g, RNN f
/// floats: clip, inf when there is none; then p and q of each opcode
/// packed, of any kind, for each direction (columns gate after gate in ONNX order; packed from the transposed ONNX weights):
///   LSTM                       W [I, 4H] i o f c, R [H, 4H]
///   GRU, linear_before_reset   W [I, 3H] z r h, R [H, 3H]
///   GRU, otherwise             W [I, 3H] z r h, Rzr [H, 2H], Rh [H, H]
///   RNN                        W [I, H], R [H, H]
/// Biases belong to the packed weights: Wb + Rb to W, except that the h gate of GRU with linear_before_reset keeps
/// its Rb with R.
///
/// Quantization per token looks at one row of X, of h, or of r ⊙ h at a time. Quantization per tensor takes one
/// range over all of X and, at every step, over the rows of h from the first to the last running sequence.
///
/// A row whose sequence has ended keeps its state, and its Y is 0. A sequence of length 0 ends with its initial state.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "arguments.h"
#include "cells.h"
#include "enumerations.h"

enum { HIDDEN, DIRECTION, LAYOUT, X_MODE, H_MODE, QMAX, WANTED, VARIANT, NUM_INTS };
enum { QRT_DIRECTIONS(QRT_ENUMERATOR) };
enum { Y, Y_H, Y_C };

/// The input product of long sequences is made in blocks of steps, which stay in cache until they are used.
enum { BLOCK_FLOATS = 1 << 17, BLOCK_MIN_ROWS = 32 };

/// Fewer multiply-adds than this are not worth waking a thread.
enum { MIN_PARALLEL_WORK = 1 << 18 };

/// Every group reads all of R at every step: with fewer rows than this, threads better share its columns.
enum { MIN_GROUP_ROWS = 4 };

/// Gates of one step below which another thread would come too late to help.
enum { MIN_PARALLEL_GATES = 1 << 12 };

typedef enum { LSTM, GRU_RESET_AFTER, GRU_RESET_BEFORE, RNN } cell_kind;

typedef struct {
    cell_kind kind;
    int64_t time, batch, input, hidden, gates;  ///< `gates`: columns of all gates together
    int num_directions, first_direction;
    bool batch_first;
    const qrt_weights *w[2], *r[2], *r_candidate[2];
    qrt_q8_grid x_grid, h_grid;
    const float *x, *peepholes;
    const int32_t *lengths;
    float clip;
    int64_t variant;
    bool is_standard;              ///< sigmoid and tanh, which have kernels
    qrt_activations activations[2];

    float *y, *h, *c;
    int64_t state_row_stride, state_direction_stride;

    int64_t block_begin, block_steps;  ///< in steps: a reverse direction takes its first step at the last time
    float *projected[2];               ///< input product of the block
    int64_t projected_time_stride, projected_row_stride;
    float *products;                   ///< [direction, batch, gates]
    float *reset_h;                    ///< [direction, batch, hidden]
    char *scratch;
    size_t task_scratch_bytes;
    int64_t num_groups, group_rows;    ///< rows are independent: each group runs through the block on its own
    qrt_run *splitting;                ///< not NULL: there is one group, and threads share the columns of each step
    qrt_status status;                 ///< of steps that are shared
} layer;

static bool fits(const qrt_weights *w, int64_t k, int64_t n) { return w && w->k == k && w->n == n; }

/// A product of one step.
static void multiply(layer *l, const qrt_weights *w, const float *a, int64_t lda, int64_t m, const float *residual,
                     int64_t ldr, float *y, void *scratch) {
    const qrt_layer product = {w, {.residual = residual, .residual_stride_elems = ldr}, y, l->gates};
    if (!l->splitting) {
        qrt_linear_serial(w, a, lda, m, l->h_grid, &product.epilogue, y, l->gates, scratch);
        return;
    }
    qrt_status status = qrt_linear(&product, 1, l->splitting, a, lda, m, l->h_grid);
    if (status != QRT_OK) l->status = status;
}

static bool is_reverse(const layer *l, int direction) { return l->first_direction + direction == 1; }

static bool is_running(const layer *l, int64_t row, int64_t t) { return !l->lengths || t < l->lengths[row]; }

static float *y_row(const layer *l, int direction, int64_t t, int64_t row) {
    if (!l->y) return NULL;
    int64_t d = l->num_directions;
    int64_t at = l->batch_first ? (row * l->time + t) * d + direction : (t * d + direction) * l->batch + row;
    return l->y + at * l->hidden;
}

/// Rows of the input product, ldx and ldy floats apart.
static qrt_status project_rows(const layer *l, qrt_run *run, int direction, const float *x, int64_t ldx, int64_t m, float *y,
                               int64_t ldy) {
    const qrt_layer product = {.w = l->w[direction], .y = y, .ldy_elems = ldy};
    return qrt_linear(&product, 1, run, x, ldx, m, l->x_grid);
}

/// Input product of the block for one direction.
static qrt_status project(const layer *l, qrt_run *run, int direction) {
    int64_t steps = l->block_steps, first = l->block_begin;
    if (is_reverse(l, direction)) first = l->time - first - steps;
    float *out = l->projected[direction];
    if (!l->batch_first || steps == l->time) {
        const float *x = l->batch_first ? l->x : l->x + first * l->batch * l->input;
        return project_rows(l, run, direction, x, l->input, steps * l->batch, out, l->gates);
    }
    const float *x = l->x + first * l->input;
    int64_t sequence = l->time * l->input;
    qrt_status status = QRT_OK;
    if (steps >= l->batch)
        for (int64_t b = 0; b < l->batch && status == QRT_OK; b++)
            status = project_rows(l, run, direction, x + b * sequence, l->input, steps, out + b * l->projected_row_stride,
                                  l->gates);
    else
        for (int64_t s = 0; s < steps && status == QRT_OK; s++)
            status = project_rows(l, run, direction, x + s * l->input, sequence, l->batch, out + s * l->gates,
                                  l->projected_row_stride);
    return status;
}

/// One step of rows begin … end−1, whose input products start at `x`.
typedef struct {
    layer *l;
    int direction;
    int64_t t, begin, end;
    const float *x;
    int64_t rows_per_task;
} step;

/// Gates and state of one row, once the products are there.
static void update_standard(const layer *l, const float *x, const float *product, const qrt_lstm_options *options, float *c,
                            float *h, float *y) {
    const qrt_rnn *cells = &qrt_kernels.rnn;
    const int64_t hidden = l->hidden;
    switch (l->kind) {
    case LSTM: cells->lstm(product, hidden, options, c, h, y); break;
    case GRU_RESET_AFTER: cells->gru_reset_after(x, product, hidden, l->clip, h, y); break;
    case GRU_RESET_BEFORE: cells->gru_update(product, product + 2 * hidden, hidden, l->clip, h, y); break;
    case RNN: cells->rnn_tanh(product, hidden, l->clip, h, y); break;
    }
}

static void update_any(const layer *l, const qrt_activations *by, const float *x, float *product,
                       const qrt_lstm_options *options, float *c, float *h, float *y) {
    const int64_t hidden = l->hidden;
    switch (l->kind) {
    case LSTM: qrt_lstm_cell(by, product, hidden, options, c, h, y); break;
    case GRU_RESET_AFTER: qrt_gru_reset_after_cell(by, x, product, hidden, l->clip, h, y); break;
    case GRU_RESET_BEFORE: qrt_gru_update_cell(by, product, product + 2 * hidden, hidden, l->clip, h, y); break;
    case RNN: qrt_rnn_cell(by, product, hidden, l->clip, h, y); break;
    }
}

/// The rows of one task.
static void update_rows(void *context, int64_t task) {
    const step *s = context;
    const layer *l = s->l;
    const float *peepholes = l->peepholes ? l->peepholes + s->direction * 3 * l->hidden : NULL;
    const qrt_lstm_options options = {peepholes, l->clip, l->variant};
    int64_t first = s->begin + task * s->rows_per_task, last = first + s->rows_per_task;
    for (int64_t b = first; b < last && b < s->end; b++) {
        if (!is_running(l, b, s->t)) continue;
        int64_t state = s->direction * l->state_direction_stride + b * l->state_row_stride;
        const float *x = s->x + (b - s->begin) * l->projected_row_stride;
        float *product = l->products + (s->direction * l->batch + b) * l->gates;
        float *c = l->c + state, *h = l->h + state, *y = y_row(l, s->direction, s->t, b);
        if (l->is_standard)
            update_standard(l, x, product, &options, c, h, y);
        else
            update_any(l, &l->activations[s->direction], x, product, &options, c, h, y);
    }
}

/// reset_h of all rows of a step, from the products of z and r.
static void reset_hidden(const step *s, float *product, const float *h, float *reset_h) {
    const layer *l = s->l;
    for (int64_t b = s->begin; b < s->end; b++, product += l->gates, h += l->state_row_stride, reset_h += l->hidden)
        if (l->is_standard)
            qrt_kernels.rnn.gru_reset(product, l->hidden, l->clip, h, reset_h);
        else
            qrt_gru_reset_cell(&l->activations[s->direction], product, l->hidden, l->clip, h, reset_h);
}

static void run_step(step *s, void *scratch) {
    layer *l = s->l;
    const int64_t hidden = l->hidden, gates = l->gates, rows = s->end - s->begin;
    const int64_t x_stride = l->projected_row_stride, h_stride = l->state_row_stride;
    const int64_t first_row = s->direction * l->batch + s->begin;
    float *product = l->products + first_row * gates;
    float *h = l->h + s->direction * l->state_direction_stride + s->begin * h_stride;
    const float *residual = l->kind == GRU_RESET_AFTER ? NULL : s->x;

    multiply(l, l->r[s->direction], h, h_stride, rows, residual, x_stride, product, scratch);
    if (l->kind == GRU_RESET_BEFORE) {
        float *reset_h = l->reset_h + first_row * hidden;
        reset_hidden(s, product, h, reset_h);
        multiply(l, l->r_candidate[s->direction], reset_h, hidden, rows, s->x + 2 * hidden, x_stride,
                 product + 2 * hidden, scratch);
    }
    int threads = l->splitting && rows * gates >= MIN_PARALLEL_GATES ? l->splitting->num_threads : 1;
    s->rows_per_task = (rows + threads - 1) / threads;
    qrt_parallel_for(threads, (rows + s->rows_per_task - 1) / s->rows_per_task, update_rows, s);
}

/// Task of one direction and one group of rows: all steps of the block.
static void run_group(void *context, int64_t task) {
    layer *l = context;
    int direction = (int)(task / l->num_groups);
    bool reverse = is_reverse(l, direction);
    int64_t group_begin = task % l->num_groups * l->group_rows, group_end = group_begin + l->group_rows;
    if (group_end > l->batch) group_end = l->batch;
    void *scratch = l->scratch + (size_t)task * l->task_scratch_bytes;
    for (int64_t s = 0; s < l->block_steps; s++) {
        int64_t t = l->block_begin + s, local = s;
        if (reverse) {
            t = l->time - 1 - t;
            local = l->block_steps - 1 - s;
        }
        int64_t begin = group_begin, end = group_end;
        while (begin < end && !is_running(l, begin, t)) begin++;
        while (begin < end && !is_running(l, end - 1, t)) end--;
        if (l->lengths && l->y)
            for (int64_t b = group_begin; b < group_end; b++)
                if (!is_running(l, b, t)) memset(y_row(l, direction, t, b), 0, (size_t)l->hidden * sizeof(float));
        if (begin == end) continue;
        const float *x = l->projected[direction] + local * l->projected_time_stride;
        step now = {l, direction, t, begin, end, x + begin * l->projected_row_stride, 0};
        run_step(&now, scratch);
    }
}

static bool has_shape(const qrt_tensor *t, int32_t dtype, int32_t rank, const int64_t *dims) {
    if (t->dtype != dtype || t->rank != rank) return false;
    for (int i = 0; i < rank; i++)
        if (t->dims[i] != dims[i]) return false;
    return true;
}

/// Activations other than the standard ones; false when they do not fit.
static bool read_activations(layer *l, const qrt_node *node) {
    int each = l->kind == LSTM ? 3 : l->kind == RNN ? 1 : 2, count = each * l->num_directions;
    l->is_standard = node->num_ints == NUM_INTS;
    if (l->is_standard) return node->num_floats == 1;
    if (node->num_ints != NUM_INTS + count || node->num_floats != 1 + 2 * count) return false;
    for (int i = 0; i < count; i++) {
        qrt_activations *by = &l->activations[i / each];
        int64_t op = node->ints[NUM_INTS + i];
        if (op < 0 || op >= QRT_NUM_UNARY) return false;
        by->functions[i % each] = qrt_kernels.pointwise.unary[op];
        by->p[i % each] = (float)node->floats[1 + 2 * i];
        by->q[i % each] = (float)node->floats[2 + 2 * i];
    }
    return true;
}

/// Fill in what follows from the parameters, the packed weights and the inputs; false when anything does not fit.
static bool describe(layer *l, const qrt_node *node, const qrt_tensor *const *in) {
    if (node->num_ints < NUM_INTS || node->num_floats < 1 || node->num_inputs < 1) return false;
    const int64_t *ints = node->ints;
    if (ints[DIRECTION] < 0 || ints[DIRECTION] > BIDIRECTIONAL || ints[LAYOUT] < 0 || ints[LAYOUT] > 1) return false;
    const int64_t x_codes[] = {ints[X_MODE], ints[QMAX]}, h_codes[] = {ints[H_MODE], ints[QMAX]};
    if (!qrt_q8_read_grid(x_codes, 2, &l->x_grid) || !qrt_q8_read_grid(h_codes, 2, &l->h_grid)) return false;
    const qrt_tensor *x = in[0];
    if (!x || x->dtype != QRT_F32 || x->rank != 3) return false;
    l->batch_first = ints[LAYOUT];
    l->time = x->dims[l->batch_first];
    l->batch = x->dims[!l->batch_first];
    l->input = x->dims[2];
    l->hidden = ints[HIDDEN];
    l->num_directions = ints[DIRECTION] == BIDIRECTIONAL ? 2 : 1;
    l->first_direction = ints[DIRECTION] == REVERSE;
    l->variant = ints[VARIANT];
    if (!read_activations(l, node)) return false;
    l->clip = (float)node->floats[0];
    if (!(l->clip >= 0.0f)) return false;
    if (l->hidden < 1 || l->hidden > 1 << 20 || l->batch > INT32_MAX || l->time > INT32_MAX) return false;
    int num_gates = l->kind == LSTM ? 4 : l->kind == RNN ? 1 : 3;
    l->gates = num_gates * l->hidden;
    const int64_t all_gates[] = {l->time, l->batch, l->num_directions, 4 * l->hidden};
    int64_t total;
    if (!qrt_num_elements(4, all_gates, &total) || total >> 56) return false;

    bool splits_r = l->kind == GRU_RESET_BEFORE;
    int per_direction = splits_r ? 3 : 2;
    if (node->num_packed != l->num_directions * per_direction) return false;
    for (int d = 0; d < l->num_directions; d++) {
        void *const *packed = node->packed + d * per_direction;
        l->w[d] = packed[0];
        l->r[d] = packed[1];
        if (!fits(l->w[d], l->input, l->gates)) return false;
        if (!fits(l->r[d], l->hidden, splits_r ? 2 * l->hidden : l->gates)) return false;
        if (!splits_r) continue;
        l->r_candidate[d] = packed[2];
        if (!fits(l->r_candidate[d], l->hidden, l->hidden)) return false;
    }

    int64_t d = l->num_directions;
    int64_t state[3] = {l->batch_first ? l->batch : d, l->batch_first ? d : l->batch, l->hidden};
    const qrt_tensor *lengths = qrt_input(node, in, 1), *h = qrt_input(node, in, 2);
    const qrt_tensor *c = qrt_input(node, in, 3), *p = qrt_input(node, in, 4);
    if (lengths && !has_shape(lengths, QRT_I32, 1, &l->batch)) return false;
    if (h && !has_shape(h, QRT_F32, 3, state)) return false;
    if (l->kind != LSTM && (c || p)) return false;
    if (c && !has_shape(c, QRT_F32, 3, state)) return false;
    if (p && !has_shape(p, QRT_F32, 2, (int64_t[]){d, 3 * l->hidden})) return false;
    l->x = x->data;
    l->peepholes = p ? p->data : NULL;
    l->lengths = lengths ? lengths->data : NULL;
    for (int64_t b = 0; lengths && b < l->batch; b++)
        if (l->lengths[b] < 0 || l->lengths[b] > l->time) return false;
    l->state_row_stride = l->batch_first ? d * l->hidden : l->hidden;
    l->state_direction_stride = l->batch_first ? l->hidden : l->batch * l->hidden;
    return true;
}

/// Steps per block and groups of rows; false when the scratch of products cannot be counted.
static bool divide(layer *l, int num_threads) {
    int64_t rows = BLOCK_FLOATS / l->gates;
    if (rows < BLOCK_MIN_ROWS) rows = BLOCK_MIN_ROWS;
    int64_t steps = l->batch ? rows / l->batch : 1;
    if (steps < 1) steps = 1;
    if (steps > l->time || l->x_grid.mode == QRT_PER_TENSOR) steps = l->time;
    l->block_steps = steps;

    int64_t groups = num_threads / l->num_directions;
    if (groups > l->batch / MIN_GROUP_ROWS) groups = l->batch / MIN_GROUP_ROWS;
    double work = (double)steps * (double)l->batch * (double)l->hidden * (double)l->gates;
    if (groups < 1 || l->h_grid.mode == QRT_PER_TENSOR || work < MIN_PARALLEL_WORK) groups = 1;
    l->group_rows = (l->batch + groups - 1) / groups;
    l->num_groups = l->group_rows ? (l->batch + l->group_rows - 1) / l->group_rows : 1;

    l->task_scratch_bytes = 0;
    for (int d = 0; d < l->num_directions; d++) {
        const qrt_weights *products[] = {l->r[d], l->r_candidate[d]};
        for (int i = 0; i < 2 && products[i]; i++) {
            size_t bytes = qrt_scratch_bytes(products[i], l->group_rows);
            if (bytes > SIZE_MAX >> 16) return false;
            if (bytes > l->task_scratch_bytes) l->task_scratch_bytes = bytes;
        }
    }
    l->task_scratch_bytes = (l->task_scratch_bytes + QRT_ALIGNMENT - 1) / QRT_ALIGNMENT * QRT_ALIGNMENT;
    return true;
}

static qrt_status run_blocks(layer *l, qrt_run *run) {
    int64_t max_steps = l->block_steps;
    double work = (double)max_steps * (double)l->batch * (double)l->hidden * (double)l->gates * l->num_directions;
    int num_threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads;
    for (l->block_begin = 0; l->block_begin < l->time; l->block_begin += max_steps) {
        l->block_steps = l->time - l->block_begin < max_steps ? l->time - l->block_begin : max_steps;
        l->projected_time_stride = l->batch_first ? l->gates : l->batch * l->gates;
        l->projected_row_stride = l->batch_first ? l->block_steps * l->gates : l->gates;
        for (int d = 0; d < l->num_directions; d++) {
            qrt_status status = project(l, run, d);
            if (status != QRT_OK) return status;
        }
        int64_t tasks = l->num_directions * l->num_groups;
        l->splitting = tasks == 1 && num_threads > 1 ? run : NULL;
        qrt_parallel_for(num_threads, tasks, run_group, l);
        if (l->status != QRT_OK) return l->status;
    }
    return QRT_OK;
}

static float *take(float **memory, int64_t count) {
    float *taken = *memory;
    *memory += (count + 15) / 16 * 16;
    return taken;
}

static void start_state(float *state, const qrt_tensor *initial, int64_t size) {
    if (initial)
        memcpy(state, initial->data, (size_t)size * sizeof(float));
    else
        memset(state, 0, (size_t)size * sizeof(float));
}

static qrt_status recurrent(layer *l, const qrt_node *node, qrt_run *run, const qrt_tensor *const *in,
                            qrt_tensor *out) {
    if (!describe(l, node, in)) return QRT_DECLINE;
    if (!divide(l, run->num_threads)) return QRT_NO_MEMORY;

    int64_t d = l->num_directions, states = d * l->batch * l->hidden;
    int64_t y_dims[4] = {l->time, d, l->batch, l->hidden}, state_dims[3] = {d, l->batch, l->hidden};
    if (l->batch_first) {
        memcpy(y_dims, (int64_t[]){l->batch, l->time, d, l->hidden}, sizeof y_dims);
        memcpy(state_dims, (int64_t[]){l->batch, d, l->hidden}, sizeof state_dims);
    }
    int num_outputs = l->kind == LSTM ? 3 : 2;
    for (int i = 0; i < num_outputs && i < node->num_outputs; i++) {
        if (!(node->ints[WANTED] >> i & 1)) continue;
        qrt_status status = qrt_alloc(run, &out[i], QRT_F32, i == Y ? 4 : 3, i == Y ? y_dims : state_dims);
        if (status != QRT_OK) return status;
        *(i == Y ? &l->y : i == Y_H ? &l->h : &l->c) = out[i].data;
    }

    int64_t block = l->block_steps * l->batch * l->gates;
    int64_t floats = d * block + d * l->batch * l->gates + 3 * states + 16 * 8;
    size_t task_bytes = (size_t)(d * l->num_groups) * l->task_scratch_bytes;
    qrt_buffer *memory = qrt_scratch(run, (size_t)floats * sizeof(float) + task_bytes);
    if (!memory) return QRT_NO_MEMORY;
    l->scratch = memory->data;
    float *rest = (float *)(l->scratch + task_bytes);
    for (int i = 0; i < d; i++) l->projected[i] = take(&rest, block);
    l->products = take(&rest, d * l->batch * l->gates);
    l->reset_h = take(&rest, states);
    if (!l->h) l->h = take(&rest, states);
    if (!l->c) l->c = take(&rest, states);

    start_state(l->h, qrt_input(node, in, 2), states);
    if (l->kind == LSTM) start_state(l->c, qrt_input(node, in, 3), states);
    qrt_status status = l->batch ? run_blocks(l, run) : QRT_OK;
    qrt_scratch_free(run, memory);
    return status;
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

const qrt_node_entry qrt_rnn_nodes[] = {
    {"lstm", lstm},
    {"gru", gru},
    {"rnn", rnn},
    {NULL, NULL},
};
