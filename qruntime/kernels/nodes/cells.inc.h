/// Cells over numbers of one type. The file that includes this defines REAL, CELL(name), the names that end like it, ACTIVATIONS,
/// LSTM_OPTIONS and LIMIT, the kernel that limits numbers.

/// x[j] = f(x[j]), arguments limited to [−clip, clip] first.
static void CELL(activate)(const ACTIVATIONS *by, int which, REAL *x, int64_t n, REAL clip) {
    if (clip < (REAL)INFINITY) LIMIT(x, x, n, -clip, clip);
    by->functions[which](x, x, n, by->p[which], by->q[which]);
}

static void CELL(add_products)(REAL *sums, const REAL *a, const REAL *b, int64_t n) {
    for (int64_t j = 0; j < n; j++) sums[j] += a[j] * b[j];
}

static void CELL(copy_hidden)(const REAL *h, REAL *y, int64_t hidden) {
    if (y) memcpy(y, h, (size_t)hidden * sizeof *h);
}

void CELL(qrt_lstm_cell)(const ACTIVATIONS *by, REAL *gates, int64_t hidden, const LSTM_OPTIONS *options, REAL *c, REAL *h, REAL *y) {
    REAL *i = gates, *o = gates + hidden, *f = gates + 2 * hidden, *candidate = gates + 3 * hidden;
    const REAL *p = options->peepholes;
    if (p) {
        CELL(add_products)(i, p, c, hidden);
        CELL(add_products)(f, p + 2 * hidden, c, hidden);
    }
    CELL(activate)(by, F, i, hidden, options->clip);
    if (options->input_forget)
        for (int64_t j = 0; j < hidden; j++) f[j] = 1 - i[j];
    else
        CELL(activate)(by, F, f, hidden, options->clip);
    CELL(activate)(by, G, candidate, hidden, options->clip);
    for (int64_t j = 0; j < hidden; j++) c[j] = f[j] * c[j] + i[j] * candidate[j];
    if (p) CELL(add_products)(o, p + hidden, c, hidden);
    CELL(activate)(by, F, o, hidden, options->clip);
    by->functions[H](c, candidate, hidden, by->p[H], by->q[H]);
    for (int64_t j = 0; j < hidden; j++) h[j] = o[j] * candidate[j];
    CELL(copy_hidden)(h, y, hidden);
}

static void CELL(mix)(const REAL *z, const REAL *candidate, int64_t hidden, REAL *h, REAL *y) {
    for (int64_t j = 0; j < hidden; j++) h[j] = (1 - z[j]) * candidate[j] + z[j] * h[j];
    CELL(copy_hidden)(h, y, hidden);
}

void CELL(qrt_gru_reset_after_cell)(const ACTIVATIONS *by, const REAL *x, REAL *r, int64_t hidden, REAL clip, REAL *h, REAL *y) {
    REAL *reset = r + hidden, *candidate = r + 2 * hidden;
    for (int64_t j = 0; j < 2 * hidden; j++) r[j] += x[j];
    CELL(activate)(by, F, r, 2 * hidden, clip);
    for (int64_t j = 0; j < hidden; j++) candidate[j] = x[2 * hidden + j] + reset[j] * candidate[j];
    CELL(activate)(by, G, candidate, hidden, clip);
    CELL(mix)(r, candidate, hidden, h, y);
}

void CELL(qrt_gru_reset_cell)(const ACTIVATIONS *by, REAL *gates, int64_t hidden, REAL clip, const REAL *h, REAL *reset_h) {
    CELL(activate)(by, F, gates, 2 * hidden, clip);
    for (int64_t j = 0; j < hidden; j++) reset_h[j] = gates[hidden + j] * h[j];
}

void CELL(qrt_gru_update_cell)(const ACTIVATIONS *by, const REAL *z, REAL *candidate, int64_t hidden, REAL clip, REAL *h, REAL *y) {
    CELL(activate)(by, G, candidate, hidden, clip);
    CELL(mix)(z, candidate, hidden, h, y);
}

void CELL(qrt_rnn_cell)(const ACTIVATIONS *by, REAL *gates, int64_t hidden, REAL clip, REAL *h, REAL *y) {
    CELL(activate)(by, F, gates, hidden, clip);
    memcpy(h, gates, (size_t)hidden * sizeof *h);
    CELL(copy_hidden)(h, y, hidden);
}
