/// The step of k-means that looks at all points and all centres.
#ifndef QRT_NEAREST_CENTERS_H
#define QRT_NEAREST_CENTERS_H

#include <stdint.h>

/// labels[i] becomes the centre of `centers` [m, d] nearest to the point x[i] of x [n, d], the first of those equally near, and
/// squares[i] the square of its distance: Σ (x − c)² in the order of dimensions. m > 0.
void qrt_nearest_centers(int64_t n, int64_t m, int64_t d, const double *x, const double *centers, int64_t *labels, double *squares);

#endif
