"""Concatenations that are stacked afterwards, as decoders hand out their key and value cache in one tensor.

    Concat(Unsqueeze(Concat(Unsqueeze(k), Unsqueeze(v))), …)   with   k = Concat(past_k, new_k), …

copies the cache three times. The stack is allocated once instead, and every concatenation writes its part of it.
"""

from __future__ import annotations

from qruntime.ir import Graph, Node, Value
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.head_layouts import axes_of, part_of_projection
from qruntime.passes.rewriting import QRUNTIME, Skip, as_attribute, trace


def stack_concats(graph: Graph) -> None:
    """Concat(Unsqueeze(Concat(…), 0), …; axis 0)  →  one ConcatInto for every inner Concat"""
    fused = 0
    for nested in graph.walk_graphs():
        for root in list(nested.nodes):
            if root.graph is not nested or not _is_stack(root) or _is_stacked(root):
                continue
            reason = _fuse(nested, root)
            fused += reason is None
            trace(f"stack_concats {'at' if reason is None else 'declines at'} {root.label}{f': {reason}' if reason else ''}")
    if fused:
        remove_dead_nodes(graph)


def _is_stack(node: Node) -> bool:
    """Whether `node` joins along a new leading axis."""
    return node.is_op("Concat") and node.attr("axis", 1) == 0 and all(_unstacked(v) is not None for v in node.inputs)


def _unstacked(value: Value | None) -> Value | None:
    """x of Unsqueeze(x, 0)."""
    node = None if value is None else value.producer
    return node.input(0) if node is not None and node.is_op("Unsqueeze") and axes_of(node) == (0,) else None


def _is_stacked(node: Node) -> bool:
    """Whether all that reads `node` is an Unsqueeze for a further stack, which then takes its parts as its own."""
    readers = {user for user, _ in node.outputs[0].uses}
    if node.outputs[0].output_of or len(readers) != 1:
        return False
    unsqueeze = readers.pop()
    return unsqueeze.is_op("Unsqueeze") and any(_is_stack(user) for user, _ in unsqueeze.outputs[0].uses)


def _parts(root: Node) -> tuple[tuple[int, ...], list[Value]] | None:
    """The leading dimensions that stacking makes, and what is stacked; None when the stacks differ in depth."""
    items = [_unstacked(v) for v in root.inputs]
    producers = [None if v is None else v.producer for v in items]
    if not all(p is not None and _is_stack(p) for p in producers):
        return (len(items),), [v for v in items if v is not None]
    below = [_parts(p) for p in producers if p is not None]
    if any(found is None or below[0] is None or found[0] != below[0][0] for found in below):
        return None
    return (len(items), *below[0][0]), [v for found in below if found is not None for v in found[1]]  # type: ignore[index]


def _fuse(graph: Graph, root: Node) -> Skip | None:
    found = _parts(root)
    if found is None:
        return Skip("its parts are stacks of different sizes")
    counts, parts = found
    concats = [part.producer for part in parts]
    if len(set(parts)) != len(parts):
        return Skip("a part comes twice")
    if not all(node is not None and node.is_op("Concat") and node.graph is graph for node in concats):
        return Skip("a part is no concatenation")
    index_of = {node: index for index, node in enumerate(concats)}
    stack: Value | None = None
    for node in [node for node in graph.nodes if node in index_of]:
        pieces = [part_of_projection(v) or (v, -1) for v in node.inputs if v is not None]
        inputs = [stack, *(v for v, _ in pieces)]
        stack, joined = Value(f"{root.outputs[0].name}/{index_of[node]}"), node.outputs[0]
        part = Value(joined.name, joined.type)
        attributes = {
            "axis": node.attr("axis", 1),
            "index": index_of[node],
            "counts": counts,
            "parts": tuple(p for _, p in pieces),
        }
        into = Node(
            "ConcatInto", inputs, [stack, part], {k: as_attribute(v) for k, v in attributes.items()},
            domain=QRUNTIME, version=1, name=node.name, origin=[node],
        )  # fmt: skip
        graph.insert_before(node, into)
        graph.replace_uses(joined, part)
    assert stack is not None
    graph.replace_uses(root.outputs[0], stack)
    return None
