# Extremes, hashes and exact sums of the rows that calibration saw.

cdef extern from "observed_rows.h" nogil:
    bint qrt_observe_rows(int64_t, int64_t, const float **, float *, float *, float *, int, const uint64_t *, uint64_t *, int)

cdef extern from "gram.h" nogil:
    enum: QRT_GRAM_CODE
    bint qrt_gram_of_codes(int64_t, int64_t, const float **, const float *, uint8_t *, int64_t *, int)
    void qrt_sum_magnitudes(int64_t, int64_t, const float **, const float *, int64_t *, int)

GRAM_CODE = QRT_GRAM_CODE
"""The largest code of `gram_of_codes`."""


cdef const float **_rows_of(list batches, int64_t k, int64_t *rows) except NULL:
    """Pointers to the rows of all batches, each [T_i, k], to be freed, and how many they are."""
    cdef const float[:, ::1] x
    cdef const float **each
    cdef int64_t taken = 0, row
    rows[0] = 0
    for batch in batches:
        x = batch
        if x.shape[1] != k:
            raise ValueError(f"rows of {k} channels are needed, got some of {x.shape[1]}")
        rows[0] += x.shape[0]
    each = <const float **>malloc(max(1, rows[0]) * sizeof(float *))
    if each is NULL:
        raise MemoryError(f"no memory for {rows[0]} rows")
    for batch in batches:
        x = batch
        for row in range(x.shape[0] if k else 0):
            each[taken + row] = &x[row, 0]
        taken += x.shape[0]
    return each


def observe_rows(
    list batches, float[::1] low, float[::1] high, float[::1] peaks, const uint64_t[::1] factors, uint64_t[::1] hashes
):
    """The least and greatest of each column of the rows of all `batches`, each [T_i, K] and not all empty, into `low` and `high` [K];
    into `peaks` [Σ T_i] the greatest magnitude of each row, NaN where that holds one: extremes of its columns mean nothing then; into
    `hashes` [Σ T_i] a number that the bits of each row make, of as many columns as there are `factors`, at least one."""
    cdef int64_t k = low.shape[0], rows
    cdef int num_threads = qrt_definition_threads or qrt_default_threads()
    cdef bint is_done = True
    cdef const float **each = _rows_of(batches, k, &rows)
    try:
        if rows == 0 or high.shape[0] != k or peaks.shape[0] != rows or hashes.shape[0] != rows or factors.shape[0] == 0:
            raise ValueError(
                f"{rows} rows of {k} channels need a row at least, two extremes for each channel, a peak and a hash for each row, and factors"
            )
        if k == 0:
            peaks[:] = 0
            hashes[:] = 0
        else:
            with nogil:
                is_done = qrt_observe_rows(
                    rows, k, each, &low[0], &high[0], &peaks[0], <int>factors.shape[0], &factors[0], &hashes[0], num_threads
                )
    finally:
        free(each)
    if not is_done:
        raise MemoryError(f"no memory for the extremes of {rows} rows of {k} channels")


def gram_of_codes(list batches, const float[::1] inverse_step, int64_t[:, ::1] total, uint8_t[::1] apart):
    """XᵀX of the codes round(x · inverse_step) of the rows of all `batches`, each [T_i, K], as the upper triangle of `total` [K, K].

    A row with a code beyond GRAM_CODE, or with NaN, is left out and gets 1 in `apart` [Σ T_i], others 0.
    """
    cdef int64_t k = inverse_step.shape[0], rows
    cdef int num_threads = qrt_definition_threads or qrt_default_threads()
    cdef bint is_done = True
    cdef const float **each = _rows_of(batches, k, &rows)
    try:
        if total.shape[0] != k or total.shape[1] != k or apart.shape[0] != rows:
            raise ValueError(f"{rows} rows of {k} channels need sums ({k}, {k}) and a mark for each row")
        if rows == 0 or k == 0:
            total[:] = 0
            apart[:] = 0
        else:
            with nogil:
                is_done = qrt_gram_of_codes(rows, k, each, &inverse_step[0], &apart[0], &total[0, 0], num_threads)
    finally:
        free(each)
    if not is_done:
        raise MemoryError(f"no memory for the codes of {rows} rows of {k} channels")


def sum_magnitudes(list batches, const float[::1] inverse_step, int64_t[::1] total):
    """Σ |round(x · inverse_step)| of the finite rows of all `batches`, each [T_i, K], no code beyond 2^21, into `total` [K]."""
    cdef int64_t k = inverse_step.shape[0], rows
    cdef int num_threads = qrt_definition_threads or qrt_default_threads()
    cdef const float **each = _rows_of(batches, k, &rows)
    try:
        if total.shape[0] != k:
            raise ValueError(f"{k} channels need a step and a sum each")
        if k:
            with nogil:
                qrt_sum_magnitudes(rows, k, each, &inverse_step[0], &total[0], num_threads)
    finally:
        free(each)
