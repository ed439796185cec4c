"""LSTM, GRU and RNN with quantized weights."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.passes.linear import constant, engine_attribute, splice
from qruntime.passes.rewriting import QRUNTIME, Skip, as_attribute, trace
from qruntime.passes.weights import DYNAMIC, quantized_weight


def lower_recurrent(graph: Graph) -> None:
    """LSTM, GRU, RNN over dequantized W and R, marked dynamic  →  DynamicQuantizedLSTM, …GRU, …RNN."""
    for nested in graph.walk_graphs():
        lowered: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            if not node.is_op("LSTM", "GRU", "RNN") or DYNAMIC not in node.metadata:
                continue
            made = _lower(node)
            if isinstance(made, Skip):
                trace(f"lower_recurrent declines at {node.label}: {made}")
                continue
            for old, new in zip(node.outputs, made.outputs):
                nested.replace_uses(old, new)
            lowered[node] = [made]
        splice(nested, lowered)


def _lower(node: Node) -> Skip | Node:
    w, r = _directions(node.input(1)), _directions(node.input(2))
    if w is None or r is None:
        return Skip("a weight is no int8 constant")
    b = node.input(3)
    if b is not None and b.data is None:
        return Skip("the bias is computed at run time")
    inputs = [node.input(0), *w, *r, *(node.input(i) for i in range(3, max(4, len(node.inputs))))]
    attributes = {**node.attributes, "range": as_attribute(node.metadata[DYNAMIC])}
    attributes |= {name: as_attribute(value) for name, value in engine_attribute(node).items()}
    outputs = [Value(f"{o.name}/quantized", o.type) for o in node.outputs]
    op_type, metadata = f"DynamicQuantized{node.op_type}", dict(node.metadata)
    return Node(
        op_type, inputs, outputs, attributes, domain=QRUNTIME, version=1, name=node.name, metadata=metadata, origin=[node]
    )


def _directions(value: Value | None) -> list[Value] | None:
    """Codes [D, rows, columns], scale and zero point [D, 1] or [D, rows], as three constants."""
    if value is None:
        return None
    parts = [value]
    if value.producer is not None and value.producer.is_op("Concat") and value.producer.attr("axis") == 0:
        parts = [v for v in value.producer.inputs if v is not None]
    found = [quantized_weight(part) for part in parts]
    weights = [weight for weight in found if weight is not None]
    if len(weights) != len(found) or any(w.q.ndim != 3 or w.axis not in (None, 1) for w in weights):
        return None
    q = weights[0].q if len(weights) == 1 else np.concatenate([w.q for w in weights])
    count = max(w.scale.size for w in weights)  # one direction may have a scale per row, the other one for all
    scale = np.concatenate([np.broadcast_to(w.scale.reshape(1, -1), (w.q.shape[0], count)) for w in weights])
    zero = np.concatenate([np.broadcast_to(w.zero_point.reshape(1, -1), (w.q.shape[0], count)) for w in weights])
    return [constant(f"{value.name}/{part}", data) for part, data in (("q", q), ("scale", scale), ("zero_point", zero))]
