"""Reader of the protobuf wire format, by tables that `wire.py` makes of message declarations.

Nothing is read and nothing is allocated from a length before the length was compared with the bytes that are there.

Format: https://protobuf.dev/programming-guides/encoding/
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

import numpy as np

from qruntime.errors import InvalidModel

# Kinds of fields. FLOATS, DOUBLES, INTS, UINTS are repeated numbers that become arrays, not lists.
cpdef enum:
    STRING, BYTES, MESSAGE, INT, UINT, FLOAT, DOUBLE, INTS, UINTS, FLOATS, DOUBLES

# How values of a field are kept: the last one, a list, or chunks, which are lists and arrays.
cpdef enum:
    SINGLE, LIST, CHUNKS, PACKED_LIST, PACKED_CHUNKS

WIRE_TYPES = (2, 2, 2, 0, 0, 5, 1, 0, 0, 5, 1)
"""By kind."""

MAX_DEPTH = 100
"""Deepest nesting of messages, the limit of Google's own parsers too."""

SMALL = 1 << 16
"""`bytes` fields below this size are copied, others stay views of the buffer that is read."""

cdef int _max_depth = MAX_DEPTH
cdef Py_ssize_t _small = SMALL


cdef class _Buffer:
    """The bytes that are read."""

    cdef object view
    cdef const uint8_t *data

    cdef bytes copy(self, Py_ssize_t start, Py_ssize_t stop):
        return PyBytes_FromStringAndSize(<const char *>self.data + start, stop - start)

    cdef object part(self, Py_ssize_t start, Py_ssize_t stop):
        return self.copy(start, stop) if stop - start < _small else self.view[start:stop]


def read(cls, view not None):
    """One message of class `cls` that fills `view` (a contiguous memoryview of format "B"); InvalidModel names message,
    field and offset."""
    cdef Py_buffer held
    cdef _Buffer buffer = _Buffer.__new__(_Buffer)
    PyObject_GetBuffer(view, &held, PyBUF_SIMPLE)
    try:
        buffer.view = view
        buffer.data = <const uint8_t *>held.buf
        return _read(cls, buffer, 0, held.len, 0)
    finally:
        PyBuffer_Release(&held)


cdef object _failure(cls, str what, Py_ssize_t offset):
    return InvalidModel(f"{cls.__name__}: {what} at byte {offset}; the file is damaged, truncated or not an ONNX model")


cdef object _read(cls, _Buffer buffer, Py_ssize_t pos, Py_ssize_t end, int depth):
    cdef Py_ssize_t start = pos, stop
    cdef int kind, mode
    cdef uint64_t tag
    cdef list entry, chunks
    name = "?"
    if depth > _max_depth:
        raise _failure(cls, f"messages nested deeper than {MAX_DEPTH}", pos)
    message = cls.__new__(cls)
    cdef dict values = message.__dict__, table = cls._table
    try:
        while pos < end:
            start = pos
            tag = _varint(buffer.data, &pos, end)
            entry = table.get(tag)
            if entry is None:
                name = f"#{tag >> 3}"
                pos = _skip(cls, buffer.data, tag, pos, end)
                continue
            kind, name, mode = entry[0], entry[1], entry[2]
            if tag & 7 == 2:
                stop = _length(buffer.data, &pos, end)
                if kind == STRING:
                    value = PyUnicode_DecodeUTF8(<const char *>buffer.data + pos, stop - pos, NULL)
                elif kind == MESSAGE:
                    value = _read(entry[3], buffer, pos, stop, depth + 1)
                elif kind == BYTES:
                    value = buffer.part(pos, stop)
                elif mode == PACKED_CHUNKS:
                    values.setdefault(name, []).append(_array(buffer, pos, stop, kind))
                    pos = stop
                    continue
                else:
                    values.setdefault(name, []).extend(_array(buffer, pos, stop, kind).tolist())
                    pos = stop
                    continue
                pos = stop
            else:
                value = _number(buffer.data, &pos, end, kind)
            if mode == SINGLE:
                values[name] = value
            elif mode == LIST:
                if name in values:
                    (<list>values[name]).append(value)
                else:
                    values[name] = [value]
            else:
                chunks = <list>values.setdefault(name, [])
                if not chunks or type(chunks[len(chunks) - 1]) is not list:
                    chunks.append([])
                (<list>chunks[len(chunks) - 1]).append(value)
    except UnicodeDecodeError as error:
        raise _failure(cls, f"field {name!r} is not UTF-8 ({error.reason})", start) from None
    except ValueError as error:
        raise _failure(cls, f"field {name!r}: {error}", start) from None
    return message


