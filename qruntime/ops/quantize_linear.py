"""Linear quantization: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear, QLinearMatMul."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Node
from qruntime.ir.dtypes import bits, numpy_dtype, onnx_code
from qruntime.ops.checks import normalize_axis
from qruntime.ops.precision import working_dtype
from qruntime.ops.products import matmul
from qruntime.ops.registry import NativeCall, operator

_INTEGER_RANGES = {
    "int2": (-2, 1),
    "uint2": (0, 3),
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
}
_FLOAT, _UINT8 = 1, 2
"""Codes of ONNX element types."""

_FLOAT_MAXIMA = {
    "float4_e2m1fn": 6.0,
    "float8_e4m3fn": 448.0,
    "float8_e4m3fnuz": 240.0,
    "float8_e5m2": 57344.0,
    "float8_e5m2fnuz": 57344.0,
}


def integers_as_float(terms: int) -> type[np.floating]:
    """Narrowest float type in which a sum of `terms` products of two 9-bit integers is exact."""
    return np.float32 if terms * 255 * 255 < 2**24 else np.float64


def saturated(values: np.ndarray, zero_point: np.ndarray | int, dtype: np.dtype) -> np.ndarray:
    """Round `values` half to even, add `zero_point`, clip to the range of `dtype`, 16 bits or fewer.

    NaN counts as 0.
    """
    low, high = _INTEGER_RANGES[dtype.name]
    zero = np.asarray(zero_point).astype(working_dtype(values.dtype))
    rounded = np.rint(values.astype(zero.dtype, copy=False))
    # Every bound and sum is an integer that float32 holds exactly.
    clipped = np.asarray(np.nan_to_num(np.clip(rounded, low - zero, high - zero)) + zero)
    return clipped.astype(np.int32).astype(dtype) if bits(onnx_code(dtype)) < 8 else clipped.astype(dtype)


def requantized(acc: np.ndarray, multiplier: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """Integer sums times a float multiplier, saturated to the type of `zero_point`.

    In float32: the sum is rounded to it, and so is the product. The standard leaves open in which precision; in another
    one a product next to the middle between two codes may become the other code.
    """
    if zero_point.dtype.name in _INTEGER_RANGES:
        with np.errstate(over="ignore", invalid="ignore"):
            return saturated(acc.astype(np.float32) * multiplier.astype(np.float32), zero_point, zero_point.dtype)
    return _to_small_float(acc.astype(np.float32) * multiplier, zero_point.dtype, saturate=True)


def _to_small_float(values: np.ndarray, dtype: np.dtype, saturate: bool) -> np.ndarray:
    values = values.astype(np.float32, copy=False)
    if saturate or dtype.name == "float4_e2m1fn":
        maximum = _FLOAT_MAXIMA[dtype.name]
        values = np.clip(values, -maximum, maximum)
    return values.astype(dtype)


def spread(name: str, parameter: np.ndarray, shape: tuple[int, ...], axis: int, block_size: int) -> np.ndarray:
    """Quantization parameter made broadcastable against `shape`: per tensor, per axis or per block.

    Raises ValueError when it has none of the three shapes.
    """
    if block_size < 0:
        raise ValueError(f"block_size must not be negative, got {block_size}")
    if parameter.ndim == 0 or (parameter.size == 1 and not block_size):
        return parameter.reshape(())
    axis = normalize_axis(axis, len(shape))
    if parameter.ndim == 1 and not block_size:
        if parameter.shape[0] != shape[axis]:
            raise ValueError(f"{name} must have 1 or {shape[axis]} values (axis {axis}), got {parameter.shape}")
        return parameter.reshape(-1, *(1,) * (len(shape) - axis - 1))
    if block_size < 1:
        raise ValueError(f"{name} of shape {parameter.shape} needs block_size, or one value per slice of axis {axis}")
    blocks = -(-shape[axis] // block_size)
    expected = (*shape[:axis], blocks, *shape[axis + 1 :])
    if parameter.shape != expected:
        raise ValueError(f"{name} must have the shape {expected} (blocks of {block_size}, axis {axis}), got {parameter.shape}")
    index = np.arange(shape[axis]) // block_size
    return np.take(parameter, index, axis=axis)


def _target_dtype(zero_point: np.ndarray | None, output_dtype: int) -> np.dtype:
    if zero_point is None:
        return numpy_dtype(output_dtype) if output_dtype else np.dtype(np.uint8)
    if output_dtype and numpy_dtype(output_dtype) != zero_point.dtype:
        raise ValueError(f"output_dtype {numpy_dtype(output_dtype)} differs from the zero point's {zero_point.dtype}")
    return zero_point.dtype


@operator("QuantizeLinear", since=10)
def quantize_linear(
    x: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> np.ndarray:
    """x / scale, rounded half to even, plus zero point, saturated; the scale per tensor, axis or block."""
    dtype = _target_dtype(y_zero_point, output_dtype)
    if y_zero_point is not None and y_zero_point.size != y_scale.size:
        raise ValueError(f"y_scale and y_zero_point differ in shape: {y_scale.shape} and {y_zero_point.shape}")
    divisor = numpy_dtype(precision) if precision else y_scale.dtype
    scale = spread("y_scale", y_scale, x.shape, axis, block_size).astype(divisor)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = x.astype(divisor, copy=False) / scale
    if dtype.name in _INTEGER_RANGES:
        zero: np.ndarray | int = 0
        if y_zero_point is not None:
            zero = spread("y_zero_point", y_zero_point, x.shape, axis, block_size)
        return saturated(quotient, zero, dtype)
    if dtype.name not in _FLOAT_MAXIMA:
        raise ValueError(f"cannot quantize to {dtype}")
    if y_zero_point is not None and np.any(y_zero_point.astype(np.float32)):
        zero = spread("y_zero_point", y_zero_point, x.shape, axis, block_size)
        quotient = quotient.astype(np.float32) + zero.astype(np.float32)
    return _to_small_float(quotient, dtype, bool(saturate))


@operator("DequantizeLinear", since=10)
def dequantize_linear(
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> np.ndarray:
    """(x - zero point) · scale in the type of the scale or `output_dtype`; per tensor, axis or block."""
    result = numpy_dtype(output_dtype) if output_dtype else x_scale.dtype
    wide = np.result_type(working_dtype(result), working_dtype(x_scale.dtype))
    scale = spread("x_scale", x_scale, x.shape, axis, block_size).astype(wide)
    if x.dtype.name in _INTEGER_RANGES or x.dtype == np.int32:
        values = x.astype(np.int32)
        if x_zero_point is not None:
            if x_zero_point.size != x_scale.size:
                raise ValueError(f"x_scale and x_zero_point differ in shape: {x_scale.shape}, {x_zero_point.shape}")
            zero = spread("x_zero_point", x_zero_point, x.shape, axis, block_size).astype(np.int32)
            values = values.astype(np.int64) - zero if x.dtype == np.int32 else values - zero
        return np.asarray(values.astype(wide) * scale).astype(result, copy=False)
    values = x.astype(np.float32)
    if x_zero_point is not None and np.any(x_zero_point.astype(np.float32)):
        values = values - spread("x_zero_point", x_zero_point, x.shape, axis, block_size).astype(np.float32)
    return np.asarray(values.astype(wide) * scale).astype(result, copy=False)


@operator("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (float32, any shape) → y (uint8), scale () and zero point (): the range of x, 0 included, over 0 … 255."""
    low = np.float32(min(x.min(), 0)) if x.size else np.float32(0)
    high = np.float32(max(x.max(), 0)) if x.size else np.float32(0)
    with np.errstate(all="ignore"):
        scale = (high - low) / np.float32(255)
        if np.isinf(scale) and np.isfinite(low) and np.isfinite(high):
            scale = np.float32((float(high) - float(low)) / 255)
        if scale == 0:
            scale = np.float32(1)
        zero_point = saturated(np.clip(-low / scale, 0, 255), 0, np.dtype(np.uint8))
        y = saturated(x / scale, zero_point, np.dtype(np.uint8))
    return y, np.asarray(scale, np.float32), np.asarray(zero_point)


