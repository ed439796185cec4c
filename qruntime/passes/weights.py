"""Constant weights as lowering sees them: float, or int8 behind a dequantization.

Two stored forms are recognised: `DequantizeLinear(q, scale, zero_point)` and, for opsets that lack it,
`Mul(Sub(Cast(q), zero_point), scale)`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qruntime.ir import Node, Value

DYNAMIC = "qruntime.dynamic"
"""Metadata key of a node whose activations are quantized at every run; the value is per_token or per_tensor."""


class QuantizedWeight(NamedTuple):
    """real = scale · (q − zero_point); `scale` and `zero_point` are scalars or have one entry per index of `axis`."""

    q: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None

    def dequantize(self) -> np.ndarray:
        shape = [1] * self.q.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        centred = self.q.astype(np.int32) - self.zero_point.astype(np.int32).reshape(shape)
        return centred.astype(np.float32) * self.scale.reshape(shape)


def quantized_weight(value: Value | None) -> QuantizedWeight | None:
    """The int8 constant that `value` dequantizes, or None."""
    node = None if value is None else value.producer
    if node is None:
        return None
    if node.is_op("DequantizeLinear"):
        return _from_dequantize_linear(node)
    if node.is_op("Mul"):
        return _from_cast_chain(node)
    return None


def _from_dequantize_linear(node: Node) -> QuantizedWeight | None:
    q, scale = node.input(0), node.input(1)
    if q is None or scale is None or q.data is None or scale.data is None or q.data.dtype != np.int8:
        return None
    zero = node.input(2)
    if zero is not None and zero.data is None:
        return None
    if node.attr("block_size", 0) or scale.data.dtype != np.float32:
        return None
    return _checked(q.data, scale.data, None if zero is None else zero.data, node.attr("axis", 1))


def _from_cast_chain(node: Node) -> QuantizedWeight | None:
    scale, inner = node.input(1), node.input(0)
    zero = None
    if inner is not None and inner.producer is not None and inner.producer.is_op("Sub"):
        zero = inner.producer.input(1)
        inner = inner.producer.input(0)
        if zero is None or zero.data is None:
            return None
    cast = None if inner is None else inner.producer
    if cast is None or not cast.is_op("Cast") or scale is None or scale.data is None or scale.data.dtype != np.float32:
        return None
    q, offsets = cast.input(0), None if zero is None else zero.data
    if q is None or q.data is None or q.data.dtype != np.int8 or cast.attr("to") != 1:
        return None
    axes = [i for i, n in enumerate(scale.data.shape) if n != 1]
    if len(axes) > 1 or scale.data.ndim > q.data.ndim:
        return None
    axis = axes[0] + q.data.ndim - scale.data.ndim if axes else 0
    return _checked(q.data, scale.data.reshape(-1), None if offsets is None else offsets.reshape(-1), axis)


def _checked(q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, axis: int) -> QuantizedWeight | None:
    axis = axis + q.ndim if axis < 0 else axis
    per_axis = scale.ndim == 1 and scale.size != 1
    if scale.ndim > 1 or (per_axis and (axis >= q.ndim or scale.size != q.shape[axis])):
        return None
    if not np.isfinite(scale).all():
        return None
    zero = np.zeros(scale.shape, np.int8) if zero is None else zero
    if zero.size != scale.size:
        return None
    return QuantizedWeight(q, scale.reshape(-1), zero.reshape(-1), axis if per_axis else None)
