/// Cells of recurrent layers, written once: include after simd_*.h and math.inc.h, with RUNG defined.
#include "../kernels.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

/// `body` for every vector of a row: j is its first element, n its number of lanes in use.
#define FOR_EACH_VECTOR(hidden, body)                                   \
    do {                                                                \
        int64_t j = 0;                                                  \
        for (; j + VL <= (hidden); j += VL) { enum { n = VL }; body; }  \
        if (j < (hidden)) { const int64_t n = (hidden) - j; body; }     \
    } while (0)

static inline __attribute__((always_inline)) vf load(const float *p, int64_t n) {
    return n == VL ? vf_load(p) : vf_load_n(p, n);
}

static inline __attribute__((always_inline)) void store(vf v, float *p, int64_t n) {
    if (n == VL)
        vf_store(p, v);
    else
        vf_store_n(p, v, n);
}

static inline __attribute__((always_inline)) void store_hidden(vf v, float *h, float *y, int64_t j, int64_t n) {
    store(v, h + j, n);
    if (y) store(v, y + j, n);
}

/// Beyond these |x| the activations are flat (σ(−40) = 4e-18, tanh(20) rounds to 1), and within them products of
/// the exponentials below stay far from overflow. They double as the bound of the clip.
#define SIGMOID_LIMIT 40.0f
#define TANH_LIMIT 20.0f
#define LOG2_E 1.44269502f

/// NaN of x stays.
static inline vf limit(vf x, vf most) { return vf_max(vf_neg(most), vf_min(most, x)); }

/// Activations come as fractions, so that a product of them costs one division:
/// σ(x) = 1 / (1 + e⁻ˣ) and tanh(x) = (e²ˣ − 1) / ((e²ˣ − 1) + 2), which is accurate near 0 too.
static inline vf sigmoid_exp(vf x, vf most) { return vf_exp2_in_range(vf_mul(limit(x, most), vf_set(-LOG2_E))); }
static inline vf sigmoid_divisor(vf x, vf most) { return vf_add(vf_set(1.0f), sigmoid_exp(x, most)); }
static inline vf tanh_numerator(vf x, vf most) { return vf_exp2m1_in_range(vf_mul(limit(x, most), vf_set(2 * LOG2_E))); }
static inline vf tanh_divisor(vf numerator) { return vf_add(vf_set(2.0f), numerator); }
static inline vf tanh_of(vf x, vf most) {
    vf e = tanh_numerator(x, most);
    return vf_div(e, tanh_divisor(e));
}

typedef struct {
    vf sigmoid, tanh;
} limits;

static inline limits limits_of(float clip) {
    return (limits){vf_set(clip < SIGMOID_LIMIT ? clip : SIGMOID_LIMIT), vf_set(clip < TANH_LIMIT ? clip : TANH_LIMIT)};
}

static inline __attribute__((always_inline)) void lstm_with(const float *gates, int64_t hidden, const float *p,
                                                            float clip, bool input_forget, float *c, float *h,
                                                            float *y) {
    const float *gi = gates, *go = gates + hidden, *gf = gates + 2 * hidden, *gc = gates + 3 * hidden;
    const limits most = limits_of(clip);
    const vf one = vf_set(1.0f), cell_limit = vf_set(TANH_LIMIT);
    FOR_EACH_VECTOR(hidden, {
        vf i = load(gi + j, n); vf o = load(go + j, n); vf f = load(gf + j, n); vf cell = load(c + j, n);
        if (p) {
            i = vf_fma(load(p + j, n), cell, i);
            f = vf_fma(load(p + 2 * hidden + j, n), cell, f);
        }
        i = sigmoid_divisor(i, most.sigmoid);
        vf kept = input_forget ? vf_mul(cell, vf_sub(one, vf_div(one, i)))
                               : vf_div(cell, sigmoid_divisor(f, most.sigmoid));
        vf e = tanh_numerator(load(gc + j, n), most.tanh);
        cell = vf_add(kept, vf_div(e, vf_mul(tanh_divisor(e), i)));
        store(cell, c + j, n);
        if (p) o = vf_fma(load(p + hidden + j, n), cell, o);
        e = tanh_numerator(cell, cell_limit);
        store_hidden(vf_div(e, vf_mul(tanh_divisor(e), sigmoid_divisor(o, most.sigmoid))), h, y, j, n);
    });
}

static void lstm(const float *gates, int64_t hidden, const qrt_lstm_options *options, float *c, float *h, float *y) {
    if (!options->peepholes && !options->input_forget)
        lstm_with(gates, hidden, NULL, options->clip, false, c, h, y);
    else
        lstm_with(gates, hidden, options->peepholes, options->clip, options->input_forget, c, h, y);
}

/// (1 − σ(z))·t + σ(z)·h = (e⁻ᶻ·t + h) / (1 + e⁻ᶻ).
static inline vf gru_mix(vf z, vf candidate, limits most, vf h) {
    vf e = sigmoid_exp(z, most.sigmoid);
    return vf_div(vf_fma(e, tanh_of(candidate, most.tanh), h), vf_add(vf_set(1.0f), e));
}

static void gru_reset_after(const float *x, const float *r, int64_t hidden, float clip, float *h, float *y) {
    const limits most = limits_of(clip);
    FOR_EACH_VECTOR(hidden, {
        const float *xj = x + j; const float *rj = r + j;
        vf reset = sigmoid_divisor(vf_add(load(xj + hidden, n), load(rj + hidden, n)), most.sigmoid);
        vf candidate = vf_add(load(xj + 2 * hidden, n), vf_div(load(rj + 2 * hidden, n), reset));
        vf z = vf_add(load(xj, n), load(rj, n));
        store_hidden(gru_mix(z, candidate, most, load(h + j, n)), h, y, j, n);
    });
}

static void gru_reset(const float *gates, int64_t hidden, float clip, const float *h, float *reset_h) {
    const limits most = limits_of(clip);
    FOR_EACH_VECTOR(hidden, {
        vf reset = sigmoid_divisor(load(gates + hidden + j, n), most.sigmoid);
        store(vf_div(load(h + j, n), reset), reset_h + j, n);
    });
}

static void gru_update(const float *z, const float *candidate, int64_t hidden, float clip, float *h, float *y) {
    const limits most = limits_of(clip);
    FOR_EACH_VECTOR(hidden, {
        vf mixed = gru_mix(load(z + j, n), load(candidate + j, n), most, load(h + j, n));
        store_hidden(mixed, h, y, j, n);
    });
}

static void rnn_tanh(const float *gates, int64_t hidden, float clip, float *h, float *y) {
    const limits most = limits_of(clip);
    FOR_EACH_VECTOR(hidden, store_hidden(tanh_of(load(gates + j, n), most.tanh), h, y, j, n));
}

void JOIN(qrt_, JOIN(RUNG, _rnn))(qrt_kernel_table *t) {
    t->rnn = (qrt_rnn){lstm, gru_reset_after, gru_reset, gru_update, rnn_tanh};
}
