"""Experimental operators that ONNX withdrew from its standard domain after release 1.4, and ONNX Runtime still runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ops.checks import require_rank
from qruntime.ops.contrib.domain import standard
from qruntime.ops.registry import operator


@operator("Affine")
def affine(x: np.ndarray, *, alpha: float = 1.0, beta: float = 0.0) -> np.ndarray:
    """alpha · x + beta"""
    return np.asarray(x.dtype.type(alpha) * x + x.dtype.type(beta))


@operator("Scale")
def scale(x: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
    """x · scale"""
    return np.asarray(x * x.dtype.type(scale))


@operator("ScaledTanh")
def scaled_tanh(x: np.ndarray, *, alpha: float, beta: float) -> np.ndarray:
    """alpha · tanh(beta · x)"""
    return np.asarray(x.dtype.type(alpha) * np.tanh(x.dtype.type(beta) * x))


@operator("ParametricSoftplus")
def parametric_softplus(x: np.ndarray, *, alpha: float, beta: float) -> np.ndarray:
    """alpha · ln(1 + exp(beta · x))"""
    return np.asarray(x.dtype.type(alpha) * np.logaddexp(x.dtype.type(0), x.dtype.type(beta) * x))


@operator("ImageScaler")
def image_scaler(x: np.ndarray, *, scale: float = 1.0, bias: Sequence[float] = ()) -> np.ndarray:
    """scale · x + bias of images (N, C, H, W), one bias per channel."""
    require_rank("the input", x, 4)
    if len(bias) != x.shape[1]:
        raise ValueError(f"bias must hold one value for each of the {x.shape[1]} channels, got {len(bias)}")
    return x * x.dtype.type(scale) + np.asarray(bias, x.dtype)[:, None, None]


@operator("Crop")
def crop(x: np.ndarray, *, border: Sequence[int], scale: Sequence[int] | None = None) -> np.ndarray:
    """Images (N, C, H, W) without the border (left, top, right, bottom), or the part (height, width) = `scale` from
    its left and top on."""
    require_rank("the input", x, 4)
    if len(border) != 4 or min(border) < 0 or (scale and (len(scale) != 2 or min(scale) < 0)):
        raise ValueError(
            f"border must be 4 values (left, top, right, bottom) and scale 2 (height, width), none negative, "
            f"got {list(border)} and {list(scale or ())}"
        )
    height, width = x.shape[2:]
    left, top, right, bottom = border
    last = (top + scale[0], left + scale[1]) if scale else (height - bottom, width - right)
    if not (top <= last[0] <= height and left <= last[1] <= width):
        raise ValueError(f"rows {top} to {last[0]} and columns {left} to {last[1]} must lie in an image of {height} × {width}")
    return x[:, :, top : last[0], left : last[1]]


@operator("DynamicSlice", shape_inputs=(1, 2, 3))
def dynamic_slice(x: np.ndarray, starts: np.ndarray, ends: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    """Slice with steps of 1."""
    return standard("Slice", x, starts, ends, axes)


@operator("MemcpyFromHost", "MemcpyToHost")
def memcpy(x: np.ndarray) -> np.ndarray:
    """x: what a graph that was optimized for a GPU says about where a tensor lies."""
    return x
