#include "gemm_q8.h"

#include <stdlib.h>
#include <string.h>

#include "threads.h"

/// Packing fewer weights is done sooner by one thread.
enum { WEIGHTS_PER_THREAD = 1 << 14 };

/// Beyond it the sums of a column do not fit int32.
static const int64_t MAX_K = (int64_t)1 << 24;

enum { MAX_NR = 64 };

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

// ------------------------------------------------------------------------------------------ weights

static const qrt_q8_kind q8_kind;

/// Packed weights as parts of one buffer, in order, each aligned.
typedef struct {
    int64_t k_padded, columns, panel_bytes;
    size_t at_kernel, at_panels, at_sums, at_scales, at_zeros, at_bias;
    size_t size;
    bool overflow;
} layout;

static size_t add_part(layout *l, int64_t count, size_t item) {
    size_t at = l->size, bytes;
    l->overflow |= __builtin_mul_overflow((size_t)count, item, &bytes);
    l->overflow |= __builtin_add_overflow(bytes, (size_t)QRT_ALIGNMENT - 1, &bytes);
    l->overflow |= __builtin_add_overflow(at, bytes / QRT_ALIGNMENT * QRT_ALIGNMENT, &l->size);
    return at;
}

/// sums[j] = Σ_i w[i, j]. Neighbouring columns in int16 first, 256 rows at most: −128 · 256 still fits.
static void sum_columns(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                        int32_t *sums) {
    if (col_stride_elems != 1) {
        for (int64_t j = 0; j < n; j++) {
            int32_t sum = 0;
            for (int64_t i = 0; i < k; i++) sum += w[i * row_stride_elems + j * col_stride_elems];
            sums[j] = sum;
        }
        return;
    }
    memset(sums, 0, sizeof *sums * (size_t)n);
    for (int64_t i = 0; i < k; i += 256) {
        int64_t rows = min_i64(256, k - i);
        int16_t partial[MAX_NR] = {0};
        for (const int8_t *row = w + i * row_stride_elems; rows > 0; rows--, row += row_stride_elems)
            for (int64_t j = 0; j < n; j++) partial[j] += row[j];
        for (int64_t j = 0; j < n; j++) sums[j] += partial[j];
    }
}

/// One call of qrt_q8_pack.
typedef struct {
    qrt_q8_weights *w;
    const int8_t *source;
    int64_t row_stride_elems, col_stride_elems;
    qrt_buffer *ones;  ///< a packed row of codes 1, or NULL where there is no `dot`, or no memory
    bool refused;      ///< atomic
} packing;

/// A packed row of codes 1. NULL when memory is short.
static qrt_buffer *make_ones(const qrt_q8_weights *w) {
    float *a = malloc(sizeof *a * (size_t)(w->base.k + 1));  // k may be 0
    qrt_buffer *ones = a ? qrt_buffer_new((size_t)w->row_bytes) : NULL;
    for (int64_t i = 0; ones && i < w->base.k; i++) a[i] = 1.0f;
    if (ones) w->kernel->codes.quantize(a, w->base.k, w->k_padded, 1.0f, 0, QRT_Q8_MOST_QMAX, ones->data, NULL);
    free(a);
    return ones;
}

static void fill_panel(void *context, int64_t panel) {
    packing *p = context;
    const qrt_q8_weights *w = p->w;
    if (__atomic_load_n(&p->refused, __ATOMIC_RELAXED)) return;
    int nr = w->kernel->nr;
    int64_t first = panel * nr, columns = min_i64(nr, w->base.n - first);
    const int8_t *from = p->source + first * p->col_stride_elems;
    char *to = (char *)w->panels + panel * w->panel_bytes;
    if (!w->kernel->pack_panel(from, p->row_stride_elems, p->col_stride_elems, w->base.k, columns, to)) {
        __atomic_store_n(&p->refused, true, __ATOMIC_RELAXED);
        return;
    }
    int32_t *sums = w->col_sums + first;
    if (p->ones) {  // the product of what was just packed is faster than reading the columns once more
        qrt_q8_block ones = {.a = p->ones->data, .a_stride_bytes = w->row_bytes, .num_rows = 1};
        w->kernel->dot(w, &ones, panel, 0, w->k_padded, sums);
    } else {
        memset(sums, 0, sizeof *sums * (size_t)nr);
        sum_columns(from, p->row_stride_elems, p->col_stride_elems, w->base.k, columns, sums);
    }
}