cdef uint64_t _varint(const uint8_t *data, Py_ssize_t *pos, Py_ssize_t end) except? 0:
    cdef uint64_t value = 0
    cdef int shift = 0
    cdef uint8_t byte
    while pos[0] < end:
        byte = data[pos[0]]
        pos[0] += 1
        value |= <uint64_t>(byte & 127) << shift
        if byte < 128:
            if shift == 63 and byte > 1:
                raise ValueError("a varint exceeds 64 bits")
            return value
        shift += 7
        if shift == 70:
            raise ValueError("a varint is longer than 10 bytes")
    raise ValueError("the data ends inside a varint")


cdef Py_ssize_t _length(const uint8_t *data, Py_ssize_t *pos, Py_ssize_t end) except -1:
    """The end of the field whose length stands at `pos`, which moves behind it."""
    cdef uint64_t length = _varint(data, pos, end)
    if length > <uint64_t>(end - pos[0]):
        raise ValueError(f"length {length} runs past the end ({end - pos[0]} bytes left)")
    return pos[0] + <Py_ssize_t>length


cdef object _number(const uint8_t *data, Py_ssize_t *pos, Py_ssize_t end, int kind):
    cdef uint64_t bits = 0
    cdef uint32_t low
    cdef float single
    cdef double real
    cdef Py_ssize_t i, size = 4 if kind == FLOAT else 8
    if kind == INT or kind == UINT:
        bits = _varint(data, pos, end)
        return <int64_t>bits if kind == INT else bits
    if end - pos[0] < size:
        raise ValueError("the data ends inside a number")
    for i in range(size):
        bits |= <uint64_t>data[pos[0] + i] << 8 * i
    pos[0] += size
    if kind == FLOAT:
        low = <uint32_t>bits
        memcpy(&single, &low, sizeof(single))
        return single
    memcpy(&real, &bits, sizeof(real))
    return real


cdef object _array(_Buffer buffer, Py_ssize_t pos, Py_ssize_t end, int kind):
    """Packed numbers as a 1-D array."""
    cdef Py_ssize_t i, count = 0
    cdef uint64_t number
    cdef char *out
    if kind == FLOAT or kind == DOUBLE:
        dtype = np.dtype("<f4" if kind == FLOAT else "<f8")
        if (end - pos) % dtype.itemsize:
            raise ValueError(f"{end - pos} packed bytes are no multiple of {dtype.itemsize}")
        return np.frombuffer(buffer.part(pos, end), dtype)
    for i in range(pos, end):
        count += buffer.data[i] < 128
    cdef bytes numbers = PyBytes_FromStringAndSize(NULL, 8 * count)
    out = PyBytes_AS_STRING(numbers)
    for i in range(count):
        number = _varint(buffer.data, &pos, end)
        memcpy(out + 8 * i, &number, 8)
    if pos < end:
        raise ValueError("the data ends inside a varint")
    return np.frombuffer(numbers, np.int64 if kind == INT else np.uint64)


cdef Py_ssize_t _skip(cls, const uint8_t *data, uint64_t tag, Py_ssize_t pos, Py_ssize_t end) except -1:
    """Behind the value of a field that `cls` does not declare."""
    cdef uint64_t number = tag >> 3
    cdef int wire_type = tag & 7
    for name, spec in cls.fields.items():
        if spec.number == number:
            raise ValueError(f"field {name!r} ({number}) has wire type {wire_type}, not {WIRE_TYPES[spec.kind]}")
    if not 0 < number < 1 << 29:
        raise ValueError(f"field number {number} does not exist")
    if wire_type == 0:
        _varint(data, &pos, end)
    elif wire_type == 1:
        pos += 8
    elif wire_type == 2:
        pos = _length(data, &pos, end)
    elif wire_type == 5:
        pos += 4
    else:
        raise ValueError(f"unknown field {number} has wire type {wire_type}, which no ONNX file uses")
    if pos > end:
        raise ValueError(f"unknown field {number} runs past the end")
    return pos
