# Extremes and exact sums of the rows that calibration saw.

cdef extern from "observed_rows.h" nogil:
    bint qrt_observe_rows(int64_t, int64_t, const float *, float *, float *, float *, int)

cdef extern from "gram.h" nogil:
    enum: QRT_GRAM_CODE
    bint qrt_gram_of_codes(int64_t, int64_t, const float **, const float *, uint8_t *, int64_t *, int)
    void qrt_sum_magnitudes(int64_t, int64_t, const float *, const float *, int64_t *, int)

GRAM_CODE = QRT_GRAM_CODE
"""The largest code of `gram_of_codes`."""


def observe_rows(const float[:, ::1] x, float[::1] low, float[::1] high, float[::1] peaks):
    """The least and greatest of each column of the rows [T, K], T > 0, into `low` and `high` [K]; into `peaks` [T] the greatest
    magnitude of each row, NaN where that holds one: extremes of its columns mean nothing then."""
    cdef int64_t rows = x.shape[0], k = x.shape[1]
    cdef int num_threads = qrt_definition_threads or qrt_default_threads()
    cdef bint is_done
    if rows == 0 or low.shape[0] != k or high.shape[0] != k or peaks.shape[0] != rows:
        raise ValueError(f"{rows} rows of {k} channels need a row at least, two extremes for each channel and a peak for each row")
    if k == 0:
        peaks[:] = 0
        return
    with nogil:
        is_done = qrt_observe_rows(rows, k, &x[0, 0], &low[0], &high[0], &peaks[0], num_threads)
    if not is_done:
        raise MemoryError(f"no memory for the extremes of {rows} rows of {k} channels")


def gram_of_codes(list batches, const float[::1] inverse_step, int64_t[:, ::1] total, uint8_t[::1] apart):
    """Add XᵀX of the codes round(x · inverse_step) of the rows of all `batches`, each [T_i, K], to the upper triangle of `total` [K, K].

    A row with a code beyond GRAM_CODE, or with NaN, is left out and gets 1 in `apart` [Σ T_i].
    """
    cdef int64_t k = inverse_step.shape[0], rows = 0, taken = 0, row
    cdef int num_threads = qrt_definition_threads or qrt_default_threads()
    cdef const float[:, ::1] x
    cdef const float **each
    cdef bint is_done, fits = total.shape[0] == k and total.shape[1] == k
    for batch in batches:
        x = batch
        rows, fits = rows + x.shape[0], fits and x.shape[1] == k
    if not fits or apart.shape[0] != rows:
        raise ValueError(f"{rows} rows of {k} channels need rows of as many, sums ({k}, {k}) and a mark for each row")
    if rows == 0 or k == 0:
        return
    each = <const float **>malloc(rows * sizeof(float *))
    if each is NULL:
        raise MemoryError(f"no memory for {rows} rows")
    try:
        for batch in batches:
            x = batch
            for row in range(x.shape[0]):
                each[taken + row] = &x[row, 0]
            taken += x.shape[0]
        with nogil:
            is_done = qrt_gram_of_codes(rows, k, each, &inverse_step[0], &apart[0], &total[0, 0], num_threads)
    finally:
        free(each)
    if not is_done:
        raise MemoryError(f"no memory for the codes of {rows} rows of {k} channels")


def sum_magnitudes(const float[:, ::1] x, const float[::1] inverse_step, int64_t[::1] total):
    """Add Σ |round(x · inverse_step)| of the finite rows [T, K], no code beyond 2^21, to `total` [K]."""
    cdef int64_t rows = x.shape[0], k = x.shape[1]
    cdef int num_threads = qrt_definition_threads or qrt_default_threads()
    if inverse_step.shape[0] != k or total.shape[0] != k:
        raise ValueError(f"{k} channels need a step and a sum each")
    if rows == 0 or k == 0:
        return
    with nogil:
        qrt_sum_magnitudes(rows, k, &x[0, 0], &inverse_step[0], &total[0], num_threads)
