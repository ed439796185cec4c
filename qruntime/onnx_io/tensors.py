"""TensorProto and SparseTensorProto ↔ numpy arrays."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from qruntime.errors import InvalidModel, UnsupportedModel
from qruntime.ir import HeldCodes, StoredTensor, dtypes
from qruntime.ir.formats import FORMATS
from qruntime.ir.narrow import NarrowArray, pack, packed_size, unpack
from qruntime.onnx_io import wire
from qruntime.onnx_io._wire_reader import SMALL
from qruntime.onnx_io.external_data import ExternalData
from qruntime.onnx_io.messages import SparseTensorProto, TensorProto

MAX_RANK = 32
_STRING, _BOOL = dtypes.ONNX_CODES["string"], dtypes.ONNX_CODES["bool"]
EXTERNAL = 1

# Which typed field holds the elements of a type, after onnx.proto.
_TYPED_FIELDS = {
    "float_data": (wire.FLOATS, "float32 complex64"),
    "double_data": (wire.DOUBLES, "float64 complex128"),
    "int64_data": (wire.INTS, "int64"),
    "uint64_data": (wire.UINTS, "uint32 uint64"),
}
_FIELD_OF_CODE = {dtypes.ONNX_CODES[name]: (field, kind) for field, (kind, names) in _TYPED_FIELDS.items() for name in names.split()}
_ALL_FIELDS = (*_TYPED_FIELDS, "int32_data", "string_data")


def checked_shape(dims: Sequence[int], what: str, item_bits: int = 8) -> tuple[int, ...]:
    """`dims` as a shape whose size in bytes fits the address space; InvalidModel otherwise."""
    if len(dims) > MAX_RANK:
        raise UnsupportedModel(f"{what} has {len(dims)} dimensions; at most {MAX_RANK} are supported")
    size = item_bits
    for dim in dims:
        if dim < 0:
            raise InvalidModel(f"{what} has a negative dimension: {list(dims)}")
        size *= dim or 1
    if size > 1 << 62:
        raise InvalidModel(f"{what} has dims {list(dims)}, more bytes than can be addressed")
    return tuple(dims)


_NARROW = {dtypes.ONNX_CODES[name]: form for name, form in FORMATS.items() if name in dtypes.ONNX_CODES and not dtypes.is_native(name)}
"""Element types that numpy lacks and that codes can be held of."""


def decode(tensor: TensorProto, external: ExternalData) -> np.ndarray:
    """The elements of a tensor as a read-only array. Those of types that numpy lacks need ml_dtypes."""
    held = decode_narrow(tensor, external)
    return held if isinstance(held, np.ndarray) else _read_only(held.decoded())


def decode_narrow(tensor: TensorProto, external: ExternalData) -> np.ndarray | StoredTensor:
    """The elements of a tensor as a read-only array, or as codes where numpy lacks their type and there is a format for it.

    Raw data is viewed, not copied, where it can be. A view of a large tensor may be unaligned for its element type
    (`flags.aligned`), because protobuf aligns nothing; small ones are always aligned. Strings become an object
    array of str, bytes where not UTF-8.
    """
    code = tensor.data_type
    what = f"tensor {tensor.name!r}" if tensor.name else "the tensor"
    if code not in dtypes.ONNX_TYPES:
        raise InvalidModel(f"{what} has element type {code}, which ONNX does not define")
    bits = dtypes.bits(code)
    shape = checked_shape(tensor.dims, what, bits or 64)
    count = math.prod(shape)
    if tensor.segment is not None:
        raise UnsupportedModel(f"{what} is stored in segments, which no exporter is known to write")
    raw: Any = tensor.raw_data
    values = vars(tensor)
    typed = [name for name in _ALL_FIELDS if name in values and len(values[name])]
    if tensor.data_location == EXTERNAL:
        if len(raw) or typed:
            raise InvalidModel(f"{what} has external data and data in the model; only one may be given")
        if code == _STRING:
            raise InvalidModel(f"{what} holds strings, which cannot be external data")
        raw = external.read(tensor, packed_size(count, bits))
    elif tensor.data_location != 0:
        raise InvalidModel(f"{what} has data_location {tensor.data_location}, which ONNX does not define")
    elif typed:
        if len(raw):
            raise InvalidModel(f"{what} has both raw_data and {typed[0]}; only one may be given")
        if code in _NARROW:
            return _bare(_bytes_of_typed(tensor, code, typed, count, what), code, shape)
        return _read_only(_from_typed(tensor, code, typed, count, what).reshape(shape))
    if code == _STRING:
        if len(raw):
            raise InvalidModel(f"{what} holds strings, which cannot be raw data")
        if count:
            raise InvalidModel(f"{what} has dims {list(shape)}, {count} strings, but holds none")
        return _read_only(np.empty(shape, object))
    needed = packed_size(count, bits)
    if len(raw) != needed:
        raise InvalidModel(f"{what} of {dtypes.type_name(code)} with dims {list(shape)} needs {needed} bytes but holds {len(raw)}")
    if code in _NARROW:
        return _bare(np.frombuffer(raw, np.uint8) if count else np.empty(0, np.uint8), code, shape)
    if count == 0:
        return _read_only(np.empty(shape, dtypes.numpy_dtype(code)))
    return _read_only(from_bytes(raw, code, count).reshape(shape))


def is_narrow(tensor: TensorProto) -> bool:
    """Whether `decode_narrow` gives codes."""
    return tensor.data_type in _NARROW


def _bare(data: np.ndarray, code: int, shape: tuple[int, ...]) -> StoredTensor:
    """Codes of a narrow type in raw layout."""
    form, data = _NARROW[code], _read_only(data)
    codes = data.reshape(shape) if form.bits == 8 else NarrowArray(data, form.bits, form.is_signed, shape)
    return StoredTensor(form, HeldCodes(codes))


def from_bytes(raw: bytes | memoryview, code: int, count: int) -> np.ndarray:
    """1-D array of `count` > 0 elements in ONNX raw layout (little-endian, sub-byte types packed)."""
    dtype = dtypes.numpy_dtype(code)
    bits = dtypes.bits(code)
    if bits < 8:
        return unpack(np.frombuffer(raw, np.uint8), bits, count).view(dtype)
    array = np.frombuffer(raw, dtype)
    if code == _BOOL and array.view(np.uint8).max() > 1:
        return array.view(np.uint8) != 0
    if not array.flags.aligned and array.nbytes < SMALL:
        array = array.copy()
    return array if sys.byteorder == "little" else array.byteswap()


def _bytes_of_typed(tensor: TensorProto, code: int, typed: list[str], count: int, what: str) -> np.ndarray:
    """What `raw_data` of a narrow type would hold."""
    name = dtypes.type_name(code)
    if typed != ["int32_data"]:
        raise InvalidModel(f"{what} of {name} has data in {', '.join(typed)}; it belongs into int32_data")
    numbers = wire.array(tensor.int32_data, wire.INTS)
    _expect(len(numbers), packed_size(count, dtypes.bits(code)), what, name)
    return numbers.astype(np.uint8)


def _from_typed(tensor: TensorProto, code: int, typed: list[str], count: int, what: str) -> np.ndarray:
    name = dtypes.type_name(code)
    field, kind = _FIELD_OF_CODE.get(code, ("int32_data", wire.INTS))
    if code == _STRING:
        field = "string_data"
    if typed != [field]:
        raise InvalidModel(f"{what} of {name} has data in {', '.join(typed)}; it belongs into {field}")
    chunks = getattr(tensor, field)
    if code == _STRING:
        _expect(len(chunks), count, what, name)
        out = np.empty(count, object)
        out[:] = [text(item) for item in chunks]
        return out
    dtype, bits = dtypes.numpy_dtype(code), dtypes.bits(code)
    numbers = wire.array(chunks, kind)
    if dtype.kind == "c":
        _expect(len(numbers), 2 * count, what, name)
        return np.ascontiguousarray(numbers).view(dtype)
    _expect(len(numbers), count, what, name)
    if field != "int32_data":
        return numbers.astype(dtype, copy=not numbers.flags.aligned)
    if code == _BOOL:
        return numbers != 0
    if dtype.kind in "iu":
        return numbers.astype(dtype)
    return numbers.astype(np.uint8 if bits < 16 else np.uint16).view(dtype)


def _expect(held: int, needed: int, what: str, type_name: str) -> None:
    if held != needed:
        raise InvalidModel(f"{what} of {type_name} needs {needed} numbers for its dims but holds {held}")


def text(data: bytes | memoryview) -> str | bytes:
    """A string of the file; one that is not UTF-8 stays bytes."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        return bytes(data)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def decode_sparse(sparse: SparseTensorProto, external: ExternalData, max_bytes: int) -> np.ndarray:
    """The dense array that a sparse tensor stands for, at most `max_bytes` large."""
    if sparse.values is None or sparse.indices is None:
        raise InvalidModel("a sparse tensor has no values or no indices")
    what = f"sparse tensor {sparse.values.name!r}"
    values, indices = decode(sparse.values, external), decode(sparse.indices, external)
    shape = checked_shape(sparse.dims, what)
    size = math.prod(shape) * max(values.itemsize, 1)
    if size > max_bytes:
        raise UnsupportedModel(f"{what} is {size} bytes when dense; the limit is {max_bytes} (Limits.sparse_bytes)")
    if indices.dtype != np.int64:
        raise InvalidModel(f"{what}: indices are {indices.dtype}, not int64")
    if values.ndim != 1 or indices.shape not in ((values.size,), (values.size, len(shape))):
        raise InvalidModel(f"{what}: values of shape {values.shape} and indices of shape {indices.shape} do not fit dims {list(shape)}")
    limits = np.asarray(shape if indices.ndim == 2 else math.prod(shape), np.int64)
    if np.any(indices < 0) or np.any(indices >= limits):
        raise InvalidModel(f"{what}: an index lies outside dims {list(shape)}")
    flat = indices if indices.ndim == 1 else np.zeros(values.size, np.int64)
    if indices.ndim == 2:
        for axis, dim in enumerate(shape):
            flat = flat * dim + indices[:, axis]
    if np.any(np.diff(flat) <= 0):
        raise InvalidModel(f"{what}: indices are not in ascending order without repetition")
    if values.dtype == object:
        dense = np.full(math.prod(shape), "", object)
    else:
        dense = np.zeros(math.prod(shape), values.dtype)
    dense[flat] = values
    return _read_only(dense.reshape(shape))


def encode(array: np.ndarray | StoredTensor, name: str = "") -> TensorProto:
    """TensorProto of an array or of bare codes; the elements are referred to, not copied, unless they lie otherwise in files."""
    code = array.element_type if isinstance(array, StoredTensor) else dtypes.onnx_code(array.dtype)
    tensor = TensorProto(dims=list(array.shape), data_type=code)
    if name:
        tensor.name = name
    if isinstance(array, StoredTensor):
        tensor.raw_data = array.codes.packed() if isinstance(array.codes, NarrowArray) else array.codes
    elif code == _STRING:
        tensor.string_data = [item if isinstance(item, bytes) else str(item).encode("utf-8") for item in array.flat]
    else:
        bits = dtypes.bits(code)
        tensor.raw_data = array if bits >= 8 else pack(array, bits)
    return tensor