static layout lay_out(const struct qrt_gemm_q8 *kernel, int64_t k, int64_t n, bool has_zero_points, bool has_bias) {
    layout l = {.overflow = k < 0 || n < 0 || k > MAX_K || n > INT64_MAX / 2};
    if (l.overflow) return l;
    l.k_padded = round_up(k, kernel->kr);
    l.columns = round_up(n, kernel->nr);
    l.panel_bytes = round_up(kernel->panel_bytes(l.k_padded), QRT_ALIGNMENT);
    l.at_kernel = add_part(&l, 1, sizeof *kernel);
    l.at_panels = add_part(&l, l.columns / kernel->nr, (size_t)l.panel_bytes);
    l.at_sums = add_part(&l, l.columns, sizeof(int32_t));
    int64_t params = l.columns > 0 ? l.columns : 1;  // without columns there still may be one scale
    l.at_scales = add_part(&l, params, sizeof(float));
    l.at_zeros = add_part(&l, has_zero_points ? params : 0, sizeof(int32_t));
    l.at_bias = add_part(&l, has_bias ? l.columns : 0, sizeof(float));
    return l;
}

size_t qrt_q8_packed_bytes(const struct qrt_gemm_q8 *kernel, int64_t k, int64_t n, bool has_zero_points, bool has_bias) {
    layout l = lay_out(kernel, k, n, has_zero_points, has_bias);
    return l.overflow ? 0 : l.size;
}

static int64_t block_rows(const qrt_gemm_q8 *kernel, int64_t row_bytes) {
    int64_t fitting = kernel->block_bytes / row_bytes / kernel->mr * kernel->mr;
    return fitting < kernel->mr ? kernel->mr : min_i64(fitting, kernel->block_rows);
}

qrt_q8_weights *qrt_q8_pack(const struct qrt_gemm_q8 *kernel, const int8_t *w,
                            int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                            const float *scales, const int32_t *zero_points, int64_t num_params, const float *bias,
                            qrt_arena *arena, int num_threads) {
    layout l = lay_out(kernel, k, n, zero_points, bias);
    if (l.overflow) return NULL;
    qrt_q8_weights *made = malloc(sizeof *made);
    qrt_buffer *buffer = qrt_arena_take(arena, l.size);
    if (!made || !buffer) {
        free(made);
        if (buffer) qrt_buffer_drop(buffer);
        return NULL;
    }
    char *base = buffer->data;
    const int64_t stride = qrt_q8_row_stride(l.k_padded * kernel->item_bytes + QRT_ALIGNMENT);
    *made = (qrt_q8_weights){
        .kernel = memcpy(base + l.at_kernel, kernel, sizeof *kernel),
        .base = {&q8_kind.ops, k, n, buffer},
        .k_padded = l.k_padded, .num_panels = l.columns / kernel->nr, .panel_bytes = l.panel_bytes,
        .row_bytes = stride, .block_rows = block_rows(kernel, stride),
        .panels = base + l.at_panels,
        .col_sums = (int32_t *)(base + l.at_sums),
        .scales = (float *)(base + l.at_scales),
        .num_params = num_params,
        .zero_points = zero_points ? (int32_t *)(base + l.at_zeros) : NULL,
        .bias = bias ? (float *)(base + l.at_bias) : NULL,
    };
    int64_t params = n > num_params ? n : num_params;
    for (int64_t j = 0; j < params || j < l.columns; j++) {
        int64_t from = num_params == 1 ? 0 : j;
        made->scales[j] = j < params ? scales[from] : 0.0f;
        if (zero_points) made->zero_points[j] = j < params ? zero_points[from] : 0;
    }
    for (int64_t j = 0; bias && j < l.columns; j++) made->bias[j] = j < n ? bias[j] : 0.0f;
    packing p = {made, w, row_stride_elems, col_stride_elems, kernel->dot ? make_ones(made) : NULL, false};
    if (k * l.columns < (int64_t)num_threads * WEIGHTS_PER_THREAD) num_threads = 1;
    qrt_parallel_for(num_threads, l.columns / kernel->nr, fill_panel, &p);
    if (p.ones) qrt_buffer_drop(p.ones);
    if (p.refused) {
        qrt_weights_free(&made->base);
        return qrt_q8_pack(kernel->fallback, w, row_stride_elems, col_stride_elems, k, n, scales, zero_points,
                           num_params, bias, NULL, num_threads);
    }
    return made;
}

