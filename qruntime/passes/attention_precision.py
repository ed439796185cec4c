"""Attention of quantized models: products of 16-bit codes where q, k and v are fresh from quantized projections."""

from __future__ import annotations

from qruntime.ir import Graph, Node, Value
from qruntime.passes.rewriting import QRUNTIME, as_attribute, trace

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Gather")
"""Operators that leave every element of their first input what it is."""

_PROJECTIONS = ("DynamicQuantizedLinear", "MergedDynamicQuantizedLinear")
_RESIDUAL = 3


def attend_in_int16(graph: Graph) -> None:
    """Attention(projection, projection, projection)  →  the same with in_int16.

    What a projection has rounded to 8 bits loses nothing worth a mention by 16 (kernels/attention_q16.h). Keys and
    values that come from a cache stay float: to encode all of them for a single query takes longer than it saves.
    Engines that compute as another runtime does stay float too.
    """
    for node in graph.walk_nodes():
        if not node.is_op("Attention", domain=QRUNTIME) or node.attr("k_layout") == "BHDS":
            continue
        if all(_is_projected(value) for value in node.inputs[:3]):
            trace(f"attend_in_int16 at {node.label}")
            node.attributes["in_int16"] = as_attribute(1)


def _is_projected(value: Value | None) -> bool:
    producer: Node | None = value.producer if value is not None else None
    while producer is not None and (producer.is_op(*_MOVES) or producer.is_op("Linear", domain=QRUNTIME)):
        # Behind a Linear is the projection, where that is a branch of low rank beside it.
        value = producer.input(0 if producer.is_op(*_MOVES) else _RESIDUAL)
        producer = value.producer if value is not None else None
    return producer is not None and producer.is_op(*_PROJECTIONS, domain=QRUNTIME) and "engine" not in producer.attributes
