"""Caches of keys and values that are appended to in place.

    present = Concat(past, new)   or   ConcatInto(…, an item of past, new)   →   AppendCache

where `past` is an input and `present`, or the stack of all of them, an output. Whoever feeds back what a run gave out has its tokens
written behind those that are there (kernels/tensor.h): such a tensor has gaps, which the append and attention know of. Whatever
else reads one gets a dense copy; shapes are read of the whole, so that a part need not exist for its shape.
"""

from __future__ import annotations

from typing import NamedTuple

from qruntime.ir import QRUNTIME, Graph, Node, Value
from qruntime.ops.append_cache import takes_room
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.head_layouts import axes_of, part_of_projection
from qruntime.passes.rewriting import Skip, as_attribute, trace

_SHAPE_WITH_START = 15


def append_caches(graph: Graph) -> None:
    """Concat and ConcatInto of an input with what is new  →  AppendCache"""
    grown: list[Node] = []
    for node in list(graph.nodes):
        if node.is_op("Concat") and node.graph is graph and node.outputs[0].output_of:
            made: Skip | list[Node] = _appended(graph, [node], (), -1)
        elif node.is_op("ConcatInto", domain=QRUNTIME) and node.input(0) is None:
            chain = _chain(node)
            made = _appended(graph, chain, node.attr("counts"), 0) if chain[-1].outputs[0].output_of else Skip("")
        else:
            continue
        if isinstance(made, Skip):
            if made:
                trace(f"append_caches declines at {node.label}: {made}")
            continue
        grown += made
        trace(f"append_caches at {node.label}")
    if not grown:
        return
    remove_dead_nodes(graph)
    pasts = dict.fromkeys(v for node in grown if (v := node.input(1)) is not None)
    for past in pasts:
        _read_shapes_of(graph, past)
    remove_dead_nodes(graph)
    for value in (*pasts, *(v for node in grown for v in node.outputs)):
        _give_dense_to_others(graph, value)


def _chain(first: Node) -> list[Node]:
    """The ConcatInto that write one stack, in their order."""
    chain = [first]
    while True:
        stack = chain[-1].outputs[0]
        following = [user for user, index in stack.uses if index == 0 and user.is_op("ConcatInto", domain=QRUNTIME)]
        if len(following) != 1:
            return chain
        chain += following


class _Append(NamedTuple):
    """Item `at` of `past` [*counts, …] and what follows it along `axis`."""

    node: Node
    past: Value
    at: int
    new: Value
    part: int
    axis: int


def _appended(graph: Graph, nodes: list[Node], counts: tuple[int, ...], first: int) -> Skip | list[Node]:
    """What replaces `nodes`, whose pieces are the inputs after `first`."""
    found = []
    for node in nodes:
        one = _append_of(graph, node, node.inputs[first + 1 :], counts)
        if isinstance(one, Skip):
            return one
        if counts and one.at != node.attr("index"):
            return Skip("items change their places")
        found.append(one)
    if len({(one.past, one.axis) for one in found}) != 1:
        return Skip("items come from different inputs")
    made, stack = [], None
    for one in found:
        attributes = {"axis": one.axis, "index": one.at, "part": one.part, "counts": counts}
        outputs = [Value(v.name, v.type) for v in one.node.outputs]
        inputs = [stack, one.past, one.new]
        kinds = {k: as_attribute(v) for k, v in attributes.items()}
        node = Node("AppendCache", inputs, outputs, kinds, domain=QRUNTIME, version=1, name=one.node.name, origin=[one.node])
        graph.insert_before(one.node, node)
        for old, new in zip(one.node.outputs, outputs, strict=True):
            graph.replace_uses(old, new)
        stack = outputs[0]
        made.append(node)
    return made


