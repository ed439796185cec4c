"""Copies of graphs that share their constants' data."""

from __future__ import annotations

from qruntime.ir.graph import Attribute, AttributeType, Graph, Node, Value


def clone(graph: Graph) -> Graph:
    """An independent copy of `graph`; arrays are shared, everything else is new."""
    return _clone(graph, {})


def _clone(graph: Graph, copies: dict[Value, Value]) -> Graph:
    def value(old: Value) -> Value:
        new = copies.get(old)
        if new is None:
            new = copies[old] = Value(old.name, old.type, old.data, old.stored)
        return new

    inputs = [value(v) for v in graph.inputs]
    nodes = []
    for node in graph.nodes:
        attributes = dict(node.attributes)
        if node.subgraphs:
            attributes = {name: _clone_attribute(attribute, copies) for name, attribute in attributes.items()}
        new = Node(
            node.op_type,
            [None if v is None else value(v) for v in node.inputs],
            [value(v) for v in node.outputs],
            attributes,
            domain=node.domain,
            version=node.version,
            name=node.name,
            metadata=dict(node.metadata),
            doc=node.doc,
            overload=node.overload,
        )
        new.origin, new.mark = node.origin, node.mark
        nodes.append(new)
    result = Graph(inputs, [value(v) for v in graph.outputs], nodes, name=graph.name, doc=graph.doc)
    result.output_names = list(graph.output_names)
    result.output_types = list(graph.output_types)
    result.input_defaults = {value(v): data for v, data in graph.input_defaults.items()}
    return result


def _clone_attribute(attribute: Attribute, copies: dict[Value, Value]) -> Attribute:
    if attribute.type is AttributeType.GRAPH:
        return Attribute(attribute.type, _clone(attribute.value, copies))
    if attribute.type is AttributeType.GRAPHS:
        return Attribute(attribute.type, tuple(_clone(g, copies) for g in attribute.value))
    return attribute
