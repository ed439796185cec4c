"""Element types: ONNX code ↔ name ↔ numpy dtype.

Types that numpy lacks (bfloat16, float8, 4-bit …) come from `ml_dtypes`, which is imported only when
a model uses one of them.
"""

from __future__ import annotations

import functools

import numpy as np

from qruntime.errors import InvalidModel, UnsupportedModel

# ONNX TensorProto.DataType → (name as ONNX spells it in lower case, bits per element)
ONNX_TYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", 0),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    14: ("complex64", 64),
    15: ("complex128", 128),
    16: ("bfloat16", 16),
    17: ("float8_e4m3fn", 8),
    18: ("float8_e4m3fnuz", 8),
    19: ("float8_e5m2", 8),
    20: ("float8_e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4_e2m1fn", 4),
    24: ("float8_e8m0fnu", 8),
    25: ("uint2", 2),
    26: ("int2", 2),
    27: ("float6_e2m3fn", 6),
    28: ("float6_e3m2fn", 6),
}
ONNX_CODES = {name: code for code, (name, _) in ONNX_TYPES.items()}

_NUMPY_NATIVE = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float16", "float32", "float64", "complex64", "complex128"}
)


def is_native(name: str) -> bool:
    """Whether numpy itself has the element type of that name."""
    return name in _NUMPY_NATIVE


@functools.cache
def numpy_dtype(code: int) -> np.dtype:
    """numpy dtype of an ONNX element type code; strings are `object`."""
    if code not in ONNX_TYPES:
        raise InvalidModel(f"unknown tensor element type {code}; known codes are 1 to {max(ONNX_TYPES)}")
    name = ONNX_TYPES[code][0]
    if name == "string":
        return np.dtype(object)
    if name in _NUMPY_NATIVE:
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise UnsupportedModel(f"element type {name} needs the package ml_dtypes: pip install ml_dtypes") from error
    return np.dtype(getattr(ml_dtypes, name))


@functools.lru_cache(maxsize=256)
def onnx_code(dtype: np.dtype | type | str) -> int:
    """ONNX element type code of a numpy (or ml_dtypes) dtype; any string-like dtype is `string`."""
    dtype = np.dtype(dtype)
    if dtype.kind in "OSUT":
        return ONNX_CODES["string"]
    code = ONNX_CODES.get(dtype.name)
    if code is None:
        raise UnsupportedModel(f"numpy dtype {dtype} has no ONNX element type")
    return code


def type_name(code: int) -> str:
    return ONNX_TYPES[code][0] if code in ONNX_TYPES else f"unknown({code})"


def bits(code: int) -> int:
    return ONNX_TYPES[code][1]
