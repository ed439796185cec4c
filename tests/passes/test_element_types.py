"""Element types are what operators decide, and unknown where they do not; narrow floats are never overlooked."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from qruntime.ir import Attribute, AttributeType, Graph, Node, TypeInfo, Value, constant
from qruntime.passes.element_types import element_type, element_types, narrow_results
from tests.passes.lowering import imported

FLOAT, HALF, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
X = {"x": np.zeros((2, 3), np.float32)}


def types(nodes, constants=None, inputs=X):
    graph = imported(nodes, inputs, [nodes[-1][2][0]], constants)
    known = element_types(graph)
    return {v.name: known.get(v, 0) for node in graph.walk_nodes() for v in node.outputs}


@pytest.mark.parametrize(
    ("op", "attributes", "code"),
    [
        ("Exp", {}, FLOAT), ("Shape", {}, INT64), ("IsNaN", {}, BOOL), ("Cast", {"to": HALF}, HALF), ("ArgMax", {}, INT64),
        ("NonZero", {}, INT64), ("Transpose", {}, FLOAT), ("SequenceConstruct", {}, 0), ("Hardmax", {}, 0),
    ],
)  # fmt: skip
def test_of_one_node(op, attributes, code):
    assert types([(op, ["x"], ["y"], attributes)])["y"] == code


def test_through_a_chain():
    found = types([
        ("Shape", ["x"], ["s"], {}), ("ConstantOfShape", ["s"], ["z"], {}), ("Equal", ["z", "x"], ["e"], {}),
        ("Where", ["e", "s2", "s2"], ["w"], {}),
        ("Split", ["w"], ["a", "b"], {"axis": 0}), ("Concat", ["a", "b"], ["y"], {"axis": 0}),
    ], {"s2": np.int64([[1, 2, 3], [4, 5, 6]])})  # fmt: skip
    assert found == {"s": INT64, "z": FLOAT, "e": BOOL, "w": INT64, "a": INT64, "b": INT64, "y": INT64}


def test_further_outputs_are_not_like_the_first():
    pooled = [("MaxPool", ["x"], ["y", "i"], {"kernel_shape": [1]})]
    assert types(pooled, inputs={"x": np.zeros((1, 1, 3), np.float32)}) == {"y": FLOAT, "i": 0}


def test_filled_with_a_value():
    filled = helper.make_tensor("value", INT64, [1], [7])
    assert types([("Shape", ["x"], ["s"], {}), ("ConstantOfShape", ["s"], ["y"], {"value": filled})])["y"] == INT64


def test_other_domains_are_unknown():
    assert types([("Gelu", ["x"], ["y"], {"domain": "com.microsoft"})])["y"] == 0


def test_of_constants_and_of_nothing():
    assert element_type(constant("c", np.float16(1)), {}) == HALF
    assert element_type(None, {}) == 0
    assert element_type(Value("v"), {}) == 0


def test_inputs_of_bodies_are_unknown():
    """The declared type of the input of a Loop's body is not checked when it runs."""
    inner = Value("inner", TypeInfo("tensor", FLOAT, (3,)))
    body = Graph([inner], [inner])
    outer = Value("x", TypeInfo("tensor", FLOAT, (3,)))
    loop = Node("Loop", [outer], [Value("y")], {"body": Attribute(AttributeType.GRAPH, body)}, version=16)
    assert element_types(Graph([outer], loop.outputs, [loop])) == {outer: FLOAT}


def test_without_narrow_types_nothing_is_narrow():
    graph = imported([("SequenceConstruct", ["x"], ["s"], {}), ("SequenceLength", ["s"], ["y"], {})], X, ["y"])
    is_narrow = narrow_results(graph)
    assert not any(is_narrow(v) for node in graph.nodes for v in node.outputs)


@pytest.mark.parametrize("code", [HALF, TensorProto.BFLOAT16])
def test_narrow_types_and_what_may_be_one(code):
    nodes = [
        ("Cast", ["x"], ["h"], {"to": code}), ("Exp", ["h"], ["e"], {}), ("Cast", ["e"], ["f"], {"to": FLOAT}), ("Neg", ["f"], ["n"], {}),
        ("SequenceConstruct", ["n", "f"], ["s"], {}), ("SequenceAt", ["s", "at"], ["y"], {}),
    ]  # fmt: skip
    graph = imported(nodes, X, ["y"], {"at": np.int64(0)})
    is_narrow = narrow_results(graph)
    found = {v.name: is_narrow(v) for node in graph.nodes for v in node.outputs}
    assert {name: found[name] for name in "hefn"} == {"h": True, "e": True, "f": False, "n": False}
    assert found["s"]  # unknown, in a graph that has narrow types


def test_a_narrow_constant_or_input_makes_a_graph_narrow():
    x = Value("x", TypeInfo("tensor", FLOAT, (2,)))
    half = Value("h", TypeInfo("tensor", HALF, (2,)))
    unknown = Node("Mystery", [x], [Value("u")])
    assert not narrow_results(Graph([x], unknown.outputs, [unknown]))(unknown.outputs[0])
    for inputs, read in (([x, half], x), ([x], constant("c", np.float16([1, 2])))):
        node = Node("Mystery", [read], [Value("u")])
        assert narrow_results(Graph(inputs, node.outputs, [node]))(node.outputs[0])
