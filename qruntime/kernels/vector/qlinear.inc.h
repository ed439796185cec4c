/// Kernels over 8-bit codes, written once: include after simd_*.h, with RUNG defined.
#include "../kernels.h"

#include "bytes.inc.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef struct {
    vf scale, zero;
} scale_of;

ALWAYS_INLINE scale_of spread(qrt_code_scale s) { return (scale_of){vf_set(s.scale), vf_set(s.zero)}; }

ALWAYS_INLINE vi flipped(const uint8_t *p, int64_t n, vi flip) {
    return vi_xor(n >= VL ? vi_load_bytes(p) : vi_load_bytes_n(p, n), flip);
}

ALWAYS_INLINE vf real_of(vi code, scale_of s) { return vf_mul(vf_sub(vi_to_vf(code), s.zero), s.scale); }

/// qrt_requantize in registers: codes are stored through pointers that may alias anything.
typedef struct {
    vf low, high;
    vi zero, flip;
} code_limits;

ALWAYS_INLINE code_limits limits_of(const qrt_requantize *to) {
    return (code_limits){vf_set(to->low), vf_set(to->high), vi_set(to->zero), vi_set(to->flip)};
}

/// The bytes of numbers, none of them NaN.
ALWAYS_INLINE vi code_of(vf x, code_limits to) {
    return vi_xor(vi_add(vf_to_vi(vf_min(vf_max(x, to.low), to.high)), to.zero), to.flip);
}

ALWAYS_INLINE void store_codes(uint8_t *y, int64_t n, vi code) {
    if (n >= VL) vi_store_bytes(y, code);
    else vi_store_bytes_n(y, code, n);
}

typedef vf (*join_fn)(vf a, vf b);

#ifdef VI_SATURATED_BYTES
/// The float whose last bits are a byte is so much plus the byte, which saves a conversion.
enum { BYTE_IN_FLOAT = 0x4b000000, FLOAT_OF_BYTE = 1 << 23 };

typedef struct {
    vf scale, zero;
    vi flip;
} real_bytes;

ALWAYS_INLINE real_bytes bytes_at(qrt_code_scale s, uint8_t flip) {
    return (real_bytes){vf_set(s.scale), vf_set((float)FLOAT_OF_BYTE + s.zero), vi_set(BYTE_IN_FLOAT | flip)};
}

ALWAYS_INLINE vf real_of_bytes(const uint8_t *p, real_bytes s) {
    return vf_mul(vf_sub(vi_as_vf(vi_xor(vi_load_bytes(p), s.flip)), s.zero), s.scale);
}

/// As many as come by 64, and how many that are. With `is_bounded` every quotient is an int32, so that bytes saturate by themselves.
ALWAYS_INLINE int64_t binary_by_64(join_fn join, const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t n, const int a_step, const int b_step,
                                   const bool is_bounded, const qrt_qlinear_pair *pair) {
    const real_bytes sa = bytes_at(pair->a, pair->flip), sb = bytes_at(pair->b, pair->flip);
    const vf scale = vf_set(pair->y.scale), high = vf_set(255.0f - pair->y.zero);
    const vi zero = vi_set((int32_t)pair->y.zero * 0x10001), flips = vi_set(pair->flip * 0x01010101);
    const vf one_a = vf_mul(vf_set((float)(*a ^ pair->flip) - pair->a.zero), sa.scale);
    const vf one_b = vf_mul(vf_set((float)(*b ^ pair->flip) - pair->b.zero), sb.scale);
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL) {
        vf quotient[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            const vf x = a_step ? real_of_bytes(a + i + v * VL, sa) : one_a, z = b_step ? real_of_bytes(b + i + v * VL, sb) : one_b;
            quotient[v] = vf_div(join(x, z), scale);
            if (!is_bounded) quotient[v] = vf_min(quotient[v], high);
        }
        vi_store_64_bytes(y + i, vi_xor(vi_saturated_bytes(quotient, zero), flips), 4 * VL);
    }
    return i;
}

