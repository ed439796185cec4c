"""Patterns: what matches, in which orders, and what must not be touched."""

import math

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.passes.gelu import FuseErfGelu, FuseSilu, FuseTanhGelu
from qruntime.passes.layer_norm import FuseLayerNorm, FuseRMSNorm
from qruntime.passes.stored.embedding_rows import _ReadHalfByteRows
from tests.passes.lowering import lowered_ops, model

X = {"x": np.linspace(-4, 4, 24, dtype=np.float32).reshape(2, 12)}
CONSTANTS = {
    name: np.float32(value).reshape(())
    for name, value in {
        "half": 0.5, "one": 1, "three": 3, "root_2": math.sqrt(2), "inverse_root_2": math.sqrt(0.5), "cubic": 0.044715,
        "tanh_scale": math.sqrt(2 / math.pi),
    }.items()
}  # fmt: skip


def one_plus_erf(by):
    inverse = by == "Mul"
    return [
        (by, ["x", "inverse_root_2" if inverse else "root_2"], ["a"], {}), ("Erf", ["a"], ["e"], {}), ("Add", ["e", "one"], ["p"], {}),
    ]  # fmt: skip


def one_plus_tanh(cube):
    cubed = [("Pow", ["x", "three"], ["c"], {})]
    if cube == "Mul":
        cubed = [("Mul", ["x", "x"], ["s"], {}), ("Mul", ["s", "x"], ["c"], {})]
    return [
        *cubed, ("Mul", ["c", "cubic"], ["k"], {}), ("Add", ["x", "k"], ["i"], {}), ("Mul", ["i", "tanh_scale"], ["j"], {}),
        ("Tanh", ["j"], ["t"], {}), ("Add", ["one", "t"], ["p"], {}),
    ]  # fmt: skip


def halved(order):
    return {
        "x·p·½": [("Mul", ["x", "p"], ["q"], {}), ("Mul", ["q", "half"], ["y"], {})],
        "½·x·p": [("Mul", ["half", "x"], ["q"], {}), ("Mul", ["q", "p"], ["y"], {})],
        "x·(p·½)": [("Mul", ["p", "half"], ["q"], {}), ("Mul", ["x", "q"], ["y"], {})],
    }[order]


@pytest.mark.parametrize("order", ["x·p·½", "½·x·p", "x·(p·½)"])
@pytest.mark.parametrize("start", [one_plus_erf("Div"), one_plus_erf("Mul"), one_plus_tanh("Pow"), one_plus_tanh("Mul")])
def test_gelu(start, order):
    assert lowered_ops(model([*start, *halved(order)], X, ["y"], CONSTANTS), X) == {"Gelu": 1}


def clipped(opset):
    shifted = ("Add", ["x", "three"], ["a"], {})
    if opset < 11:
        return [shifted, ("Clip", ["a"], ["c"], {"min": 0.0, "max": 6.0})]
    return [shifted, ("Clip", ["a", "zero", "six"], ["c"], {})]


BOUNDS = {"zero": np.float32(0), "three": np.float32(3), "six": np.float32(6), "sixth": np.float32(1 / 6)}
SIXTHS = [("Div", "six"), ("Mul", "sixth")]


@pytest.mark.parametrize("sixth", SIXTHS)
@pytest.mark.parametrize("opset", [9, 13])
def test_hard_sigmoid_and_hard_swish(opset, sixth):
    (by, constant), start = sixth, clipped(opset)
    gate = [*start, (by, ["c", constant], ["y"], {})]
    assert lowered_ops(model(gate, X, ["y"], BOUNDS, opset), X) == {"HardSigmoid": 1}
    late = [*start, ("Mul", ["x", "c"], ["p"], {}), (by, ["p", constant], ["y"], {})]
    early = [*start, (by, ["c", constant], ["g"], {}), ("Mul", ["g", "x"], ["y"], {})]
    for nodes in (late, early):
        assert lowered_ops(model(nodes, X, ["y"], BOUNDS, opset), X) == {"HardSwish": 1}


def test_only_a_hard_sigmoid_of_slope_one_sixth_makes_a_hard_swish():
    for alpha, expected in ((1 / 6, {"HardSwish": 1}), (0.2, {"HardSigmoid": 1, "Mul": 1})):
        nodes = [("HardSigmoid", ["x"], ["g"], {"alpha": alpha}), ("Mul", ["x", "g"], ["y"], {})]
        assert lowered_ops(model(nodes, X, ["y"]), X) == expected
    seven = [*clipped(13), ("Mul", ["x", "c"], ["p"], {}), ("Div", ["p", "seven"], ["y"], {})]
    assert "HardSwish" not in lowered_ops(model(seven, X, ["y"], {**BOUNDS, "seven": np.float32(7)}), X)


@pytest.mark.parametrize("inputs", [["x", "s"], ["s", "x"]])
def test_silu(inputs):
    nodes = [("Sigmoid", ["x"], ["s"], {}), ("Mul", inputs, ["y"], {})]
    assert lowered_ops(model(nodes, X, ["y"]), X) == {"Silu": 1}


def test_what_others_read_stays():
    nodes = [("Sigmoid", ["x"], ["s"], {}), ("Mul", ["x", "s"], ["y"], {})]
    assert lowered_ops(model(nodes, X, ["y", "s"]), X) == {"Sigmoid": 1, "Mul": 1}


def test_another_variable_does_not_match():
    inputs = {**X, "z": X["x"] + 1}
    nodes = [("Sigmoid", ["z"], ["s"], {}), ("Mul", ["x", "s"], ["y"], {})]
    assert lowered_ops(model(nodes, inputs, ["y"]), inputs) == {"Sigmoid": 1, "Mul": 1}


def test_a_match_is_of_one_graph(monkeypatch):
    """The Sigmoid outside is read by one branch only, but it is not the branch's to remove."""
    monkeypatch.setenv("QRUNTIME_CHECK", "1")
    inside = [helper.make_node("Mul", ["x", "s"], ["m"]), helper.make_node("Sigmoid", ["m"], ["t"])]
    then = helper.make_graph(inside, "then", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, [3])])
    other = [helper.make_node("Neg", ["x"], ["n"])]
    otherwise = helper.make_graph(other, "else", [], [helper.make_tensor_value_info("n", TensorProto.FLOAT, [3])])
    graph = helper.make_graph(
        [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=otherwise)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )
    loaded = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    x = np.array([1, 2, -1], np.float32)

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    np.testing.assert_allclose(loaded(x, True), sigmoid(x * sigmoid(x)), rtol=1e-6)
    np.testing.assert_array_equal(loaded(x, False), -x)


def operators(pattern):
    inner = (operators(i) for i in pattern.inputs if hasattr(i, "op_types"))
    return {pattern.op_types}.union(*inner)


@pytest.mark.parametrize(
    "rewrite", [FuseErfGelu, FuseTanhGelu, FuseSilu, FuseLayerNorm, FuseRMSNorm, _ReadHalfByteRows], ids=lambda r: r.__name__
)
def test_every_alternative_has_the_operator_that_is_needed(rewrite):
    for pattern in rewrite().patterns():
        assert (rewrite.needs,) in operators(pattern)
