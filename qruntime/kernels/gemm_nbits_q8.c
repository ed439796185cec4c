#include "gemm_nbits_q8.h"

#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "threads.h"

/// Adding up fewer weights is done sooner by one thread.
enum { WEIGHTS_PER_THREAD = 1 << 15 };

static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

// ------------------------------------------------------------------------------------------ weights

/// Longest group there is.
static int64_t longest_group(const qrt_nbits_spec *s) { return min_i64(s->group, s->k); }

/// What codes are counted from so that u ≥ 0: the least value of the table, which 0 is taken to be among.
static int least_integer(const int8_t *integers) {
    int least = 0;
    for (int i = 0; i < 16; i++) least = integers[i] < least ? integers[i] : least;
    return least;
}
static int greatest_u(const qrt_nbits_q8_spec *spec) {
    if (!spec->integers) return (1 << spec->weights.bits) - 1;
    int greatest = 0;
    for (int i = 0; i < 16; i++) greatest = spec->integers[i] > greatest ? spec->integers[i] : greatest;
    return greatest - least_integer(spec->integers);
}

static bool has_short_sums(const qrt_nbits_q8_spec *spec) {
    return longest_group(&spec->weights) <= INT16_MAX / (greatest_u(spec) + 1);
}
/// Whether t fits int32.
static bool has_short_products(const qrt_nbits_q8_spec *spec) {
    return longest_group(&spec->weights) <= INT32_MAX / (255 * (greatest_u(spec) + 1));
}

/// Parts of `more`, in order: sums, and zero points.
typedef struct {
    int64_t count;   ///< of groups of columns
    size_t sums_bytes, size;
    bool fits;
} extent;

static extent extent_of(const qrt_nbits_q8_spec *spec) {
    const qrt_nbits_spec *s = &spec->weights;
    extent e = {.fits = s->k >= 0 && s->n >= 0 && s->group >= 1 && s->k <= INT32_MAX / 256 && !s->zero_points};
    if (spec->integers && (s->bits != 4 || spec->zero_points)) e.fits = false;
    if (!e.fits) return e;
    int64_t columns = ceil_div(s->n, QRT_NBITS_NR) * QRT_NBITS_NR;
    size_t item = has_short_sums(spec) ? sizeof(int16_t) : sizeof(int32_t);
    e.fits &= !__builtin_mul_overflow(columns, ceil_div(s->k, s->group), &e.count);
    e.fits &= e.count <= INT64_MAX / 16;
    e.sums_bytes = (size_t)e.count * item;
    e.size = e.sums_bytes + (spec->zero_points ? (size_t)e.count : 0);
    return e;
}

static qrt_nbits_spec with_more(const qrt_nbits_q8_spec *spec, const extent *e) {
    qrt_nbits_spec s = spec->weights;
    s.object_bytes = sizeof(qrt_nbits_q8_weights);
    s.more_bytes = e->size;
    return s;
}

size_t qrt_nbits_q8_packed_bytes(const qrt_nbits_q8_spec *spec) {
    extent e = extent_of(spec);
    if (!e.fits) return 0;
    qrt_nbits_spec s = with_more(spec, &e);
    return qrt_nbits_packed_bytes(&s);
}

static qrt_nbits_kind kind_of(const qrt_nbits_q8_spec *spec) {
    if (spec->integers) return greatest_u(spec) <= 31 ? QRT_NBITS_TABLE : QRT_NBITS_WIDE_TABLE;
    switch (spec->weights.bits) {
    case 2: return QRT_NBITS_2;
    case 3: return QRT_NBITS_3;
    case 4: return QRT_NBITS_4;
    default: return QRT_NBITS_8;
    }
}

static const qrt_q8_kind nbits_q8_kind;