static inline bool has_int32_quotients(const qrt_qlinear_pair *pair, bool is_sum) {
    const float a = 255.0f * fabsf(pair->a.scale), b = 255.0f * fabsf(pair->b.scale);
    return (is_sum ? a + b : a * b) / fabsf(pair->y.scale) < (float)(1 << 30);
}
#endif

/// `a_step` and `b_step` are constants at every call.
ALWAYS_INLINE void binary(join_fn join, const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t n, const int a_step,
                          const int b_step, const qrt_qlinear_pair *pair) {
    const scale_of sa = spread(pair->a), sb = spread(pair->b), to = spread(pair->y);
    const vi flip = vi_set(pair->flip);
    const qrt_requantize to_codes = qrt_requantize_to((int32_t)pair->y.zero, pair->flip);
    const code_limits limits = limits_of(&to_codes);
    if (n <= 0) return;
    const vf one_a = real_of(vi_xor(vi_set(*a), flip), sa), one_b = real_of(vi_xor(vi_set(*b), flip), sb);
    int64_t i = 0;
#ifdef VI_SATURATED_BYTES
    if (has_int32_quotients(pair, join == vf_add)) i = binary_by_64(join, a, b, y, n, a_step, b_step, true, pair);
    else i = binary_by_64(join, a, b, y, n, a_step, b_step, false, pair);
#endif
    for (; i < n; i += VL) {
        int64_t left = n - i;
        vf x = a_step ? real_of(flipped(a + i, left, flip), sa) : one_a;
        vf z = b_step ? real_of(flipped(b + i, left, flip), sb) : one_b;
        store_codes(y + i, left, code_of(vf_div(join(x, z), to.scale), limits));
    }
}

#define BINARY(name, join)                                                                                             \
    static void name(const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t n, int a_step, int b_step,                \
                     const qrt_qlinear_pair *pair) {                                                                   \
        if (a_step && b_step) binary(join, a, b, y, n, 1, 1, pair);                                                    \
        else if (a_step) binary(join, a, b, y, n, 1, 0, pair);                                                         \
        else binary(join, a, b, y, n, 0, b_step, pair);                                                                \
    }

BINARY(add, vf_add)
BINARY(mul, vf_mul)

/// `vectors` · VL channels from c on, the last vector of `left` ≤ VL of them.
ALWAYS_INLINE void depthwise_channels(const qrt_depthwise *w, code_limits to, const int vectors, const bool flips, int64_t c,
                                      int64_t left, uint8_t *y) {
    vi sum[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++)
        sum[v] = v + 1 < vectors || left == VL ? vi_load(w->offsets + c + v * VL) : vi_load_n(w->offsets + c + v * VL, left);
    const vi flip = vi_set(w->flip);
    const int32_t *weights = w->w + c;
    for (int64_t t = 0; t < w->num_taps; t++, weights += w->channels) {
        const uint8_t *x = w->taps[t] + c;
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            bool whole = v + 1 < vectors || left == VL;
            vi code = whole ? vi_load_bytes(x + v * VL) : vi_load_bytes_n(x + v * VL, left);
            if (flips) code = vi_xor(code, flip);
            vi weight = whole ? vi_load(weights + v * VL) : vi_load_n(weights + v * VL, left);
            sum[v] = vi_add(sum[v], vi_mul_code(code, weight));
        }
    }
    vi code[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        bool whole = v + 1 < vectors || left == VL;
        vf multiplier = whole ? vf_load(w->multipliers + c + v * VL) : vf_load_n(w->multipliers + c + v * VL, left);
        code[v] = code_of(vf_mul(vi_to_vf(sum[v]), multiplier), to);
    }
    if (vectors == 4) vi_store_bytes4(y + c, code);
    else store_codes(y + c, left, code[0]);
}

ALWAYS_INLINE void depthwise_with(const qrt_depthwise *w, const bool flips, uint8_t *y) {
    const code_limits to = limits_of(&w->requantize);
    const int64_t channels = w->channels;
    int64_t c = 0;
    for (; c + 4 * VL <= channels; c += 4 * VL) depthwise_channels(w, to, 4, flips, c, VL, y);
    for (; c + VL <= channels; c += VL) depthwise_channels(w, to, 1, flips, c, VL, y);
    if (c < channels) depthwise_channels(w, to, 1, flips, c, channels - c, y);
}

