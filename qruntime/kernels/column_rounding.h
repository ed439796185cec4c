/// Rounding of a weight [n, k] to codes column by column, where what one column loses is taken into account by others.
///
/// Rows have nothing to do with one another. Columns are taken in a given order. Sums are of doubles, in one order whatever
/// the number of threads and the rung.
#ifndef QRT_COLUMN_ROUNDING_H
#define QRT_COLUMN_ROUNDING_H

#include <stdbool.h>
#include <stdint.h>

#include "code_grid.h"
#include "column_sums.h"

typedef struct {
    int64_t n, k;
    const float *weight;   ///< [n, k]
    const int32_t *order;  ///< [k]: a permutation, the column taken first, second …
    const qrt_code_grid *grid;
    uint8_t *codes;  ///< [n, k]
} qrt_column_rounding;

/// Numbers that stay as they are where their codes would lose too much.
typedef struct {
    const double *limits;  ///< [k], in the order of columns: the most that the square of a loss may be
    float *reals;          ///< [n, k]: what codes stand for, or the numbers that stay
    uint8_t *is_apart;     ///< [n, k]: 1 where a number stays; its code is then the one nearest to 0
} qrt_kept_apart;

/// Each column of weights w to the nearest codes for w_j + Σ_{i<j} (w_i − ŵ_i) · coupling[i, j], in the given order of columns.
/// `coupling` is [k, k] in that order and as panels. `block` columns are finished before what they change is added up for
/// the next ones. `apart` may be NULL: all are rounded. False without memory.
bool qrt_round_with_feedback(const qrt_column_rounding *r, const double *coupling, int64_t block, const qrt_kept_apart *apart,
                             int num_threads);

/// Sweeps of coordinate descent for ‖(w − ŵ) X‖² from `start`: each column to the nearest codes for its best value with all
/// others as they are, ŵ_j + [(w − ŵ) Σ]_j / Σ_jj; a sweep that `is_relaxed` takes that value itself. `sigma` is Σ [k, k] in
/// the order of columns and as panels, `diagonal` its Σ_jj; where that is 0 the best value is what there is. With `is_feasible`,
/// `codes` hold what `start` [n, k] stands for, and a code changes for a better one only. False without memory.
bool qrt_round_by_descent(const qrt_column_rounding *r, const double *sigma, const double *diagonal, const float *start,
                          bool is_feasible, int64_t sweeps, const uint8_t *is_relaxed, int num_threads);

#endif
