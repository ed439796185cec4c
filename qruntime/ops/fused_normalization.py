"""Layer and RMS normalisation of lowered graphs (domain qruntime), with the residual that is added before."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Node
from qruntime.ops.elementwise import rounded_once
from qruntime.ops.registry import NativeCall, operator


def _finish(y: np.ndarray, total: np.ndarray, scale: np.ndarray | None, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias), total


@operator("LayerNormalization", domain="qruntime")
@rounded_once
def layer_normalization(
    x: np.ndarray,
    scale: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray]:
    """(x + residual normalised over the axes from `axis` on, times scale, plus bias; x + residual)."""
    total = x if residual is None else x + residual
    axes = tuple(range(axis, 0)) if axis < 0 else tuple(range(axis, total.ndim))
    centred = total - total.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    return _finish(centred / np.sqrt(variance + total.dtype.type(epsilon)), total, scale, bias)


@operator("RMSNormalization", domain="qruntime")
@rounded_once
def rms_normalization(
    x: np.ndarray,
    scale: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray]:
    """(x + residual divided by its root mean square, times scale, plus bias; x + residual)."""
    total = x if residual is None else x + residual
    axes = tuple(range(axis, 0)) if axis < 0 else tuple(range(axis, total.ndim))
    square = np.square(total).mean(axis=axes, keepdims=True)
    return _finish(total / np.sqrt(square + total.dtype.type(epsilon)), total, scale, bias)


@layer_normalization.native
def _layer_norm(node: Node) -> NativeCall:
    return NativeCall("layer_norm", ints=[node.attr("axis", -1)], floats=[node.attr("epsilon", 1e-5)])


@rms_normalization.native
def _rms_norm(node: Node) -> NativeCall:
    return NativeCall("rms_norm", ints=[node.attr("axis", -1)], floats=[node.attr("epsilon", 1e-5)])