static void depthwise(const qrt_depthwise *w, uint8_t *y) {
    if (w->flip) depthwise_with(w, true, y);
    else depthwise_with(w, false, y);
}

/// A row of a tile, or of all its constants, at one column.
typedef struct {
    const int32_t *acc, *base, *weight_zeros;
    const float *multipliers;
} tile_columns;

/// The codes of `vectors` · VL columns, or of `left` < VL columns, of one row. `has_zeros` is a constant at every call.
ALWAYS_INLINE void requantize_columns(tile_columns t, code_limits to, const bool has_zeros, vi row_sum, const int vectors,
                                      int64_t left, uint8_t *y) {
    const bool whole = left == VL;
    vi code[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        int64_t j = v * VL;
        vi sum = vi_add(whole ? vi_load(t.acc + j) : vi_load_n(t.acc + j, left), whole ? vi_load(t.base + j) : vi_load_n(t.base + j, left));
        if (has_zeros)
            sum = vi_sub(sum, vi_mul(row_sum, whole ? vi_load(t.weight_zeros + j) : vi_load_n(t.weight_zeros + j, left)));
        code[v] = code_of(vf_mul(vi_to_vf(sum), whole ? vf_load(t.multipliers + j) : vf_load_n(t.multipliers + j, left)), to);
    }
    if (vectors == 4) vi_store_bytes4(y, code);
    else store_codes(y, left, code[0]);
}

#ifdef VI_SATURATED_BYTES
/// Up to 4 · VL columns of all rows, with what belongs to the columns in registers.
ALWAYS_INLINE void requantize_block(const qrt_code_tile *t, const bool has_zeros, const int vectors, int64_t first, int64_t columns,
                                    uint8_t *y, int64_t ldy_elems) {
    vi base[4], zeros[4];
    vf multipliers[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        const int64_t j = first + v * VL, left = columns - v * VL;
        base[v] = left >= VL ? vi_load(t->base + j) : vi_load_n(t->base + j, left);
        multipliers[v] = left >= VL ? vf_load(t->multipliers + j) : vf_load_n(t->multipliers + j, left);
        if (has_zeros) zeros[v] = left >= VL ? vi_load(t->weight_zeros + j) : vi_load_n(t->weight_zeros + j, left);
    }
    const vf high = vf_set(t->to.high);
    const vi zero = vi_set(t->to.zero * 0x10001), flip = vi_set(t->to.flip * 0x01010101);
    const int32_t *acc = t->acc + first;
    const qrt_q8_row *row = t->rows;
    const int64_t rows = t->num_rows, stride = t->acc_stride_elems;
    for (int64_t r = 0; r < rows; r++, acc += stride, y += ldy_elems) {
        vf x[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            const int64_t left = columns - v * VL;
            vi sum = vi_add(left >= VL ? vi_load(acc + v * VL) : vi_load_n(acc + v * VL, left), base[v]);
            if (has_zeros) sum = vi_sub(sum, vi_mul(vi_set((int32_t)row[r].sum), zeros[v]));
            x[v] = vf_min(vf_mul(vi_to_vf(sum), multipliers[v]), high);
        }
        vi_store_64_bytes(y, vi_xor(vi_saturated_bytes(x, zero), flip), columns);
    }
}

