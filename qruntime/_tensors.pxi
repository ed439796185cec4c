# Tensors between numpy and C: views of ours for numpy, views of numpy's for C.

cdef int _TYPENUM[17]      # ONNX code -> numpy type number, -1 when native code does not know it
cdef object _CODE_OF = {}  # numpy dtype -> ONNX code (also of types numpy lacks)

cdef _fill_type_table():
    for code in range(17):
        _TYPENUM[code] = -1
    for code, name in {1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "?", 10: "f2", 11: "f8", 12: "u4", 13: "u8"}.items():
        dtype = np.dtype(name)
        _TYPENUM[code] = dtype.num
        _CODE_OF[dtype] = code

_fill_type_table()


@cython.final
@cython.no_gc
cdef class Returned:
    """Large outputs of an executable that nobody reads any more. Outlives it while outputs do."""

    cdef qrt_returned stack

    def __dealloc__(self):
        qrt_returned_clear(&self.stack)


@cython.final
@cython.no_gc
cdef class BufferOwner:
    """Base object of arrays that view one of our buffers."""

    cdef qrt_buffer *buffer
    cdef Returned returned  # where the buffer goes in the end, or None

    def __dealloc__(self):
        if self.buffer == NULL:
            return
        if self.returned is None:
            qrt_buffer_drop(self.buffer)
        else:
            qrt_return(&self.returned.stack, self.buffer)


cdef int _native_code(cnp.ndarray array) except -1:
    """ONNX code when native code handles this element type, else 0."""
    code = _CODE_OF.get(array.dtype)
    if code is None:
        code = 0
        if array.dtype.isnative and array.dtype.name == "bfloat16":
            code = 16
        if array.dtype.isnative and array.dtype.fields is None and array.dtype.num in (np.dtype("longlong").num, np.dtype("ulonglong").num):
            code = 7 if array.dtype.kind == "i" else 13
        _CODE_OF[array.dtype] = code
    return code


cdef inline void _describe(qrt_tensor *t, cnp.ndarray array, int code) noexcept:
    """View a C-contiguous array; its bytes must outlive the tensor."""
    cdef int i, rank = cnp.PyArray_NDIM(array)
    t.data = cnp.PyArray_DATA(array)
    t.buffer = NULL
    t.room = 0
    t.size = cnp.PyArray_SIZE(array)
    t.rank = rank
    t.dtype = code
    for i in range(rank):
        t.dims[i] = cnp.PyArray_DIM(array, i)


cdef cnp.dtype _dtype_of(int code):
    return numpy_dtype(code)


cdef object _view(qrt_tensor *t, Returned returned=None, object lender=None):
    """numpy view of a tensor; keeps the buffer alive, which goes to `returned`, or the `lender` of borrowed bytes. Without
    one they must outlive it. What has room shares its bytes with other views, and cannot be written to."""
    cdef cnp.npy_intp dims[8]
    cdef int64_t strides[8]
    cdef int i
    cdef BufferOwner owner
    for i in range(t.rank):
        dims[i] = t.dims[i]
    cdef int num = _TYPENUM[t.dtype] if t.dtype < 17 else -1
    cdef cnp.dtype descr = cnp.PyArray_DescrFromType(num) if num >= 0 else _dtype_of(t.dtype)
    Py_INCREF(descr)  # the next call steals a reference
    if t.room:
        qrt_strides(t, strides)
        for i in range(t.rank):
            strides[i] *= descr.itemsize
    cdef cnp.ndarray array = PyArray_NewFromDescr(
        cnp.ndarray, descr, t.rank, dims, <cnp.npy_intp *>strides if t.room else NULL, t.data,
        cnp.NPY_ARRAY_ALIGNED if t.room else cnp.NPY_ARRAY_CARRAY, None)
    if t.buffer != NULL:
        if t.buffer.owner != NULL:
            cnp.set_array_base(array, <object>t.buffer.owner)
        else:
            owner = BufferOwner.__new__(BufferOwner)
            owner.buffer = t.buffer
            owner.returned = returned if t.buffer.capacity >= QRT_LARGE else None
            qrt_buffer_retain(t.buffer)
            cnp.set_array_base(array, owner)
    elif lender is not None:
        cnp.set_array_base(array, lender)
    return array


