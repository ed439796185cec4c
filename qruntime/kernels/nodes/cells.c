#include "cells.h"

#include <math.h>
#include <string.h>

enum { F, G, H };

/// x[j] = f(x[j]), arguments limited to [−clip, clip] first.
static void activate(const qrt_activations *by, int which, float *x, int64_t n, float clip) {
    if (clip < INFINITY) qrt_kernels.pointwise.unary[QRT_CLIP](x, x, n, -clip, clip);
    by->functions[which](x, x, n, by->p[which], by->q[which]);
}

static void add_products(float *sums, const float *a, const float *b, int64_t n) {
    for (int64_t j = 0; j < n; j++) sums[j] += a[j] * b[j];
}

static void copy_hidden(const float *h, float *y, int64_t hidden) {
    if (y) memcpy(y, h, (size_t)hidden * sizeof *h);
}

void qrt_lstm_cell(const qrt_activations *by, float *gates, int64_t hidden, const qrt_lstm_options *options, float *c,
                   float *h, float *y) {
    float *i = gates, *o = gates + hidden, *f = gates + 2 * hidden, *candidate = gates + 3 * hidden;
    const float *p = options->peepholes;
    if (p) {
        add_products(i, p, c, hidden);
        add_products(f, p + 2 * hidden, c, hidden);
    }
    activate(by, F, i, hidden, options->clip);
    if (options->input_forget)
        for (int64_t j = 0; j < hidden; j++) f[j] = 1.0f - i[j];
    else
        activate(by, F, f, hidden, options->clip);
    activate(by, G, candidate, hidden, options->clip);
    for (int64_t j = 0; j < hidden; j++) c[j] = f[j] * c[j] + i[j] * candidate[j];
    if (p) add_products(o, p + hidden, c, hidden);
    activate(by, F, o, hidden, options->clip);
    by->functions[H](c, candidate, hidden, by->p[H], by->q[H]);
    for (int64_t j = 0; j < hidden; j++) h[j] = o[j] * candidate[j];
    copy_hidden(h, y, hidden);
}

static void mix(const float *z, const float *candidate, int64_t hidden, float *h, float *y) {
    for (int64_t j = 0; j < hidden; j++) h[j] = (1.0f - z[j]) * candidate[j] + z[j] * h[j];
    copy_hidden(h, y, hidden);
}

void qrt_gru_reset_after_cell(const qrt_activations *by, const float *x, float *r, int64_t hidden, float clip, float *h,
                              float *y) {
    float *reset = r + hidden, *candidate = r + 2 * hidden;
    for (int64_t j = 0; j < 2 * hidden; j++) r[j] += x[j];
    activate(by, F, r, 2 * hidden, clip);
    for (int64_t j = 0; j < hidden; j++) candidate[j] = x[2 * hidden + j] + reset[j] * candidate[j];
    activate(by, G, candidate, hidden, clip);
    mix(r, candidate, hidden, h, y);
}

void qrt_gru_reset_cell(const qrt_activations *by, float *gates, int64_t hidden, float clip, const float *h, float *reset_h) {
    activate(by, F, gates, 2 * hidden, clip);
    for (int64_t j = 0; j < hidden; j++) reset_h[j] = gates[hidden + j] * h[j];
}

void qrt_gru_update_cell(const qrt_activations *by, const float *z, float *candidate, int64_t hidden, float clip, float *h,
                         float *y) {
    activate(by, G, candidate, hidden, clip);
    mix(z, candidate, hidden, h, y);
}

void qrt_rnn_cell(const qrt_activations *by, float *gates, int64_t hidden, float clip, float *h, float *y) {
    activate(by, F, gates, hidden, clip);
    memcpy(h, gates, (size_t)hidden * sizeof *h);
    copy_hidden(h, y, hidden);
}
