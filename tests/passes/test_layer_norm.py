"""Decomposed normalisations become one node, with the residual that is added before them."""

import numpy as np
import pytest

from tests.passes.lowering import attributes_of, lowered_ops, model

X = {"x": np.random.default_rng(1).standard_normal((2, 3, 8)).astype(np.float32) * 3 + 1}
CONSTANTS = {
    "eps": np.float32(1e-3).reshape(()), "two": np.float32(2).reshape(()), "one": np.float32(1).reshape(()),
    "w": np.linspace(0.5, 2, 8, dtype=np.float32), "b": np.linspace(-1, 1, 8, dtype=np.float32), "axes": np.array([-1]),
}  # fmt: skip


def mean(of, to, opset, axes=(-1,), **attributes):
    if opset >= 18:
        return ("ReduceMean", [of, "axes"], [to], attributes)
    return ("ReduceMean", [of], [to], {"axes": list(axes), **attributes})


def layer_norm(opset, square="Pow", quotient="Div", axes=(-1,), x="x"):
    nodes = [mean(x, "m", opset, axes), ("Sub", [x, "m"], ["d"], {})]
    nodes.append(("Pow", ["d", "two"], ["dd"], {}) if square == "Pow" else ("Mul", ["d", "d"], ["dd"], {}))
    nodes += [mean("dd", "v", opset, axes), ("Add", ["v", "eps"], ["ve"], {}), ("Sqrt", ["ve"], ["s"], {})]
    return nodes + divided("d", "s", quotient)


def divided(x, by, quotient):
    if quotient == "Div":
        return [("Div", [x, by], ["n"], {})]
    inverse = ("Reciprocal", [by], ["i"], {}) if quotient == "Reciprocal" else ("Div", ["one", by], ["i"], {})
    return [inverse, ("Mul", ["i", x], ["n"], {})]


def rms_norm(opset, square="Pow", quotient="Reciprocal", x="x"):
    nodes = [("Pow", [x, "two"], ["xx"], {}) if square == "Pow" else ("Mul", [x, x], ["xx"], {})]
    nodes += [mean("xx", "v", opset), ("Add", ["v", "eps"], ["ve"], {}), ("Sqrt", ["ve"], ["s"], {})]
    return nodes + divided(x, "s", quotient)


AFFINE = [("Mul", ["n", "w"], ["nw"], {}), ("Add", ["nw", "b"], ["y"], {})]


@pytest.mark.parametrize("opset", [14, 18])
@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("quotient", ["Div", "Reciprocal", "one over"])
def test_layer_norm(opset, square, quotient):
    loaded = model([*layer_norm(opset, square, quotient), *AFFINE], X, ["y"], CONSTANTS, opset)
    assert lowered_ops(loaded, X) == {"LayerNormalization": 1}
    (attributes,) = attributes_of(loaded, "LayerNormalization")
    assert attributes["epsilon"] == pytest.approx(1e-3)


def test_without_scale_and_bias():
    assert lowered_ops(model(layer_norm(17), X, ["n"], CONSTANTS), X) == {"LayerNormalization": 1}


def test_two_axes():
    constants = {**CONSTANTS, "w": np.ones((3, 8), np.float32) * 2, "b": np.ones((3, 8), np.float32)}
    loaded = model([*layer_norm(17, axes=(-2, -1)), *AFFINE], X, ["y"], constants)
    assert lowered_ops(loaded, X) == {"LayerNormalization": 1}


def test_positive_axis_of_known_rank():
    assert lowered_ops(model(layer_norm(17, axes=(2,)), X, ["n"], CONSTANTS), X) == {"LayerNormalization": 1}


@pytest.mark.parametrize("axes", [(-2,), (-3, -1)])
def test_other_axes_stay(axes):
    assert lowered_ops(model(layer_norm(17, axes=axes), X, ["n"], CONSTANTS), X)["LayerNormalization"] == 0


@pytest.mark.parametrize("read", ["m", "d", "s"])
def test_parts_that_are_outputs_stay(read):
    assert lowered_ops(model(layer_norm(17), X, ["n", read], CONSTANTS), X)["LayerNormalization"] == 0


def test_a_normalised_output_stays_readable():
    ops = lowered_ops(model([*layer_norm(17), *AFFINE], X, ["n", "y"], CONSTANTS), X)
    assert ops == {"LayerNormalization": 1, "Mul": 1, "Add": 1}


def test_a_scale_of_higher_rank_stays():
    constants = {**CONSTANTS, "w": np.ones((2, 1, 8), np.float32) * 2}
    ops = lowered_ops(model([*layer_norm(17), *AFFINE], X, ["y"], constants), X)
    assert ops == {"LayerNormalization": 1, "Mul": 1, "Add": 1}


@pytest.mark.parametrize("opset", [14, 18])
@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("quotient", ["Div", "Reciprocal", "one over"])
def test_rms_norm(opset, square, quotient):
    nodes = [*rms_norm(opset, square, quotient), ("Mul", ["w", "n"], ["y"], {})]
    assert lowered_ops(model(nodes, X, ["y"], CONSTANTS, opset), X) == {"RMSNormalization": 1}


def test_casts_to_what_it_is_already():
    nodes = [("Cast", ["x"], ["x1"], {"to": 1}), *rms_norm(17, x="x1"), ("Cast", ["n"], ["y"], {"to": 1})]
    ops = lowered_ops(model(nodes, X, ["y"], CONSTANTS), X)
    assert ops["RMSNormalization"] == 1


def test_casts_that_change_the_type_stay():
    nodes = [("Cast", ["x"], ["h"], {"to": 10}), ("Cast", ["h"], ["f"], {"to": 1}), ("Relu", ["f"], ["y"], {})]
    assert lowered_ops(model(nodes, X, ["y"]), X)["Cast"] == 2


RESIDUAL = [
    ("Relu", ["x"], ["p"], {}),
    ("Neg", ["x"], ["n0"], {}),
    ("Relu", ["n0"], ["q"], {}),
    ("Add", ["p", "q"], ["t"], {}),
]
NORM = ("LayerNormalization", ["t", "w", "b"], ["y"], {"axis": -1, "epsilon": 1e-3})


def test_residual():
    ops = lowered_ops(model([*RESIDUAL, NORM], X, ["y"], CONSTANTS), X)
    assert ops == {"Relu": 2, "Neg": 1, "LayerNormalization": 1}


def test_residual_whose_sum_is_read():
    nodes = [*RESIDUAL, ("Exp", ["t"], ["e"], {}), NORM]
    ops = lowered_ops(model(nodes, X, ["y", "e", "t"], CONSTANTS), X, atol=1e-4)
    assert ops == {"Relu": 2, "Neg": 1, "Exp": 1, "LayerNormalization": 1}


def test_residual_that_may_broadcast_stays():
    inputs = {**X, "row": X["x"][:1]}
    nodes = [("Relu", ["x"], ["p"], {}), ("Add", ["p", "row"], ["t"], {}), NORM]
    assert lowered_ops(model(nodes, inputs, ["y"], CONSTANTS), inputs) == {"Relu": 1, "Add": 1, "LayerNormalization": 1}
