/// k-means: the step that looks at all points and all centres, and its rounds.
#ifndef QRT_NEAREST_CENTERS_H
#define QRT_NEAREST_CENTERS_H

#include <stdbool.h>
#include <stdint.h>

/// labels[i] becomes the centre of `centers` [m, d] nearest to the point x[i] of x [n, d], the first of those equally near, and
/// squares[i] the square of its distance: Σ (x − c)² in the order of dimensions. m > 0. False without memory.
bool qrt_nearest_centers(int64_t n, int64_t m, int64_t d, const double *x, const double *centers, int64_t *labels, double *squares);

/// Lloyd's rounds, `rounds` at most, from each of `starts` sets of `centers` [starts, m, d], which are overwritten: labels [starts, n] of the
/// centres that are left, those without points being dropped, and squares [starts, n], as above. Numbers mean something within a start
/// alone. False without memory.
bool qrt_settle_centers(int64_t starts, int64_t n, int64_t m, int64_t d, const double *x, double *centers, int64_t *labels,
                        double *squares, int rounds, int num_threads);

#endif
