"""Attention takes a weighted mean of the values, whose channels so take on what the result is to become."""

from __future__ import annotations

from qruntime.ir import Node
from qruntime.quantization.sites.changes import ORDER, SHIFT, Blocked
from qruntime.quantization.sites.tracing import Trace


def values(trace: Trace, node: Node) -> None:
    """MatMul of probabilities and values: P · (V / s) = (P · V) / s; and P · (V − z) = P · V − z where rows of P sum to 1."""
    labels = trace.of(node)
    if labels.ndim > 1 and labels.shape[-2] != 1:
        raise Blocked(f"the channels are not the last axis of what {node.label} makes")
    if trace.kind == SHIFT and not _sums_to_one(node):
        raise Blocked(f"the rows that {node.label} multiplies do not sum to 1")
    if trace.kind == ORDER:
        trace.keep_apart(labels.reshape(-1, labels.shape[-1]))
    if trace.shapes.dims(node.input(1)) is None:
        raise Blocked(f"the shape of the values that {node.label} reads is not known")
    trace.roles.append("values")
    trace.reach(node, 1, labels)


def _sums_to_one(node: Node) -> bool:
    weights = node.input(0)
    softmax = None if weights is None else weights.producer
    if softmax is None or not softmax.is_op("Softmax") or softmax.outputs[0] is not weights:
        return False
    return softmax.attr("axis", -1 if softmax.version >= 13 else 1) == -1 or _is_last(softmax)


def _is_last(softmax: Node) -> bool:
    value = softmax.input(0)
    kind = None if value is None else value.type
    return kind is not None and kind.shape is not None and softmax.attr("axis", 1) == len(kind.shape) - 1
