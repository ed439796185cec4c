# Weights in the layout of one rung, ready for a kernel.

cdef class Packed:
    """Weights in the layout of one rung, ready for a kernel. Immutable."""

    cdef void *handle

    @property
    def nbytes(self):
        return 0


cdef object _address(Packed packed):
    return 0 if packed is None else <uintptr_t>packed.handle


cdef class PackedQ8(Packed):
    """int8 weights [K, N] with scales, zero points and an optional float bias.

    Parameters: `weight` int8 [K, N] of any strides; `scale` float32 [] or [N]; `zero_point` int8/int32
    of the same size or None; `bias` float32 [N] or None.
    """

    def __cinit__(self, weight, scale, zero_point=None, bias=None):
        cdef cnp.ndarray w = np.asarray(weight)
        if w.dtype != np.int8 or w.ndim != 2:
            raise ValueError(f"weight must be int8 [K, N], got {shape_text(w)}")
        cdef cnp.ndarray s = np.ascontiguousarray(np.asarray(scale, dtype=np.float32).reshape(-1))
        cdef int64_t k = w.shape[0], n = w.shape[1], count = s.size
        if count != 1 and count != n:
            raise ValueError(f"scale must have 1 or {n} entries, got {count}")
        cdef cnp.ndarray z = None, b = None
        if zero_point is not None:
            z = np.ascontiguousarray(np.asarray(zero_point).astype(np.int32).reshape(-1))
            if z.size != count:
                raise ValueError(f"zero_point must have {count} entries like scale, got {z.size}")
            if z.size and (z.min() < -128 or z.max() > 127):
                raise ValueError("zero_point of int8 weights must lie in -128..127")
            if not z.any():
                z = None
        if bias is not None:
            b = np.ascontiguousarray(np.asarray(bias, dtype=np.float32).reshape(-1))
            if b.size != n:
                raise ValueError(f"bias must have {n} entries, got {b.size}")
        cdef qrt_q8_weights *packed
        cdef const int32_t *zp = NULL if z is None else <const int32_t *>cnp.PyArray_DATA(z)
        cdef const float *bp = NULL if b is None else <const float *>cnp.PyArray_DATA(b)
        cdef const signed char *wp = <const signed char *>cnp.PyArray_DATA(w)
        cdef const float *sp = <const float *>cnp.PyArray_DATA(s)
        cdef int64_t row = w.strides[0], column = w.strides[1]
        with nogil:
            packed = qrt_q8_pack(&qrt_kernels.gemm_q8, wp, row, column, k, n, sp, zp, count, bp)
        if packed == NULL:
            raise MemoryError(f"no memory to pack int8 weights [{k}, {n}]")
        self.handle = packed

    def __dealloc__(self):
        if self.handle != NULL:
            qrt_q8_free(<qrt_q8_weights *>self.handle)

    @property
    def nbytes(self):
        return (<qrt_q8_weights *>self.handle).buffer.capacity

    @property
    def shape(self):
        return (<qrt_q8_weights *>self.handle).k, (<qrt_q8_weights *>self.handle).n


cdef class PackedF32(Packed):
    """float32 weights [K, N] of any strides with an optional bias [N]."""

    def __cinit__(self, weight, bias=None):
        cdef cnp.ndarray w = np.asarray(weight)
        if w.dtype != np.float32 or w.ndim != 2:
            raise ValueError(f"weight must be float32 [K, N], got {shape_text(w)}")
        if not cnp.PyArray_ISALIGNED(w) or w.strides[0] % 4 or w.strides[1] % 4:
            w = np.array(w, order="K")
        cdef int64_t k = w.shape[0], n = w.shape[1]
        cdef cnp.ndarray b = None
        if bias is not None:
            b = np.ascontiguousarray(np.asarray(bias, dtype=np.float32).reshape(-1))
            if b.size != n:
                raise ValueError(f"bias must have {n} entries, got {b.size}")
        cdef qrt_f32_weights *packed
        cdef const float *bp = NULL if b is None else <const float *>cnp.PyArray_DATA(b)
        cdef const float *wp = <const float *>cnp.PyArray_DATA(w)
        cdef int64_t row = w.strides[0] // 4, column = w.strides[1] // 4
        with nogil:
            packed = qrt_f32_pack(&qrt_kernels.gemm_f32, wp, row, column, k, n, bp)
        if packed == NULL:
            raise MemoryError(f"no memory to pack float weights [{k}, {n}]")
        self.handle = packed

    def __dealloc__(self):
        if self.handle != NULL:
            qrt_f32_free(<qrt_f32_weights *>self.handle)

    @property
    def nbytes(self):
        return (<qrt_f32_weights *>self.handle).buffer.capacity

    @property
    def shape(self):
        return (<qrt_f32_weights *>self.handle).k, (<qrt_f32_weights *>self.handle).n
