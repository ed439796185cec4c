"""Shapes as data, and tensors made from shapes and attributes."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from qruntime.ir import Node
from qruntime.ir.dtypes import ONNX_CODES, numpy_dtype, onnx_code
from qruntime.ops.checks import integers, limit_shape, same_dtype, scalar
from qruntime.ops.elementwise import is_float, is_narrow_float
from qruntime.ops.registry import NativeCall, operator

_NO_END = 2**63 - 1


@operator("Shape", since=15)
def shape(x: np.ndarray, *, start: int = 0, end: int | None = None) -> np.ndarray:
    """Dimensions from `start` up to `end`; both are clamped to the rank."""
    return np.array(x.shape[slice(start, end)], np.int64)


@shape.native
def _(node: Node) -> NativeCall | None:
    end = node.attr("end")
    return NativeCall("shape", ints=[node.attr("start", 0), _NO_END if end is None else end])


@operator("Shape", since=1)
def shape_1(x: np.ndarray) -> np.ndarray:
    return np.array(x.shape, np.int64)


@shape_1.native
def _(node: Node) -> NativeCall:
    return NativeCall("shape", ints=[0, _NO_END])


@operator("Size", since=1)
def size(x: np.ndarray) -> np.ndarray:
    return np.array(x.size, np.int64)


@size.native
def _(node: Node) -> NativeCall:
    return NativeCall("size")


@operator("ConstantOfShape", since=9, shape_inputs=(0,))
def constant_of_shape(dims: np.ndarray, *, value: np.ndarray | None = None) -> np.ndarray:
    """A tensor full of the one element of `value`; float32 zeros without it."""
    fill = np.zeros((), np.float32) if value is None else scalar(value, "value")
    return np.full(limit_shape(integers(dims, "the shape")), fill, fill.dtype)


@constant_of_shape.native
def _(node: Node) -> NativeCall | None:
    value = np.zeros(1, np.float32) if node.attr("value") is None else node.attr("value")
    if value.size != 1 or value.dtype.itemsize > 8:
        return None
    code = onnx_code(value.dtype)
    bits = int.from_bytes(value.tobytes().ljust(8, b"\0"), sys.byteorder, signed=True)
    return NativeCall("constant_of_shape", ints=[code, bits]) if code != ONNX_CODES["string"] else None


@operator("Range", since=11, shape_inputs=(0, 1, 2))
def range_(start: np.ndarray, limit: np.ndarray, delta: np.ndarray, *, stash_type: int = 1) -> np.ndarray:
    """start + i · delta for i below ceil((limit − start) / delta).

    Narrow floats are computed in float32, or in float64 with stash_type=11.
    """
    start, limit, delta = scalar(start, "start"), scalar(limit, "limit"), scalar(delta, "delta")
    same_dtype(start, limit, delta)
    dtype = start.dtype
    if is_narrow_float(dtype):
        if stash_type not in (1, 11):
            raise ValueError(f"stash_type must be 1 (float32) or 11 (float64), got {stash_type}")
        kind = np.float32 if stash_type == 1 else np.float64
        start, limit, delta = start.astype(kind), limit.astype(kind), delta.astype(kind)
    low, high, step = start.item(), limit.item(), delta.item()
    if step == 0:
        raise ValueError("delta must not be 0")
    if is_float(dtype):
        steps = (high - low) / step
        if not math.isfinite(steps):
            raise ValueError(f"start, limit and delta must be finite, got {low}, {high}, {step}")
        count = max(math.ceil(steps), 0)
    else:
        count = max(-((low - high) // step), 0)
    (count,) = limit_shape([count])
    with np.errstate(all="ignore"):
        return np.asarray(start + np.arange(count).astype(start.dtype) * delta).astype(dtype)


@range_.native
def _(node: Node) -> NativeCall:
    return NativeCall("range")


@operator("Identity", since=1)
def identity(x: Any) -> Any:
    """Tensors, sequences and optionals alike."""
    return x


@identity.native
def _(node: Node) -> NativeCall:
    return NativeCall("identity")


@operator("Constant", since=1)
def constant(
    *,
    value: np.ndarray | None = None,
    sparse_value: np.ndarray | None = None,
    value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None,
    value_int: int | None = None,
    value_ints: tuple[int, ...] | None = None,
    value_string: str | None = None,
    value_strings: tuple[str, ...] | None = None,
) -> np.ndarray:
    """The one attribute that is set, as a tensor; `sparse_value` comes as a dense array."""
    given = [
        np.asarray(attribute, dtype)
        for attribute, dtype in (
            (value, None),
            (sparse_value, None),
            (value_float, np.float32),
            (value_floats, np.float32),
            (value_int, np.int64),
            (value_ints, np.int64),
            (value_string, object),
            (value_strings, object),
        )
        if attribute is not None
    ]
    if len(given) != 1:
        raise ValueError(f"exactly one value attribute must be set, got {len(given)}")
    return given[0]


@operator("EyeLike", since=9)
def eye_like(x: np.ndarray, *, dtype: int | None = None, k: int = 0) -> np.ndarray:
    """Ones on diagonal `k` of a matrix of the shape of `x`."""
    if x.ndim != 2:
        raise ValueError(f"a matrix is needed, got shape {x.shape}")
    kind = x.dtype if dtype is None else numpy_dtype(dtype)
    rows, columns = np.ogrid[: x.shape[0], : x.shape[1]]
    return (columns - rows == k).astype(kind)
