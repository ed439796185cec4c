"""Attention that reads the codes of a cache.

    Attention(q, DequantizeCache(k), DequantizeCache(v))  →  CachedAttention(q, k, v)

The keys and values that codes stand for then exist one head at a time. Where heads of k and v are repeated for groups of heads
of q the node is told so, or gets the shapes that say it, as Attention does.
"""

from __future__ import annotations

from qruntime.ir import QRUNTIME, Graph, Node, Value
from qruntime.passes.cleanup import remove_dead_nodes
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


def _codes_read(node: Node) -> Skip | Node:
    """The node that replaces `node`; an empty Skip where neither k nor v comes from codes."""
    k, v = _dequantization(node.input(1)), _dequantization(node.input(2))
    if k is None or v is None:
        return Skip("" if k is v else "k or v alone comes from codes")
    if k.attr("bits") != v.attr("bits") or k.attr("clusters", 1) != v.attr("clusters", 1):
        return Skip("k and v have codes of different forms")
    if node.attr("k_layout") == "BHDS" or any(node.attr("parts", (0, 0, 0))[1:]) or node.attr("in_int16", 0):
        return Skip("keys do not lie as codes do")
    codes = [*k.inputs[:2], *v.inputs[:2]]
    inputs = [node.input(0), *codes, node.input(3), node.input(4), k.input(2), v.input(2)]
    inputs += [node.input(i) for i in range(5, 10)]
    while inputs[-1] is None:
        inputs.pop()
    kept = {name: a.value for name, a in node.attributes.items() if name != "in_int16"}
    op = Builder(node)
    op.CachedAttention(*inputs, **kept, bits=k.attr("bits"), clusters=k.attr("clusters", 1))
    return op.nodes[0]


def _dequantization(value: Value | None) -> Node | None:
    """DequantizeCache(…) that makes `value`."""
    node = None if value is None else value.producer
    return node if node is not None and node.is_op("DequantizeCache", "DequantizeCacheClusters", domain=QRUNTIME) else None
