# Rounding of weights to their codes, each number alone or column by column, for quantization.

cdef extern from "column_sums.h" nogil:
    enum: QRT_PANEL

cdef extern from "column_rounding.h" nogil:
    ctypedef struct qrt_column_rounding:
        int64_t n
        int64_t k
        const float *weight
        const int32_t *order
        const qrt_code_grid *grid
        uint8_t *codes
    ctypedef struct qrt_kept_apart:
        const double *limits
        float *reals
        uint8_t *is_apart
    bint qrt_round_with_feedback(const qrt_column_rounding *, const double *, int64_t, const qrt_kept_apart *, int)
    bint qrt_round_by_descent(const qrt_column_rounding *, const double *, const double *, const float *, bint, int64_t, const uint8_t *, int)

COLUMN_PANEL = QRT_PANEL
"""Columns of a panel: matrices [K, K] are given as panels [⌈K / COLUMN_PANEL⌉, K, COLUMN_PANEL]."""


cdef class CodeGrid:
    """The numbers that the codes of a weight [N, K] stand for.

    `scale`, `divisor` (the scale where that is above 0) and `zero_point` [N, G] float32; `group` [K] int32 says which of the G a
    column has. Integers lie between `low` and `high`, and zero points that are `fractional` are added before rounding; of a
    table there are `entries`, ascending, what lies in the `middles` between them, and their codes `entry_codes`.
    """

    cdef const float[:, ::1] scale, divisor, zero_point
    cdef const int32_t[::1] group
    cdef const float[::1] entries, middles
    cdef const uint8_t[::1] entry_codes
    cdef qrt_code_grid grid

    def __init__(self, const float[:, ::1] scale, const float[:, ::1] divisor, const float[:, ::1] zero_point, bint fractional,
                 const int32_t[::1] group, float low, float high, const float[::1] entries=None, const float[::1] middles=None,
                 const uint8_t[::1] entry_codes=None):
        cdef int64_t groups = scale.shape[1], j
        if scale.shape[0] < 1 or groups < 1 or group.shape[0] < 1:
            raise ValueError(f"a grid needs scales and columns, got scales of shape ({scale.shape[0]}, {groups}) and {group.shape[0]} columns")
        if divisor.shape[0] != scale.shape[0] or zero_point.shape[0] != scale.shape[0]:
            raise ValueError(f"divisors and zero points need the {scale.shape[0]} rows of the scales")
        if divisor.shape[1] != groups or zero_point.shape[1] != groups:
            raise ValueError(f"divisors and zero points need the {groups} groups of the scales")
        for j in range(group.shape[0]):
            if not 0 <= group[j] < groups:
                raise ValueError(f"column {j} is of group {group[j]}, there are {groups}")
        if entries is None and not -128 <= low <= high <= 255:
            raise ValueError(f"the codes {low} … {high} do not lie in a byte")
        self.scale, self.divisor, self.zero_point, self.group = scale, divisor, zero_point, group
        self.grid.scale, self.grid.divisor, self.grid.zero_point = &scale[0, 0], &divisor[0, 0], &zero_point[0, 0]
        self.grid.group, self.grid.is_fractional = &group[0], fractional
        self.grid.groups, self.grid.low, self.grid.high, self.grid.num_entries = groups, low, high, 0
        if entries is not None:
            if entries.shape[0] < 2 or middles.shape[0] != entries.shape[0] - 1 or entry_codes.shape[0] != entries.shape[0]:
                raise ValueError("a table needs two entries and more, a middle between each two and a code for each")
            self.entries, self.middles, self.entry_codes = entries, middles, entry_codes
            self.grid.num_entries = entries.shape[0]
            self.grid.entries, self.grid.middles, self.grid.codes = &entries[0], &middles[0], &entry_codes[0]


def round_to_grid(const float[:, ::1] x, CodeGrid grid, uint8_t[:, ::1] codes, float[:, ::1] values):
    """Each number of a finite `x` [N, K] to the nearest code: `codes` [N, K], and what these stand for, `values` [N, K]."""
    cdef int64_t n = x.shape[0], k = x.shape[1]
    if n != grid.scale.shape[0] or k != grid.group.shape[0]:
        raise ValueError(f"the grid needs the shape of x, ({n}, {k})")
    if codes.shape[0] != n or codes.shape[1] != k or values.shape[0] != n or values.shape[1] != k:
        raise ValueError(f"codes and values need the shape of x, ({n}, {k})")
    with nogil:
        qrt_kernels.code_grid.round(&grid.grid, n, k, &x[0, 0], &codes[0, 0], &values[0, 0])


