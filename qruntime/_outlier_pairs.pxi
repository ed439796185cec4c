# Outlier-victim pairs, for quantization.


def pair_values(const float[:, ::1] x, const float[::1] scale, signed char[:, ::1] values):
    """What outlier-victim pairs along the rows of `x` make of it, in units of the `scale` of each row."""
    cdef int64_t rows = x.shape[0], k = x.shape[1], i
    if scale.shape[0] != rows or values.shape[0] != rows or values.shape[1] != k:
        raise ValueError(f"values needs the shape of x, and scale {rows} elements")
    if rows == 0 or k == 0:
        return
    with nogil:
        for i in range(rows):
            qrt_kernels.outlier_pairs.values(&x[i, 0], k, scale[i], &values[i, 0])


def pair_errors(const float[:, ::1] x, const float[::1] weights, const float[:, ::1] scales, double[:, ::1] errors):
    """Add to `errors` [rows, scales] the squares of what each row of the finite `x` [rows, K] loses at each of its scales, in units
    of it, each element counted `weights` [K] times.

    `errors` and `scales` of one row are for all rows of `x` together.
    """
    cdef int64_t rows = x.shape[0], k = x.shape[1], count = scales.shape[1], i
    cdef int64_t step = 0 if scales.shape[0] == 1 else 1
    if scales.shape[0] not in (1, rows) or errors.shape[0] != scales.shape[0] or errors.shape[1] != count:
        raise ValueError(f"scales needs 1 row or {rows}, and errors the shape of scales")
    if weights.shape[0] != k:
        raise ValueError(f"weights needs {k} elements")
    if rows == 0 or k == 0 or count == 0:
        return
    with nogil:
        for i in range(rows):
            qrt_kernels.outlier_pairs.errors(&x[i, 0], &weights[0], k, &scales[i * step, 0], count, &errors[i * step, 0])
