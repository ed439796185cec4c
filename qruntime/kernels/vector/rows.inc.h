/// Row kernels, written once: include after simd_*.h and math.inc.h, with RUNG defined.
///
/// Element j of a row always goes to lane j mod (4·VL): four accumulators hide the latency of an add.
#include "../kernels.h"
#include "half.inc.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum { STEP = 4 * VL, BLOCK = 2048, BLOCK_ROWS = 64 };

typedef vf (*value_step)(vf x, vf p);
typedef vf (*combine_step)(vf a, vf b);

typedef struct { vf v[4]; } lanes;

ALWAYS_INLINE lanes lanes_set(float x) { return (lanes){{vf_set(x), vf_set(x), vf_set(x), vf_set(x)}}; }
ALWAYS_INLINE lanes lanes_combine(combine_step f, lanes a, lanes b) {
    return (lanes){{f(a.v[0], b.v[0]), f(a.v[1], b.v[1]), f(a.v[2], b.v[2]), f(a.v[3], b.v[3])}};
}
ALWAYS_INLINE vf lanes_fold(combine_step f, lanes a) { return f(f(a.v[0], a.v[1]), f(a.v[2], a.v[3])); }

/// acc = combine(acc, value(x[j], p)) over a row, of float16 when `half` (a constant) says so; what lies behind its end counts as
/// `fill`. The values are stored in y when `keep` (a constant) says so.
ALWAYS_INLINE lanes accumulate(combine_step combine, value_step value, lanes acc, bool half, const void *x, float *y, bool keep,
                               int64_t n, vf p, vf fill) {
    int64_t i = 0;
    for (; i + STEP <= n; i += STEP) {
#pragma GCC unroll 4
        for (int u = 0; u < 4; u++) {
            vf v = value(load_of(half, x, i + u * VL), p);
            acc.v[u] = combine(acc.v[u], v);
            if (keep) vf_store(y + i + u * VL, v);
        }
    }
#pragma GCC unroll 4
    for (int u = 0; u < 4; u++) {
        int64_t left = n - i - u * VL;
        if (left <= 0) break;
        vf v = value(left >= VL ? load_of(half, x, i + u * VL)
                                : vf_blend(vm_first(left), load_of_n(half, x, i + u * VL, left), fill), p);
        acc.v[u] = combine(acc.v[u], v);
        if (keep && left >= VL) vf_store(y + i + u * VL, v);
        else if (keep) vf_store_n(y + i + u * VL, v, left);
    }
    return acc;
}

/// The sum of value(x[j], p): each block into fresh lanes, which are then added up.
ALWAYS_INLINE float sum_of(value_step value, bool half, const void *x, float *y, bool keep, int64_t n, float p, float fill) {
    const size_t item = half ? sizeof(uint16_t) : sizeof(float);
    lanes total = lanes_set(0);
    for (int64_t i = 0; i < n; i += BLOCK) {
        int64_t count = n - i < BLOCK ? n - i : BLOCK;
        lanes block = lanes_set(0);
        block = accumulate(vf_add, value, block, half, (const char *)x + (size_t)i * item, keep ? y + i : NULL, keep, count, vf_set(p), vf_set(fill));
        total = lanes_combine(vf_add, total, block);
    }
    return vf_sum(lanes_fold(vf_add, total));
}

static inline vf value_itself(vf x, vf p) { (void)p; return x; }
static inline vf value_abs(vf x, vf p) { (void)p; return vf_abs(x); }
static inline vf value_square(vf x, vf p) { (void)p; return vf_mul(x, x); }
static inline vf value_centred_square(vf x, vf p) { vf d = vf_sub(x, p); return vf_mul(d, d); }
static inline vf value_exp_below(vf x, vf p) { return vf_exp_nonpositive(vf_sub(x, p)); }

/// A NaN may or may not come out: it shows up in the sum of exponentials anyway.
static inline float max_of_numbers(const float *x, int64_t n) {
    lanes top = accumulate(vf_max, value_itself, lanes_set(-INFINITY), false, x, NULL, false, n, vf_zero(), vf_set(-INFINITY));
    return vf_hmax(lanes_fold(vf_max, top));
}

static void softmax(const float *x, float *y, int64_t n) {
    float top = max_of_numbers(x, n);
    vf factor = vf_set(1.0f / sum_of(value_exp_below, false, x, y, true, n, top, -INFINITY));
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(y + i, vf_mul(vf_load(y + i), factor));
    if (i < n) vf_store_n(y + i, vf_mul(vf_load_n(y + i, n - i), factor), n - i);
}

