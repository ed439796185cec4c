/// The numbers that the codes of a weight stand for, and rounding to the nearest of them.
#ifndef QRT_CODE_GRID_H
#define QRT_CODE_GRID_H

#include <stdbool.h>
#include <stdint.h>

/// The numbers that codes stand for, with parameters for each row and group of columns:
///     scale · (code − zero_point), code = low … high          integers
///     scale · entries[e], code = codes[e]                     tables
/// A number x is brought to codes as x / divisor, which is the scale where that is above 0. Zero points that are no whole
/// numbers are added before that is rounded, others after it.
typedef struct {
    const float *scale, *divisor, *zero_point;  ///< [n, groups]
    bool is_fractional;                         ///< zero points need not be whole
    const int32_t *group;             ///< [k]: of each column; not read where there is one group
    int64_t groups;
    float low, high;
    int64_t num_entries;  ///< 0 of integers
    const float *entries;  ///< ascending
    const float *middles;  ///< [num_entries − 1]: a number above middle e is nearer to entry e + 1
    const uint8_t *codes;  ///< [num_entries]
} qrt_code_grid;

/// Beyond the codes there are, whatever the whole zero point, and below 2^22.
#define QRT_BEYOND_CODES 2097152.0f

static inline float qrt_clamped(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

/// Adding and taking away 1.5 · 2^23 rounds half to even what is below 2^22, with instructions that every target has.
static inline float qrt_rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }

/// The code, an integer, nearest to a number that was divided.
static inline float qrt_nearest_code(const qrt_code_grid *grid, float share, float zero_point) {
    float whole = grid->is_fractional ? qrt_rounded(qrt_clamped(share + zero_point, -QRT_BEYOND_CODES, QRT_BEYOND_CODES))
                                      : qrt_rounded(qrt_clamped(share, -QRT_BEYOND_CODES, QRT_BEYOND_CODES)) + zero_point;
    return qrt_clamped(whole, grid->low, grid->high);
}

/// The entry nearest to a number that was divided, of two equally near the lower.
static inline int64_t qrt_nearest_entry(const qrt_code_grid *grid, float share) {
    int64_t first = 0, count = grid->num_entries - 1;  // of the middles below `share`
    while (count > 0) {
        int64_t half = count / 2;
        bool is_above = grid->middles[first + half] < share;
        first = is_above ? first + half + 1 : first;
        count = is_above ? count - half - 1 : half;
    }
    return first;
}

typedef struct qrt_code_grids {
    /// Each number of a finite x [n, k] to the nearest code, and what that stands for.
    void (*round)(const qrt_code_grid *grid, int64_t n, int64_t k, const float *x, uint8_t *codes, float *values);
} qrt_code_grids;

#endif
