#include "gemm_nbits.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

/// Packing fewer weights is done sooner by one thread.
enum { WEIGHTS_PER_THREAD = 1 << 15 };

static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

// ------------------------------------------------------------------------------------------- layout

/// Parts of the buffer, in order, each aligned.
typedef struct {
    int64_t num_groups, num_panels, group_bytes, panel_bytes;
    size_t at_codes, at_scales, at_zeros, at_bias, at_values, at_starts, at_inputs, at_changes, at_more;
    size_t size;
    bool fits;
} layout;

static size_t add_part(layout *l, int64_t count, int64_t times, size_t item) {
    size_t at = l->size, items, bytes;
    l->fits &= !__builtin_mul_overflow((size_t)count, (size_t)times, &items);
    l->fits &= !__builtin_mul_overflow(items, item, &bytes);
    l->fits &= !__builtin_add_overflow(bytes, (size_t)QRT_ALIGNMENT - 1, &bytes);
    l->fits &= !__builtin_add_overflow(at, bytes / QRT_ALIGNMENT * QRT_ALIGNMENT, &l->size);
    return at;
}

static int64_t bytes_of(int bits, int64_t weights) { return ceil_div(weights, qrt_nbits_step(bits)) * qrt_nbits_step_bytes(bits); }

static layout layout_of(const qrt_nbits_spec *s) {
    layout l = {.fits = true};
    bool has_bits = s->bits == 2 || s->bits == 3 || s->bits == 4 || s->bits == 8;
    if (!has_bits || s->k < 0 || s->n < 0 || s->group < 1 || s->k > INT64_MAX / 64 || s->n > INT64_MAX / 64) {
        l.fits = false;
        return l;
    }
    l.num_groups = ceil_div(s->k, s->group);
    l.num_panels = ceil_div(s->n, QRT_NBITS_NR);
    // A group that is longer than k is not there as a whole.
    l.group_bytes = bytes_of(s->bits, min_i64(s->group, s->k));
    int64_t whole = 0, last = l.num_groups > 0 ? bytes_of(s->bits, s->k - (l.num_groups - 1) * s->group) : 0;
    l.fits &= l.num_groups == 0 || !__builtin_mul_overflow(l.num_groups - 1, l.group_bytes, &whole);
    l.fits &= !__builtin_add_overflow(whole, last + QRT_ALIGNMENT - 1, &l.panel_bytes);
    l.panel_bytes = l.panel_bytes / QRT_ALIGNMENT * QRT_ALIGNMENT;
    int64_t groups = 0;
    l.fits &= !__builtin_mul_overflow(l.num_groups, (int64_t)QRT_NBITS_NR, &groups);
    l.at_codes = add_part(&l, l.num_panels, l.panel_bytes, 1);
    add_part(&l, QRT_ALIGNMENT, 1, 1);
    l.at_scales = add_part(&l, l.num_panels, groups, s->half_scales ? sizeof(uint16_t) : sizeof(float));
    l.at_zeros = add_part(&l, l.num_panels, s->zero_points ? groups : 0, sizeof(float));
    l.at_bias = add_part(&l, l.num_panels, s->bias ? QRT_NBITS_NR : 0, sizeof(float));
    l.at_values = add_part(&l, 1 << s->bits, 1, sizeof(float));
    const int64_t outliers = s->outlier_starts ? s->outlier_starts[s->n] : 0;
    l.at_starts = add_part(&l, outliers ? s->n + 1 : 0, 1, sizeof(int64_t));
    l.at_inputs = add_part(&l, outliers, 1, sizeof(uint16_t));
    l.at_changes = add_part(&l, outliers, 1, sizeof(float));
    l.at_more = add_part(&l, 1, 1, s->more_bytes);
    return l;
}

size_t qrt_nbits_packed_bytes(const qrt_nbits_spec *spec) {
    layout l = layout_of(spec);
    return l.fits ? l.size : 0;
}

/// Sign, four bits of exponent, three of mantissa; no infinity, all ones is NaN.
static float e4m3_value(unsigned code) {
    int exponent = (int)(code >> 3 & 15), mantissa = (int)(code & 7);
    float magnitude = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
    if ((code & 127) == 127) magnitude = NAN;
    return code & 128 ? -magnitude : magnitude;
}

static bool is_e4m3(const float *table) {
    for (unsigned code = 0; code < 256; code++) {
        float want = e4m3_value(code);
        if (table[code] != want && !(table[code] != table[code] && want != want)) return false;
    }
    return true;
}

