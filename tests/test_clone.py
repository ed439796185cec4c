"""Copies of graphs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from qruntime.ir import Attribute, Graph, LayerMark, Node, Value, clone
from qruntime.ir.graph import AttributeType
from qruntime.onnx_io.exporter import serialize
from qruntime.onnx_io.importer import load_graph
from tests.small_models import FLOAT, model_bytes

OWN = {"_inputs", "outputs", "graph", "subgraphs", "attributes", "metadata"}
"""What a copy has of its own; the rest of a node is the same in both."""


def node_with_everything() -> Node:
    body = Graph(outputs=[Value("inner", data=np.float32([1]))])
    node = Node(
        "Op", [Value("x")], [Value("y")], {"body": Attribute(AttributeType.GRAPH, body)}, domain="mine", version=3, name="n",
        metadata={"key": "value"}, doc="words", overload="second",
    )  # fmt: skip
    node.origin, node.mark = "Other 'there'", LayerMark()
    return node


def test_a_copy_of_a_node_has_all_that_the_node_has() -> None:
    node = node_with_everything()
    (copy,) = clone(Graph([v for v in node.inputs if v], node.outputs, [node])).nodes
    same = set(Node.__slots__) - OWN
    assert all(getattr(node, slot) for slot in same), "a slot that the test leaves empty proves nothing"
    assert {slot: getattr(copy, slot) for slot in same} == {slot: getattr(node, slot) for slot in same}
    assert copy.metadata == node.metadata and copy.metadata is not node.metadata
    assert copy.subgraphs[0] is not node.subgraphs[0]
    assert [v.name for v in (*copy.inputs, *copy.outputs) if v] == ["x", "y"]


def test_the_overload_of_a_node_survives_a_save() -> None:
    node = helper.make_node("Op", ["x"], ["y"], domain="mine", overload="second")
    proto = onnx.load_from_string(model_bytes([node], [("x", FLOAT, [3])], [("y", FLOAT, [3])]))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    graph, info = load_graph(proto)
    (again,) = load_graph(serialize(clone(graph), info))[0].nodes
    assert again.overload == "second"
