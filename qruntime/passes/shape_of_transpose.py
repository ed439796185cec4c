"""Shapes are read from before a transpose or a change to codes and back, so that nothing but a shape keeps those alive."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Graph, Node, TypeInfo, Value
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.rewriting import as_attribute
from qruntime.passes.scaled_codes import is_dequantize, is_quantize


def read_shapes_before_transposes(graph: Graph) -> None:
    """Shape(Transpose(x, perm))  →  Gather(Shape(x), perm), where only shapes are read of the transposed tensor.

    Shape(DequantizeLinear(x, …)), Shape(QuantizeLinear(x, …))  →  Shape(x)"""
    shapes = [(nested, node) for nested in graph.walk_graphs() for node in nested.nodes if node.is_op("Shape")]
    changed = sum(_read_before_codes(node) for _, node in shapes) > 0
    if changed:
        remove_dead_nodes(graph)  # what is left of them would count as readers
    for nested, node in shapes:
        if node.graph is nested:
            source = node.input(0)
            transpose = None if source is None else source.producer
            if transpose is not None and transpose.is_op("Transpose") and _is_read_for_its_shape(transpose):
                nested.insert_before(node, _read_before(node, transpose))
                changed = True
    if changed:
        remove_dead_nodes(graph)


def _read_before_codes(node: Node) -> bool:
    """Whether `node`, a Shape, now reads from before what keeps the shape."""
    found = False
    while True:
        source = node.input(0)
        change = None if source is None else source.producer
        if change is None or not (is_quantize(change) or is_dequantize(change)) or change.input(0) is None:
            return found
        node.set_input(0, change.input(0))
        found = True


def _is_read_for_its_shape(transpose: Node) -> bool:
    output = transpose.outputs[0]
    readers = {user for user, _ in output.uses}
    return transpose.attr("perm") is not None and not output.output_of and all(r.is_op("Shape") for r in readers)


def _read_before(node: Node, transpose: Node) -> Node:
    """`node`, a Shape, becomes the Gather; returns what has to stand before it."""
    perm = np.array(transpose.attr("perm"), np.int64)[slice(node.attr("start", 0), node.attr("end"))]
    name = node.outputs[0].name
    whole = Value(f"{name}/whole", TypeInfo("tensor", 7, (len(transpose.attr("perm")),)))
    shape = Node("Shape", [transpose.input(0)], [whole], version=node.version, name=node.name, origin=[node])
    node.origin = shape.origin
    node.op_type = "Gather"
    node.set_input(0, whole)
    node.append_input(Value(f"{name}/order", TypeInfo("tensor", 7, perm.shape), perm))
    node.attributes = {"axis": as_attribute(0)}
    return shape