/// From [n, groups] to panels.
static void spread(const qrt_nbits_weights *w, const float *rows, float less, float *panels) {
    memset(panels, 0, sizeof *panels * (size_t)(w->num_panels * w->num_groups * QRT_NBITS_NR));
    for (int64_t n = 0; n < w->base.n; n++)
        for (int64_t g = 0; g < w->num_groups; g++)
            panels[qrt_nbits_group_at(w, n / QRT_NBITS_NR, g) + n % QRT_NBITS_NR] = rows[n * w->num_groups + g] - less;
}

/// The outliers as they are given; what they change is known when the codes are.
static void copy_outliers(qrt_nbits_weights *w, const qrt_nbits_spec *spec, const layout *l) {
    const int64_t count = spec->outlier_starts ? spec->outlier_starts[spec->n] : 0;
    if (count == 0) return;
    char *base = w->base.buffer->data;
    w->outlier_starts = (int64_t *)(base + l->at_starts);
    w->outlier_inputs = (uint16_t *)(base + l->at_inputs);
    w->changes = (float *)(base + l->at_changes);
    memcpy(w->outlier_starts, spec->outlier_starts, (size_t)(spec->n + 1) * sizeof *w->outlier_starts);
    memcpy(w->outlier_inputs, spec->outlier_inputs, (size_t)count * sizeof *w->outlier_inputs);
    memcpy(w->changes, spec->outlier_values, (size_t)count * sizeof *w->changes);
}

static void spread_halves(const qrt_nbits_weights *w, const uint16_t *rows, uint16_t *panels) {
    memset(panels, 0, sizeof *panels * (size_t)(w->num_panels * w->num_groups * QRT_NBITS_NR));
    for (int64_t n = 0; n < w->base.n; n++)
        for (int64_t g = 0; g < w->num_groups; g++)
            panels[qrt_nbits_group_at(w, n / QRT_NBITS_NR, g) + n % QRT_NBITS_NR] = rows[n * w->num_groups + g];
}

/// 0, NaN, and what is neither so small nor so large that products and sums leave the normal numbers: bfloat16's are flushed to 0 there.
static bool is_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const float size = fabsf(x);
    return !(bits & 0xFFFF) && !(size > 0 && size < 0x1p-64f) && !(size > 0x1p64f);
}

qrt_nbits_weights *qrt_nbits_new(const qrt_nbits_spec *spec, const struct qrt_gemm_nbits *kernel,
                                 const struct qrt_gemm_f32 *float_kernel, qrt_arena *arena) {
    layout l = layout_of(spec);
    if (!l.fits) return NULL;
    qrt_nbits_weights *w = calloc(1, spec->object_bytes ? spec->object_bytes : sizeof *w);
    qrt_buffer *buffer = w ? qrt_arena_take(arena, l.size) : NULL;
    if (!buffer) {
        free(w);
        return NULL;
    }
    char *base = buffer->data;
    *w = (qrt_nbits_weights){
        .base = {&qrt_nbits_ops, spec->k, spec->n, buffer}, .kernel = kernel, .float_kernel = float_kernel, .bits = spec->bits,
        .group = spec->group, .num_groups = l.num_groups, .group_bytes = l.group_bytes,
        .num_panels = l.num_panels, .panel_bytes = l.panel_bytes,
        .codes = (uint8_t *)(base + l.at_codes),
        .scales = spec->half_scales ? NULL : (float *)(base + l.at_scales),
        .half_scales = spec->half_scales ? (uint16_t *)(base + l.at_scales) : NULL,
        .zeros = spec->zero_points ? (float *)(base + l.at_zeros) : NULL,
        .bias = spec->bias ? (float *)(base + l.at_bias) : NULL,
        .values = (float *)(base + l.at_values),
        .more = base + l.at_more,
    };
    const float centre = spec->table ? 0.0f : (float)(1 << (spec->bits - 1));
    for (int code = 0; code < 1 << spec->bits; code++) w->values[code] = spec->table ? spec->table[code] : (float)code - centre;
    w->reads_float8 = spec->reads_float8, w->fits_bfloat16 = true;
    for (int code = 0; code < 1 << spec->bits; code++) w->fits_bfloat16 &= is_bfloat16(w->values[code]);
    if (spec->table) w->coding = spec->bits < 8 ? QRT_NBITS_TABLE16 : is_e4m3(spec->table) ? QRT_NBITS_E4M3 : QRT_NBITS_TABLE256;
    // Columns that are not there, and what may be read behind the last.
    int64_t whole = spec->n / QRT_NBITS_NR * l.panel_bytes;
    memset(w->codes + whole, 0, (size_t)(l.num_panels * l.panel_bytes - whole) + QRT_ALIGNMENT);
    if (w->half_scales) spread_halves(w, spec->half_scales, w->half_scales);
    else spread(w, spec->scales, 0.0f, w->scales);
    if (w->zeros) spread(w, spec->zero_points, centre, w->zeros);
    for (int64_t j = 0; w->bias && j < l.num_panels * QRT_NBITS_NR; j++) w->bias[j] = j < w->base.n ? spec->bias[j] : 0.0f;
    copy_outliers(w, spec, &l);
    return w;
}