static void log_softmax(const float *x, float *y, int64_t n) {
    float top = max_of_numbers(x, n);
    vf vtop = vf_set(top), log_sum = vf_log(vf_set(sum_of(value_exp_below, false, x, NULL, false, n, top, -INFINITY)));
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(y + i, vf_sub(vf_sub(vf_load(x + i), vtop), log_sum));
    if (i < n) vf_store_n(y + i, vf_sub(vf_sub(vf_load_n(x + i, n - i), vtop), log_sum), n - i);
}

ALWAYS_INLINE vf load_columns(const float *x, int64_t partial) { return partial ? vf_load_n(x, partial) : vf_load(x); }

ALWAYS_INLINE void store_columns(float *y, vf v, int64_t partial) {
    if (partial) vf_store_n(y, v, partial);
    else vf_store(y, v);
}

/// As lanes_fold and vf_sum do it within a row. Of the lanes the first `count` are given, the others are 0 there.
static inline vf fold_columns(vf *lanes, int64_t count) {
    for (int64_t l = 0; l < VL; l++) {
        vf low = l < count ? lanes[l] : vf_zero();
        if (VL + l < count) low = vf_add(low, lanes[VL + l]);
        if (2 * VL + l < count) low = vf_add(low, 3 * VL + l < count ? vf_add(lanes[2 * VL + l], lanes[3 * VL + l]) : lanes[2 * VL + l]);
        lanes[l] = low;
    }
    for (int half = VL / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] = vf_add(lanes[l], lanes[l + half]);
    return lanes[0];
}

/// Σ e^(x − top) of columns, each in the order of a row. The exponentials are stored in y when `keep` (a constant) says so.
ALWAYS_INLINE vf sum_of_columns(const float *x, float *y, bool keep, int64_t n, int64_t stride, vf top, int64_t partial) {
    vf total[STEP], block[STEP];
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t count = n - i < BLOCK ? n - i : BLOCK;
        vf *lanes = i ? block : total;
        for (int64_t j = 0; j < count; j++) {
            const vf power = value_exp_below(load_columns(x + (i + j) * stride, partial), top);
            lanes[j % STEP] = j < STEP ? power : vf_add(lanes[j % STEP], power);
            if (keep) store_columns(y + (i + j) * stride, power, partial);
        }
        for (int64_t l = 0; i && l < STEP && l < count; l++) total[l] = vf_add(total[l], block[l]);
    }
    return fold_columns(total, n < STEP ? n : STEP);
}

/// A vector of columns, or the first `partial` of one.
ALWAYS_INLINE void softmax_panel(const bool is_log, const float *x, float *y, int64_t n, int64_t stride, int64_t partial) {
    vf top = vf_set(-INFINITY);
    for (int64_t j = 0; j < n; j++) top = vf_max(top, load_columns(x + j * stride, partial));
    const vf sum = sum_of_columns(x, y, !is_log, n, stride, top, partial);
    const vf last = is_log ? vf_log(sum) : vf_div(vf_set(1.0f), sum);
    for (int64_t j = 0; j < n; j++) {
        const vf v = load_columns((is_log ? x : y) + j * stride, partial);
        store_columns(y + j * stride, is_log ? vf_sub(vf_sub(v, top), last) : vf_mul(v, last), partial);
    }
}

ALWAYS_INLINE void softmax_of_columns(const bool is_log, const float *x, float *y, int64_t n, int64_t stride, int64_t columns) {
    int64_t c = 0;
    for (; c + VL <= columns; c += VL) softmax_panel(is_log, x + c, y + c, n, stride, 0);
    if (c < columns) softmax_panel(is_log, x + c, y + c, n, stride, columns - c);
}

static void softmax_columns(const float *x, float *y, int64_t n, int64_t stride, int64_t columns) {
    softmax_of_columns(false, x, y, n, stride, columns);
}

static void log_softmax_columns(const float *x, float *y, int64_t n, int64_t stride, int64_t columns) {
    softmax_of_columns(true, x, y, n, stride, columns);
}

/// Where the normalisation reads from: x, or x + residual, which is put into `sum` (else y).
static inline const float *add_residual(const float *x, const float *residual, float *sum, float *y, int64_t n) {
    float *s = sum ? sum : y;
    if (!residual) {
        if (sum && sum != x) memcpy(sum, x, (size_t)n * sizeof *x);
        return x;
    }
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(s + i, vf_add(vf_load(x + i), vf_load(residual + i)));
    if (i < n) vf_store_n(s + i, vf_add(vf_load_n(x + i, n - i), vf_load_n(residual + i, n - i)), n - i);
    return s;
}

