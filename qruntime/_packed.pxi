# Weights in the layout of one rung, ready for a kernel.

cdef class Packed:
    """What a node function reads and no tensor holds: `handle` is what it gets. Immutable."""

    cdef void *handle

    def source(self):
        """(array, what tells this from others while that array lives): plans hold one object for each."""
        raise NotImplementedError

    @property
    def nbytes(self):
        raise NotImplementedError

    @property
    def shape(self):
        raise NotImplementedError


cdef tuple _place_of(array):
    """What tells an array from others while it lives."""
    return array.__array_interface__["data"][0], array.shape, array.strides


cdef class PackedWeights(Packed):
    """Weights [K, N] of one layer with an optional bias [N], packed for the rung in force when the first `Executable` that
    reads them is made.

    Packing waits until then because an executable knows how many threads may share the work. Each kind says how it packs;
    `handle` is a qrt_weights then.
    """

    cdef cnp.ndarray weight, bias  # what is to be packed; None once it is
    cdef object origin             # the constant that was rearranged into `weight`, or a tuple that names it; None when that is a view of it

    def source(self):
        """(constant, what tells these weights from others while that lives), before they are packed."""
        origin = self.weight if self.origin is None else self.origin
        where = _place_of(origin) if isinstance(origin, cnp.ndarray) else origin
        vectors = [None if vector is None else vector.tobytes() for vector in self._vectors()]
        return origin, (type(self), where, self.shape, *vectors)

    cdef tuple _vectors(self):
        return (self.bias,)

    cdef int pack(self, qrt_arena *arena, int num_threads) except -1:
        """Pack into memory of `arena`, or of its own, unless that was done before."""
        cdef qrt_weights *made
        if self.handle != NULL:
            return 0
        made = self._pack(arena, num_threads)
        if made == NULL:
            raise MemoryError(f"no memory to pack {self.weight.dtype} weights {list(self.shape)}")
        if self.handle == NULL:
            self.handle = made
            self._forget()
        else:  # another thread was faster while this one packed without the GIL
            qrt_weights_free(made)
        return 0

    cdef size_t _bytes_to_pack(self):
        return 0

    cdef qrt_weights *_pack(self, qrt_arena *arena, int num_threads) except? NULL:
        raise NotImplementedError

    cdef void _forget(self):
        self.weight = self.origin = self.bias = None

    def __dealloc__(self):
        qrt_weights_free(<qrt_weights *>self.handle)

    def unpacked(self):
        """What was packed, as the arguments of this class in their order; layouts of rungs keep every bit."""
        raise NotImplementedError

    @property
    def nbytes(self):
        self.pack(NULL, 1)
        return (<qrt_weights *>self.handle).buffer.capacity

    @property
    def kind(self):
        """What these weights are, as the names of kernels say it."""
        self.pack(NULL, 1)
        return (<qrt_weights *>self.handle).ops.name.decode()

    @property
    def shape(self):
        if self.handle == NULL:
            return self.weight.shape[0], self.weight.shape[1]
        return (<qrt_weights *>self.handle).k, (<qrt_weights *>self.handle).n


cdef int _pack_together(list weights, int num_threads) except -1:
    """Pack what is not packed yet, side by side in memory."""
    cdef PackedWeights packed
    cdef size_t total = 0
    cdef list missing = [one for one in weights if isinstance(one, PackedWeights) and (<PackedWeights>one).handle == NULL]
    if not missing:
        return 0
    for packed in missing:
        total += qrt_arena_share(packed._bytes_to_pack())
    cdef qrt_arena arena
    with nogil:
        arena = qrt_arena_new(total, num_threads)
    try:
        for packed in missing:
            packed.pack(&arena, num_threads)
    finally:
        qrt_arena_close(&arena)
    return 0


cdef void *_address(Packed packed) noexcept:
    return NULL if packed is None else packed.handle