// ---------------------------------------------------------------------------------------------- codes

/// One call of qrt_nbits_fill.
typedef struct {
    qrt_nbits_weights *w;
    const qrt_nbits_source *source;
    int64_t first_row, num_rows, first_panel;
    bool refused;               ///< atomic
} filling;

/// Eight numbers of `bits` bits, one behind the other, to bytes: halves move apart, then quarters, then eighths.
static inline uint64_t bytes_of_codes(uint64_t x, int bits) {
    x = (x | x << (32 - 4 * bits)) & ((1ull << 4 * bits) - 1) * 0x0000000100000001ull;
    x = (x | x << (16 - 2 * bits)) & ((1ull << 2 * bits) - 1) * 0x0001000100010001ull;
    return (x | x << (8 - bits)) & ((1ull << bits) - 1) * 0x0101010101010101ull;
}

/// Eight codes of a row from a byte on.
static inline uint64_t read_eight(const qrt_nbits_source *s, const int bits, const uint8_t *at) {
    uint64_t x = 0;
    uint32_t four;
    uint16_t two;
    switch (bits) {
    case 8: memcpy(&x, at, sizeof x); return x;
    case 4:
        memcpy(&four, at, sizeof four);
        x = s->high_half_first ? (four & 0x0F0F0F0Fu) << 4 | (four >> 4 & 0x0F0F0F0Fu) : four;
        break;
    case 3: x = at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16; break;
    default:
        memcpy(&two, at, sizeof two);
        x = two;
    }
    return bytes_of_codes(x, bits);
}

/// `count` ≤ QRT_NBITS_MAX_STEP codes of a row, a byte each, zeros behind them. A step of codes that begin with a byte stays
/// in registers: bytes that are stored and loaded as words wait for each other.
static inline void read_codes(const qrt_nbits_source *s, const int bits, const int step, const uint8_t *row, int64_t first,
                              int count, uint64_t x[2]) {
    x[0] = x[1] = 0;
    if (count == step && (bits == 8 || first % 8 == 0)) {
        uint32_t four;
        if (step == 4) {
            memcpy(&four, row + first, sizeof four);
            x[0] = four;
            return;
        }
        x[0] = read_eight(s, bits, row + first * bits / 8);
        if (step == 16) x[1] = read_eight(s, bits, row + (first + 8) * bits / 8);
        return;
    }
    for (int i = 0; i < count; i++) {
        int64_t bit = (first + i) * bits;
        if (s->high_half_first) bit ^= 4;
        unsigned at = (unsigned)(bit % 8), code = row[bit / 8];
        if (at + (unsigned)bits > 8) code |= (unsigned)row[bit / 8 + 1] << 8;
        x[i / 8] |= (uint64_t)(code >> at & ((1u << bits) - 1)) << i % 8 * 8;
    }
}

/// Each byte of x plus that of y, modulo 256.
static inline uint64_t add_bytes(uint64_t x, uint64_t y) {
    const uint64_t top = 0x8080808080808080ull;
    return ((x & ~top) + (y & ~top)) ^ ((x ^ y) & top);
}

/// The codes of a step to where the layout has them.
static inline void write_step(const int bits, const uint64_t x[2], int column, uint8_t *step) {
    const uint32_t part[4] = {(uint32_t)x[0], (uint32_t)(x[0] >> 32), (uint32_t)x[1], (uint32_t)(x[1] >> 32)};
    uint32_t packed = 0, upper = 0;
    switch (bits) {
    case 2: packed = part[0] | part[1] << 2 | part[2] << 4 | part[3] << 6; break;
    case 3:
        for (int i = 0; i < 4; i++) {
            packed |= (part[i] & 0x03030303u) << 2 * i;
            upper |= (part[i] >> 2 & 0x01010101u) << i;
        }
        upper = (upper | upper >> 4) & 0x00FF00FFu;
        uint16_t plane = (uint16_t)(upper | upper >> 8);
        memcpy(step + 64 + 2 * column, &plane, sizeof plane);
        break;
    case 4: packed = part[0] | part[1] << 4; break;
    default: packed = part[0]; break;
    }
    memcpy(step + 4 * column, &packed, sizeof packed);
}

/// Codes of a row at once, whole groups or a part of one: enough that lines of the next arrive meanwhile, and few enough that
/// what they become of all rows of a panel stays in the first-level cache.
enum { CODES_AT_ONCE = 1024 };

