#include "nearest_centers.h"

/// Centres whose distances are found side by side.
enum { LANES = 16 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/// Squares of the distances of one point from `count` centres, LANES at most.
static inline void distances(int64_t count, int64_t d, const double *x, const double *centers, double *squares) {
    for (int64_t c = 0; c < count; c++) squares[c] = 0;
    for (int64_t j = 0; j < d; j++) {
        for (int64_t c = 0; c < count; c++) {
            double apart = x[j] - centers[c * d + j];
            squares[c] += apart * apart;
        }
    }
}

void qrt_nearest_centers(int64_t n, int64_t m, int64_t d, const double *x, const double *centers, int64_t *labels, double *squares) {
    for (int64_t i = 0; i < n; i++, x += d) {
        double found[LANES], least = 0;
        int64_t label = -1;
        for (int64_t first = 0; first < m; first += LANES) {
            const int64_t count = min64(LANES, m - first);
            distances(count, d, x, centers + first * d, found);
            for (int64_t c = 0; c < count; c++) {
                if (label < 0 || found[c] < least) least = found[c], label = first + c;
            }
        }
        labels[i] = label, squares[i] = least;
    }
}
