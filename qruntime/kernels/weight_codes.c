#include "weight_codes.h"

#include <math.h>

/// Columns whose running sums stay in the first-level cache, terms after which sums in float go on in double, and sums side
/// by side along a row of a table, whose rows are short.
enum { TILE = 256, DEPTH = 64, LANES = 32 };

/// Adding and taking away 1.5 · 2^23 rounds half to even what is below 2^22, with instructions that every target has.
static inline float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }

/// A form for each of n ≤ TILE elements (step 1), or one for all (step 0).
static inline __attribute__((always_inline)) void round_part(int64_t n, int64_t step, const float *restrict x,
                                                             qrt_code_forms f, int8_t *restrict q, float *restrict signal,
                                                             float *restrict noise) {
    const float *restrict scale = f.scale, *restrict inverse = f.inverse, *restrict zero = f.zero_point;
    const float *restrict low = f.low, *restrict high = f.high;
    for (int64_t j = 0; j < n; j++) {
        int64_t i = j * step;
        float steps = x[j] * inverse[i];
        float inside = steps < low[i] ? low[i] : steps;
        float code = rounded(inside > high[i] ? high[i] : inside);
        float error = (code * scale[i] - x[j]) * inverse[i];
        q[j] = (int8_t)(int32_t)(code + zero[i]);
        signal[j] += steps * steps;
        noise[j] += error * error;
    }
}

static qrt_code_forms forms_from(const qrt_code_forms *f, int64_t i) {
    return (qrt_code_forms){f->scale + i, f->inverse + i, f->low + i, f->high + i, f->zero_point + i};
}

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

static void round_columns(const float *x, int64_t rows, int64_t columns, const qrt_code_forms *forms, int8_t *q,
                          double *signal, double *noise) {
    for (int64_t i = 0; i < rows; i += DEPTH)
        for (int64_t j = 0; j < columns; j += TILE) {
            float sums[2][TILE] = {{0}};
            int64_t n = min64(TILE, columns - j);
            for (int64_t r = i; r < min64(rows, i + DEPTH); r++)
                round_part(n, 1, x + r * columns + j, forms_from(forms, j), q + r * columns + j, sums[0], sums[1]);
            for (int64_t c = 0; c < n; c++) signal[j + c] += (double)sums[0][c], noise[j + c] += (double)sums[1][c];
        }
}

static void round_row(const float *x, int64_t columns, qrt_code_forms form, int8_t *q, double *signal, double *noise) {
    for (int64_t i = 0; i < columns; i += TILE * DEPTH) {
        float sums[2][TILE] = {{0}};
        int64_t stop = min64(columns, i + TILE * DEPTH);
        for (int64_t j = i; j < stop; j += TILE) round_part(min64(TILE, stop - j), 0, x + j, form, q + j, sums[0], sums[1]);
        for (int64_t c = 0; c < min64(TILE, stop - i); c++) *signal += (double)sums[0][c], *noise += (double)sums[1][c];
    }
}

void qrt_weight_codes(const float *x, int64_t rows, int64_t columns, bool by_column, const qrt_code_forms *forms, int8_t *q,
                      double *signal, double *noise) {
    if (by_column)
        round_columns(x, rows, columns, forms, q, signal, noise);
    else
        for (int64_t r = 0; r < rows; r++)
            round_row(x + r * columns, columns, forms_from(forms, r), q + r * columns, signal + r, noise + r);
}

// ------------------------------------------------------------------------------------------- tables

typedef struct {
    float scale, inverse, zero_point, offset;
} table_row;

typedef struct {
    float low[LANES], high[LANES];
    float odd[LANES];  ///< 0 while all elements are finite
} range_lanes;

static inline __attribute__((always_inline)) void range_part(int64_t n, const float *restrict x, range_lanes *restrict lanes) {
    for (int64_t c = 0; c < n; c++) {
        float v = x[c];
        lanes->low[c] = v < lanes->low[c] ? v : lanes->low[c];
        lanes->high[c] = v > lanes->high[c] ? v : lanes->high[c];
        lanes->odd[c] += v - v;
    }
}