static inline void normalize(const float *s, float *y, int64_t n, float mean, float variance,
                             const qrt_norm_params *params) {
    const float *scale = params->scale, *bias = params->bias;
    vf centre = vf_set(mean), factor = vf_set(1.0f / sqrtf(variance + params->epsilon)), one = vf_set(1.0f);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf v = vf_mul(vf_sub(vf_load(s + i), centre), factor);
        vf_store(y + i, vf_fma(v, scale ? vf_load(scale + i) : one, bias ? vf_load(bias + i) : vf_zero()));
    }
    if (i == n) return;
    vf v = vf_mul(vf_sub(vf_load_n(s + i, n - i), centre), factor);
    v = vf_fma(v, scale ? vf_load_n(scale + i, n - i) : one, bias ? vf_load_n(bias + i, n - i) : vf_zero());
    vf_store_n(y + i, v, n - i);
}

/// Rows taken together, as far as they stay in the first-level cache: each waits for its mean, then for its variance.
enum { GROUP = 4, GROUP_FLOATS = 4096 };

ALWAYS_INLINE void norm_rows(bool centred, int64_t rows, const float *x, const float *residual, float *sum, float *y,
                             int64_t n, const qrt_norm_params *params) {
    int64_t group = n <= GROUP_FLOATS / GROUP ? GROUP : 1;
    for (int64_t r = 0; r < rows; r += group) {
        int64_t count = rows - r < group ? rows - r : group, at = r * n;
        const float *s[GROUP];
        float means[GROUP] = {0}, variances[GROUP];
        for (int64_t i = 0; i < count; i++, at += n)
            s[i] = add_residual(x + at, residual ? residual + at : NULL, sum ? sum + at : NULL, y + at, n);
        for (int64_t i = 0; i < count && centred; i++) means[i] = sum_of(value_itself, false, s[i], NULL, false, n, 0, 0) / (float)n;
        for (int64_t i = 0; i < count; i++)
            variances[i] = (centred ? sum_of(value_centred_square, false, s[i], NULL, false, n, means[i], means[i])
                                    : sum_of(value_square, false, s[i], NULL, false, n, 0, 0)) / (float)n;
        for (int64_t i = 0; i < count; i++) normalize(s[i], y + (r + i) * n, n, means[i], variances[i], params);
    }
}

static void layer_norm(int64_t rows, const float *x, const float *residual, float *sum, float *y, int64_t n,
                       const qrt_norm_params *params) {
    norm_rows(true, rows, x, residual, sum, y, n, params);
}

static void rms_norm(int64_t rows, const float *x, const float *residual, float *sum, float *y, int64_t n,
                     const qrt_norm_params *params) {
    norm_rows(false, rows, x, residual, sum, y, n, params);
}

/// One number of a row of floats, or of float16.
#define REDUCE_ROWS(prefix, T, half)                                                                                          \
    static float prefix##_sum(const T *x, int64_t n) { return sum_of(value_itself, half, x, NULL, false, n, 0, 0); }          \
    static float prefix##_l1(const T *x, int64_t n) { return sum_of(value_abs, half, x, NULL, false, n, 0, 0); }              \
    static float prefix##_sum_square(const T *x, int64_t n) { return sum_of(value_square, half, x, NULL, false, n, 0, 0); }   \
    static float prefix##_max(const T *x, int64_t n) { return greatest(half, x, n); }                                         \
    static float prefix##_min(const T *x, int64_t n) { return least(half, x, n); }                                            \
    static float prefix##_prod(const T *x, int64_t n) { return product(half, x, n); }

ALWAYS_INLINE float greatest(bool half, const void *x, int64_t n) {
    vf lowest = vf_set(-INFINITY);
    lanes acc = accumulate(vf_max_nan, value_itself, lanes_set(-INFINITY), half, x, NULL, false, n, vf_zero(), lowest);
    vf v = lanes_fold(vf_max_nan, acc);
    return vm_bits(vf_is_nan(v)) ? NAN : vf_hmax(v);
}
ALWAYS_INLINE float least(bool half, const void *x, int64_t n) {
    vf highest = vf_set(INFINITY);
    lanes acc = accumulate(vf_min_nan, value_itself, lanes_set(INFINITY), half, x, NULL, false, n, vf_zero(), highest);
    vf v = lanes_fold(vf_min_nan, acc);
    return vm_bits(vf_is_nan(v)) ? NAN : vf_hmin(v);
}
ALWAYS_INLINE float product(bool half, const void *x, int64_t n) {
    float values[VL], product = 1;
    lanes acc = accumulate(vf_mul, value_itself, lanes_set(1), half, x, NULL, false, n, vf_zero(), vf_set(1));
    vf_store(values, lanes_fold(vf_mul, acc));
    for (int i = 0; i < VL; i++) product *= values[i];
    return product;
}
REDUCE_ROWS(reduce, float, false)
REDUCE_ROWS(half_reduce, uint16_t, true)

