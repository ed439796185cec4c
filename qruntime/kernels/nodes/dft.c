/// DFT and STFT of float32 signals.
///
/// A length whose factors are small goes straight to qrt_dft. Others are convolved with a chirp (Bluestein): as
/// 2jk = j² + k² − (k − j)², X[k] = c[k] · Σ_j (x[j] · c[j]) · c̄[k − j] with c[j] = e^(−πi·j²/n), and the sum is a cyclic
/// convolution of any length from 2n − 1 on. Inverse transforms are forward ones of swapped real and imaginary parts.
#include <string.h>

#include "../dft.h"
#include "../threads.h"
#include "arguments.h"

enum { PARALLEL_POINTS = 1 << 13, TASKS_PER_THREAD = 4, MOST_POINTS_SIDE_BY_SIDE = 1 << 17 };

/// Longer transforms are left to the definition.
static const int64_t MOST_POINTS = (int64_t)1 << 26;

/// Where signals lie: point i of signal t at [t / inner] · outer_stride + [t % inner] · inner_stride + i · stride, of 1 or 2 parts.
typedef struct {
    int64_t points, inner, outer_stride, inner_stride, stride;
    int parts;
} signals;

static inline int64_t begin_of(const signals *s, int64_t t) { return t / s->inner * s->outer_stride + t % s->inner * s->inner_stride; }

/// One call: `count` transforms of n points.
typedef struct {
    int64_t n, count;
    bool inverse, mirrors;      ///< `mirrors`: what is read is half of a spectrum, the other half its conjugate
    const float *x, *window;    ///< window: [points read] or NULL
    float *y;
    signals from, to;
    qrt_dft_plan plan;          ///< of n points, or of those of the convolution
    const float *chirp, *chirp_spectrum;  ///< of Bluestein, or NULL: [n][2] c, [plan.n][2] the spectrum of c̄ over plan.n
    int lanes;
    int64_t tasks, buffer_elems;
    float *buffers;             ///< two for each task
} transforms;

/// Point i of all lanes: `re` and `im` are `lanes` numbers each.
static void read_point(const transforms *t, const int64_t *begins, int64_t i, float *re, float *im) {
    const int lanes = t->lanes;
    const int64_t at = i * t->from.stride;
    for (int l = 0; l < lanes; l++) re[l] = t->x[begins[l] + at];
    if (t->from.parts == 2) for (int l = 0; l < lanes; l++) im[l] = t->x[begins[l] + at + 1];
    else memset(im, 0, (size_t)lanes * sizeof(float));
    if (!t->window) return;
    for (int l = 0; l < lanes; l++) re[l] *= t->window[i];
    if (t->from.parts == 2) for (int l = 0; l < lanes; l++) im[l] *= t->window[i];
}

static void read_signals(const transforms *t, const int64_t *begins, float *to) {
    const int lanes = t->lanes, re = t->inverse ? lanes : 0, im = lanes - re;
    const int64_t half = t->n / 2 + 1, most = t->mirrors && half < t->n ? half : t->n;
    const int64_t given = t->from.points < most ? t->from.points : most;
    for (int64_t i = 0; i < given; i++) read_point(t, begins, i, to + 2 * i * lanes + re, to + 2 * i * lanes + im);
    memset(to + 2 * given * lanes, 0, (size_t)((t->n - given) * 2 * lanes) * sizeof(float));
    if (!t->mirrors) return;
    // Signals that come out real have real means, and of an even number of points a real highest frequency.
    memset(to + im, 0, (size_t)lanes * sizeof(float));
    if (t->n % 2 == 0) memset(to + t->n * lanes + im, 0, (size_t)lanes * sizeof(float));
    for (int64_t i = 1; i < t->n - i; i++) {
        const float *point = to + 2 * i * lanes;
        float *twin = to + 2 * (t->n - i) * lanes;
        memcpy(twin + re, point + re, (size_t)lanes * sizeof(float));
        for (int l = 0; l < lanes; l++) twin[im + l] = -point[im + l];
    }
}

static void write_signals(const transforms *t, const int64_t *begins, int count, const float *from) {
    const int lanes = t->lanes, re = t->inverse ? lanes : 0, im = lanes - re;
    const float scale = t->inverse ? (float)(1.0 / (double)t->n) : 1.0f;
    for (int64_t k = 0; k < t->to.points; k++, from += 2 * lanes)
        for (int l = 0; l < count; l++) {
            float *y = t->y + begins[l] + k * t->to.stride;
            y[0] = from[re + l] * scale;
            // Of real signals the mean is real, and of an even number of points the highest frequency.
            const bool is_real = t->from.parts == 1 && (k == 0 || 2 * k == t->n);
            if (t->to.parts == 2) y[1] = is_real ? 0 : from[im + l] * scale;
        }
}

