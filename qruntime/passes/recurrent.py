"""LSTM, GRU and RNN with quantized weights."""

from __future__ import annotations

from collections.abc import Sequence

from qruntime.ir import Attribute, Graph, Node, Value, stored_constant
from qruntime.passes.linear import engine_attribute, int8_codes, multiplies_codes, row_attributes
from qruntime.passes.rewriting import QRUNTIME, Skip, as_attribute, splice, trace


def lower_recurrent(graph: Graph) -> None:
    """LSTM, GRU, RNN over stored W and R  →  DynamicQuantizedLSTM, …GRU, …RNN where marked dynamic, else StoredLSTM, …"""
    for nested in graph.walk_graphs():
        lowered: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            if not node.is_op("LSTM", "GRU", "RNN") or not all(v is not None and v.stored is not None for v in node.inputs[1:3]):
                continue
            made = _lower(node) if multiplies_codes(node) else _with_float_activations(node)
            if isinstance(made, Skip):
                trace(f"lower_recurrent declines at {node.label}: {made}")
                continue
            for old, new in zip(node.outputs, made.outputs):
                nested.replace_uses(old, new)
            lowered[node] = [made]
        splice(nested, lowered)


def _lower(node: Node) -> Skip | Node:
    w, r = _gates(node.input(1)), _gates(node.input(2))
    if w is None or r is None:
        return Skip("a weight is no int8 constant")
    b = node.input(3)
    if b is not None and b.data is None:
        return Skip("the bias is computed at run time")
    inputs = [node.input(0), w, r, *node.inputs[3:]]
    said = {**row_attributes(node), **engine_attribute(node)}
    attributes = {**node.attributes, **{name: as_attribute(value) for name, value in said.items()}}
    return _made(node, f"DynamicQuantized{node.op_type}", inputs, attributes)


def _with_float_activations(node: Node) -> Skip | Node:
    b = node.input(3)
    if b is not None and b.data is None:
        return Skip("the bias is computed at run time")
    return _made(node, f"Stored{node.op_type}", node.inputs, node.attributes)


def _made(node: Node, op_type: str, inputs: Sequence[Value | None], attributes: dict[str, Attribute]) -> Node:
    outputs = [Value(f"{o.name}/quantized", o.type) for o in node.outputs]
    metadata = dict(node.metadata)
    return Node(op_type, inputs, outputs, dict(attributes), domain=QRUNTIME, version=1, name=node.name, metadata=metadata, origin=[node])


def _gates(value: Value | None) -> Value | None:
    """Codes [D, rows, columns] with one scale, or one for each row; None when the weight is none such."""
    codes = None if value is None else int8_codes(value)
    if value is None or codes is None or codes.scale is None or codes.ndim != 3 or codes.scale.shape[2] != 1:
        return None
    return stored_constant(value.name, codes)
