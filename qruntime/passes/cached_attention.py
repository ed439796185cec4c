"""Attention that reads the codes of a cache.

    Attention(q, DequantizeCache(k), DequantizeCache(v))  →  CachedAttention(q, k, v)

The keys and values that codes stand for then exist one head at a time. Where heads of k and v are repeated for groups of heads
of q, by Expand and Reshape to shapes that are known at a run only, the node gets the shapes, and its kernel takes the heads as
they are when the shapes turn out to say just that.
"""

from __future__ import annotations

from typing import NamedTuple

from qruntime.ir import QRUNTIME, Graph, Node, Value
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.head_layouts import axes_of
from qruntime.passes.rewriting import Builder, Skip, splice, trace


def attend_codes(graph: Graph) -> None:
    """Attention(q, DequantizeCache(k), DequantizeCache(v))  →  CachedAttention"""
    fused = 0
    for nested in graph.walk_graphs():
        replaced: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            if not node.is_op("Attention", domain=QRUNTIME):
                continue
            made = _codes_read(node)
            if isinstance(made, Skip):
                if made:
                    trace(f"attend_codes declines at {node.label}: {made}")
                continue
            replaced[node] = [made]
            nested.replace_uses(node.outputs[0], made.outputs[0])
            trace(f"attend_codes at {node.label}")
        splice(nested, replaced)
        fused += len(replaced)
    if fused:
        remove_dead_nodes(graph)


class _Coded(NamedTuple):
    """What dequantizes an operand, and the shapes that it is expanded and merged to."""

    node: Node
    expanded: Value | None = None
    merged: Value | None = None


def _codes_read(node: Node) -> Skip | Node:
    """The node that replaces `node`; an empty Skip where neither k nor v comes from codes."""
    k, v = _coded(node.input(1)), _coded(node.input(2))
    if k is None or v is None:
        return Skip("" if k is v else "k or v alone comes from codes")
    if k.node.attr("bits") != v.node.attr("bits") or k.node.attr("clusters", 1) != v.node.attr("clusters", 1):
        return Skip("k and v have codes of different forms")
    if k[1:] != v[1:]:
        return Skip("k and v are repeated in different ways")
    if node.attr("k_layout") == "BHDS" or any(node.attr("parts", (0, 0, 0))[1:]) or node.attr("in_int16", 0):
        return Skip("keys do not lie as codes do")
    if k.expanded is not None and (node.attr("k_layout"), node.attr("v_layout")) != ("BHSD", "BHSD"):
        return Skip("repeated heads are transposed")
    codes = [*k.node.inputs[:2], *v.node.inputs[:2]]
    inputs = [node.input(0), *codes, node.input(3), node.input(4), k.node.input(2), v.node.input(2), k.expanded, k.merged]
    while inputs[-1] is None:
        inputs.pop()
    kept = {name: a.value for name, a in node.attributes.items() if name != "in_int16"}
    op = Builder(node)
    op.CachedAttention(*inputs, **kept, bits=k.node.attr("bits"), clusters=k.node.attr("clusters", 1))
    return op.nodes[0]


def _coded(value: Value | None) -> _Coded | None:
    """DequantizeCache(…), or Reshape(Expand(Unsqueeze(DequantizeCache(…), 2), expanded), merged)."""
    node = None if value is None else value.producer
    if node is None or _is_dequantization(node):
        return None if node is None else _Coded(node)
    expand = _producer(node, "Reshape")
    unsqueeze = _producer(expand, "Expand")
    source = _producer(unsqueeze, "Unsqueeze")
    if expand is None or unsqueeze is None or source is None or not _is_dequantization(source):
        return None
    if axes_of(unsqueeze) != (2,) or node.attr("allowzero", 0):
        return None
    return _Coded(source, expand.input(1), node.input(1))


def _producer(node: Node | None, op_type: str) -> Node | None:
    """What makes the first input of `node`, if that is an `op_type`."""
    first = node.input(0) if node is not None and node.is_op(op_type) else None
    return None if first is None else first.producer


def _is_dequantization(node: Node) -> bool:
    return node.is_op("DequantizeCache", "DequantizeCacheClusters", domain=QRUNTIME)
