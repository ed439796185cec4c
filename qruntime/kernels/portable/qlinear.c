/// The definition of the kernels over 8-bit codes in plain C.
#include "../qlinear.h"

#include "../rungs.h"

/// Added to |x| < 2^22 and taken off again it leaves rint_even(x).
static const float ROUND_TO_INT = 12582912.0f;

/// `x` is no NaN: scales are finite and not 0.
static uint8_t code_of(float x, float low, float high, float zero, uint8_t flip) {
    x = x < low ? low : x;
    x = x > high ? high : x;
    return (uint8_t)(int32_t)((x + ROUND_TO_INT) - ROUND_TO_INT + zero) ^ flip;
}

static float real_of(uint8_t byte, uint8_t flip, qrt_code_scale s) { return ((float)(byte ^ flip) - s.zero) * s.scale; }

#define BINARY(name, operator)                                                                                         \
    static void name(const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t n, int a_step, int b_step,                \
                     const qrt_qlinear_pair *pair) {                                                                   \
        const qrt_code_scale to = pair->y;                                                                             \
        for (int64_t i = 0; i < n; i++, a += a_step, b += b_step) {                                                    \
            float x = real_of(*a, pair->flip, pair->a) operator real_of(*b, pair->flip, pair->b);                      \
            y[i] = code_of(x / to.scale, -to.zero, 255.0f - to.zero, to.zero, pair->flip);                             \
        }                                                                                                              \
    }

BINARY(add, +)
BINARY(mul, *)

static void depthwise(const qrt_depthwise *window, uint8_t *y) {
    const qrt_requantize *to = &window->requantize;
    for (int64_t c = 0; c < window->channels; c++) {
        int32_t sum = window->offsets[c];
        for (int64_t t = 0; t < window->num_taps; t++)
            sum += window->w[t * window->channels + c] * (window->taps[t][c] ^ window->flip);
        y[c] = code_of((float)sum * window->multipliers[c], to->low, to->high, (float)to->zero, to->flip);
    }
}

static void requantize(const qrt_code_tile *t, uint8_t *y, int64_t ldy_elems) {
    const qrt_requantize *to = &t->to;
    for (int64_t r = 0; r < t->num_rows; r++)
        for (int64_t j = 0; j < t->columns; j++) {
            // Unsigned, because a partial sum may wrap where the whole cannot.
            uint32_t sum = (uint32_t)t->acc[r * t->acc_stride_elems + j] + (uint32_t)t->base[j];
            if (t->weight_zeros) sum -= (uint32_t)t->rows[r].sum * (uint32_t)t->weight_zeros[j];
            float x = (float)(int32_t)sum * t->multipliers[j];
            y[r * ldy_elems + j] = code_of(x, to->low, to->high, (float)to->zero, to->flip);
        }
}

static void average(const int32_t *sums, uint8_t *y, int64_t n, float count, float ratio, const qrt_requantize *to) {
    for (int64_t i = 0; i < n; i++)
        y[i] = code_of((float)sums[i] / count * ratio, to->low, to->high, (float)to->zero, to->flip);
}

static void quantize(const float *x, uint8_t *y, int64_t n, float scale, const qrt_requantize *to) {
    for (int64_t i = 0; i < n; i++) {
        float q = x[i] / scale;
        y[i] = code_of(q == q ? q : 0, to->low, to->high, (float)to->zero, to->flip);
    }
}

static void dequantize(const uint8_t *x, float *y, int64_t n, qrt_code_scale scale, uint8_t flip) {
    for (int64_t i = 0; i < n; i++) y[i] = real_of(x[i], flip, scale);
}

#include "../vector/bytes.inc.h"

void qrt_portable_qlinear(qrt_kernel_table *t) {
    t->qlinear = (qrt_qlinear){
        .add = add, .mul = mul, .depthwise = depthwise, .max_u8 = max_u8, .max_i8 = max_i8, .quantize = quantize,
        .dequantize = dequantize, .row_sums = row_sums, .look_up = look_up,
        .accumulate = accumulate, .average = average, .requantize = requantize,
    };
}
