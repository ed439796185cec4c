"""Constant weights as lowering sees them: float, float16 behind a Cast, or int8 behind a dequantization.

Two stored forms of int8 are recognised: `DequantizeLinear(q, scale, zero_point)` and, for opsets that lack
it, `Mul(Sub(Cast(q), zero_point), scale)`. In models of a narrower float a Cast to it follows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qruntime.ir import Graph, Node, TypeInfo, Value
from qruntime.ir.dtypes import numpy_dtype
from qruntime.ops.elementwise import is_packable, narrow, widen

DYNAMIC = "qruntime.dynamic"
"""Metadata key of a node whose activations are quantized at every run; the value is per_token or per_tensor."""

ENGINE = "qruntime.engine"
"""Metadata key of such a node when it computes as another runtime does; the value is one of qruntime.ops.engines."""

STORED = "qruntime.dtype"
"""Metadata key of a node whose weight is stored in another element type: float16, or quint8 and quint4x2 of embeddings."""


_FLOAT16, _BFLOAT16 = 10, 16


class QuantizedWeight(NamedTuple):
    """real = scale · (q − zero_point); `scale` and `zero_point` are scalars or have one entry per index of `axis`."""

    q: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None
    dtype: np.dtype = np.dtype(np.float32)  # of the real numbers; scales are float32 whatever it is

    def dequantize(self) -> np.ndarray:
        shape = [1] * self.q.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        centred = self.q.astype(np.int32) - self.zero_point.astype(np.int32).reshape(shape)
        return narrow(centred.astype(np.float32) * self.scale.reshape(shape), self.dtype)


def half_weight(value: Value | None) -> np.ndarray | None:
    """The float16 constant that `value` widens to float32, or None."""
    node = None if value is None else value.producer
    source = node.input(0) if node is not None and node.is_op("Cast") and node.attr("to") == 1 else None
    if source is None or source.data is None or source.data.dtype != np.float16:
        return None
    return source.data


def is_stored_half(node: Node) -> bool:
    """A Cast whose float16 constant is how the weight of a layer is stored."""
    if not node.is_op("Cast") or half_weight(node.outputs[0]) is None:
        return False
    return any(user.metadata.get(STORED) == "float16" for user, _ in node.outputs[0].uses)


def widen_half_weights(graph: Graph) -> None:
    """Weights stored as float16 become float32 constants: they are computed with as such."""
    for nested in graph.walk_graphs():
        gone = [node for node in nested.nodes if is_stored_half(node)]
        for node in gone:
            output, half = node.outputs[0], half_weight(node.outputs[0])
            assert half is not None
            output.producer, output.data = None, half.astype(np.float32)
            output.type = TypeInfo("tensor", 1, half.shape)
        nested.remove(*gone)


def quantized_weight(value: Value | None) -> QuantizedWeight | None:
    """The int8 constant that `value` dequantizes, or None."""
    node = None if value is None else value.producer
    if node is None:
        return None
    if node.is_op("DequantizeLinear"):
        return _from_dequantize_linear(node)
    if node.is_op("Mul"):
        return _from_cast_chain(node)
    if node.is_op("Cast") and node.attr("to") in (_FLOAT16, _BFLOAT16):
        wide = quantized_weight(node.input(0))
        return None if wide is None else wide._replace(dtype=numpy_dtype(node.attr("to")))
    return None


def _from_dequantize_linear(node: Node) -> QuantizedWeight | None:
    q, scale = node.input(0), node.input(1)
    if q is None or scale is None or q.data is None or scale.data is None or q.data.dtype != np.int8:
        return None
    zero = node.input(2)
    if zero is not None and zero.data is None:
        return None
    if node.attr("block_size", 0) or not is_packable(scale.data.dtype):
        return None
    found = _checked(q.data, widen(scale.data), None if zero is None else zero.data, node.attr("axis", 1))
    return None if found is None else found._replace(dtype=scale.data.dtype)


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
