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
#include "../threads.h"
#include "recurrent.h"

/// The input product of long sequences is made in blocks of steps, which stay in cache until they are used.
enum { BLOCK_FLOATS = 1 << 17, BLOCK_MIN_ROWS = 32 };

/// Fewer multiply-adds than this are not worth waking a thread.
enum { MIN_PARALLEL_WORK = 1 << 18 };

/// Every group reads all of R at every step: with fewer rows than this, threads better share its columns.
enum { MIN_GROUP_ROWS = 4 };

/// Gates of one step below which another thread would come too late to help.
enum { MIN_PARALLEL_GATES = 1 << 12 };

typedef struct {
    qrt_recurrent node;
    qrt_q8_grid x_grid, h_grid;
    float clip;
    qrt_activations activations[QRT_MAX_DIRECTIONS];
    float *h, *c;

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

static bool fits(const void *packed, int64_t k, int64_t n) {
    const qrt_weights *w = packed;
    return w && w->k == k && w->n == n;
}

/// A product of one step.
static void multiply(layer *l, const qrt_weights *w, const float *a, int64_t lda, int64_t m, const float *residual,
                     int64_t ldr, float *y, void *scratch) {
    const qrt_layer product = {w, {.residual = residual, .residual_stride_elems = ldr}, y, l->node.gates};
    if (!l->splitting) {
        qrt_linear_serial(w, a, lda, m, l->h_grid, &product.epilogue, y, l->node.gates, scratch);
        return;
    }
    qrt_status status = qrt_linear(&product, 1, l->splitting, a, lda, m, l->h_grid);
    if (status != QRT_OK) l->status = status;
}

/// Rows of the input product, ldx and ldy floats apart.
static qrt_status project_rows(const layer *l, qrt_run *run, int direction, const float *x, int64_t ldx, int64_t m, float *y,
                               int64_t ldy) {
    const qrt_layer product = {.w = l->node.w[direction], .y = y, .ldy_elems = ldy};
    return qrt_linear(&product, 1, run, x, ldx, m, l->x_grid);
}

/// Input product of the block for one direction.
static qrt_status project(const layer *l, qrt_run *run, int direction) {
    int64_t steps = l->block_steps, first = l->block_begin;
    if (qrt_is_reverse(&l->node, direction)) first = l->node.time - first - steps;
    float *out = l->projected[direction];
    if (!l->node.batch_first || steps == l->node.time) {
        const float *x = l->node.x;
        if (!l->node.batch_first) x += first * l->node.batch * l->node.input;
        return project_rows(l, run, direction, x, l->node.input, steps * l->node.batch, out, l->node.gates);
    }
    const float *x = (const float *)l->node.x + first * l->node.input;
    int64_t sequence = l->node.time * l->node.input;
    qrt_status status = QRT_OK;
    if (steps >= l->node.batch)
        for (int64_t b = 0; b < l->node.batch && status == QRT_OK; b++)
            status = project_rows(l, run, direction, x + b * sequence, l->node.input, steps, out + b * l->projected_row_stride,
                                  l->node.gates);
    else
        for (int64_t s = 0; s < steps && status == QRT_OK; s++)
            status = project_rows(l, run, direction, x + s * l->node.input, sequence, l->node.batch, out + s * l->node.gates,
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
    const int64_t hidden = l->node.hidden;
    switch (l->node.kind) {
    case QRT_LSTM: cells->lstm(product, hidden, options, c, h, y); break;
    case QRT_GRU_RESET_AFTER: cells->gru_reset_after(x, product, hidden, l->clip, h, y); break;
    case QRT_GRU_RESET_BEFORE: cells->gru_update(product, product + 2 * hidden, hidden, l->clip, h, y); break;
    case QRT_RNN: cells->rnn_tanh(product, hidden, l->clip, h, y); break;
    }
}

static void update_any(const layer *l, const qrt_activations *by, const float *x, float *product,
                       const qrt_lstm_options *options, float *c, float *h, float *y) {
    const int64_t hidden = l->node.hidden;
    switch (l->node.kind) {
    case QRT_LSTM: qrt_lstm_cell(by, product, hidden, options, c, h, y); break;
    case QRT_GRU_RESET_AFTER: qrt_gru_reset_after_cell(by, x, product, hidden, l->clip, h, y); break;
    case QRT_GRU_RESET_BEFORE: qrt_gru_update_cell(by, product, product + 2 * hidden, hidden, l->clip, h, y); break;
    case QRT_RNN: qrt_rnn_cell(by, product, hidden, l->clip, h, y); break;
    }
}

/// The rows of one task.
static void update_rows(void *context, int64_t task) {
    const step *s = context;
    const layer *l = s->l;
    const float *peepholes = l->node.peepholes;
    float *y = l->node.y;
    if (peepholes) peepholes += s->direction * 3 * l->node.hidden;
    const qrt_lstm_options options = {peepholes, l->clip, l->node.variant};
    int64_t first = s->begin + task * s->rows_per_task, last = first + s->rows_per_task;
    for (int64_t b = first; b < last && b < s->end; b++) {
        if (!qrt_is_running(&l->node, b, s->t)) continue;
        int64_t state = s->direction * l->node.state_direction_stride + b * l->node.state_row_stride;
        const float *x = s->x + (b - s->begin) * l->projected_row_stride;
        float *product = l->products + (s->direction * l->node.batch + b) * l->node.gates;
        float *c = l->c + state, *h = l->h + state, *y_row = y ? y + qrt_place_in_y(&l->node, s->direction, s->t, b) : NULL;
        if (l->node.is_standard)
            update_standard(l, x, product, &options, c, h, y_row);
        else
            update_any(l, &l->activations[s->direction], x, product, &options, c, h, y_row);
    }
}

/// reset_h of all rows of a step, from the products of z and r.
static void reset_hidden(const step *s, float *product, const float *h, float *reset_h) {
    const layer *l = s->l;
    for (int64_t b = s->begin; b < s->end; b++, product += l->node.gates, h += l->node.state_row_stride, reset_h += l->node.hidden)
        if (l->node.is_standard)
            qrt_kernels.rnn.gru_reset(product, l->node.hidden, l->clip, h, reset_h);
        else
            qrt_gru_reset_cell(&l->activations[s->direction], product, l->node.hidden, l->clip, h, reset_h);
}

static void run_step(step *s, void *scratch) {
    layer *l = s->l;
    const int64_t hidden = l->node.hidden, gates = l->node.gates, rows = s->end - s->begin;
    const int64_t x_stride = l->projected_row_stride, h_stride = l->node.state_row_stride;
    const int64_t first_row = s->direction * l->node.batch + s->begin;
    float *product = l->products + first_row * gates;
    float *h = l->h + s->direction * l->node.state_direction_stride + s->begin * h_stride;
    const float *residual = l->node.kind == QRT_GRU_RESET_AFTER ? NULL : s->x;

    multiply(l, l->node.r[s->direction], h, h_stride, rows, residual, x_stride, product, scratch);
    if (l->node.kind == QRT_GRU_RESET_BEFORE) {
        float *reset_h = l->reset_h + first_row * hidden;
        reset_hidden(s, product, h, reset_h);
        multiply(l, l->node.r_candidate[s->direction], reset_h, hidden, rows, s->x + 2 * hidden, x_stride,
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
    bool reverse = qrt_is_reverse(&l->node, direction);
    int64_t group_begin = task % l->num_groups * l->group_rows, group_end = group_begin + l->group_rows;
    if (group_end > l->node.batch) group_end = l->node.batch;
    void *scratch = l->scratch + (size_t)task * l->task_scratch_bytes;
    for (int64_t s = 0; s < l->block_steps; s++) {
        int64_t t = l->block_begin + s, local = s;
        if (reverse) {
            t = l->node.time - 1 - t;
            local = l->block_steps - 1 - s;
        }
        int64_t begin = group_begin, end = group_end;
        qrt_narrow_to_running(&l->node, direction, t, &begin, &end);
        if (begin == end) continue;
        const float *x = l->projected[direction] + local * l->projected_time_stride;
        step now = {l, direction, t, begin, end, x + begin * l->projected_row_stride, 0};
        run_step(&now, scratch);
    }
}

static bool describe(layer *l, qrt_cell_kind kind, const qrt_node *node, const qrt_tensor *const *in) {
    qrt_recurrent *n = &l->node;
    if (!qrt_read_recurrent(node, in, kind, QRT_F32, fits, n)) return false;
    const int64_t qmax = node->ints[QRT_RNN_QMAX];
    const int64_t x_codes[] = {node->ints[QRT_RNN_X_MODE], qmax}, h_codes[] = {node->ints[QRT_RNN_H_MODE], qmax};
    if (!qrt_q8_read_grid(x_codes, 2, &l->x_grid) || !qrt_q8_read_grid(h_codes, 2, &l->h_grid)) return false;
    l->clip = (float)n->clip;
    for (int d = 0; !n->is_standard && d < n->num_directions; d++)
        for (int i = 0; i < n->num_activations; i++) {
            l->activations[d].functions[i] = qrt_kernels.pointwise.unary[n->operators[d][i]];
            l->activations[d].p[i] = (float)n->p[d][i];
            l->activations[d].q[i] = (float)n->q[d][i];
        }
    return true;
}

/// Steps per block and groups of rows; false when the scratch of products cannot be counted.
static bool divide(layer *l, int num_threads) {
    int64_t rows = BLOCK_FLOATS / l->node.gates;
    if (rows < BLOCK_MIN_ROWS) rows = BLOCK_MIN_ROWS;
    int64_t steps = l->node.batch ? rows / l->node.batch : 1;
    if (steps < 1) steps = 1;
    if (steps > l->node.time || l->x_grid.mode == QRT_PER_TENSOR) steps = l->node.time;
    l->block_steps = steps;

    int64_t groups = num_threads / l->node.num_directions;
    if (groups > l->node.batch / MIN_GROUP_ROWS) groups = l->node.batch / MIN_GROUP_ROWS;
    double work = (double)steps * (double)l->node.batch * (double)l->node.hidden * (double)l->node.gates;
    if (groups < 1 || l->h_grid.mode == QRT_PER_TENSOR || work < MIN_PARALLEL_WORK) groups = 1;
    l->group_rows = (l->node.batch + groups - 1) / groups;
    l->num_groups = l->group_rows ? (l->node.batch + l->group_rows - 1) / l->group_rows : 1;

    l->task_scratch_bytes = 0;
    for (int d = 0; d < l->node.num_directions; d++) {
        const qrt_weights *products[] = {l->node.r[d], l->node.r_candidate[d]};
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
    double work = (double)max_steps * (double)l->node.batch * (double)l->node.hidden * (double)l->node.gates * l->node.num_directions;
    int num_threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads;
    for (l->block_begin = 0; l->block_begin < l->node.time; l->block_begin += max_steps) {
        l->block_steps = l->node.time - l->block_begin < max_steps ? l->node.time - l->block_begin : max_steps;
        l->projected_time_stride = l->node.batch_first ? l->node.gates : l->node.batch * l->node.gates;
        l->projected_row_stride = l->node.batch_first ? l->block_steps * l->node.gates : l->node.gates;
        for (int d = 0; d < l->node.num_directions; d++) {
            qrt_status status = project(l, run, d);
            if (status != QRT_OK) return status;
        }
        int64_t tasks = l->node.num_directions * l->num_groups;
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

static qrt_status recurrent(qrt_cell_kind kind, const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    layer made = {0}, *l = &made;
    if (!describe(l, kind, node, in)) return QRT_DECLINE;
    if (!divide(l, run->num_threads)) return QRT_NO_MEMORY;
    qrt_status status = qrt_allocate_recurrent(&l->node, node, run, out);
    if (status != QRT_OK) return status;

    const int64_t d = l->node.num_directions, states = d * l->node.batch * l->node.hidden;
    int64_t block = l->block_steps * l->node.batch * l->node.gates;
    int64_t floats = d * block + d * l->node.batch * l->node.gates + 3 * states + 16 * 8;
    size_t task_bytes = (size_t)(d * l->num_groups) * l->task_scratch_bytes;
    qrt_buffer *memory = qrt_scratch(run, (size_t)floats * sizeof(float) + task_bytes);
    if (!memory) return QRT_NO_MEMORY;
    l->scratch = memory->data;
    float *rest = (float *)(l->scratch + task_bytes);
    for (int i = 0; i < d; i++) l->projected[i] = take(&rest, block);
    l->products = take(&rest, d * l->node.batch * l->node.gates);
    l->reset_h = take(&rest, states);
    l->h = l->node.h ? l->node.h : take(&rest, states);
    l->c = l->node.c ? l->node.c : take(&rest, states);
    qrt_start_states(&l->node, l->h, l->c);
    status = l->node.batch ? run_blocks(l, run) : QRT_OK;
    qrt_scratch_free(run, memory);
    return status;
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

const qrt_node_entry qrt_rnn_nodes[] = {
    {"lstm", lstm},
    {"gru", gru},
    {"rnn", rnn},
    {NULL, NULL},
};