/// n points times w[n], of which those of an other number of lanes are the same for all.
static void multiply(float *x, const float *w, int64_t n, int lanes) {
    for (int64_t i = 0; i < n; i++, x += 2 * lanes)
        for (int l = 0; l < lanes; l++) {
            float re = x[l], im = x[lanes + l];
            x[l] = re * w[2 * i] - im * w[2 * i + 1];
            x[lanes + l] = re * w[2 * i + 1] + im * w[2 * i];
        }
}

static void swap_parts(float *x, int64_t n, int lanes) {
    for (int64_t i = 0; i < n; i++, x += 2 * lanes)
        for (int l = 0; l < lanes; l++) {
            float re = x[l];
            x[l] = x[lanes + l];
            x[lanes + l] = re;
        }
}

static float *transform(const transforms *t, float *x, float *work) {
    const qrt_dft_fn fn = t->lanes == 1 ? qrt_kernels.dft.single : qrt_kernels.dft.lanes;
    if (!t->chirp) return fn(&t->plan, x, work);
    const int64_t long_n = t->plan.n;
    multiply(x, t->chirp, t->n, t->lanes);
    memset(x + 2 * t->n * t->lanes, 0, (size_t)((long_n - t->n) * 2 * t->lanes) * sizeof(float));
    float *spectrum = fn(&t->plan, x, work);
    multiply(spectrum, t->chirp_spectrum, long_n, t->lanes);
    swap_parts(spectrum, long_n, t->lanes);
    float *found = fn(&t->plan, spectrum, spectrum == x ? work : x);
    swap_parts(found, t->n, t->lanes);
    multiply(found, t->chirp, t->n, t->lanes);
    return found;
}

static void transform_task(void *context, int64_t task) {
    const transforms *t = context;
    const int64_t blocks = (t->count + t->lanes - 1) / t->lanes;
    float *x = t->buffers + task * 2 * t->buffer_elems, *work = x + t->buffer_elems;
    for (int64_t block = blocks * task / t->tasks; block < blocks * (task + 1) / t->tasks; block++) {
        int64_t first = block * t->lanes, begins[QRT_DFT_LANES], ends[QRT_DFT_LANES];
        const int count = (int)(t->count - first < t->lanes ? t->count - first : t->lanes);
        for (int l = 0; l < t->lanes; l++) {
            const int64_t signal = first + (l < count ? l : count - 1);
            begins[l] = begin_of(&t->from, signal);
            ends[l] = begin_of(&t->to, signal);
        }
        read_signals(t, begins, x);
        write_signals(t, ends, count, transform(t, x, work));
    }
}

/// The chirp of n points, and the spectrum of its conjugate over the points of the plan, divided by their number.
static void make_chirp(const transforms *t, const float *roots_2n, float *chirp, float *spectrum, float *work) {
    const int64_t n = t->n, long_n = t->plan.n;
    int64_t square = 0;  // k² modulo 2n
    float *x = spectrum;
    memset(x, 0, (size_t)(2 * long_n) * sizeof(float));
    const float scale = (float)(1.0 / (double)long_n);
    for (int64_t k = 0; k < n; k++) {
        const float re = roots_2n[2 * square], im = roots_2n[2 * square + 1];
        chirp[2 * k] = re;
        chirp[2 * k + 1] = im;
        x[2 * k] = re * scale;
        x[2 * k + 1] = -im * scale;
        if (k) {
            x[2 * (long_n - k)] = re * scale;
            x[2 * (long_n - k) + 1] = -im * scale;
        }
        square = (square + 2 * k + 1) % (2 * n);
    }
    float *found = qrt_kernels.dft.single(&t->plan, x, work);
    if (found != spectrum) memcpy(spectrum, found, (size_t)(2 * long_n) * sizeof(float));
}

static int64_t padded(int64_t elems) { return (elems + 15) / 16 * 16; }