ALWAYS_INLINE void requantize_with(const qrt_code_tile *t, const bool has_zeros, uint8_t *y, int64_t ldy_elems) {
    for (int64_t j = 0; j < t->columns; j += 4 * VL) {
        const int64_t columns = t->columns - j < 4 * VL ? t->columns - j : 4 * VL;
        if (columns > 3 * VL) requantize_block(t, has_zeros, 4, j, columns, y + j, ldy_elems);
        else if (columns > 2 * VL) requantize_block(t, has_zeros, 3, j, columns, y + j, ldy_elems);
        else if (columns > VL) requantize_block(t, has_zeros, 2, j, columns, y + j, ldy_elems);
        else requantize_block(t, has_zeros, 1, j, columns, y + j, ldy_elems);
    }
}
#else
ALWAYS_INLINE void requantize_with(const qrt_code_tile *t, const bool has_zeros, uint8_t *y, int64_t ldy_elems) {
    const code_limits to = limits_of(&t->to);
    const int64_t rows = t->num_rows, columns = t->columns, stride = t->acc_stride_elems;
    const tile_columns all = {t->acc, t->base, t->weight_zeros, t->multipliers};
    const qrt_q8_row *parameters = t->rows;
    for (int64_t r = 0; r < rows; r++, y += ldy_elems) {
        vi row_sum = vi_set(has_zeros ? (int32_t)parameters[r].sum : 0);
        int64_t j = 0;
#define COLUMNS (tile_columns){all.acc + r * stride + j, all.base + j, has_zeros ? all.weight_zeros + j : NULL, all.multipliers + j}
        for (; j + 4 * VL <= columns; j += 4 * VL) requantize_columns(COLUMNS, to, has_zeros, row_sum, 4, VL, y + j);
        for (; j + VL <= columns; j += VL) requantize_columns(COLUMNS, to, has_zeros, row_sum, 1, VL, y + j);
        if (j < columns) requantize_columns(COLUMNS, to, has_zeros, row_sum, 1, columns - j, y + j);
#undef COLUMNS
    }
}
#endif

static void requantize(const qrt_code_tile *t, uint8_t *y, int64_t ldy_elems) {
    if (t->weight_zeros) requantize_with(t, true, y, ldy_elems);
    else requantize_with(t, false, y, ldy_elems);
}

ALWAYS_INLINE vf quotient_of(vf x, vf scale) {
    const vf q = vf_div(x, scale);
    return vf_blend(vf_unordered(q, q), vf_zero(), q);
}

static void quantize(const float *x, uint8_t *y, int64_t n, float scale, const qrt_requantize *to) {
    const code_limits limits = limits_of(to);
    const vf by = vf_set(scale);
    int64_t i = 0;
#ifdef VI_SATURATED_BYTES
    const vi zero = vi_set(to->zero * 0x10001), flips = vi_set(to->flip * 0x01010101);
    for (; i + 4 * VL <= n; i += 4 * VL) {
        vf q[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) q[v] = vf_min(quotient_of(vf_load(x + i + v * VL), by), limits.high);
        vi_store_64_bytes(y + i, vi_xor(vi_saturated_bytes(q, zero), flips), 4 * VL);
    }
#endif
    for (; i < n; i += VL) {
        const int64_t left = n - i;
        store_codes(y + i, left, code_of(quotient_of(left >= VL ? vf_load(x + i) : vf_load_n(x + i, left), by), limits));
    }
}

static void dequantize(const uint8_t *x, float *y, int64_t n, qrt_code_scale scale, uint8_t flip) {
    const scale_of from = spread(scale);
    const vi flips = vi_set(flip);
    for (int64_t i = 0; i < n; i += VL) {
        const int64_t left = n - i;
        const vf real = real_of(flipped(x + i, left, flips), from);
        if (left >= VL) vf_store(y + i, real);
        else vf_store_n(y + i, real, left);
    }
}

static void average(const int32_t *sums, uint8_t *y, int64_t n, float count, float ratio, const qrt_requantize *to) {
    const code_limits limits = limits_of(to);
    for (int64_t i = 0; i < n; i += VL) {
        int64_t left = n - i;
        vi sum = left >= VL ? vi_load(sums + i) : vi_load_n(sums + i, left);
        vf x = vf_mul(vf_div(vi_to_vf(sum), vf_set(count)), vf_set(ratio));
        store_codes(y + i, left, code_of(x, limits));
    }
}

void JOIN(JOIN(qrt_, RUNG), _qlinear)(qrt_kernel_table *t) {
    t->qlinear = (qrt_qlinear){
        .add = add, .mul = mul, .depthwise = depthwise, .max_u8 = max_u8, .max_i8 = max_i8, .quantize = quantize,
        .dequantize = dequantize, .row_sums = row_sums, .look_up = look_up,
        .accumulate = accumulate, .average = average, .requantize = requantize,
    };
}
