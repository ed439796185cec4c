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

cdef extern from "row_codes.h" nogil:
    ctypedef struct qrt_row_form:
        int32_t low
        int32_t high
        bint is_symmetric
    bint qrt_row_codes(int64_t, int64_t, const float *, const float *, const qrt_row_form *, unsigned char *, float *, float *, float *)


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


def row_codes(const float[:, ::1] x, const float[::1] factor, int low, int high, bint is_symmetric, unsigned char[:, ::1] codes,
              float[::1] scale, float[::1] zero_point):
    """Codes [N, K], from `low` to `high`, of the weight `x` [N, K] times `factor` [K], with a scale and a zero point [N] that cover
    each row; of a symmetric grid from −`high` on. Raises ValueError where a product is not finite."""
    cdef int64_t n = x.shape[0], k = x.shape[1]
    cdef qrt_row_form form
    cdef bint is_finite
    if factor.shape[0] != k or codes.shape[0] != n or codes.shape[1] != k or scale.shape[0] != n or zero_point.shape[0] != n:
        raise ValueError(f"x of shape ({n}, {k}) needs codes of its shape, a factor for each column, a scale and a zero point for each row")
    if not -128 <= low <= 0 < high <= 255:
        raise ValueError(f"the codes {low} … {high} do not lie in a byte with 0 among them")
    if n == 0 or k == 0:
        raise ValueError(f"x is empty, its shape is ({n}, {k})")
    cdef float[::1] room = np.empty(2 * k, np.float32)
    form.low, form.high, form.is_symmetric = low, high, is_symmetric
    with nogil:
        is_finite = qrt_row_codes(n, k, &x[0, 0], &factor[0], &form, &codes[0, 0], &scale[0], &zero_point[0], &room[0])
    if not is_finite:
        raise ValueError("the weight holds NaN or infinity")


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