cdef class PackedQ8(PackedWeights):
    """int8 weights [K, N] with scales, zero points and an optional float bias.

    Parameters: `weight` int8 [K, N] of any strides; `scale` float32 [] or [N]; `zero_point` int8/int32
    of the same size or None; `bias` float32 [N] or None; `origin` the constant whose elements `weight` holds in another order, or a
    tuple that is equal to that of another weight only where the elements are the same.
    """

    cdef cnp.ndarray scale, zero_point

    def __cinit__(self, weight, scale, zero_point=None, bias=None, origin=None):
        cdef cnp.ndarray w = np.asarray(weight)
        if w.dtype != np.int8 or w.ndim != 2:
            raise ValueError(f"weight must be int8 [K, N], got {shape_text(w)}")
        cdef cnp.ndarray s = np.ascontiguousarray(np.asarray(scale, dtype=np.float32).reshape(-1))
        cdef cnp.ndarray z = None
        if s.size != 1 and s.size != w.shape[1]:
            raise ValueError(f"scale must have 1 or {w.shape[1]} entries, got {s.size}")
        if zero_point is not None:
            z = np.ascontiguousarray(np.asarray(zero_point).astype(np.int32).reshape(-1))
            if z.size != s.size:
                raise ValueError(f"zero_point must have {s.size} entries like scale, got {z.size}")
            if not z.any():
                z = None
            elif z.min() < -128 or z.max() > 127:
                raise ValueError("zero_point of int8 weights must lie in -128..127")
        self.weight, self.scale, self.zero_point, self.bias = w, s, z, _bias(bias, w.shape[1])
        self.origin = origin

    cdef size_t _bytes_to_pack(self):
        return qrt_q8_packed_bytes(&qrt_kernels.gemm_q8, self.weight.shape[0], self.weight.shape[1], self.zero_point is not None, self.bias is not None)

    cdef qrt_weights *_pack(self, qrt_arena *arena, int num_threads) except? NULL:
        cdef cnp.ndarray w = self.weight, s = self.scale, z = self.zero_point, b = self.bias
        cdef const int32_t *zp = NULL if z is None else <const int32_t *>cnp.PyArray_DATA(z)
        cdef const float *bp = NULL if b is None else <const float *>cnp.PyArray_DATA(b)
        cdef const signed char *wp = <const signed char *>cnp.PyArray_DATA(w)
        cdef const float *sp = <const float *>cnp.PyArray_DATA(s)
        cdef int64_t row = w.strides[0], column = w.strides[1], k = w.shape[0], n = w.shape[1], count = s.size
        with nogil:
            return <qrt_weights *>qrt_q8_pack(&qrt_kernels.gemm_q8, wp, row, column, k, n, sp, zp, count, bp, arena, num_threads)

    cdef tuple _vectors(self):
        return self.scale, self.zero_point, self.bias

    cdef void _forget(self):
        self.weight = self.origin = self.scale = self.zero_point = self.bias = None

    def unpack_into(self, cnp.ndarray weight):
        """Write what was packed to `weight`, int8 [K, N] of any strides."""
        self.pack(NULL, 1)
        cdef const qrt_q8_weights *w = <const qrt_q8_weights *>self.handle
        if weight.dtype != np.int8 or (<object>weight).shape != self.shape or not cnp.PyArray_ISWRITEABLE(weight):
            raise ValueError(f"weight must be int8 {list(self.shape)} and writable, got {shape_text(weight)}")
        cdef signed char *to = <signed char *>cnp.PyArray_DATA(weight)
        cdef int64_t row = weight.strides[0], column = weight.strides[1]
        with nogil:
            qrt_q8_unpack(w, to, row, column)

    def unpacked(self):
        """(weight int8 [K, N], scale float32 [1] or [N], zero_point int32 of its size or None when all are 0, bias or None)."""
        self.pack(NULL, 1)
        cdef const qrt_q8_weights *w = <const qrt_q8_weights *>self.handle
        cdef int64_t n = w.base.n
        codes = np.empty((w.base.k, n), np.int8)
        self.unpack_into(codes)
        scale, zero_point = _copied(w.scales, np.float32, w.num_params), _copied(w.zero_points, np.int32, w.num_params)
        return codes, scale, zero_point, _copied(w.bias, np.float32, n)


