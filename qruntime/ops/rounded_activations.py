"""Activations rounded to few numbers before they are multiplied (lowered graphs, domain qruntime)."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Node
from qruntime.ops.quantize_linear import dequantize_linear, quantize_linear
from qruntime.ops.registry import NativeCall, operator

_UINT8 = 2
"""Code of the ONNX element type."""


@operator("QuantizeLinear", domain="qruntime")
def quantize_to(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, *, axis: int = 1, most: int = 255) -> np.ndarray:
    """QuantizeLinear to uint8 of which no code is greater than `most`; scale and zero point for the tensor or along `axis`."""
    return np.minimum(quantize_linear(x, scale, zero_point, axis=axis), np.uint8(most))


@operator("RoundToCodes", domain="qruntime")
def round_to_codes(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, *, axis: int = 1, most: int = 255) -> np.ndarray:
    """What the codes of `quantize_to` stand for."""
    return dequantize_linear(quantize_to(x, scale, zero_point, axis=axis, most=most), scale, zero_point, axis=axis)


@quantize_to.native
def _quantize_to(node: Node) -> NativeCall:
    return NativeCall("quantize_linear", ints=[node.attr("axis", 1), _UINT8, node.attr("most", 255)])


@round_to_codes.native
def _round_to_codes(node: Node) -> NativeCall:
    return NativeCall("round_to_codes", ints=[node.attr("axis", 1), _UINT8, node.attr("most", 255)])


@operator("RoundToFloat8", domain="qruntime")
def round_to_float8(x: np.ndarray) -> np.ndarray:
    """x [..., K] float32 → each row rounded to E4M3 times max |row| / 448, ties to even; a row with NaN or infinity is NaN."""
    if x.ndim == 0:
        raise ValueError("rows are rounded along the last dimension, and x has none")
    rows = x.astype(np.float32, copy=False)
    with np.errstate(all="ignore"):
        largest = np.abs(rows).max(axis=-1, keepdims=True, initial=0)
        scale = (largest.astype(np.float64) / 448).astype(np.float32)
        scale = np.where(scale == 0, np.float32(1), np.maximum(scale, np.finfo(np.float32).tiny))
        shares = np.clip(rows * (np.float32(1) / scale), np.float32(-448), np.float32(448))
        # 2⁻⁶ is the least normal number, and there are eight numbers from one power of two to the next.
        step = np.ldexp(np.float32(1), np.maximum(np.frexp(shares)[1] - 1, -6) - 3)
        return np.asarray((np.rint(shares / step) * step + np.float32(0)) * scale).astype(x.dtype, copy=False)


@round_to_float8.native
def _round_to_float8(node: Node) -> NativeCall:
    return NativeCall("round_to_float8")
