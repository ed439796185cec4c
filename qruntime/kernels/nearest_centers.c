#include "nearest_centers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

/// Centres whose distances are found side by side.
enum { LANES = 16 };

static int64_t num_panels(int64_t m) { return (m + LANES - 1) / LANES; }

/// Centres as panels [⌈m / LANES⌉, d, LANES], filled up with some that nothing is near to.
static void lay_out(int64_t m, int64_t d, const double *centers, double *panels) {
    for (int64_t first = 0; first < m; first += LANES, panels += d * LANES)
        for (int64_t j = 0; j < d; j++)
            for (int64_t c = 0; c < LANES; c++) panels[j * LANES + c] = first + c < m ? centers[(first + c) * d + j] : INFINITY;
}

/// Squares of the distances of one point from the centres of a panel, and the least of them.
static double distances(int64_t d, const double *restrict x, const double *restrict panel, double *restrict squares) {
    for (int c = 0; c < LANES; c++) squares[c] = 0;
    for (int64_t j = 0; j < d; j++) {
        for (int c = 0; c < LANES; c++) {
            double apart = x[j] - panel[j * LANES + c];
            squares[c] += apart * apart;
        }
    }
    double least[LANES / 2];
    for (int c = 0; c < LANES / 2; c++) least[c] = squares[c + LANES / 2] < squares[c] ? squares[c + LANES / 2] : squares[c];
    for (int half = LANES / 4; half > 0; half /= 2)
        for (int c = 0; c < half; c++) least[c] = least[c + half] < least[c] ? least[c + half] : least[c];
    return least[0];
}

static void find_nearest(int64_t n, int64_t m, int64_t d, const double *x, const double *panels, int64_t *labels, double *squares) {
    for (int64_t i = 0; i < n; i++, x += d) {
        double found[LANES], least = INFINITY;
        int64_t label = 0;
        for (int64_t p = 0; p < num_panels(m); p++) {
            const double own = distances(d, x, panels + p * d * LANES, found);
            if (!(own < least)) continue;
            int c = 0;
            while (c < LANES - 1 && found[c] != own) c++;
            least = own, label = p * LANES + c;
        }
        labels[i] = label, squares[i] = least;
    }
}

bool qrt_nearest_centers(int64_t n, int64_t m, int64_t d, const double *x, const double *centers, int64_t *labels, double *squares) {
    double *panels = malloc((size_t)(num_panels(m) * LANES * d) * sizeof *panels);
    if (!panels) return false;
    lay_out(m, d, centers, panels);
    find_nearest(n, m, d, x, panels, labels, squares);
    free(panels);
    return true;
}

/// What one start needs beside its results.
typedef struct {
    double *panels, *sums;
    int64_t *sizes, *moved;
} scratch;

typedef struct {
    int64_t n, m, d;
    const double *x;
    double *centers, *squares;
    int64_t *labels;
    int rounds;
    scratch *of_start;
} settling;

/// `centers` become the means of their points; how many have some.
static int64_t take_means(const settling *s, int64_t m, const int64_t *labels, const scratch *own, double *centers) {
    const int64_t d = s->d;
    memset(own->sums, 0, (size_t)(m * d) * sizeof *own->sums);
    memset(own->sizes, 0, (size_t)m * sizeof *own->sizes);
    for (int64_t i = 0; i < s->n; i++) {
        own->sizes[labels[i]]++;
        for (int64_t j = 0; j < d; j++) own->sums[labels[i] * d + j] += s->x[i * d + j];
    }
    int64_t left = 0;
    for (int64_t c = 0; c < m; c++) {
        if (!own->sizes[c]) continue;
        for (int64_t j = 0; j < d; j++) centers[left * d + j] = own->sums[c * d + j] / (double)own->sizes[c];
        left++;
    }
    return left;
}

static void settle(void *context, int64_t start) {
    const settling *s = context;
    const scratch *own = &s->of_start[start];
    double *centers = s->centers + start * s->m * s->d, *squares = s->squares + start * s->n;
    int64_t *labels = s->labels + start * s->n, m = s->m;
    lay_out(m, s->d, centers, own->panels);
    find_nearest(s->n, m, s->d, s->x, own->panels, labels, squares);
    for (int round = 0; round < s->rounds; round++) {
        m = take_means(s, m, labels, own, centers);
        lay_out(m, s->d, centers, own->panels);
        find_nearest(s->n, m, s->d, s->x, own->panels, own->moved, squares);
        if (!memcmp(labels, own->moved, (size_t)s->n * sizeof *labels)) break;
        memcpy(labels, own->moved, (size_t)s->n * sizeof *labels);
    }
}

bool qrt_settle_centers(int64_t starts, int64_t n, int64_t m, int64_t d, const double *x, double *centers, int64_t *labels,
                        double *squares, int rounds, int num_threads) {
    const size_t panel = (size_t)(num_panels(m) * LANES * d), doubles = panel + (size_t)(m * d), whole = (size_t)(m + n);
    double *floats = malloc((size_t)starts * doubles * sizeof *floats);
    int64_t *integers = malloc((size_t)starts * whole * sizeof *integers);
    scratch *each = malloc((size_t)starts * sizeof *each);
    const bool is_able = floats && integers && each;
    if (is_able) {
        for (int64_t s = 0; s < starts; s++) {
            double *own = floats + (size_t)s * doubles;
            int64_t *counts = integers + (size_t)s * whole;
            each[s] = (scratch){own, own + panel, counts, counts + m};
        }
        settling call = {n, m, d, x, centers, squares, labels, rounds, each};
        qrt_parallel_for(num_threads, starts, settle, &call);
    }
    free(floats), free(integers), free(each);
    return is_able;
}