void qrt_q8_unpack(const qrt_q8_weights *w, int8_t *codes, int64_t row_stride_elems, int64_t col_stride_elems) {
    const qrt_gemm_q8 *kernel = w->kernel;
    for (int64_t panel = 0; panel < w->num_panels; panel++) {
        int64_t first = panel * kernel->nr;
        kernel->unpack_panel((const char *)w->panels + panel * w->panel_bytes, w->base.k, min_i64(kernel->nr, w->base.n - first),
                             codes + first * col_stride_elems, row_stride_elems, col_stride_elems);
    }
}

// ------------------------------------------------------------------------------------------ product

/// K too long for int32: chunks, summed in int64.
static void multiply_long(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    const qrt_gemm_q8 *kernel = w->kernel;
    int nr = kernel->nr;
    int64_t chunk = QRT_Q8_MAX_K / kernel->kr * kernel->kr;
    for (int64_t panel = first; panel < last; panel++)
        for (int r = 0; r < block->num_rows; r++) {
            qrt_q8_block row = *block;
            row.a = (const char *)block->a + r * block->a_stride_bytes;
            row.num_rows = 1;
            int32_t acc[MAX_NR];
            int64_t total[MAX_NR] = {0};
            float t[MAX_NR];
            for (int64_t k = 0; k < w->k_padded; k += chunk) {
                kernel->dot(w, &row, panel, k, min_i64(chunk, w->k_padded - k), acc);
                for (int j = 0; j < nr; j++) total[j] += acc[j];
            }
            for (int j = 0; j < nr; j++) {
                int64_t column = panel * nr + j;
                total[j] -= (int64_t)block->rows[r].zero_point * w->col_sums[column];
                if (w->zero_points) total[j] -= w->zero_points[column] * block->rows[r].sum;
                t[j] = (float)total[j];
            }
            kernel->finish(w, block, panel, r, t);
        }
}

static const qrt_q8_weights *weights_of(const qrt_weights *w) { return (const qrt_q8_weights *)w; }

static qrt_q8_shape shape_of(const qrt_weights *weights) {
    const qrt_q8_weights *w = weights_of(weights);
    return (qrt_q8_shape){
        .codes = &w->kernel->codes, .mr = w->kernel->mr, .nr = w->kernel->nr, .num_panels = w->num_panels,
        .row_bytes = w->row_bytes, .block_rows = w->block_rows,
    };
}

static bool are_packed_alike(const qrt_weights *w, const qrt_weights *other) {
    const qrt_q8_weights *a = weights_of(w), *b = weights_of(other);
    return a->k_padded == b->k_padded && a->kernel->codes.quantize == b->kernel->codes.quantize;
}

static void quantize(const qrt_layer *layers, int num_layers, const float *a, int64_t lda_elems, int64_t m,
                     int32_t qmax, const qrt_q8_row *shared, qrt_q8_row *rows, void *packed, int64_t stride_bytes, void *work) {
    (void)work;
    const qrt_q8_weights *w = weights_of(layers[0].w);
    bool sums = false;
    for (int i = 0; i < num_layers; i++) sums |= weights_of(layers[i].w)->zero_points != NULL;
    qrt_q8_quantize_rows(&w->kernel->codes, a, lda_elems, m, w->base.k, w->k_padded, qmax, shared, sums, rows, packed,
                         stride_bytes);
}

static void multiply(const qrt_weights *weights, const qrt_q8_block *block, int64_t first, int64_t last) {
    const qrt_q8_weights *w = weights_of(weights);
    if (w->k_padded > QRT_Q8_MAX_K) multiply_long(w, block, first, last);
    else w->kernel->multiply(w, block, first, last);
}

static const qrt_q8_kind q8_kind = {
    .ops = {
        .name = "q8", .linear = qrt_q8_linear, .linear_serial = qrt_q8_linear_serial, .scratch_bytes = qrt_q8_scratch_bytes,
    },
    .shape = shape_of, .are_packed_alike = are_packed_alike, .quantize = quantize, .multiply = multiply,
};
