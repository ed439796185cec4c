"""DynamicQuantizeMatMul and MatMulIntegerToFloat; the 8-bit weights that their graphs carry."""

from __future__ import annotations

import numpy as np

from qruntime.ops.contrib.activations import biased
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.registry import operator


def as_int8(q: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight of int8 or uint8 codes [K, N] as int8 codes, scale and zero point [1] or [N] of the same real values.

    Raises ValueError for other element types, and for lengths that fit neither one value nor N.
    """
    columns = q.shape[-1] if q.ndim else 0
    return int8_codes(q), *parameters(q, scale, zero_point, (1, columns))


def int8_codes(q: np.ndarray) -> np.ndarray:
    """uint8 codes shifted by 128 into int8; int8 ones as they are."""
    if q.dtype == np.int8:
        return q
    if q.dtype != np.uint8:
        raise ValueError(f"a quantized weight must be int8 or uint8, got {q.dtype}")
    return np.bitwise_xor(q, np.uint8(128)).view(np.int8)


def parameters(q: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and int8 zero point of `q` as vectors; each must have one of `sizes` entries."""
    if scale.dtype != np.float32 or scale.size not in sizes or not np.isfinite(scale).all():
        raise ValueError(f"a weight scale must hold {_either(sizes)} finite float32, got {scale.dtype} {scale.shape}")
    scale = scale.reshape(-1)
    if zero_point is None:
        return scale, np.full(scale.size, -128 if q.dtype == np.uint8 else 0, np.int8)
    if zero_point.dtype != q.dtype or zero_point.size not in sizes:
        raise ValueError(f"a weight zero point must hold {_either(sizes)} {q.dtype}, got {zero_point.dtype} {zero_point.shape}")
    zero = int8_codes(zero_point).reshape(-1)
    size = max(scale.size, zero.size)
    return np.broadcast_to(scale, size), np.broadcast_to(zero, size)


def _either(sizes: tuple[int, ...]) -> str:
    return " or ".join(str(size) for size in dict.fromkeys(sizes))


@operator("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(
    a: np.ndarray,
    b: np.ndarray,
    a_scale: np.ndarray,
    b_scale: np.ndarray,
    a_zero_point: np.ndarray | None = None,
    b_zero_point: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """MatMulInteger times the scales, plus bias [N]; b's parameters per tensor or per column."""
    if a_scale.size != 1 or (a_zero_point is not None and a_zero_point.size != 1):
        raise ValueError(f"a_scale and a_zero_point must be one value each, got a_scale of shape {a_scale.shape}")
    total = standard("MatMulInteger", a, b, None if a_zero_point is None else a_zero_point.reshape(()), b_zero_point)
    columns = total.shape[-1] if total.ndim else 1
    if b_scale.size not in (1, columns):
        raise ValueError(f"b_scale must have 1 or {columns} values, got shape {b_scale.shape}")
    scale = a_scale.reshape(()) * (b_scale.reshape(()) if b_scale.size == 1 else b_scale.reshape(-1))
    return biased(np.asarray(total.astype(scale.dtype) * scale), bias)


@operator("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(
    a: np.ndarray,
    b: np.ndarray,
    b_scale: np.ndarray,
    b_zero_point: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """a float32, quantized to uint8 from its own range, times b (8-bit), as float32, plus bias [N]."""
    codes, scale, zero_point = standard("DynamicQuantizeLinear", a)
    return matmul_integer_to_float(codes, b, scale, b_scale, zero_point, b_zero_point, bias)
