/// The extremes of the columns and rows of a matrix, and hashes of its rows, for calibration: read once, whatever else is asked of it.
#ifndef QRT_OBSERVED_ROWS_H
#define QRT_OBSERVED_ROWS_H

#include <stdbool.h>
#include <stdint.h>

/// low[j] and high[j] [k] become the least and greatest of column j of rows > 0 rows of k numbers, to which x [rows] points;
/// peaks[r] the greatest |x| of row r, NaN where the row holds one. With NaN in a column its extremes mean nothing. hashes[r] follows from
/// the bits of row r at most `num_factors` > 0 columns apart alike, each times one of `factors`; both zeros are one. False without memory.
bool qrt_observe_rows(int64_t rows, int64_t k, const float *const *x, float *low, float *high, float *peaks, int num_factors,
                      const uint64_t *factors, uint64_t *hashes, int num_threads);

#endif
