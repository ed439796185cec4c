# Weights of few bits in groups, in the layout that all rungs share.

from hashlib import blake2b

cdef extern from "nbits_weights.h" nogil:
    ctypedef struct qrt_nbits_weights:
        qrt_weights base
    ctypedef struct qrt_nbits_spec:
        int64_t k
        int64_t n
        int64_t group
        int bits
        const float *table
        const float *scales
        const uint16_t *half_scales
        const float *zero_points
        const float *bias
        bint reads_float8
        const int64_t *outlier_starts
        const uint16_t *outlier_inputs
        const float *outlier_values
    ctypedef struct qrt_nbits_source:
        const uint8_t *rows
        int64_t row_stride_bytes
        int bits
        bint high_half_first
        uint8_t offset
    size_t qrt_nbits_packed_bytes(const qrt_nbits_spec *)
    qrt_nbits_weights *qrt_nbits_new(const qrt_nbits_spec *, const qrt_gemm_nbits *, const qrt_gemm_f32 *, qrt_arena *)
    bint qrt_nbits_fill(qrt_nbits_weights *, int64_t, int64_t, const qrt_nbits_source *, int)
    void qrt_nbits_unpack(const qrt_nbits_weights *, int64_t, int64_t, uint8_t *, int64_t)

cdef extern from "nbits_outliers.h" nogil:
    void qrt_nbits_finish_outliers(qrt_nbits_weights *)

cdef extern from "gemm_nbits_q8.h" nogil:
    ctypedef struct qrt_nbits_q8_weights:
        qrt_nbits_weights w
    ctypedef struct qrt_nbits_q8_spec:
        qrt_nbits_spec weights
        const signed char *integers
        const uint8_t *zero_points
    size_t qrt_nbits_q8_packed_bytes(const qrt_nbits_q8_spec *)
    qrt_nbits_q8_weights *qrt_nbits_q8_new(const qrt_nbits_q8_spec *, const qrt_gemm_nbits_q8 *, qrt_arena *)
    void qrt_nbits_q8_finish(qrt_nbits_q8_weights *, int)

cdef extern from "gemm_clusters.h" nogil:
    ctypedef struct qrt_cluster_weights:
        pass
    ctypedef struct qrt_cluster_spec:
        qrt_nbits_spec weights
        const uint8_t *weight_zeros
        int64_t num_clusters
        const float *scales
        const uint8_t *zero_points
        const int32_t *fours
    size_t qrt_clusters_packed_bytes(const qrt_cluster_spec *)
    qrt_cluster_weights *qrt_clusters_new(const qrt_cluster_spec *, const qrt_gemm_clusters *, qrt_arena *)


