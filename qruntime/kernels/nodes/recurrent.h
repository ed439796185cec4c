/// What nodes of recurrent layers say and hold, whatever the type of their numbers: see rnn.c.
#ifndef QRT_RECURRENT_H
#define QRT_RECURRENT_H

#include "arguments.h"
#include "cells.h"

/// The ints of a node; operators of activations follow.
enum { QRT_RNN_HIDDEN, QRT_RNN_DIRECTION, QRT_RNN_LAYOUT, QRT_RNN_X_MODE, QRT_RNN_H_MODE, QRT_RNN_QMAX, QRT_RNN_WANTED, QRT_RNN_VARIANT,
       QRT_RNN_NUM_INTS };

typedef enum { QRT_LSTM, QRT_GRU_RESET_AFTER, QRT_GRU_RESET_BEFORE, QRT_RNN } qrt_cell_kind;

enum { QRT_MAX_DIRECTIONS = 2 };

typedef struct {
    qrt_cell_kind kind;
    int32_t dtype;
    int64_t time, batch, input, hidden, gates;  ///< `gates`: columns of all gates together
    int num_directions, first_direction;
    bool batch_first, variant;
    double clip;
    const void *x, *peepholes;
    const qrt_tensor *initial_h, *initial_c;
    const int32_t *lengths;                     ///< NULL: all sequences are as long as x
    const void *w[QRT_MAX_DIRECTIONS], *r[QRT_MAX_DIRECTIONS], *r_candidate[QRT_MAX_DIRECTIONS];
    bool is_standard;                           ///< activations are sigmoid and tanh
    int num_activations;                        ///< of a direction
    int64_t operators[QRT_MAX_DIRECTIONS][QRT_MAX_ACTIVATIONS];
    double p[QRT_MAX_DIRECTIONS][QRT_MAX_ACTIVATIONS], q[QRT_MAX_DIRECTIONS][QRT_MAX_ACTIVATIONS];
    void *y, *h, *c;                            ///< outputs; NULL where nobody reads them
    int64_t state_row_stride, state_direction_stride;
} qrt_recurrent;

/// Whether packed weights are of a matrix [k, n].
typedef bool (*qrt_fits_fn)(const void *packed, int64_t k, int64_t n);

/// Read a node whose numbers are of `dtype`; false when anything does not fit.
bool qrt_read_recurrent(const qrt_node *node, const qrt_tensor *const *in, qrt_cell_kind kind, int32_t dtype, qrt_fits_fn fits,
                        qrt_recurrent *r);

qrt_status qrt_allocate_recurrent(qrt_recurrent *r, const qrt_node *node, qrt_run *run, qrt_tensor *out);

/// Initial states, or 0, to h and, of an LSTM, to c.
void qrt_start_states(const qrt_recurrent *r, void *h, void *c);

static inline bool qrt_is_reverse(const qrt_recurrent *r, int direction) { return r->first_direction + direction == 1; }

static inline bool qrt_is_running(const qrt_recurrent *r, int64_t row, int64_t t) { return !r->lengths || t < r->lengths[row]; }

/// Where the output of a row begins in y, in numbers.
static inline int64_t qrt_place_in_y(const qrt_recurrent *r, int direction, int64_t t, int64_t row) {
    const int64_t d = r->num_directions;
    return (r->batch_first ? (row * r->time + t) * d + direction : (t * d + direction) * r->batch + row) * r->hidden;
}

/// Of rows *begin … *end−1 those from the first to the last that run at time t. Outputs of the others are 0.
void qrt_narrow_to_running(const qrt_recurrent *r, int direction, int64_t t, int64_t *begin, int64_t *end);

#endif