qrt_nbits_q8_weights *qrt_nbits_q8_new(const qrt_nbits_q8_spec *spec, const qrt_gemm_nbits_q8 *kernel, qrt_arena *arena) {
    extent e = extent_of(spec);
    if (!e.fits) return NULL;
    qrt_nbits_spec s = with_more(spec, &e);
    qrt_nbits_q8_weights *made = (qrt_nbits_q8_weights *)qrt_nbits_new(&s, NULL, NULL, arena);
    if (!made) return NULL;
    qrt_nbits_weights *w = &made->w;
    const int step = qrt_nbits_step(w->bits);
    made->w.base.ops = &nbits_q8_kind.ops;
    made->kernel = has_short_products(spec) ? kernel : &qrt_portable_nbits_q8;
    made->kind = kind_of(spec);
    made->group_steps = w->group_bytes / qrt_nbits_step_bytes(w->bits);
    made->last_steps = w->num_groups ? ceil_div(qrt_nbits_depth(w, w->num_groups - 1), step) : 0;
    if (has_short_sums(spec)) made->short_sums = w->more;
    else made->sums = w->more;
    if (spec->zero_points) {
        made->zero_points = memset((char *)w->more + e.sums_bytes, 0, (size_t)e.count);
        for (int64_t n = 0; n < s.n; n++)
            for (int64_t g = 0; g < w->num_groups; g++)
                made->zero_points[qrt_nbits_group_at(w, n / QRT_NBITS_NR, g) + n % QRT_NBITS_NR] =
                    spec->zero_points[n * w->num_groups + g];
    } else {
        made->centre = spec->integers ? -least_integer(spec->integers) : 1 << (s.bits - 1);
    }
    for (int i = 0; spec->integers && i < 16; i++) made->table[i] = (uint8_t)(spec->integers[i] + made->centre);
    return made;
}

/// sums[j] += the four bytes of lane j.
static inline void add_lanes(const uint32_t lanes[QRT_NBITS_NR], int32_t sums[QRT_NBITS_NR]) {
    for (int j = 0; j < QRT_NBITS_NR; j++) {
        uint32_t halves = (lanes[j] & 0x00ff00ffu) + (lanes[j] >> 8 & 0x00ff00ffu);
        sums[j] += (int32_t)((halves & 0xffff) + (halves >> 16));
    }
}

/// sums[j] += u of column j over a step, `pairs` being the sum of the entries that the two halves of a byte select.
static void add_step(qrt_nbits_kind kind, const uint8_t *step, const int32_t pairs[256], int32_t sums[QRT_NBITS_NR]) {
    uint32_t x[QRT_NBITS_NR];
    memcpy(x, step, sizeof x);
    switch (kind) {
    case QRT_NBITS_2:
    case QRT_NBITS_3:
        for (int j = 0; j < QRT_NBITS_NR; j++) x[j] = (x[j] & 0x33333333u) + (x[j] >> 2 & 0x33333333u);
        // fall through
    case QRT_NBITS_4:
        for (int j = 0; j < QRT_NBITS_NR; j++) x[j] = (x[j] & 0x0f0f0f0fu) + (x[j] >> 4 & 0x0f0f0f0fu);
        // fall through
    case QRT_NBITS_8: add_lanes(x, sums); break;
    case QRT_NBITS_TABLE:
    case QRT_NBITS_WIDE_TABLE:
        for (int j = 0; j < QRT_NBITS_NR; j++)
            sums[j] += pairs[x[j] & 255] + pairs[x[j] >> 8 & 255] + pairs[x[j] >> 16 & 255] + pairs[x[j] >> 24];
    }
    for (int j = 0; kind == QRT_NBITS_3 && j < QRT_NBITS_NR; j++) {
        uint16_t upper;
        memcpy(&upper, step + 64 + 2 * j, sizeof upper);
        sums[j] += 4 * __builtin_popcount(upper);
    }
}

