#include "observed_rows.h"

#include <stdlib.h>
#include <string.h>

#include "threads.h"

/// Rows of a task, and columns whose extremes stay in registers and first-level cache.
enum { ROWS = 64, COLUMNS = 256, MAX_TASKS = 16 };

typedef struct {
    int64_t rows, k, rows_of_task;
    const float *const *x;
    float *ends;  ///< [tasks][2][k]
    float *peaks;
    int64_t num_factors, apart;  ///< columns that are hashed, and how far apart they are
    const uint64_t *factors;
    uint64_t *hashes;
} observation;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

static inline float least(float a, float b) { return a < b ? a : b; }
static inline float greatest(float a, float b) { return a > b ? a : b; }

/// Magnitudes order as their bits do, with NaN above all.
static inline int32_t magnitude(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & INT32_MAX;
}
static inline int32_t greater(int32_t a, int32_t b) { return a > b ? a : b; }

/// Widens the extremes of n columns, and the peaks of rows, by a piece of one row.
static void widen(int64_t n, const float *restrict x, float *restrict low, float *restrict high, int32_t *restrict peaks) {
    int32_t peak = peaks[0];
    for (int64_t j = 0; j < n; j++) {
        low[j] = least(x[j], low[j]), high[j] = greatest(x[j], high[j]);
        peak = greater(magnitude(x[j]), peak);
    }
    peaks[0] = peak;
}

/// The same by pieces of four rows, so that extremes are loaded and stored once for them.
static void widen_by_four(int64_t n, const float *const *rows, int64_t first, float *restrict low, float *restrict high,
                          int32_t *restrict peaks) {
    const float *restrict x = rows[0] + first, *restrict x1 = rows[1] + first, *restrict x2 = rows[2] + first, *restrict x3 = rows[3] + first;
    int32_t peak0 = peaks[0], peak1 = peaks[1], peak2 = peaks[2], peak3 = peaks[3];
    for (int64_t j = 0; j < n; j++) {
        low[j] = least(least(least(x[j], x1[j]), least(x2[j], x3[j])), low[j]);
        high[j] = greatest(greatest(greatest(x[j], x1[j]), greatest(x2[j], x3[j])), high[j]);
        peak0 = greater(magnitude(x[j]), peak0), peak1 = greater(magnitude(x1[j]), peak1);
        peak2 = greater(magnitude(x2[j]), peak2), peak3 = greater(magnitude(x3[j]), peak3);
    }
    peaks[0] = peak0, peaks[1] = peak1, peaks[2] = peak2, peaks[3] = peak3;
}

static uint64_t hash_of(const observation *o, const float *x) {
    uint64_t mixed = 0;
    for (int64_t i = 0; i < o->num_factors; i++) {
        const float number = x[i * o->apart] + 0.0f;
        uint32_t bits;
        memcpy(&bits, &number, sizeof bits);
        mixed += bits * o->factors[i];
    }
    return (mixed ^ mixed >> 31) * o->factors[0];
}

static void take_rows(void *context, int64_t task) {
    const observation *o = context;
    const int64_t first = task * o->rows_of_task, last = min64(o->rows, first + o->rows_of_task);
    float *low = o->ends + task * 2 * o->k, *high = low + o->k;
    memcpy(low, o->x[first], (size_t)o->k * sizeof *low);
    memcpy(high, low, (size_t)o->k * sizeof *high);
    for (int64_t block = first; block < last; block += ROWS) {
        const int64_t rows = min64(ROWS, last - block);
        int32_t peaks[ROWS] = {0};
        for (int64_t j = 0; j < o->k; j += COLUMNS) {
            const float *const *x = o->x + block;
            const int64_t n = min64(COLUMNS, o->k - j);
            int64_t r = 0;
            for (; r + 4 <= rows; r += 4) widen_by_four(n, x + r, j, low + j, high + j, peaks + r);
            for (; r < rows; r++) widen(n, x[r] + j, low + j, high + j, peaks + r);
        }
        memcpy(o->peaks + block, peaks, (size_t)rows * sizeof *peaks);
        for (int64_t r = block; r < block + rows; r++) o->hashes[r] = hash_of(o, o->x[r]);
    }
}

bool qrt_observe_rows(int64_t rows, int64_t k, const float *const *x, float *low, float *high, float *peaks, int num_factors,
                      const uint64_t *factors, uint64_t *hashes, int num_threads) {
    int64_t tasks = min64(MAX_TASKS, (rows + ROWS - 1) / ROWS);
    observation call = {
        .rows = rows, .k = k, .rows_of_task = (rows + tasks - 1) / tasks, .x = x, .peaks = peaks, .num_factors = min64(num_factors, k),
        .apart = k > num_factors ? k / num_factors : 1, .factors = factors, .hashes = hashes,
    };
    tasks = (rows + call.rows_of_task - 1) / call.rows_of_task;
    call.ends = malloc((size_t)(tasks * 2 * k) * sizeof *call.ends);
    if (!call.ends) return false;
    qrt_parallel_for(num_threads, tasks, take_rows, &call);
    memcpy(low, call.ends, (size_t)k * sizeof *low);
    memcpy(high, call.ends + k, (size_t)k * sizeof *high);
    for (int64_t t = 1; t < tasks; t++) {
        const float *ends = call.ends + t * 2 * k;
        for (int64_t j = 0; j < k; j++) {
            low[j] = ends[j] < low[j] ? ends[j] : low[j];
            high[j] = ends[k + j] > high[j] ? ends[k + j] : high[j];
        }
    }
    free(call.ends);
    return true;
}