@quantize_linear.native
def _quantize(node: Node) -> NativeCall | None:
    if node.attr("block_size", 0) or node.attr("precision", 0) not in (0, _FLOAT):
        return None
    default = _UINT8 if node.input(2) is None else 0
    return NativeCall("quantize_linear", ints=[node.attr("axis", 1), node.attr("output_dtype", 0) or default])


@dequantize_linear.native
def _dequantize(node: Node) -> NativeCall | None:
    if node.attr("block_size", 0) or node.attr("output_dtype", 0) not in (0, _FLOAT):
        return None
    return NativeCall("dequantize_linear", ints=[node.attr("axis", 1), 0])


@dynamic_quantize_linear.native
def _dynamic_quantize(node: Node) -> NativeCall | None:
    return NativeCall("dynamic_quantize_linear") if len(node.outputs) == 3 else None


def _row_parameter(name: str, value: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    """Scale or zero point of a matrix: one value, one per row or column, or already of the matrix's rank."""
    if value.size == 1:
        return value.reshape(())
    if value.ndim == 1 and matrix.ndim >= 2 and value.shape[0] == matrix.shape[axis]:
        return value.reshape(-1, 1) if axis == -2 else value
    if value.ndim == matrix.ndim:
        expected = [*matrix.shape]
        expected[-1 if axis == -2 else -2] = 1
        if value.shape == tuple(expected):
            return value
    raise ValueError(f"{name} of shape {value.shape} fits no axis of a matrix of shape {matrix.shape}")


@operator("QLinearMatMul", since=10)
def qlinear_matmul(
    a: np.ndarray,
    a_scale: np.ndarray,
    a_zero_point: np.ndarray,
    b: np.ndarray,
    b_scale: np.ndarray,
    b_zero_point: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray,
) -> np.ndarray:
    """MatMul of 8-bit tensors, requantized; parameters per tensor, of A and Y per row, of B per column."""
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(f"shapes {a.shape} and {b.shape} cannot be multiplied")
    exact = integers_as_float(a.shape[-1])
    a_zero = _row_parameter("a_zero_point", a_zero_point, a, -2)
    b_zero = _row_parameter("b_zero_point", b_zero_point, b, -1)
    left = a.astype(exact) - a_zero.astype(exact)
    right = b.astype(exact) - b_zero.astype(exact)
    acc = matmul(left, right)
    scales = [
        _row_parameter("a_scale", a_scale, a, -2).astype(np.float32),
        _row_parameter("b_scale", b_scale, b, -1).astype(np.float32),
        _row_parameter("y_scale", y_scale, acc, -2).astype(np.float32),
    ]
    zero_point = _row_parameter("y_zero_point", y_zero_point, acc, -2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        multiplier = scales[0] * scales[1] / scales[2]
    return requantized(acc, multiplier, zero_point)