cdef class PackedNBits(PackedWeights):
    """Weights [K, N] of 2, 3, 4 or 8 bits: decoded[n, k] = scale[n, g] · (value(code[n, k]) − zero[n, g]), g = k // group.

    Parameters: `codes` uint8 [N, K], a code each, or with `k` the rows of packed codes [N, bytes], one behind the other from the
    lowest bit of a byte up (of 4 bits from the upper half on with `high_half_first`); rows may lie anywhere, along a row bytes are
    dense. `offset` is added to each code modulo 2^bits: 2^(bits − 1) makes indices of two's complement. `scale` float32 [N, groups];
    `group` along K, K by default. A uniform code stands for code − zero point: `zero_point` [N, groups] in codes, which need not
    be whole, 2^(bits − 1) by default. With `table`, float32 [2^bits], it stands for an entry less `zero_point`, 0 by default. `bias`
    float32 [N] or None. `outliers` are numbers in place of what codes say, row after row of the codes: where those of each begin,
    int64 [N + 1]; their k, uint16 and ascending in a row; and they themselves, float32. ValueError for anything else; codes beyond
    the bits are found when they are packed.

    With `activations` "per_token" or "per_tensor" instead of "float" the layer quantizes them to 8 bits, by the range that the node
    is told. Then zero points have to be codes, and a table of 16 entries, without zero points: whole numbers from −128 to 127 times
    a power of two from 1 to 1 / 128.

    With `activations` "float8" it reads numbers of E4M3 times one scale a row, as RoundToFloat8 makes them; then there are no outliers.

    With `activations` "clusters" it reads codes whose channels, and K with them, stand in the order of clusters (kernels/gemm_clusters.h).
    `clusters` are float32 scales, uint8 zero points, and int32 numbers: how many times four channels each has. Then weights are uniform,
    have scales of rows, and zero points from which codes differ by −128 … 127.
    """

    cdef cnp.ndarray scale, zero_point, table
    cdef cnp.ndarray integers      # of a table, for quantized activations; `scale` is theirs then
    cdef cnp.ndarray outlier_starts, outlier_inputs, outlier_values
    cdef cnp.ndarray cluster_scale, cluster_zero_point, cluster_fours
    cdef readonly str activations
    cdef int64_t k, n, group
    cdef int bits, source_bits
    cdef uint8_t offset
    cdef bint high_half_first

    def __cinit__(self, codes, scale, zero_point=None, bias=None, *, int bits=0, table=None, group=None, k=None, int offset=0,
                  bint high_half_first=False, str activations="float", origin=None, outliers=None,
                  clusters=None):
        cdef cnp.ndarray q = np.asarray(codes)
        if q.dtype != np.uint8 or q.ndim != 2:
            raise ValueError(f"codes must be uint8 [N, K], got {shape_text(q)}")
        if table is not None:
            self.table = np.ascontiguousarray(table, dtype=np.float32)
            if self.table.ndim != 1 or self.table.size not in (4, 8, 16, 256):
                raise ValueError(f"table must be float32 of 4, 8, 16 or 256 entries, got {shape_text(self.table)}")
            bits = bits or int(self.table.size).bit_length() - 1
            if self.table.size != 1 << bits:
                raise ValueError(f"table of {bits} bits must have {1 << bits} entries, got {self.table.size}")
        if bits not in (2, 3, 4, 8):
            raise ValueError(f"bits must be 2, 3, 4 or 8, got {bits}")
        if high_half_first and (bits != 4 or k is None):
            raise ValueError("high_half_first is for packed codes of 4 bits")
        if not 0 <= offset < 1 << bits:
            raise ValueError(f"offset must lie in 0..{(1 << bits) - 1}, got {offset}")
        self.n, self.k = q.shape[0], q.shape[1] if k is None else k
        if k is not None and (self.k < 0 or (self.k * bits + 7) // 8 > q.shape[1]):
            raise ValueError(f"rows of {k} codes of {bits} bits need {(self.k * bits + 7) // 8} bytes, got {q.shape[1]}")
        self.group = max(self.k, 1) if group is None else group
        if self.group < 1:
            raise ValueError(f"group must be at least 1, got {group}")
        if q.shape[1] > 1 and q.strides[1] != 1:
            q = np.ascontiguousarray(q)
        shape = self.n, (self.k + self.group - 1) // self.group if self.k else 0
        self.bits, self.source_bits = bits, 8 if k is None else bits
        self.offset, self.high_half_first = offset, high_half_first
        self.scale = _factors(scale, "scale", shape)
        self.zero_point = None if zero_point is None else _factors(zero_point, "zero_point", shape)
        if self.zero_point is not None and (self.zero_point == (0 if table is not None else 1 << (bits - 1))).all():
            self.zero_point = None
        self.bias, self.weight, self.origin = _bias(bias, self.n), q, origin
        if activations not in ("float", "float8", "per_token", "per_tensor", "static", "clusters"):
            raise ValueError(f"activations must be float, float8, per_token, per_tensor, static or clusters, got {activations}")
        self.activations = activations
        if outliers is not None:
            self._with_outliers(*outliers)
        if not self._multiplies_floats():
            self._for_codes()
        if (clusters is not None) != (activations == "clusters"):
            raise ValueError("clusters are for activations of that name, which need them")
        if clusters is not None:
            self._with_clusters(*clusters)
        self.scale = _half_where_exact(self.scale)
        if self._bytes_to_pack() == 0:
            raise ValueError(f"weights [{self.k}, {self.n}] in groups of {self.group} are too large")

    cdef bint _multiplies_floats(self):
        return self.activations in ("float", "float8")

    def _with_outliers(self, starts, inputs, values):
        starts, inputs = np.ascontiguousarray(starts, dtype=np.int64), np.ascontiguousarray(inputs)
        values, counts = np.ascontiguousarray(values, dtype=np.float32), np.diff(starts)
        if self.activations != "float":
            raise ValueError("outliers need activations that stay float")
        if inputs.dtype != np.uint16 or inputs.ndim != 1 or values.shape != inputs.shape:
            raise ValueError(f"outliers need a k each, uint16, got {shape_text(inputs)} for {shape_text(values)}")
        if starts.shape != (self.n + 1,) or starts[0] != 0 or starts[self.n] != inputs.size or (counts < 0).any():
            raise ValueError(f"outliers of {self.n} columns need {self.n + 1} ascending starts from 0 to {inputs.size}")
        places = np.repeat(np.arange(self.n), counts) * self.k + inputs
        if (inputs >= self.k).any() or (np.diff(places) <= 0).any():
            raise ValueError(f"outliers of a column need ascending k below {self.k}")
        self.outlier_starts, self.outlier_inputs, self.outlier_values = starts, inputs, values

    def _with_clusters(self, scale, zero_point, fours):
        self.cluster_scale, self.cluster_zero_point, self.cluster_fours = map(np.ascontiguousarray, (scale, zero_point, fours))
        parts = [self.cluster_scale, self.cluster_zero_point, self.cluster_fours]
        if [part.dtype for part in parts] != [np.float32, np.uint8, np.int32] or len({part.shape for part in parts}) != 1 or scale.ndim != 1:
            raise ValueError("clusters need scales float32, zero points uint8 and numbers int32, one of each")
        if self.table is not None or self.group < self.k or self.outlier_starts is not None:
            raise ValueError("clusters need uniform weights with scales of rows, without outliers")
        if self._bytes_to_pack() == 0:
            raise ValueError(f"clusters of {self.cluster_fours.tolist()} times four channels are none of {self.k} channels")

    cdef int _for_codes(self) except -1:
        """Zero points and table in integers."""
        if self.table is not None:
            if self.table.size != 16 or self.zero_point is not None:
                raise ValueError("quantized activations need a table of 16 entries, without zero points")
            for factor in [2.0**-e for e in range(8)]:
                integers = self.table / np.float32(factor)
                if (integers == np.rint(integers)).all() and (np.abs(integers + 0.5) < 128.5).all():
                    break
            else:
                raise ValueError(f"quantized activations need a table of whole numbers −128 … 127 times a power of two, got {self.table}")
            self.integers = integers.astype(np.int8)
            self.scale = self.scale * np.float32(factor)
        elif self.zero_point is not None:
            codes = self.zero_point.astype(np.uint8)
            if (codes != self.zero_point).any() or codes.max(initial=0) >> self.bits:
                raise ValueError(f"quantized activations need zero points that are codes of {self.bits} bits")
            self.zero_point = codes

    cdef qrt_nbits_q8_spec _codes_spec(self):
        cdef qrt_nbits_q8_spec spec
        memset(&spec, 0, sizeof(spec))
        spec.weights = self._spec()
        spec.weights.zero_points = NULL
        if self.zero_point is not None:
            spec.zero_points = <const uint8_t *>cnp.PyArray_DATA(self.zero_point)
        if self.integers is not None:
            spec.integers = <const signed char *>cnp.PyArray_DATA(self.integers)
        return spec

    cdef qrt_cluster_spec _cluster_spec(self):
        cdef qrt_cluster_spec spec
        memset(&spec, 0, sizeof(spec))
        spec.weights = self._spec()
        spec.weights.zero_points = NULL
        if self.zero_point is not None:
            spec.weight_zeros = <const uint8_t *>cnp.PyArray_DATA(self.zero_point)
        spec.num_clusters = self.cluster_scale.size
        spec.scales = <const float *>cnp.PyArray_DATA(self.cluster_scale)
        spec.zero_points = <const uint8_t *>cnp.PyArray_DATA(self.cluster_zero_point)
        spec.fours = <const int32_t *>cnp.PyArray_DATA(self.cluster_fours)
        return spec

    cdef qrt_nbits_spec _spec(self):
        cdef qrt_nbits_spec spec
        memset(&spec, 0, sizeof(spec))
        spec.k, spec.n, spec.group, spec.bits = self.k, self.n, self.group, self.bits
        if self.scale.dtype == np.float16:
            spec.half_scales = <const uint16_t *>cnp.PyArray_DATA(self.scale)
        else:
            spec.scales = <const float *>cnp.PyArray_DATA(self.scale)
        if self.zero_point is not None:
            spec.zero_points = <const float *>cnp.PyArray_DATA(self.zero_point)
        if self.table is not None:
            spec.table = <const float *>cnp.PyArray_DATA(self.table)
        if self.bias is not None:
            spec.bias = <const float *>cnp.PyArray_DATA(self.bias)
        spec.reads_float8 = self.activations == "float8"
        if self.outlier_starts is not None:
            spec.outlier_starts = <const int64_t *>cnp.PyArray_DATA(self.outlier_starts)
            spec.outlier_inputs = <const uint16_t *>cnp.PyArray_DATA(self.outlier_inputs)
            spec.outlier_values = <const float *>cnp.PyArray_DATA(self.outlier_values)
        return spec

    cdef tuple _vectors(self):
        kind = np.array([self.k, self.group, self.bits, self.source_bits, self.offset, self.high_half_first, not self._multiplies_floats(),
                         self.activations == "float8"])
        parts = [self.scale, self.zero_point, self.table, self.bias, kind, self.outlier_starts, self.outlier_inputs, self.outlier_values,
                 self.cluster_scale, self.cluster_zero_point, self.cluster_fours]
        digests = [b"" if part is None else blake2b(np.ascontiguousarray(part).view(np.uint8).reshape(-1)).digest() for part in parts]
        return (np.frombuffer(b"".join(digests), np.uint8),)

    cdef size_t _bytes_to_pack(self):
        cdef qrt_nbits_spec spec
        cdef qrt_nbits_q8_spec codes_spec
        cdef qrt_cluster_spec cluster_spec
        if self._multiplies_floats():
            spec = self._spec()
            return qrt_nbits_packed_bytes(&spec)
        if self.activations == "clusters":
            cluster_spec = self._cluster_spec()
            return qrt_clusters_packed_bytes(&cluster_spec)
        codes_spec = self._codes_spec()
        return qrt_nbits_q8_packed_bytes(&codes_spec)

    cdef qrt_nbits_weights *_new(self, qrt_arena *arena):
        cdef qrt_nbits_spec spec
        cdef qrt_nbits_q8_spec codes_spec
        cdef qrt_cluster_spec cluster_spec
        if self._multiplies_floats():
            spec = self._spec()
            with nogil:
                return qrt_nbits_new(&spec, &qrt_kernels.gemm_nbits, &qrt_kernels.gemm_f32, arena)
        if self.activations == "clusters":
            cluster_spec = self._cluster_spec()
            with nogil:
                return <qrt_nbits_weights *>qrt_clusters_new(&cluster_spec, &qrt_kernels.gemm_clusters, arena)
        codes_spec = self._codes_spec()
        with nogil:
            return <qrt_nbits_weights *>qrt_nbits_q8_new(&codes_spec, &qrt_kernels.gemm_nbits_q8, arena)

    cdef qrt_weights *_pack(self, qrt_arena *arena, int num_threads) except? NULL:
        cdef qrt_nbits_weights *made = self._new(arena)
        cdef cnp.ndarray q = self.weight
        cdef qrt_nbits_source source
        cdef bint fits, quantized = not self._multiplies_floats() and self.activations != "clusters"
        if made == NULL:
            return NULL
        source.rows, source.row_stride_bytes = <const uint8_t *>cnp.PyArray_DATA(q), q.strides[0]
        source.bits, source.high_half_first, source.offset = self.source_bits, self.high_half_first, self.offset
        with nogil:
            fits = qrt_nbits_fill(made, 0, made.base.n, &source, num_threads)
            qrt_nbits_finish_outliers(made)
            if quantized:
                qrt_nbits_q8_finish(<qrt_nbits_q8_weights *>made, num_threads)
        if not fits:
            qrt_weights_free(&made.base)
            raise ValueError(f"codes of {self.bits} bits must lie in 0..{(1 << self.bits) - 1}, got {q.max()}")
        return &made.base

    cdef void _forget(self):
        self.weight = self.origin = self.bias = self.scale = self.zero_point = self.table = self.integers = None
        self.outlier_starts = self.outlier_inputs = self.outlier_values = None
        self.cluster_scale = self.cluster_zero_point = self.cluster_fours = None

    def unpacked(self):
        """The codes again, uint8 [N, K], `offset` added."""
        self.pack(NULL, 1)
        cdef const qrt_nbits_weights *w = <const qrt_nbits_weights *>self.handle
        cdef cnp.ndarray codes = np.empty((self.n, self.k), np.uint8)
        cdef uint8_t *to = <uint8_t *>cnp.PyArray_DATA(codes)
        with nogil:
            qrt_nbits_unpack(w, 0, w.base.n, to, w.base.k)
        return codes

    @property
    def shape(self):
        return self.k, self.n


cdef cnp.ndarray _factors(values, str name, tuple shape):
    factors = np.asarray(values)
    if factors.shape != shape or factors.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be [N, groups] = {list(shape)}, got {shape_text(factors)}")
    return np.ascontiguousarray(factors, dtype=np.float32)


cdef cnp.ndarray _half_where_exact(cnp.ndarray scale):
    """float16 that says the same as `scale` float32, or `scale`: kernels widen what they read, and read less."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    return half if (half.astype(np.float32) == scale).all() else scale
