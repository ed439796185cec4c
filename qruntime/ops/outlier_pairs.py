"""Rounding to outlier-victim pairs (domain qruntime): kernels/outlier_pairs.h says the rules; its integers and these are the same."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Node
from qruntime.ops.elementwise import widen
from qruntime.ops.registry import NativeCall, operator

_BEYOND, _MOST_NORMAL, _LEAST_OUTLIER, _MOST_OUTLIER = 9.5, 7, 12, 96


def pair_values(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """x [..., K] float32 in units of `scale` (above 0, broadcast), rounded in pairs along the last axis: int8 of its shape."""
    with np.errstate(over="ignore", invalid="ignore"):
        steps = x / scale
    steps = np.where(np.isnan(steps), np.float32(0), steps)
    size = np.abs(steps)
    even = size.shape[-1] // 2 * 2
    first, second = size[..., 0:even:2], size[..., 1:even:2]
    is_victim = np.zeros(size.shape, bool)
    is_victim[..., 0:even:2] = (second > _BEYOND) & (second > first)
    is_victim[..., 1:even:2] = (first > _BEYOND) & (first >= second)
    values = np.where(is_victim, 0, np.where(size > _BEYOND, _outliers(size), np.minimum(np.rint(size), _MOST_NORMAL)))
    return (np.sign(steps) * values).astype(np.int8)


def _outliers(size: np.ndarray) -> np.ndarray:
    """The nearest numbers of one bit of mantissa, half to the even one."""
    inside = np.minimum(size, np.float32(_MOST_OUTLIER))
    _, exponent = np.frexp(inside)
    step = np.ldexp(np.float32(1), exponent - 2)
    return np.maximum(np.rint(inside / step) * step, _LEAST_OUTLIER)


@operator("OutlierVictimPairs", domain="qruntime")
def outlier_victim_pairs(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """x [..., K] float32 rounded to pairs along its last axis, in units of `scale` float32 of one element."""
    _check(x, scale)
    return pair_values(x, scale.reshape(())).astype(np.float32) * scale.reshape(())


def _check(x: np.ndarray, scale: np.ndarray) -> None:
    if x.ndim == 0 or x.dtype != np.float32:
        raise ValueError(f"x must be float32 of rank 1 at least, got {x.dtype} of rank {x.ndim}")
    if scale.size != 1 or scale.dtype != np.float32 or not (scale > 0).all() or not np.isfinite(scale).all():
        raise ValueError(f"the scale must be one finite float32 above 0, got {scale.dtype} {scale.tolist()}")


@operator("OutlierVictimCodes", domain="qruntime")
def outlier_victim_codes(x: np.ndarray, *, scale: float) -> np.ndarray:
    """The same of lowered graphs, in units of `scale`: int8 [..., K], of −96 … 96. Floats narrower than float32 are widened."""
    wide = widen(x)
    _check(wide, np.asarray(scale, np.float32))
    return pair_values(wide, np.float32(scale))


@outlier_victim_codes.native
def _(node: Node) -> NativeCall:
    return NativeCall("outlier_pairs", floats=[node.attr("scale")])