cdef int _bind_rounding(qrt_column_rounding *r, const float[:, ::1] weight, const int32_t[::1] order, const double[:, :, ::1] panels,
                        CodeGrid grid, uint8_t[:, ::1] codes) except -1:
    cdef int64_t n = weight.shape[0], k = weight.shape[1], j
    if n != grid.scale.shape[0] or k != grid.group.shape[0] or codes.shape[0] != n or codes.shape[1] != k:
        raise ValueError(f"the grid and the codes need the shape of the weight, ({n}, {k})")
    if panels.shape[0] != (k + QRT_PANEL - 1) // QRT_PANEL or panels.shape[1] != k or panels.shape[2] != QRT_PANEL:
        raise ValueError(f"the matrix needs {k} rows and columns, in panels of {QRT_PANEL}")
    if order.shape[0] != k:
        raise ValueError(f"the order needs {k} columns, got {order.shape[0]}")
    seen = bytearray(k)
    cdef uint8_t[::1] is_seen = seen
    for j in range(k):
        if not 0 <= order[j] < k or is_seen[order[j]]:
            raise ValueError("the order must name every column once")
        is_seen[order[j]] = 1
    r.n, r.k, r.weight, r.order, r.grid, r.codes = n, k, &weight[0, 0], &order[0], &grid.grid, &codes[0, 0]
    return 0


def round_with_feedback(const float[:, ::1] weight, const int32_t[::1] order, const double[:, :, ::1] coupling, CodeGrid grid,
                        uint8_t[:, ::1] codes, int64_t block, const double[::1] limits=None, float[:, ::1] reals=None,
                        uint8_t[:, ::1] apart=None):
    """Columns of the finite `weight` [N, K] one after the other in `order` to the codes nearest to w_j + Σ_{i<j} (w_i − ŵ_i) C_ij.

    `coupling`: C in that order, as panels. `block`: columns between two updates of those to come; the codes do not depend on it.
    With `limits` [K], in that order: where the square of what is lost would be above, the number stays. `reals` [N, K] get
    what stands in place of the weight then, and `apart` [N, K] 1 where that is no code; the code is the one nearest to 0.
    """
    cdef qrt_column_rounding r
    cdef qrt_kept_apart outliers
    cdef const qrt_kept_apart *kept = NULL
    cdef bint is_done
    cdef int num_threads = qrt_definition_threads or qrt_default_threads()
    _bind_rounding(&r, weight, order, coupling, grid, codes)
    if block < 1:
        raise ValueError(f"a block has a column at least, got {block}")
    if limits is not None:
        if reals is None or reals.shape[0] != r.n or reals.shape[1] != r.k or apart is None or apart.shape[0] != r.n or apart.shape[1] != r.k:
            raise ValueError(f"what stands in place of the weight needs its shape, ({r.n}, {r.k})")
        if limits.shape[0] != r.k:
            raise ValueError(f"{r.k} columns need a limit each, got {limits.shape[0]}")
        outliers.limits, outliers.reals, outliers.is_apart = &limits[0], &reals[0, 0], &apart[0, 0]
        kept = &outliers
    with nogil:
        is_done = qrt_round_with_feedback(&r, &coupling[0, 0, 0], block, kept, num_threads)
    if not is_done:
        raise MemoryError(f"no memory to round a weight of shape ({r.n}, {r.k})")


def round_by_descent(const float[:, ::1] weight, const int32_t[::1] order, const double[:, :, ::1] sigma, const double[::1] diagonal,
                     CodeGrid grid, const float[:, ::1] start, bint is_feasible, const uint8_t[::1] is_relaxed, uint8_t[:, ::1] codes):
    """Sweeps of coordinate descent over the columns in `order`, from the numbers `start` [N, K], which `codes` hold if `is_feasible`.

    `sigma`: Σ in that order, as panels; `diagonal` its diagonal. A sweep for each of `is_relaxed`; the last rounds.
    """
    cdef qrt_column_rounding r
    cdef bint is_done
    cdef int num_threads = qrt_definition_threads or qrt_default_threads()
    cdef int64_t sweeps = is_relaxed.shape[0]
    _bind_rounding(&r, weight, order, sigma, grid, codes)
    if start.shape[0] != r.n or start.shape[1] != r.k or diagonal.shape[0] != r.k:
        raise ValueError(f"the start needs the shape of the weight, and the diagonal {r.k} elements")
    if sweeps < 1 or is_relaxed[sweeps - 1]:
        raise ValueError("the last sweep must round")
    with nogil:
        is_done = qrt_round_by_descent(&r, &sigma[0, 0, 0], &diagonal[0], &start[0, 0], is_feasible, sweeps, &is_relaxed[0], num_threads)
    if not is_done:
        raise MemoryError(f"no memory to round a weight of shape ({r.n}, {r.k})")