cdef class PackedF32(PackedWeights):
    """float32 weights [K, N] of any strides, or narrower floats that are widened, with an optional bias [N]."""

    def __cinit__(self, weight, bias=None):
        cdef cnp.ndarray w = np.asarray(weight)
        if _native_code(w) not in (1, 10, 16) or w.ndim != 2:
            raise ValueError(f"weight must be float32, float16 or bfloat16 [K, N], got {shape_text(w)}")
        self.weight, self.bias = w, _bias(bias, w.shape[1])

    cdef size_t _bytes_to_pack(self):
        return qrt_f32_packed_bytes(&qrt_kernels.gemm_f32, self.weight.shape[0], self.weight.shape[1], self.bias is not None)

    cdef qrt_weights *_pack(self, qrt_arena *arena, int num_threads) except? NULL:
        cdef cnp.ndarray w = self.weight, b = self.bias
        if w.dtype != np.float32:
            w = w.astype(np.float32)
        if not cnp.PyArray_ISALIGNED(w) or w.strides[0] % 4 or w.strides[1] % 4:
            w = np.array(w, order="K")
        cdef const float *bp = NULL if b is None else <const float *>cnp.PyArray_DATA(b)
        cdef const float *wp = <const float *>cnp.PyArray_DATA(w)
        cdef int64_t row = w.strides[0] // 4, column = w.strides[1] // 4, k = w.shape[0], n = w.shape[1]
        with nogil:
            return <qrt_weights *>qrt_f32_pack(&qrt_kernels.gemm_f32, wp, row, column, k, n, bp, arena, num_threads)

    def unpacked(self):
        """(weight float32 [K, N], bias or None)."""
        self.pack(NULL, 1)
        cdef const qrt_f32_weights *w = <const qrt_f32_weights *>self.handle
        cdef int64_t n = w.base.n
        cdef cnp.ndarray weight = np.empty((w.base.k, n), np.float32)
        cdef float *to = <float *>cnp.PyArray_DATA(weight)
        with nogil:
            qrt_f32_unpack(w, to, n, 1)
        return weight, _copied(w.bias, np.float32, n)


_CONV_KINDS = {
    "blocks": QRT_CONV_BLOCKS, "columns": QRT_CONV_COLUMNS, "depthwise": QRT_CONV_DEPTHWISE, "grouped": QRT_CONV_GROUPED,
    "winograd": QRT_CONV_WINOGRAD,
}


