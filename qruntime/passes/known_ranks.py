"""Ranks and last dimensions, as far as they follow from those of the inputs of a graph, node by node.

symbolic_shapes follows one value back, for what exporters compute of shapes; a residual stream through many layers is too long for that.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qruntime.ir import QRUNTIME, Graph, Node, Value
from qruntime.ops.contrib.domain import MICROSOFT


class Known(NamedTuple):
    """`last`: how many elements the last dimension has, None where that is not known."""

    rank: int
    last: int | None


_LIKE_FIRST = frozenset({
    "Cast", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LeakyRelu",
    "Neg", "RMSNormalization", "Reciprocal", "Relu", "RotaryEmbedding", "Sigmoid", "Silu", "Softmax", "Sqrt", "Swish", "Tanh",
})  # fmt: skip
_MICROSOFT_LIKE_FIRST = frozenset({
    "BiasGelu", "FastGelu", "Gelu", "GroupQueryAttention", "MultiHeadAttention", "QuickGelu", "RotaryEmbedding",
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
})  # fmt: skip
_SUM = 3
"""Which output of a SkipLayerNormalization is the sum that it normalizes."""
_BROADCAST = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})


def known_ranks(graph: Graph) -> dict[Value, Known]:
    """Of the values of `graph` itself, not of those of graphs inside."""
    known: dict[Value, Known] = {}
    for value in graph.inputs:
        _enter(known, value, None)
    for node in graph.nodes:
        made = _of_node(node, known)
        for index, output in enumerate(node.outputs):
            _enter(known, output, made if index == 0 or (index == _SUM and node.op_type.startswith("Skip")) else None)
    return known


def _enter(known: dict[Value, Known], value: Value, made: Known | None) -> None:
    shape = value.type.shape if value.type is not None and value.type.kind == "tensor" else None
    if shape is not None:
        last = shape[-1] if shape and isinstance(shape[-1], int) and shape[-1] >= 0 else None
        made = Known(len(shape), made.last if last is None and made is not None and made.rank == len(shape) else last)
    if made is not None:
        known[value] = made


def _known(value: Value | None, known: dict[Value, Known]) -> Known | None:
    shape = None if value is None else value.shape
    if shape is not None:
        return Known(len(shape), shape[-1] if shape else None)
    return None if value is None else known.get(value)


def _of_node(node: Node, known: dict[Value, Known]) -> Known | None:
    if node.domain == MICROSOFT and node.op_type in _MICROSOFT_LIKE_FIRST:
        first = _known(node.input(0), known)
        is_attention = node.op_type.endswith("Attention")
        return Known(first.rank, None) if first is not None and is_attention else first
    if node.domain not in ("", QRUNTIME):
        return None
    first, second = _known(node.input(0), known), _known(node.input(1), known)
    if node.op_type in _LIKE_FIRST:
        return first
    if node.op_type in _BROADCAST and first is not None and second is not None:
        return Known(max(first.rank, second.rank), _broadcast(first, second))
    if node.is_op("MatMul") and first is not None and second is not None and second.rank == 2:
        return Known(first.rank, second.last) if first.rank > 1 else None
    if node.is_op("Gather") and first is not None and second is not None and node.attr("axis", 0) == 0:
        return Known(first.rank - 1 + second.rank, first.last if first.rank > 1 else None)
    if node.is_op("Transpose") and first is not None and node.attr("perm"):
        return Known(first.rank, first.last if node.attr("perm")[-1] == first.rank - 1 else None)
    if node.is_op("Reshape"):
        return _reshaped(node, first)
    if node.is_op("Attention"):  # the standard one: like its queries
        return None if first is None else Known(first.rank, None)
    return None


def _broadcast(a: Known, b: Known) -> int | None:
    if a.rank == 0 or b.rank == 0:
        return b.last if a.rank == 0 else a.last
    if a.last is not None and b.last is not None:
        return max(a.last, b.last) if 1 in (a.last, b.last) or a.last == b.last else None
    one = a.last if b.last is None else b.last
    return one if one is not None and one > 1 else None


def _reshaped(node: Node, source: Known | None) -> Known | None:
    target = node.input(1)
    if target is None or target.data is None or target.data.ndim != 1 or target.data.dtype != np.int64 or not target.data.size:
        return None
    last = int(target.data[-1])
    if last > 0:
        return Known(target.data.size, last)
    copies = last == 0 and source is not None and source.rank == target.data.size and not node.attr("allowzero", 0)
    return Known(target.data.size, source.last if copies and source is not None else None)