/// Of one panel. Columns that are not there have sums too, and scales of 0.
static void sum_panel(void *context, int64_t panel) {
    qrt_nbits_q8_weights *made = context;
    const qrt_nbits_weights *w = &made->w;
    const int step_bytes = qrt_nbits_step_bytes(w->bits);
    int32_t pairs[256];
    for (int i = 0; i < 256; i++) pairs[i] = made->table[i & 15] + made->table[i >> 4];
    for (int64_t g = 0; g < w->num_groups; g++) {
        const int64_t at = qrt_nbits_group_at(w, panel, g), depth = qrt_nbits_depth(w, g), steps = qrt_nbits_q8_steps(made, g);
        const uint8_t *codes = qrt_nbits_codes(w, panel, g);
        // What fills up the last step is code 0.
        const int32_t filling = (int32_t)(steps * qrt_nbits_step(w->bits) - depth) * made->table[0];
        int32_t sums[QRT_NBITS_NR] = {0};
        for (int64_t i = 0; i < steps; i++) add_step(made->kind, codes + i * step_bytes, pairs, sums);
        for (int j = 0; j < QRT_NBITS_NR; j++) {
            const int32_t zero_point = made->zero_points ? made->zero_points[at + j] : made->centre;
            const int32_t sum = sums[j] - filling - (int32_t)depth * zero_point;
            if (made->short_sums) made->short_sums[at + j] = (int16_t)sum;
            else made->sums[at + j] = sum;
        }
    }
}

void qrt_nbits_q8_finish(qrt_nbits_q8_weights *w, int num_threads) {
    if (w->w.base.k * w->w.base.n < (int64_t)num_threads * WEIGHTS_PER_THREAD) num_threads = 1;
    qrt_parallel_for(num_threads, w->w.num_panels, sum_panel, w);
}

// ------------------------------------------------------------------------------------------ product

/// Blocks for an L2 cache of 512 KB.
enum { BLOCK_ROWS = 128, BLOCK_BYTES = 192 * 1024 };

static const qrt_nbits_q8_weights *weights_of(const qrt_weights *w) { return (const qrt_nbits_q8_weights *)w; }

static qrt_q8_shape shape_of(const qrt_weights *weights) {
    const qrt_nbits_q8_weights *w = weights_of(weights);
    const int mr = w->kernel->mr;
    const int64_t row_bytes = qrt_q8_row_stride(w->kernel->row_bytes(w)), fitting = BLOCK_BYTES / row_bytes / mr * mr;
    return (qrt_q8_shape){
        .codes = &qrt_kernels.codes_q8, .mr = mr, .nr = QRT_NBITS_NR, .num_panels = w->w.num_panels, .row_bytes = row_bytes,
        .block_rows = fitting < mr ? mr : min_i64(fitting, BLOCK_ROWS), .work_bytes = weights->k,
    };
}

static bool are_packed_alike(const qrt_weights *w, const qrt_weights *other) {
    const qrt_nbits_q8_weights *a = weights_of(w), *b = weights_of(other);
    return a->kernel == b->kernel && a->kind == b->kind && a->w.group == b->w.group && a->centre == b->centre;
}

static void quantize(const qrt_layer *layers, int num_layers, const float *a, int64_t lda_elems, int64_t m,
                     int32_t qmax, const qrt_q8_row *shared, qrt_q8_row *rows, void *packed, int64_t stride_bytes, void *work) {
    (void)num_layers;
    const qrt_nbits_q8_weights *w = weights_of(layers[0].w);
    const int64_t k = w->w.base.k;
    for (int64_t i = 0; i < m; i++) {
        qrt_q8_quantize_rows(&qrt_kernels.codes_q8, a + i * lda_elems, lda_elems, 1, k, k, qmax, shared, false, rows + i, work, k);
        w->kernel->pack_row(w, work, (char *)packed + i * stride_bytes);
    }
}

static void multiply(const qrt_weights *weights, const qrt_q8_block *block, int64_t first, int64_t last) {
    const qrt_nbits_q8_weights *w = weights_of(weights);
    w->kernel->multiply(w, block, first, last);
}

static const qrt_q8_kind nbits_q8_kind = {
    .ops = {
        .name = "nbits_q8", .linear = qrt_q8_linear, .linear_serial = qrt_q8_linear_serial, .scratch_bytes = qrt_q8_scratch_bytes,
    },
    .shape = shape_of, .are_packed_alike = are_packed_alike, .quantize = quantize, .multiply = multiply,
};