/// All rows of `vectors` whole vectors of columns, or of the first `partial` lanes of one.
ALWAYS_INLINE void reduce_panel(combine_step combine, value_step value, float start, bool half, const void *x, int64_t first,
                                int64_t stride, int64_t rows, int vectors, int64_t partial, float *y) {
    lanes total = lanes_set(start);
    for (int64_t r = 0; r < rows; r += BLOCK_ROWS) {
        int64_t end = rows - r < BLOCK_ROWS ? rows : r + BLOCK_ROWS;
        lanes block = lanes_set(start);
        for (int64_t k = r; k < end; k++) {
            const int64_t row = k * stride + first;
#pragma GCC unroll 4
            for (int u = 0; u < vectors; u++) {
                vf v = partial ? load_of_n(half, x, row, partial) : load_of(half, x, row + u * VL);
                block.v[u] = combine(block.v[u], value(v, vf_zero()));
            }
        }
        total = lanes_combine(combine, total, block);
    }
#pragma GCC unroll 4
    for (int u = 0; u < vectors; u++) {
        if (partial) vf_store_n(y, total.v[u], partial);
        else vf_store(y + u * VL, total.v[u]);
    }
}

ALWAYS_INLINE void reduce_all_columns(combine_step combine, value_step value, float start, bool half, const void *x,
                                      int64_t stride, int64_t rows, int64_t columns, float *y) {
    int64_t c = 0;
    for (; c + 4 * VL <= columns; c += 4 * VL) reduce_panel(combine, value, start, half, x, c, stride, rows, 4, 0, y + c);
    for (; c + VL <= columns; c += VL) reduce_panel(combine, value, start, half, x, c, stride, rows, 1, 0, y + c);
    if (c < columns) reduce_panel(combine, value, start, half, x, c, stride, rows, 1, columns - c, y + c);
}

#define COLUMNS(name, combine, value, start)                                                                      \
    static void columns_##name(const float *x, int64_t stride, int64_t rows, int64_t columns, float *y) {         \
        reduce_all_columns(combine, value, start, false, x, stride, rows, columns, y);                            \
    }                                                                                                             \
    static void half_columns_##name(const uint16_t *x, int64_t stride, int64_t rows, int64_t columns, float *y) { \
        reduce_all_columns(combine, value, start, true, x, stride, rows, columns, y);                             \
    }
COLUMNS(sum, vf_add, value_itself, 0)
COLUMNS(max, vf_max_nan, value_itself, -INFINITY)
COLUMNS(min, vf_min_nan, value_itself, INFINITY)
COLUMNS(prod, vf_mul, value_itself, 1)
COLUMNS(l1, vf_add, value_abs, 0)
COLUMNS(sum_square, vf_add, value_square, 0)

#include "float8.inc.h"
#include "rows_f64.inc.h"

void JOIN(qrt_, JOIN(RUNG, _rows))(qrt_kernel_table *t) {
    qrt_rows *table = &t->rows;
    table->softmax = softmax;
    table->log_softmax = log_softmax;
    table->softmax_columns = softmax_columns;
    table->log_softmax_columns = log_softmax_columns;
    table->layer_norm = layer_norm;
    table->rms_norm = rms_norm;
    table->round_to_float8 = round_to_float8;
    table->float8_codes = float8_codes;
    set_f64_rows(table);
#define SET(enumerator, name)                                                   \
    table->reduce[QRT_REDUCE_##enumerator] = reduce_##name;                     \
    table->reduce_columns[QRT_REDUCE_##enumerator] = columns_##name;            \
    table->reduce_f16[QRT_REDUCE_##enumerator] = half_reduce_##name;            \
    table->reduce_columns_f16[QRT_REDUCE_##enumerator] = half_columns_##name;
    SET(SUM, sum) SET(MAX, max) SET(MIN, min) SET(PROD, prod) SET(L1, l1) SET(SUM_SQUARE, sum_square)
#undef SET
}
