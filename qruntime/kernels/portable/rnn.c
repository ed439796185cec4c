#include "../rnn.h"

#include <math.h>

#include "../rungs.h"

static float limit(float x, float clip) { return x < -clip ? -clip : x > clip ? clip : x; }

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

static void store(float value, float *h, float *y, int64_t i) {
    h[i] = value;
    if (y) y[i] = value;
}

static void lstm(const float *gates, int64_t hidden, const qrt_lstm_options *options, float *c, float *h, float *y) {
    const float *gi = gates, *go = gates + hidden, *gf = gates + 2 * hidden, *gc = gates + 3 * hidden;
    const float *p = options->peepholes, clip = options->clip;
    for (int64_t j = 0; j < hidden; j++) {
        float i = gi[j], f = gf[j], o = go[j];
        if (p) {
            i += p[j] * c[j];
            f += p[2 * hidden + j] * c[j];
        }
        i = sigmoid(limit(i, clip));
        f = options->input_forget ? 1.0f - i : sigmoid(limit(f, clip));
        c[j] = f * c[j] + i * tanhf(limit(gc[j], clip));
        if (p) o += p[hidden + j] * c[j];
        store(sigmoid(limit(o, clip)) * tanhf(c[j]), h, y, j);
    }
}

static float gru_mix(float z, float candidate, float clip, float h) {
    z = sigmoid(limit(z, clip));
    return (1.0f - z) * tanhf(limit(candidate, clip)) + z * h;
}

static void gru_reset_after(const float *x, const float *r, int64_t hidden, float clip, float *h, float *y) {
    for (int64_t j = 0; j < hidden; j++) {
        float reset = sigmoid(limit(x[hidden + j] + r[hidden + j], clip));
        float candidate = x[2 * hidden + j] + reset * r[2 * hidden + j];
        store(gru_mix(x[j] + r[j], candidate, clip, h[j]), h, y, j);
    }
}

static void gru_reset(const float *gates, int64_t hidden, float clip, const float *h, float *reset_h) {
    for (int64_t j = 0; j < hidden; j++) reset_h[j] = sigmoid(limit(gates[hidden + j], clip)) * h[j];
}

static void gru_update(const float *z, const float *candidate, int64_t hidden, float clip, float *h, float *y) {
    for (int64_t j = 0; j < hidden; j++) store(gru_mix(z[j], candidate[j], clip, h[j]), h, y, j);
}

static void rnn_tanh(const float *gates, int64_t hidden, float clip, float *h, float *y) {
    for (int64_t j = 0; j < hidden; j++) store(tanhf(limit(gates[j], clip)), h, y, j);
}

void qrt_portable_rnn(qrt_kernel_table *t) {
    t->rnn = (qrt_rnn){lstm, gru_reset_after, gru_reset, gru_update, rnn_tanh};
}
