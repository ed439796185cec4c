"""Model-local functions are inlined: the result runs like the original."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qruntime.errors import InvalidModel
from qruntime.onnx_io.exporter import serialize
from qruntime.onnx_io.graph_builder import Limits
from qruntime.onnx_io.importer import load_graph

FLOAT = TensorProto.FLOAT
IMPORTS = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]


def info(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def ref(name: str, kind: int, target: str) -> onnx.AttributeProto:
    return onnx.AttributeProto(name=name, type=kind, ref_attr_name=target)


def function(name: str, inputs, outputs, nodes, attributes=(), defaults=()) -> onnx.FunctionProto:
    return helper.make_function("mine", name, inputs, outputs, nodes, IMPORTS, attributes, defaults)


def model(nodes, functions, outputs=("y",), inputs=("x",), initializers=()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [info(name, 3) for name in inputs], [info(name, 3) for name in outputs], initializers)
    return helper.make_model(graph, functions=functions, opset_imports=IMPORTS, ir_version=10)


def assert_runs_the_same(original: onnx.ModelProto, **feeds: np.ndarray) -> None:
    graph, model_info = load_graph(original)
    graph.check()
    assert all(node.domain != "mine" for node in graph.walk_nodes())
    names = [v.name for n in graph.walk_nodes() for v in n.outputs] + [v.name for v in graph.constants()]
    assert len(names) == len(set(names))
    saved = onnx.load_from_string(serialize(graph, model_info))
    onnx.checker.check_model(saved, full_check=True)
    expected = ReferenceEvaluator(original).run(None, feeds)
    for a, b in zip(ReferenceEvaluator(saved).run(None, feeds), expected, strict=True):
        np.testing.assert_array_equal(a, b)


X = np.array([-1.5, 0.0, 2.5], np.float32)


def leaky() -> onnx.FunctionProto:
    slope = onnx.AttributeProto(name="slope", type=onnx.AttributeProto.FLOAT, f=0.25)
    node = helper.make_node("LeakyRelu", ["a"], ["b"])
    node.attribute.append(ref("alpha", onnx.AttributeProto.FLOAT, "slope"))
    return function("Leaky", ["a"], ["b"], [node], defaults=[slope])


def test_attributes_and_defaults() -> None:
    nodes = [
        helper.make_node("Leaky", ["x"], ["m"], domain="mine", slope=0.5, name="first"),
        helper.make_node("Leaky", ["m"], ["y"], domain="mine", name="first"),
    ]
    graph, _ = load_graph(model(nodes, [leaky()]))
    assert [node.attr("alpha") for node in graph.nodes] == [0.5, 0.25]
    assert [node.outputs[0].name for node in graph.nodes] == ["m", "y"]
    saved = onnx.load_from_string(serialize(*load_graph(model(nodes, [leaky()]))))
    onnx.checker.check_model(saved, full_check=True)
    np.testing.assert_array_equal(ReferenceEvaluator(saved).run(None, {"x": X})[0], np.where(X < 0, X / 8, X))


def test_an_attribute_without_value_is_left_out() -> None:
    node = helper.make_node("LeakyRelu", ["a"], ["b"])
    node.attribute.append(ref("alpha", onnx.AttributeProto.FLOAT, "slope"))
    call = helper.make_node("Leaky", ["x"], ["y"], domain="mine")
    graph, _ = load_graph(model([call], [function("Leaky", ["a"], ["b"], [node], ["slope"])]))
    assert graph.nodes[0].attributes == {}


def test_nested_calls_pass_attributes_on() -> None:
    inner = helper.make_node("Leaky", ["p"], ["q"], domain="mine", name="again")
    inner.attribute.append(ref("slope", onnx.AttributeProto.FLOAT, "steep"))
    twice = [inner, helper.make_node("Leaky", ["q"], ["r"], domain="mine", name="again")]
    outer = function("Twice", ["p"], ["r"], twice, ["steep"])
    calls = [
        helper.make_node("Twice", ["x"], ["m"], domain="mine", steep=2.0),
        helper.make_node("Twice", ["m"], ["y"], domain="mine"),
    ]
    graph, _ = load_graph(model(calls, [outer, leaky()]))
    assert [node.attr("alpha") for node in graph.nodes] == [2.0, 0.25, 0.25, 0.25]


def test_references_inside_subgraphs_and_captures() -> None:
    k = helper.make_node("Constant", [], ["k"])
    k.attribute.append(ref("value_floats", onnx.AttributeProto.FLOATS, "offset"))
    then = helper.make_graph([k, helper.make_node("Add", ["a", "k"], ["t"])], "then", [], [info("t", 3)])
    other = helper.make_graph([helper.make_node("Sub", ["a", "late"], ["e"])], "else", [], [info("e", 3)])
    body = [
        helper.make_node("If", ["positive"], ["b"], then_branch=then, else_branch=other),
        helper.make_node("Neg", ["a"], ["late"]),
        helper.make_node("ReduceSum", ["a"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
    ]
    # The evaluator of onnx runs nodes as they are listed.
    sorted_body = [body[1], body[2], body[4], body[3], body[0]]
    calls = [
        helper.make_node("Shift", ["x"], ["m"], domain="mine", offset=[1.0, 2.0, 3.0]),
        helper.make_node("Shift", ["m"], ["y"], domain="mine", offset=[4.0, 5.0, 6.0]),
    ]
    shift = function("Shift", ["a"], ["b"], body, ["offset"])
    graph, _ = load_graph(model(calls, [shift]))
    graph.check()
    assert_runs_the_same(model(calls, [function("Shift", ["a"], ["b"], sorted_body, ["offset"])]), x=X)
    assert_runs_the_same(model(calls, [function("Shift", ["a"], ["b"], sorted_body, ["offset"])]), x=-X)


def test_absent_inputs_and_unused_outputs() -> None:
    body = [helper.make_node("Clip", ["a", "low", "high"], ["b"]), helper.make_node("Neg", ["a"], ["c"])]
    clip = function("MyClip", ["a", "low", "high"], ["b", "c"], body)
    low = numpy_helper.from_array(np.float32(0), "low")
    call = helper.make_node("MyClip", ["x", "low"], ["y", ""], domain="mine")
    graph, _ = load_graph(model([call], [clip], initializers=[low]))
    assert graph.nodes[0].inputs[2] is None
    assert [node.op_type for node in graph.nodes] == ["Clip", "Neg"]


def test_an_output_that_is_an_input() -> None:
    same = function("Same", ["a"], ["a"], [])
    calls = [helper.make_node("Same", ["x"], ["m"], domain="mine"), helper.make_node("Relu", ["m"], ["y"])]
    graph, _ = load_graph(model(calls, [same]))
    assert graph.nodes[0].inputs == tuple(graph.inputs)


def test_names_of_calls_do_not_meet_names_of_the_model() -> None:
    inner = [helper.make_node("Relu", ["a"], ["t"], name="t"), helper.make_node("Neg", ["t"], ["b"])]
    calls = [
        helper.make_node("Relu", ["x"], ["f/t"], name="f/t"),
        helper.make_node("F", ["f/t"], ["m"], domain="mine", name="f"),
        helper.make_node("F", ["m"], ["y"], domain="mine", name="f"),
    ]
    assert_runs_the_same(model(calls, [function("F", ["a"], ["b"], inner)]), x=X)


def test_a_graph_given_as_attribute_is_read_in_the_scope_of_the_call() -> None:
    branch = helper.make_graph([helper.make_node("Add", ["x", "x"], ["t"])], "branch", [], [info("t", 3)])
    pick = helper.make_node("If", ["a"], ["b"])
    for side in ("then_branch", "else_branch"):
        pick.attribute.append(ref(side, onnx.AttributeProto.GRAPH, "branch"))
    true = numpy_helper.from_array(np.bool_(True), "true")
    call = helper.make_node("Pick", ["true"], ["y"], domain="mine", branch=branch)
    graph, _ = load_graph(model([call], [function("Pick", ["a"], ["b"], [pick], ["branch"])], initializers=[true]))
    graph.check()
    then, other = graph.nodes[0].subgraphs
    assert then is not other
    assert then.nodes[0].inputs[0] is graph.inputs[0]


def call(name: str, source: str = "a", target: str = "b") -> onnx.NodeProto:
    return helper.make_node(name, [source], [target], domain="mine")


def chain(length: int) -> list[onnx.FunctionProto]:
    links = [function(f"F{i}", ["a"], ["b"], [call(f"F{i + 1}")]) for i in range(length)]
    return [*links, function(f"F{length}", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])])]


def doubling(levels: int, last) -> list[onnx.FunctionProto]:
    links = [function(f"F{i}", ["a"], ["b"], [call(f"F{i + 1}", "a", "t"), call(f"F{i + 1}", "t", "b")]) for i in range(levels)]
    return [*links, function(f"F{levels}", ["a"], ["b"], last)]


BAD = {
    "recursion": ([function("F0", ["a"], ["b"], [call("F0")])], "call themselves: F0 → F0"),
    "mutual recursion": (
        [function("F0", ["a"], ["b"], [call("F1")]), function("F1", ["a"], ["b"], [call("F0")])],
        "F0 → F1 → F0",
    ),
    "deep chain": (chain(200), "nest deeper than 64"),
    "exponential": (doubling(40, [helper.make_node("Relu", ["a"], ["b"])]), "more than 5000 nodes"),
    "exponential calls of nothing": (doubling(40, []), "nothing makes output|more than 5000 nodes"),
    "defined twice": ([leaky(), leaky()], "defined twice"),
    "output never made": ([function("F0", ["a"], ["z"], [helper.make_node("Relu", ["a"], ["b"])])], "nothing makes"),
    "too few inputs": ([function("F0", [], ["b"], [helper.make_node("Relu", ["x"], ["b"])])], "1 inputs are given"),
    "capture": ([function("F0", ["a"], ["b"], [helper.make_node("Relu", ["x"], ["b"])])], "reads 'x'"),
    "missing import": (
        [helper.make_function("mine", "F0", ["a"], ["b"], [helper.make_node("G", ["a"], ["b"], domain="his")], [])],
        "needs domain 'his'",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_functions(what: str) -> None:
    functions, message = BAD[what]
    with pytest.raises(InvalidModel, match=message):
        load_graph(model([call("F0", "x", "y")], functions), limits=Limits(inlined_nodes=5000))


def test_a_long_chain_within_the_limits() -> None:
    graph, _ = load_graph(model([call("F0", "x", "y")], chain(60)))
    assert [node.op_type for node in graph.nodes] == ["Relu"]
    assert graph.outputs[0].name == "y"


def test_reference_outside_a_function() -> None:
    node = helper.make_node("LeakyRelu", ["x"], ["y"])
    node.attribute.append(ref("alpha", onnx.AttributeProto.FLOAT, "slope"))
    with pytest.raises(InvalidModel, match="only inside functions"):
        load_graph(model([node], []))
