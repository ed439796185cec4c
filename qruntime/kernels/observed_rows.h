/// The extremes of the columns and rows of a matrix, for calibration: read once, whatever else is asked of it.
#ifndef QRT_OBSERVED_ROWS_H
#define QRT_OBSERVED_ROWS_H

#include <stdbool.h>
#include <stdint.h>

/// low[j] and high[j] [k] become the least and greatest of column j of rows > 0 rows of k numbers, to which x [rows] points;
/// peaks[r] the greatest |x| of row r, NaN where the row holds one. With NaN in a column its extremes mean nothing. False without memory.
bool qrt_observe_rows(int64_t rows, int64_t k, const float *const *x, float *low, float *high, float *peaks, int num_threads);

#endif
