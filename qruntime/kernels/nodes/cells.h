/// Cells of recurrent layers with any activations, for one row of the batch; the common ones have kernels (rnn.h).
///
/// Gates are laid out as rnn.h says, and are overwritten. Activations are elementwise kernels; what joins them is a
/// product and a sum, each rounded. Every element is computed by the same operations wherever it stands.
#ifndef QRT_CELLS_H
#define QRT_CELLS_H

#include "../kernels.h"

enum { QRT_MAX_ACTIVATIONS = 3 };

/// In the order of the attribute `activations`: LSTM f g h, GRU f g, RNN f.
typedef struct {
    qrt_unary_fn functions[QRT_MAX_ACTIVATIONS];
    float p[QRT_MAX_ACTIVATIONS], q[QRT_MAX_ACTIVATIONS];
} qrt_activations;

typedef struct {
    qrt_unary_f64_fn functions[QRT_MAX_ACTIVATIONS];
    double p[QRT_MAX_ACTIVATIONS], q[QRT_MAX_ACTIVATIONS];
} qrt_activations_f64;

/// As qrt_lstm_options.
typedef struct {
    const double *peepholes;
    double clip;
    bool input_forget;
} qrt_lstm_options_f64;

/// i, f and o by f, c = f·c + i·g(c gate), h = o·h(c). The argument of h is not limited.
void qrt_lstm_cell(const qrt_activations *by, float *gates, int64_t hidden, const qrt_lstm_options *options, float *c,
                   float *h, float *y);

/// As gru_reset_after of rnn.h; `r` is overwritten.
void qrt_gru_reset_after_cell(const qrt_activations *by, const float *x, float *r, int64_t hidden, float clip, float *h,
                              float *y);

/// As gru_reset of rnn.h, and leaves z and r in `gates` as f gives them.
void qrt_gru_reset_cell(const qrt_activations *by, float *gates, int64_t hidden, float clip, const float *h, float *reset_h);

/// h = (1 − z)·g(candidate) + z·h, for z as qrt_gru_reset_cell left it.
void qrt_gru_update_cell(const qrt_activations *by, const float *z, float *candidate, int64_t hidden, float clip, float *h,
                         float *y);

void qrt_rnn_cell(const qrt_activations *by, float *gates, int64_t hidden, float clip, float *h, float *y);

/// The same of doubles.
void qrt_lstm_cell_f64(const qrt_activations_f64 *by, double *gates, int64_t hidden, const qrt_lstm_options_f64 *options,
                       double *c, double *h, double *y);
void qrt_gru_reset_after_cell_f64(const qrt_activations_f64 *by, const double *x, double *r, int64_t hidden, double clip,
                                  double *h, double *y);
void qrt_gru_reset_cell_f64(const qrt_activations_f64 *by, double *gates, int64_t hidden, double clip, const double *h,
                            double *reset_h);
void qrt_gru_update_cell_f64(const qrt_activations_f64 *by, const double *z, double *candidate, int64_t hidden, double clip,
                             double *h, double *y);
void qrt_rnn_cell_f64(const qrt_activations_f64 *by, double *gates, int64_t hidden, double clip, double *h, double *y);

#endif