cdef class PackedConv(PackedWeights):
    """float32 weights [M, C / group, *window] of a convolution of channels in blocks, with an optional bias [M].

    `kind` is `blocks` for all channels of an image in blocks, or of each of `group` parts of it, `columns` for an image that is not in blocks, `depthwise` for
    weights [M, 1, *window] of which each is for a channel of an image in blocks, `grouped` for groups of 2, 4 or 8 channels of one,
    `winograd` for windows of 3 × 3 by Winograd's products.
    """

    cdef qrt_conv_kind conv_kind
    cdef int64_t parts

    def __cinit__(self, weight, bias=None, str kind="blocks", int64_t group=1):
        cdef cnp.ndarray w = np.require(weight, requirements="CA")
        if _native_code(w) != 1 or not 3 <= w.ndim <= 5 or w.size == 0:
            raise ValueError(f"weight must be float32 [M, C, *window] with one to three spatial dims, none of them 0, got {shape_text(w)}")
        if kind not in _CONV_KINDS:
            raise ValueError(f"kind must be one of {', '.join(_CONV_KINDS)}, got {kind!r}")
        if kind == "depthwise" and w.shape[1] != 1:
            raise ValueError(f"depthwise weights must have one input channel each, got {shape_text(w)}")
        if kind == "grouped" and (w.shape[1] not in (2, 4, 8) or w.shape[0] % w.shape[1] != 0):
            raise ValueError(f"grouped weights must have 2, 4 or 8 input channels, and whole groups of as many outputs, got {shape_text(w)}")
        if group != 1 and (kind != "blocks" or group < 1 or w.shape[0] % (16 * group) != 0 or w.shape[1] % 16 != 0):
            raise ValueError(f"{group} groups must be of blocks, each of multiples of 16 channels and outputs, got {kind!r} and {shape_text(w)}")
        if kind == "winograd" and (w.ndim != 4 or w.shape[2] != 3 or w.shape[3] != 3):
            raise ValueError(f"Winograd's weights must have windows of 3 × 3, got {shape_text(w)}")
        self.conv_kind = _CONV_KINDS[kind]
        self.parts = group
        self.weight, self.bias = w, _bias(bias, w.shape[0])

    cdef tuple _vectors(self):
        return np.array([self.conv_kind, self.parts]), self.bias

    cdef size_t _bytes_to_pack(self):
        cdef cnp.ndarray w = self.weight
        return qrt_conv_packed_bytes(&qrt_kernels.conv_f32, self.conv_kind, self.parts, w.ndim, <const int64_t *>w.shape)

    cdef qrt_weights *_pack(self, qrt_arena *arena, int num_threads) except? NULL:
        cdef cnp.ndarray w = self.weight, b = self.bias
        cdef const float *bp = NULL if b is None else <const float *>cnp.PyArray_DATA(b)
        cdef const float *wp = <const float *>cnp.PyArray_DATA(w)
        cdef const int64_t *dims = <const int64_t *>w.shape
        cdef int32_t rank = w.ndim
        cdef qrt_conv_kind kind = self.conv_kind
        cdef int64_t parts = self.parts
        with nogil:
            return <qrt_weights *>qrt_conv_pack(&qrt_kernels.conv_f32, kind, parts, rank, dims, wp, bp, arena, num_threads)

    @property
    def shape(self):
        if self.handle == NULL:
            return self.weight.size // self.weight.shape[0], self.weight.shape[0]
        return (<qrt_weights *>self.handle).k, (<qrt_weights *>self.handle).n


cdef class PackedArray(Packed):
    """An array of a native element type that a binder made of attributes, or of a constant and vectors beside it, `made_of`; the
    node function gets it as a `qrt_tensor`.

    It is read where it lies, and must not be written to from then on.
    """

    cdef object array
    cdef tuple made_of
    cdef qrt_tensor tensor

    def __cinit__(self, array, tuple made_of=()):
        cdef cnp.ndarray held = np.require(array, requirements="CA")
        cdef int code = _native_code(held)
        if code == 0 or held.ndim > QRT_MAX_RANK:
            raise ValueError(f"a native element type and at most {QRT_MAX_RANK} axes are needed, got {shape_text(held)}")
        self.array = held
        self.made_of = made_of
        _describe(&self.tensor, held, code)
        self.handle = &self.tensor

    def source(self):
        if not self.made_of:
            return self.array, (type(self), id(self.array))
        constant, *vectors = self.made_of
        return constant, (type(self), _place_of(constant), self.shape, *[None if vector is None else vector.tobytes() for vector in vectors])

    @property
    def nbytes(self):
        return self.array.nbytes

    @property
    def shape(self):
        return self.array.shape


cdef cnp.ndarray _copied(const void *values, dtype, int64_t count):
    """An array of its own; None for NULL."""
    if values == NULL:
        return None
    cdef cnp.ndarray copy = np.empty(count, dtype)
    memcpy(cnp.PyArray_DATA(copy), values, copy.nbytes)
    return copy


cdef cnp.ndarray _bias(bias, int64_t n):
    if bias is None:
        return None
    b = np.ascontiguousarray(np.asarray(bias, dtype=np.float32).reshape(-1))
    if b.size != n:
        raise ValueError(f"bias must have {n} entries, got {b.size}")
    return b
