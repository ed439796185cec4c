#include "recurrent.h"

#include <string.h>

#include "broadcast.h"
#include "enumerations.h"

enum { QRT_DIRECTIONS(QRT_ENUMERATOR) };
enum { Y, Y_H, Y_C };

static bool is_array(const qrt_tensor *t, int32_t dtype, int32_t rank, const int64_t *dims) {
    return t->dtype == dtype && qrt_has_shape(t, rank, dims);
}

static bool read_activations(qrt_recurrent *r, const qrt_node *node) {
    r->num_activations = r->kind == QRT_LSTM ? 3 : r->kind == QRT_RNN ? 1 : 2;
    const int count = r->num_activations * r->num_directions;
    r->is_standard = node->num_ints == QRT_RNN_NUM_INTS;
    if (r->is_standard) return node->num_floats == 1;
    if (node->num_ints != QRT_RNN_NUM_INTS + count || node->num_floats != 1 + 2 * count) return false;
    for (int i = 0; i < count; i++) {
        const int direction = i / r->num_activations, at = i % r->num_activations;
        const int64_t op = node->ints[QRT_RNN_NUM_INTS + i];
        if (op < 0 || op >= QRT_NUM_UNARY) return false;
        r->operators[direction][at] = op;
        r->p[direction][at] = node->floats[1 + 2 * i];
        r->q[direction][at] = node->floats[2 + 2 * i];
    }
    return true;
}

static bool read_packed(qrt_recurrent *r, const qrt_node *node, qrt_fits_fn fits) {
    const bool splits_r = r->kind == QRT_GRU_RESET_BEFORE;
    const int each = splits_r ? 3 : 2;
    if (node->num_packed != r->num_directions * each) return false;
    for (int d = 0; d < r->num_directions; d++) {
        void *const *packed = node->packed + d * each;
        r->w[d] = packed[0];
        r->r[d] = packed[1];
        if (!fits(r->w[d], r->input, r->gates) || !fits(r->r[d], r->hidden, splits_r ? 2 * r->hidden : r->gates)) return false;
        if (!splits_r) continue;
        r->r_candidate[d] = packed[2];
        if (!fits(r->r_candidate[d], r->hidden, r->hidden)) return false;
    }
    return true;
}

/// All inputs but x.
static bool read_inputs(qrt_recurrent *r, const qrt_node *node, const qrt_tensor *const *in) {
    const int64_t d = r->num_directions;
    const int64_t state[3] = {r->batch_first ? r->batch : d, r->batch_first ? d : r->batch, r->hidden};
    const qrt_tensor *lengths = qrt_input(node, in, 1), *h = qrt_input(node, in, 2);
    const qrt_tensor *c = qrt_input(node, in, 3), *p = qrt_input(node, in, 4);
    if (lengths && !is_array(lengths, QRT_I32, 1, &r->batch)) return false;
    if (h && !is_array(h, r->dtype, 3, state)) return false;
    if (r->kind != QRT_LSTM && (c || p)) return false;
    if (c && !is_array(c, r->dtype, 3, state)) return false;
    if (p && !is_array(p, r->dtype, 2, (int64_t[]){d, 3 * r->hidden})) return false;
    r->initial_h = h;
    r->initial_c = c;
    r->peepholes = p ? p->data : NULL;
    r->lengths = lengths ? lengths->data : NULL;
    for (int64_t b = 0; lengths && b < r->batch; b++)
        if (r->lengths[b] < 0 || r->lengths[b] > r->time) return false;
    r->state_row_stride = r->batch_first ? d * r->hidden : r->hidden;
    r->state_direction_stride = r->batch_first ? r->hidden : r->batch * r->hidden;
    return true;
}

bool qrt_read_recurrent(const qrt_node *node, const qrt_tensor *const *in, qrt_cell_kind kind, int32_t dtype, qrt_fits_fn fits,
                        qrt_recurrent *r) {
    if (node->num_ints < QRT_RNN_NUM_INTS || node->num_floats < 1 || node->num_inputs < 1) return false;
    const int64_t *ints = node->ints, direction = ints[QRT_RNN_DIRECTION], layout = ints[QRT_RNN_LAYOUT];
    if (direction < 0 || direction > BIDIRECTIONAL || layout < 0 || layout > 1) return false;
    const qrt_tensor *x = in[0];
    if (!x || x->dtype != dtype || x->rank != 3) return false;
    *r = (qrt_recurrent){
        .kind = kind, .dtype = dtype, .x = x->data, .batch_first = layout == 1, .time = x->dims[layout], .batch = x->dims[!layout],
        .input = x->dims[2], .hidden = ints[QRT_RNN_HIDDEN], .num_directions = direction == BIDIRECTIONAL ? 2 : 1,
        .first_direction = direction == REVERSE, .variant = ints[QRT_RNN_VARIANT] != 0, .clip = node->floats[0],
    };
    if (!(r->clip >= 0) || r->hidden < 1 || r->hidden > 1 << 20 || r->batch > INT32_MAX || r->time > INT32_MAX) return false;
    r->gates = (kind == QRT_LSTM ? 4 : kind == QRT_RNN ? 1 : 3) * r->hidden;
    int64_t total;
    if (!qrt_num_elements(4, (int64_t[]){r->time, r->batch, r->num_directions, 4 * r->hidden}, &total) || total >> 56) return false;
    return read_activations(r, node) && read_packed(r, node, fits) && read_inputs(r, node, in);
}

qrt_status qrt_allocate_recurrent(qrt_recurrent *r, const qrt_node *node, qrt_run *run, qrt_tensor *out) {
    const int64_t d = r->num_directions;
    int64_t y_dims[4] = {r->time, d, r->batch, r->hidden}, state_dims[3] = {d, r->batch, r->hidden};
    if (r->batch_first) {
        memcpy(y_dims, (int64_t[]){r->batch, r->time, d, r->hidden}, sizeof y_dims);
        memcpy(state_dims, (int64_t[]){r->batch, d, r->hidden}, sizeof state_dims);
    }
    for (int i = 0; i < (r->kind == QRT_LSTM ? 3 : 2) && i < node->num_outputs; i++) {
        if (!(node->ints[QRT_RNN_WANTED] >> i & 1)) continue;
        qrt_status status = qrt_alloc(run, &out[i], r->dtype, i == Y ? 4 : 3, i == Y ? y_dims : state_dims);
        if (status != QRT_OK) return status;
        *(i == Y ? &r->y : i == Y_H ? &r->h : &r->c) = out[i].data;
    }
    return QRT_OK;
}

void qrt_start_states(const qrt_recurrent *r, void *h, void *c) {
    const size_t bytes = (size_t)(r->num_directions * r->batch * r->hidden) * qrt_itemsize(r->dtype);
    if (r->initial_h) memcpy(h, r->initial_h->data, bytes);
    else memset(h, 0, bytes);
    if (r->kind != QRT_LSTM) return;
    if (r->initial_c) memcpy(c, r->initial_c->data, bytes);
    else memset(c, 0, bytes);
}

void qrt_narrow_to_running(const qrt_recurrent *r, int direction, int64_t t, int64_t *begin, int64_t *end) {
    const size_t item = qrt_itemsize(r->dtype);
    for (int64_t b = *begin; r->lengths && r->y && b < *end; b++)
        if (!qrt_is_running(r, b, t)) memset((char *)r->y + (size_t)qrt_place_in_y(r, direction, t, b) * item, 0, (size_t)r->hidden * item);
    while (*begin < *end && !qrt_is_running(r, *begin, t)) ++*begin;
    while (*begin < *end && !qrt_is_running(r, *end - 1, t)) --*end;
}
