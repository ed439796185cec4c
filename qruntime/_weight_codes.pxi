# Codes of weights, for quantization.

cdef extern from "weight_codes.h" nogil:
    ctypedef struct qrt_code_forms:
        const float *scale
        const float *inverse
        const float *low
        const float *high
        const float *zero_point
    void qrt_weight_codes(const float *, int64_t, int64_t, bint, const qrt_code_forms *, signed char *, double *, double *)
    ctypedef struct qrt_table_form:
        float low
        float high
        float epsilon
    bint qrt_table_codes(const float *, int64_t, int64_t, const qrt_table_form *, unsigned char *, float *, float *, double *, double *)


def weight_codes(const float[:, ::1] x, bint by_column, const float[:, ::1] forms, signed char[:, ::1] q, double[::1] signal,
                 double[::1] noise):
    """Round the finite matrix `x` to codes `q` of its shape and add the powers of each slice to `signal` and `noise`.

    `forms` [5, slices]: scale, its inverse, least and greatest code less the zero point, zero point. The slices are the
    columns, or the rows. Both powers are in units of the scale.
    """
    cdef int64_t slices = x.shape[1] if by_column else x.shape[0]
    if q.shape[0] != x.shape[0] or q.shape[1] != x.shape[1] or forms.shape[0] != 5:
        raise ValueError("q needs the shape of x, and forms 5 rows")
    if forms.shape[1] != slices or signal.shape[0] != slices or noise.shape[0] != slices:
        raise ValueError(f"forms, signal and noise need {slices} columns")
    if x.shape[0] == 0 or x.shape[1] == 0:
        return
    cdef qrt_code_forms each
    each.scale, each.inverse, each.low = &forms[0, 0], &forms[1, 0], &forms[2, 0]
    each.high, each.zero_point = &forms[3, 0], &forms[4, 0]
    with nogil:
        qrt_weight_codes(&x[0, 0], x.shape[0], x.shape[1], by_column, &each, &q[0, 0], &signal[0], &noise[0])


def table_codes(const float[:, ::1] x, int low, int high, float epsilon, unsigned char[:, ::1] q, float[::1] scale,
                float[::1] offset):
    """Codes `q` of the shape of `x`, from `low` to `high`, with a scale and an offset for each row.

    Returns the sums of squares of `x` and of its errors. Raises ValueError where `x` is not finite.
    """
    cdef int64_t rows = x.shape[0]
    cdef double signal = 0, noise = 0
    cdef bint is_finite
    if q.shape[0] != rows or q.shape[1] != x.shape[1] or scale.shape[0] != rows or offset.shape[0] != rows:
        raise ValueError(f"q needs the shape of x, scale and offset {rows} elements")
    if not 0 <= low < high <= 255:
        raise ValueError(f"the codes {low} … {high} do not lie in a byte")
    if rows == 0 or x.shape[1] == 0:
        raise ValueError(f"x is empty, its shape is ({rows}, {x.shape[1]})")
    cdef qrt_table_form form
    form.low, form.high, form.epsilon = low, high, epsilon
    with nogil:
        is_finite = qrt_table_codes(&x[0, 0], rows, x.shape[1], &form, &q[0, 0], &scale[0], &offset[0], &signal, &noise)
    if not is_finite:
        raise ValueError("the table holds NaN or infinity")
    return signal, noise
