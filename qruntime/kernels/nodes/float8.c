/// Rows rounded to the 8-bit floats E4M3, each with a scale of its own.
#include <float.h>
#include <string.h>

#include "../nodes.h"
#include "../threads.h"

enum { GRAIN = 8192 };

/// The greatest number of E4M3, and the exponent field of its least normal one, 2⁻⁶.
static const float MOST = 448.0f;
enum { LEAST_EXPONENT = 127 - 6, MANTISSA_BITS = 3 };

/// x, within ±448, to the nearest number of E4M3, ties to even. 1.5 · 2²³ steps of those numbers are added and taken off
/// again: the sum has their steps. NaN stays.
static inline float rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t exponent = (int32_t)(bits >> 23 & 0xff);
    exponent = exponent > LEAST_EXPONENT ? exponent : LEAST_EXPONENT;
    bits = (uint32_t)(exponent + 23 - MANTISSA_BITS) << 23 | 1u << 22;
    float rounder;
    memcpy(&rounder, &bits, sizeof rounder);
    return (x + rounder) - rounder;
}

/// The scale of a row: its largest number becomes 448; 1 where all are 0. That of a row with NaN is NaN.
static float scale_of(const float *x, int64_t k) {
    int32_t most = 0;  // bits of numbers without their sign have the order of the numbers, NaN last
    for (int64_t i = 0; i < k; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float largest;
    memcpy(&largest, &most, sizeof largest);
    float scale = (float)((double)largest / MOST);
    if (scale == 0.0f) scale = 1.0f;
    return scale < FLT_MIN ? FLT_MIN : scale;
}

static void round_row(const float *x, float *y, int64_t k) {
    const float scale = scale_of(x, k), inverse = 1.0f / scale;
    for (int64_t i = 0; i < k; i++) {
        float share = x[i] * inverse;
        share = share > MOST ? MOST : share;
        share = share < -MOST ? -MOST : share;
        y[i] = rounded(share) * scale;
    }
}

typedef struct {
    const float *x;
    float *y;
    int64_t rows, k, rows_per_task;
} call;

static void round_rows(void *context, int64_t task) {
    const call *c = context;
    const int64_t first = task * c->rows_per_task, last = first + c->rows_per_task < c->rows ? first + c->rows_per_task : c->rows;
    for (int64_t i = first; i < last; i++) round_row(c->x + i * c->k, c->y + i * c->k, c->k);
}

/// Input: float32 [..., K]. Output: the same shape.
static qrt_status round_to_float8(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs < 1 || !in[0] || in[0]->dtype != QRT_F32 || in[0]->rank < 1) return QRT_DECLINE;
    const qrt_tensor *x = in[0];
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank, x->dims);
    if (status != QRT_OK || x->size == 0) return status;
    const int64_t k = x->dims[x->rank - 1], rows_per_task = k < GRAIN ? GRAIN / k : 1;
    call c = {x->data, out[0].data, x->size / k, k, rows_per_task};
    qrt_parallel_for(run->num_threads, (c.rows + rows_per_task - 1) / rows_per_task, round_rows, &c);
    return QRT_OK;
}

const qrt_node_entry qrt_float8_nodes[] = {
    {"round_to_float8", round_to_float8},
    {NULL, NULL},
};