def _append_of(graph: Graph, node: Node, pieces: tuple[Value | None, ...], counts: tuple[int, ...]) -> Skip | _Append:
    parts = node.attr("parts", (-1, -1))
    if len(pieces) != 2 or pieces[0] is None or pieces[1] is None or parts[0] != -1:
        return Skip("" if not counts else "it joins something else than a past and new tokens")
    past, indices = _item_of(pieces[0], len(counts))
    shape = past.type.shape if past.type is not None and past.type.kind == "tensor" else None
    if past not in graph.inputs:
        return Skip("" if not counts else "the past is no input")
    if shape is None or len(indices) != len(counts) or shape[: len(counts)] != counts:
        return Skip("the input is no stack of that form")
    rank = len(shape) - len(counts)
    axis = node.attr("axis", 1)
    if not -rank <= axis < rank:
        return Skip(f"axis {axis} of {rank}")
    new, part = (pieces[1], parts[1]) if parts[1] >= 0 else part_of_projection(pieces[1]) or (pieces[1], -1)
    at = 0
    for index, count in zip(indices, counts, strict=True):
        if not index < count:
            return Skip(f"it has no item {index}")
        at = at * count + index
    return _Append(node, past, at, new, part, axis % rank)


def _item_of(value: Value, depth: int) -> tuple[Value, tuple[int, ...]]:
    """(x, indices): `value` is x[i][j]…, at most `depth` of them."""
    indices: tuple[int, ...] = ()
    while len(indices) < depth and value.producer is not None:
        found = _element_of(value.producer, value)
        if found is None:
            break
        value, indices = found[0], (found[1], *indices)
    return value, indices


def _element_of(node: Node, value: Value) -> tuple[Value, int] | None:
    """(x, i) when the node makes x[i]."""
    source = node.input(0)
    if node.is_op("Gather") and node.attr("axis", 0) == 0 and source is not None:
        index = node.input(1)
        is_one = index is not None and index.data is not None and index.data.ndim == 0 and index.data >= 0
        return (source, int(index.data)) if is_one else None  # type: ignore[arg-type,union-attr]
    if not node.is_op("Squeeze") or axes_of(node) != (0,) or source is None or source.producer is None:
        return None
    cut = source.producer
    x = cut.input(0)
    if cut.is_op("Split") and cut.attr("axis", 0) == 0 and x is not None and x.type is not None and x.type.shape:
        return (x, cut.outputs.index(source)) if x.type.shape[0] == len(cut.outputs) else None
    if not cut.is_op("Slice") or x is None:
        return None
    bounds = [None if v is None else v.data for v in cut.inputs[1:]]
    if any(b is None or b.size != 1 for b in bounds) or len(bounds) < 3:
        return None
    start, end, axis, *step = (int(b.reshape(-1)[0]) for b in bounds)  # type: ignore[union-attr]
    return (x, start) if axis == 0 and start >= 0 and end == start + 1 and step in ([], [1]) else None


def _read_shapes_of(graph: Graph, past: Value) -> None:
    """Shape(past[i][j]…)  →  Shape(past, start)"""
    for node in list(graph.nodes):
        source = node.input(0) if node.is_op("Shape") else None
        if source is None or source is past:
            continue
        whole, indices = _item_of(source, 8)
        start, end = node.attr("start", 0), node.attr("end")
        if whole is not past or start < 0 or (end is not None and end < 0):
            continue
        node.set_input(0, past)
        node.version = max(node.version, _SHAPE_WITH_START)
        node.attributes["start"] = as_attribute(start + len(indices))
        if end is not None:
            node.attributes["end"] = as_attribute(end + len(indices))


def _give_dense_to_others(graph: Graph, value: Value) -> None:
    """Readers that take no tensor with room read a dense one. What graphs give out, and what they hold inside, is theirs to copy."""
    others = [(user, index) for user, index in value.uses if not takes_room(user, index) and user.graph is graph]
    if not others:
        return
    dense = Value(f"{value.name}/dense", value.type)
    node = Node("Dense", [value], [dense], {}, domain=QRUNTIME, version=1, name=others[0][0].name)
    if value.producer is None:
        graph.insert_before(graph.nodes[0], node)
    else:
        graph.insert_after(value.producer, node)
    for user, index in others:
        user.set_input(index, dense)
