/// Pointwise part of one step of a recurrent layer, for one row of the batch: gates, cell and hidden state
/// in one pass.
///
/// `gates` hold the input and the recurrent products, biases included, gate after gate in ONNX order:
/// LSTM i o f c, GRU z r h, each `hidden` floats. Every input of an activation is first limited to
/// [−clip, clip] (INFINITY: no limit); NaN passes through. State is updated in place; `y` receives a copy
/// of the new hidden state unless it is NULL.
///
/// Each element is computed by the same operations wherever it stands. Rungs agree with portable within
/// 4 ε · max(1, the largest |input or state|).
#ifndef QRT_RNN_H
#define QRT_RNN_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const float *peepholes;  ///< i o f, each `hidden` floats, or NULL
    float clip;
    bool input_forget;       ///< the forget gate is 1 − i
} qrt_lstm_options;

typedef struct qrt_rnn {
    /// c = σ(f)·c + σ(i)·tanh(g);  h = σ(o)·tanh(c), with peepholes of the old c to i and f, of the new c to o.
    void (*lstm)(const float *gates, int64_t hidden, const qrt_lstm_options *options, float *c, float *h, float *y);

    /// GRU with the reset after the product: h = (1 − z)·tanh(x_h + r·r_h) + z·h, z = σ(x_z + r_z), r = σ(x_r + r_r),
    /// where `x` and `r` hold the input and the recurrent products apart.
    void (*gru_reset_after)(const float *x, const float *r, int64_t hidden, float clip, float *h, float *y);

    /// GRU with the reset before the product, first half: reset_h = σ(r)·h. `gates` are z r.
    void (*gru_reset)(const float *gates, int64_t hidden, float clip, const float *h, float *reset_h);
    /// Second half: h = (1 − σ(z))·tanh(candidate) + σ(z)·h.
    void (*gru_update)(const float *z, const float *candidate, int64_t hidden, float clip, float *h, float *y);

    void (*rnn_tanh)(const float *gates, int64_t hidden, float clip, float *h, float *y);
} qrt_rnn;

#endif
