# Points beside the centres of clusters.

cdef extern from "nearest_centers.h" nogil:
    void qrt_nearest_centers(int64_t, int64_t, int64_t, const double *, const double *, int64_t *, double *)


def nearest_centers(const double[:, ::1] points, const double[:, ::1] centers, int64_t[::1] labels, double[::1] squares):
    """Into `labels` [n] the nearest of `centers` [m, d], m > 0, for each of `points` [n, d], the first of those equally near; into
    `squares` [n] the squares of their distances."""
    cdef int64_t n = points.shape[0], m = centers.shape[0], d = points.shape[1]
    if m == 0 or centers.shape[1] != d or labels.shape[0] != n or squares.shape[0] != n:
        raise ValueError(f"{n} points of {d} numbers need centers of as many, one at least, and a label and a square for each point")
    if n == 0 or d == 0:
        labels[:] = 0
        squares[:] = 0
        return
    with nogil:
        qrt_nearest_centers(n, m, d, &points[0, 0], &centers[0, 0], &labels[0], &squares[0])