/// False when one of the n > 0 elements is NaN or infinite.
static bool range_of(const float *x, int64_t n, float *low, float *high) {
    range_lanes lanes = {.odd = {0}};
    int64_t j = 0;
    for (int64_t c = 0; c < LANES; c++) lanes.low[c] = lanes.high[c] = x[0];
    for (; j + LANES <= n; j += LANES) range_part(LANES, x + j, &lanes);
    range_part(n - j, x + j, &lanes);
    float odd = lanes.odd[0];
    *low = lanes.low[0], *high = lanes.high[0];
    for (int64_t c = 1; c < LANES; c++) {
        *low = lanes.low[c] < *low ? lanes.low[c] : *low;
        *high = lanes.high[c] > *high ? lanes.high[c] : *high;
        odd += lanes.odd[c];
    }
    return odd == 0;
}

static table_row row_of(float low, float high, const qrt_table_form *form) {
    float scale = (high - low) / (form->high - form->low);
    if (isinf(scale)) scale = (float)(((double)high - (double)low) / (double)(form->high - form->low));
    scale = scale > form->epsilon ? scale : 1;
    float zero_point = -low / scale;
    return (table_row){scale, 1 / scale, zero_point, -zero_point * scale};
}

static inline float error_of(float x, float code, table_row r) { return code * r.scale + r.offset - x; }

/// n ≤ LANES elements. The order of comparisons makes NaN, of a scale whose inverse overflows, the least code.
static inline __attribute__((always_inline)) void table_part(int64_t n, const float *restrict x, table_row r, qrt_table_form f,
                                                             uint8_t *restrict q, float *restrict signal, float *restrict noise) {
    for (int64_t c = 0; c < n; c++) {
        float code = x[c] * r.inverse + r.zero_point;
        code = code > f.low ? code : f.low;
        code = rounded(code < f.high ? code : f.high);
        float error = error_of(x[c], code, r);
        q[c] = (uint8_t)(int32_t)code;
        signal[c] += x[c] * x[c];
        noise[c] += error * error;
    }
}

/// Sums of squares in float are good far from the ends of its range; others are taken in double.
static bool is_sound(double power) { return power > 1e-24 && power < 1e36; }

static void table_codes_of_row(const float *x, int64_t n, table_row r, const qrt_table_form *form, uint8_t *q, double *signal,
                               double *noise) {
    double powers[2] = {0};
    for (int64_t i = 0; i < n; i += LANES * DEPTH) {
        float sums[2][LANES] = {{0}};
        int64_t j = i, stop = min64(n, i + LANES * DEPTH);
        for (; j + LANES <= stop; j += LANES) table_part(LANES, x + j, r, *form, q + j, sums[0], sums[1]);
        table_part(stop - j, x + j, r, *form, q + j, sums[0], sums[1]);
        for (int64_t c = 0; c < LANES; c++) powers[0] += (double)sums[0][c], powers[1] += (double)sums[1][c];
    }
    if (!is_sound(powers[0]) || !is_sound(powers[1])) {
        powers[0] = powers[1] = 0;
        for (int64_t j = 0; j < n; j++) {
            double error = error_of(x[j], q[j], r);
            powers[0] += (double)x[j] * x[j];
            powers[1] += error * error;
        }
    }
    *signal += powers[0], *noise += powers[1];
}

bool qrt_table_codes(const float *x, int64_t rows, int64_t columns, const qrt_table_form *form, uint8_t *q, float *scale,
                     float *offset, double *signal, double *noise) {
    for (int64_t i = 0; i < rows; i++, x += columns, q += columns) {
        float low, high;
        if (!range_of(x, columns, &low, &high)) return false;
        table_row r = row_of(low, high, form);
        scale[i] = r.scale, offset[i] = r.offset;
        table_codes_of_row(x, columns, r, form, q, signal, noise);
    }
    return true;
}
