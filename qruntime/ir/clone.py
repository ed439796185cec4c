"""Copies of graphs, and of parts of graphs, that share their constants' data."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qruntime.errors import InputError
from qruntime.ir.graph import Attribute, AttributeType, Graph, Node, UnusedValue, Value


def clone(graph: Graph) -> Graph:
    """An independent copy of `graph`; arrays are shared, everything else is new."""
    return _clone(graph, {})


def clone_part(graph: Graph, starts: Sequence[Value], outputs: Sequence[Value]) -> Graph:
    """A graph of its own with the inputs `starts` and no more than the nodes that make `outputs` from them.

    A start may be an input of `graph`, what one of its nodes makes, or a constant, whose data then counts no more. InputError
    when the outputs need anything else that is not constant.
    """
    nodes = needed_nodes(graph, outputs, starts)
    known = {*starts, *(value for node in nodes for value in node.outputs)}
    for reader, values in (*((node.label, read_by(node)) for node in nodes), ("the part", outputs)):
        for value in values:
            if not value.is_constant and value not in known:
                listed = ", ".join(repr(start.name) for start in starts) or "nothing"
                raise InputError(f"{reader} needs {value.name!r}, which is not computed from {listed}; start from it too")
    copies = {value: Value(value.name, value.type) for value in starts}
    inputs = list(copies.values())
    result = Graph(inputs, *_copied(nodes, outputs, copies, set(starts)), name=graph.name)
    result.exact = graph.exact
    return result


def needed_nodes(graph: Graph, outputs: Sequence[Value], starts: Collection[Value] = ()) -> list[Node]:
    """The nodes of `graph` that make `outputs` where `starts` are known, in running order."""
    known = set(starts)
    wanted = set(outputs) - known
    needed = []
    for node in reversed(graph.nodes):
        if not wanted.isdisjoint(node.outputs):
            needed.append(node)
            wanted.update(value for value in read_by(node) if value not in known)
    return needed[::-1]


def read_by(node: Node) -> list[Value]:
    """What a node and its subgraphs read, constants included."""
    inputs = [value for value in node.inputs if value is not None]
    return inputs + node.captured() if node.subgraphs else inputs


def _clone(graph: Graph, copies: dict[Value, Value]) -> Graph:
    inputs = [_copy(v, copies) for v in graph.inputs]
    result = Graph(inputs, *_copied(graph.nodes, graph.outputs, copies), name=graph.name, doc=graph.doc)
    result.exact = graph.exact
    result.output_names = list(graph.output_names)
    result.output_types = list(graph.output_types)
    result.input_defaults = {_copy(v, copies): data for v, data in graph.input_defaults.items()}
    return result


def _copy(old: Value, copies: dict[Value, Value]) -> Value:
    new = copies.get(old)
    if new is None:
        new = copies[old] = Value(old.name, old.type, old.data, old.stored)
    return new


def _copied(
    nodes: Sequence[Node], outputs: Sequence[Value], copies: dict[Value, Value], known: Collection[Value] = ()
) -> tuple[list[Value], list[Node]]:
    """Copies of outputs and nodes; what is known already is not made again where a node makes it beside something else."""
    made = [_copy_node(node, copies, known) for node in nodes]
    return [_copy(v, copies) for v in outputs], made


def _copy_node(node: Node, copies: dict[Value, Value], known: Collection[Value]) -> Node:
    attributes = dict(node.attributes)
    if node.subgraphs:
        attributes = {name: _clone_attribute(attribute, copies) for name, attribute in attributes.items()}
    new = Node(
        node.op_type,
        [None if v is None else _copy(v, copies) for v in node.inputs],
        [UnusedValue(v.name) if v in known else _copy(v, copies) for v in node.outputs],
        attributes,
        domain=node.domain,
        version=node.version,
        name=node.name,
        metadata=dict(node.metadata),
        doc=node.doc,
        overload=node.overload,
    )
    new.origin, new.mark = node.origin, node.mark
    return new


def _clone_attribute(attribute: Attribute, copies: dict[Value, Value]) -> Attribute:
    if attribute.type is AttributeType.GRAPH:
        return Attribute(attribute.type, _clone(attribute.value, copies))
    if attribute.type is AttributeType.GRAPHS:
        return Attribute(attribute.type, tuple(_clone(g, copies) for g in attribute.value))
    return attribute