cdef bint _lend(qrt_tensor *t, cnp.ndarray array, int code, int axis) noexcept:
    """View what an earlier run has given out as a tensor that holds its buffer: all of what it had of it, or its first elements, as far as
    strides leave room along `axis`. False for any other array, which keeps its bytes alive itself."""
    cdef cnp.ndarray lender = array
    cdef object base = cnp.get_array_base(array)
    cdef qrt_buffer *buffer
    cdef int64_t strides[8]
    cdef int64_t last = 0
    cdef int i
    while isinstance(base, np.ndarray):
        lender = base
        base = cnp.get_array_base(lender)
    if not isinstance(base, BufferOwner):
        return False
    buffer = (<BufferOwner>base).buffer
    if buffer == NULL or buffer.owner != NULL or buffer.whole != NULL or cnp.PyArray_DATA(array) != buffer.data or axis >= cnp.PyArray_NDIM(array):
        return False
    _describe(t, array, code)
    if buffer.room:
        if cnp.PyArray_DIM(array, axis) > buffer.room or t.size == 0:
            return False
        t.room = buffer.room
        t.room_axis = axis
        qrt_strides(t, strides)
        for i in range(t.rank):
            if t.dims[i] > 1 and strides[i] * cnp.PyArray_ITEMSIZE(array) != cnp.PyArray_STRIDE(array, i):
                t.room = 0
                return False
            last += (t.dims[i] - 1) * strides[i]
        if (last + 1) * cnp.PyArray_ITEMSIZE(array) > <int64_t>buffer.capacity:
            t.room = 0
            return False
    elif not PyArray_ISCARRAY_RO(array):
        return False
    qrt_buffer_retain(buffer)
    t.buffer = buffer
    return True


cdef int _store(qrt_tensor *t, object value) except -1:
    """Put a Python result into a slot. Returns 1 when it stays a Python object."""
    cdef cnp.ndarray array
    cdef qrt_buffer *buffer
    cdef int code
    if not isinstance(value, np.ndarray):
        if not isinstance(value, np.generic) or value.dtype.kind == "U":
            return 1
        value = np.asarray(value)
    array = value
    code = _native_code(array)
    if code == 0 or array.ndim > QRT_MAX_RANK:
        return 1
    if not PyArray_ISCARRAY_RO(array):
        array = np.array(array, order="C", copy=True)
    buffer = <qrt_buffer *>malloc(sizeof(qrt_buffer))
    if buffer == NULL:
        raise MemoryError
    _describe(t, array, code)
    buffer.data = t.data
    buffer.capacity = 0
    buffer.used = cnp.PyArray_NBYTES(array) if cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_OWNDATA) else 0
    buffer.refcount = 1
    buffer.whole = buffer.next = NULL
    buffer.owner = <void *>array
    Py_INCREF(array)
    t.buffer = buffer
    return 0


cdef object _owned(object value):
    """Sequences and arrays of strings or narrow types as the caller may keep them: views become copies."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list):
        return [_owned(v) for v in value]
    return value


cdef void _bury(qrt_run *run) noexcept:
    """Drop what died while the GIL was not held."""
    cdef qrt_buffer *buffer
    while run.graveyard != NULL:
        buffer = run.graveyard
        run.graveyard = buffer.next
        Py_DECREF(<object>buffer.owner)
        free(buffer)


def shape_text(value) -> str:
    """How messages show a value: float32[1, 128, 768]."""
    if isinstance(value, np.ndarray):
        name = "string" if value.dtype.kind in "OSU" else value.dtype.name
        return f"{name}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, (list, tuple)):
        return f"sequence of {len(value)}"
    return "absent" if value is None else type(value).__name__