static qrt_status run_transforms(transforms *t, qrt_run *run) {
    const bool is_direct = qrt_dft_factorize(t->n, &t->plan);
    if (!is_direct) {
        int64_t long_n = 1;
        while (long_n < 2 * t->n - 1) long_n *= 2;
        qrt_dft_factorize(long_n, &t->plan);
    }
    const int64_t n = t->plan.n;
    t->lanes = t->count > 2 && n <= MOST_POINTS_SIDE_BY_SIDE ? QRT_DFT_LANES : 1;
    const int64_t blocks = (t->count + t->lanes - 1) / t->lanes;
    const int threads = (double)n * (double)t->count < PARALLEL_POINTS ? 1 : run->num_threads;
    t->tasks = threads > 1 ? TASKS_PER_THREAD * (int64_t)threads : 1;
    t->tasks = t->tasks < blocks ? t->tasks : blocks;
    t->buffer_elems = padded(2 * n * t->lanes);
    const int64_t roots = padded(2 * n), extra = is_direct ? 0 : padded(4 * t->n) + padded(2 * t->n) + roots;
    qrt_buffer *scratch = qrt_scratch(run, (size_t)(roots + extra + 2 * t->tasks * t->buffer_elems) * sizeof(float));
    if (!scratch) return QRT_NO_MEMORY;
    float *at = scratch->data;
    qrt_dft_roots(n, at);
    t->plan.roots = at;
    t->buffers = at + roots + extra;
    if (!is_direct) {
        float *roots_2n = at + roots, *chirp = roots_2n + padded(4 * t->n), *spectrum = chirp + padded(2 * t->n);
        qrt_dft_roots(2 * t->n, roots_2n);
        make_chirp(t, roots_2n, chirp, spectrum, t->buffers);
        t->chirp = chirp;
        t->chirp_spectrum = spectrum;
    }
    qrt_parallel_for(threads, t->tasks, transform_task, t);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

/// Real or complex numbers in the last dim of a tensor of at least two dims; 0 for anything else.
static int parts_of(const qrt_tensor *x) {
    if (!qrt_is_tensor(x) || x->dtype != QRT_F32 || x->rank < 2) return 0;
    const int64_t last = x->dims[x->rank - 1];
    return last == 1 || last == 2 ? (int)last : 0;
}

/// ints: inverse, onesided, axis. Inputs: float32 x [..., 1 or 2]; number of points, axis (integers) or none.
static qrt_status dft(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *length = qrt_input(node, in, 1), *axis_input = qrt_input(node, in, 2);
    const int parts = parts_of(x);
    if (!parts || node->num_ints != 3) return QRT_DECLINE;
    const bool inverse = node->ints[0] != 0, onesided = node->ints[1] != 0;
    int64_t axis = node->ints[2], points;
    if (axis_input && !qrt_read_int(axis_input, &axis)) return QRT_DECLINE;
    if (!qrt_normalize_axis(&axis, x->rank) || axis == x->rank - 1 || x->dims[axis] == 0) return QRT_DECLINE;
    points = inverse && onesided ? 2 * (x->dims[axis] - 1) : x->dims[axis];
    if (length && !qrt_read_int(length, &points)) return QRT_DECLINE;
    if (points < 1 || points > MOST_POINTS || (onesided && !inverse && parts == 2)) return QRT_DECLINE;

    int64_t dims[QRT_MAX_RANK];
    memcpy(dims, x->dims, sizeof dims);
    dims[axis] = onesided && !inverse ? points / 2 + 1 : points;
    const int64_t parts_out = dims[x->rank - 1] = onesided && inverse ? 1 : 2;
    if (!qrt_is_buildable(x->rank, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    const int64_t outer = qrt_product(x->dims, 0, (int)axis), inner = qrt_product(x->dims, (int)axis + 1, x->rank - 1);
    transforms t = {
        .n = points, .count = outer * inner, .inverse = inverse, .mirrors = inverse && onesided, .x = x->data, .y = out[0].data,
        .from = {x->dims[axis], inner, x->dims[axis] * inner * parts, parts, inner * parts, parts},
        .to = {dims[axis], inner, dims[axis] * inner * parts_out, parts_out, inner * parts_out, (int)parts_out},
    };
    return run_transforms(&t, run);
}

/// ints: onesided. Inputs: float32 x [N, samples], [N, samples, 1 or 2]; step; window float32 [length] or none; length or
/// none. Output: [N, frames, bins, 2].
static qrt_status stft(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *window = qrt_input(node, in, 2), *length_input = qrt_input(node, in, 3);
    if (!qrt_is_tensor(x) || x->dtype != QRT_F32 || x->rank < 2 || x->rank > 3 || node->num_ints != 1) return QRT_DECLINE;
    const int parts = x->rank == 2 ? 1 : parts_of(x);
    int64_t step, length = x->dims[1];
    if (!parts || !qrt_read_int(qrt_input(node, in, 1), &step)) return QRT_DECLINE;
    if (window && (window->dtype != QRT_F32 || window->rank != 1)) return QRT_DECLINE;
    if (window) length = window->size;
    if (length_input && !qrt_read_int(length_input, &length)) return QRT_DECLINE;
    if (step < 1 || length < 1 || length > x->dims[1] || length > MOST_POINTS || (window && window->size != length)) return QRT_DECLINE;

    const int64_t frames = 1 + (x->dims[1] - length) / step, bins = node->ints[0] ? length / 2 + 1 : length;
    const int64_t dims[4] = {x->dims[0], frames, bins, 2};
    if (!qrt_is_buildable(4, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, 4, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    transforms t = {
        .n = length, .count = dims[0] * frames, .x = x->data, .window = window ? window->data : NULL, .y = out[0].data,
        .from = {length, frames, x->dims[1] * parts, step < x->dims[1] ? step * parts : 0, parts, parts},
        .to = {bins, frames, frames * bins * 2, bins * 2, 2, 2},
    };
    return run_transforms(&t, run);
}

const qrt_node_entry qrt_dft_nodes[] = {
    {"dft", dft},
    {"stft", stft},
    {NULL, NULL},
};
