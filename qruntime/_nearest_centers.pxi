# Points beside the centres of clusters.

cdef extern from "nearest_centers.h" nogil:
    bint qrt_nearest_centers(int64_t, int64_t, int64_t, const double *, const double *, int64_t *, double *)
    bint qrt_settle_centers(int64_t, int64_t, int64_t, int64_t, const double *, double *, int64_t *, double *, int, int)


def nearest_centers(const double[:, ::1] points, const double[:, ::1] centers, int64_t[::1] labels, double[::1] squares):
    """Into `labels` [n] the nearest of `centers` [m, d], m > 0, for each of `points` [n, d], the first of those equally near; into
    `squares` [n] the squares of their distances."""
    cdef int64_t n = points.shape[0], m = centers.shape[0], d = points.shape[1]
    cdef bint is_done
    if m == 0 or centers.shape[1] != d or labels.shape[0] != n or squares.shape[0] != n:
        raise ValueError(f"{n} points of {d} numbers need centers of as many, one at least, and a label and a square for each point")
    if n == 0 or d == 0:
        labels[:] = 0
        squares[:] = 0
        return
    with nogil:
        is_done = qrt_nearest_centers(n, m, d, &points[0, 0], &centers[0, 0], &labels[0], &squares[0])
    if not is_done:
        raise MemoryError(f"no memory for {m} centers of {d} numbers")


def settle_centers(const double[:, ::1] points, double[:, :, ::1] centers, int64_t[:, ::1] labels, double[:, ::1] squares, int rounds):
    """Lloyd's rounds of k-means, `rounds` at most, from each of several sets of `centers` [s, m, d], which are overwritten, among `points`
    [n, d], none of these sizes 0: the last labels and squares of distances [s, n] as `nearest_centers` has them. Centers without points
    are dropped, so labels number those that are left."""
    cdef int64_t n = points.shape[0], d = points.shape[1], s = centers.shape[0], m = centers.shape[1]
    cdef int num_threads = qrt_definition_threads or qrt_default_threads()
    cdef bint is_done
    fits = centers.shape[2] == d and labels.shape[0] == squares.shape[0] == s and labels.shape[1] == squares.shape[1] == n
    if not fits or 0 in (n, d, s, m):
        raise ValueError(f"{n} points of {d} numbers need several centers of as many, and a label and a square for each point and start")
    with nogil:
        is_done = qrt_settle_centers(
            s, n, m, d, &points[0, 0], &centers[0, 0, 0], &labels[0, 0], &squares[0, 0], rounds, num_threads
        )
    if not is_done:
        raise MemoryError(f"no memory for {s} times {m} centers of {d} numbers")