/// Codes k0 … k1 - 1 of a row; returns what they have beyond the mask. `source_bits` and `bits` are constants at every call.
static inline __attribute__((always_inline)) uint64_t fill_row(const filling *f, int64_t row, int64_t k0, int64_t k1,
                                                               const int source_bits, const int bits) {
    qrt_nbits_weights *w = f->w;
    const int64_t panel = row / QRT_NBITS_NR, column = row % QRT_NBITS_NR;
    const int step = qrt_nbits_step(bits), step_bytes = qrt_nbits_step_bytes(bits);
    const uint64_t ones = 0x0101010101010101ull, mask = ((1u << bits) - 1) * ones, offset = f->source->offset * ones;
    const uint8_t *from = f->source->rows + (row - f->first_row) * f->source->row_stride_bytes;
    uint64_t beyond = 0;
    for (int64_t k = k0, end; k < k1; k = end) {
        int64_t g = k / w->group, start = g * w->group;
        end = min_i64(start + w->group, k1);
        uint8_t *to = w->codes + panel * w->panel_bytes + g * w->group_bytes + (k - start) / step * step_bytes;
        for (; k < end; k += step, to += step_bytes) {
            const int count = (int)min_i64(step, end - k);
            uint64_t x[2];
            read_codes(f->source, source_bits, step, from, k, count, x);
            beyond |= (x[0] | x[1]) & ~mask;
            for (int j = 0; j < 2; j++) x[j] = add_bytes(x[j], offset) & mask;
            // Behind the end of a group there are zeros.
            if (count < 8) x[0] &= (1ull << 8 * count) - 1;
            if (count < 16) x[1] &= (1ull << 8 * (count > 8 ? count - 8 : 0)) - 1;
            write_step(bits, x, (int)column, to);
        }
    }
    return beyond;
}

/// The rows of one panel.
static inline __attribute__((always_inline)) void fill_rows(filling *f, int64_t panel, const int source_bits, const int bits) {
    const qrt_nbits_weights *w = f->w;
    const int64_t first = panel * QRT_NBITS_NR < f->first_row ? f->first_row : panel * QRT_NBITS_NR;
    const int64_t last = min_i64(f->first_row + f->num_rows, (panel + 1) * QRT_NBITS_NR);
    uint64_t beyond = 0;
    for (int64_t k0 = 0, k1; k0 < w->base.k; k0 = k1) {
        if (w->group < CODES_AT_ONCE)
            k1 = min_i64(k0 + CODES_AT_ONCE / w->group * w->group, w->base.k);
        else
            k1 = min_i64(k0 + CODES_AT_ONCE, k0 / w->group * w->group + qrt_nbits_depth(w, k0 / w->group));
        for (int64_t row = first; row < last; row++) beyond |= fill_row(f, row, k0, k1, source_bits, bits);
    }
    if (beyond) __atomic_store_n(&f->refused, true, __ATOMIC_RELAXED);
}

static void fill_panel(void *context, int64_t task) {
    filling *f = context;
    const int64_t panel = f->first_panel + task;
    const bool is_packed = f->source->bits != 8;
    switch (f->w->bits) {
    case 2: is_packed ? fill_rows(f, panel, 2, 2) : fill_rows(f, panel, 8, 2); break;
    case 3: is_packed ? fill_rows(f, panel, 3, 3) : fill_rows(f, panel, 8, 3); break;
    case 4: is_packed ? fill_rows(f, panel, 4, 4) : fill_rows(f, panel, 8, 4); break;
    default: fill_rows(f, panel, 8, 8); break;
    }
}

bool qrt_nbits_fill(qrt_nbits_weights *w, int64_t first_row, int64_t num_rows, const qrt_nbits_source *source, int num_threads) {
    if (num_rows <= 0) return true;
    int64_t first_panel = first_row / QRT_NBITS_NR, panels = ceil_div(first_row + num_rows, QRT_NBITS_NR) - first_panel;
    if (w->base.k * num_rows < (int64_t)num_threads * WEIGHTS_PER_THREAD) num_threads = 1;
    filling f = {w, source, first_row, num_rows, first_panel, false};
    qrt_parallel_for(num_threads, panels, fill_panel, &f);
    return !f.refused;
}

void qrt_nbits_unpack(const qrt_nbits_weights *w, int64_t first_row, int64_t num_rows, uint8_t *codes, int64_t row_stride) {
    for (int64_t row = first_row; row < first_row + num_rows; row++, codes += row_stride)
        for (int64_t g = 0; g < w->num_groups; g++) {
            const uint8_t *group = qrt_nbits_codes(w, row / QRT_NBITS_NR, g);
            for (int64_t i = 0; i < qrt_nbits_depth(w, g); i++)
                codes[g * w->group + i] = (uint8_t)qrt_nbits_code(w->bits, group, i, (int)(row % QRT_NBITS_NR));
        }
}
