"""What layers inside of branches and loops read: on a copy of the graph it becomes an output of the node that they lie in.

If      the branch gives its rows out, the other one none
Loop    rows of all rounds are carried along, one behind another
Scan    rows of each step are stacked
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.ir import Graph, Node, TypeInfo, Value, clone, constant, read_by
from qruntime.passes.rewriting import as_attribute
from qruntime.quantization.layers import Layer
from qruntime.runtime.segments import Segment

_FLOAT, _OPSET = 1, 13


def outermost(graph: Graph, node: Node) -> Node:
    """The node of `graph` that `node` is, or lies in."""
    holders = {nested: holder for holder in graph.walk_nodes() for nested in holder.subgraphs}
    while node.graph is not graph:
        assert node.graph is not None
        node = holders[node.graph]
    return node


def nested_rows(graph: Graph, layer: Layer, batches: Sequence[Mapping[Value, Any]], num_threads: int) -> list[np.ndarray]:
    """The rows [T, K] that a linear layer of a graph nested in `graph` reads in each batch, of all rounds and branches.

    `batches` hold what the node of `graph` reads that the layer lies in.
    """
    copy = clone(graph)
    twins = dict(zip(graph.walk_nodes(), copy.walk_nodes(), strict=True))
    holders = {nested: node for node in copy.walk_nodes() for nested in node.subgraphs}
    node, holder = twins[layer.node], outermost(graph, layer.node)
    inner, value = node.graph, node.input(0)
    assert inner is not None and value is not None
    value = _flattened(inner, value, layer.shapes[0][1 - layer.along])
    while inner is not copy:
        outer = holders[inner]
        value, inner = _given_out(outer, inner, value), outer.graph
        assert inner is not None
    known = {one: twin for one, twin in zip(read_by(holder), read_by(twins[holder])) if not one.is_constant}
    segment = Segment(copy, known.values(), [value], num_threads=num_threads, lower=True)
    return [np.asarray(segment.run({twin: batch[one] for one, twin in known.items()})[value]) for batch in batches]


def _flattened(graph: Graph, value: Value, channels: int) -> Value:
    """[…, channels] as rows, in `graph`."""
    wide, rows = Value(f"{value.name}/wide"), _rows(f"{value.name}/rows", channels)
    shape = constant(f"{value.name}/rows/shape", np.array([-1, channels], np.int64))
    nodes = [
        Node("Cast", [value], [wide], {"to": as_attribute(_FLOAT)}, version=_OPSET),
        Node("Reshape", [wide, shape], [rows], version=_OPSET),
    ]
    if value.producer is not None and value.producer.graph is graph:
        graph.insert_after(value.producer, *nodes)
    else:
        graph.insert_before(graph.nodes[0], *nodes)
    return rows


def _given_out(node: Node, inner: Graph, rows: Value) -> Value:
    """Rows that `inner`, a graph of `node`, makes each time it runs, as an output of `node`."""
    assert rows.type is not None and rows.type.shape is not None
    channels = rows.type.shape[-1]
    assert isinstance(channels, int)
    found, none = _rows(f"{rows.name}/out", channels), constant(f"{rows.name}/none", np.zeros((0, channels), np.float32))
    if node.is_op("If"):
        for branch in node.subgraphs:
            _give(branch, len(branch.outputs), rows if branch is inner else none)
        at = len(node.outputs)
    elif node.is_op("Loop"):
        states = max(0, len(node.inputs) - 2)
        before, behind = _rows(f"{rows.name}/before", channels), _rows(f"{rows.name}/behind", channels)
        inner.append(Node("Concat", [before, rows], [behind], {"axis": as_attribute(0)}, version=_OPSET))
        inner.inputs.append(before)
        _give(inner, 1 + states, behind)
        while len(node.inputs) < 2:
            node.append_input(None)
        node.append_input(none)
        at = states
    else:
        _give(inner, len(inner.outputs), rows)
        at = len(node.outputs)
        for name in ("scan_output_axes", "scan_output_directions"):
            if node.attr(name) is not None:
                node.attributes[name] = as_attribute([*node.attr(name), 0])
        found.type = TypeInfo("tensor", _FLOAT, (None, None, channels))
    node.outputs.insert(at, found)
    found.producer = node
    assert node.graph is not None
    return _flattened(node.graph, found, channels) if node.is_op("Scan") else found


def _give(graph: Graph, at: int, value: Value) -> None:
    outputs = list(graph.outputs)
    graph.outputs = [*outputs[:at], value, *outputs[at:]]
    graph.output_names.insert(at, value.name)
    graph.output_types.insert(at, value.type)


def _rows(name: str, channels: int) -> Value:
    return Value(name, TypeInfo("tensor", _FLOAT, (None, channels)))
