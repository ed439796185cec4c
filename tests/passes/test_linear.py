"""What follows a linear layer joins it."""

import numpy as np
import pytest

from qruntime.ir import clone
from qruntime.passes import pipeline
from tests.passes.lowering import lowered_ops, model

X = {"x": np.random.default_rng(3).standard_normal((2, 3, 8)).astype(np.float32)}
CONSTANTS = {
    "w": np.random.default_rng(4).standard_normal((8, 6)).astype(np.float32), "b": np.arange(6, dtype=np.float32),
    "rows": np.array([-1, 8]), "shape": np.array([2, 3, 6]),
}  # fmt: skip
GEMM = [
    ("Reshape", ["x", "rows"], ["r"], {}),
    ("Gemm", ["r", "w", "b"], ["g"], {}),
    ("Reshape", ["g", "shape"], ["s"], {}),
]


def test_an_activation_behind_a_reshape():
    loaded = model([*GEMM, ("Relu", ["s"], ["y"], {})], X, ["y"], CONSTANTS)
    assert lowered_ops(loaded, X) == {"Reshape": 2, "Linear": 1}


def test_an_activation_beside_which_others_read_stays():
    loaded = model([*GEMM, ("Relu", ["s"], ["y"], {}), ("Neg", ["s"], ["z"], {})], X, ["y", "z"], CONSTANTS)
    assert lowered_ops(loaded, X) == {"Reshape": 2, "Linear": 1, "Relu": 1, "Neg": 1}


def test_a_second_activation_stays():
    loaded = model([*GEMM, ("Relu", ["s"], ["t"], {}), ("Sigmoid", ["t"], ["y"], {})], X, ["y"], CONSTANTS)
    assert lowered_ops(loaded, X) == {"Reshape": 2, "Linear": 1, "Sigmoid": 1}


ELEMENTWISE = [
    ("LeakyRelu", {}), ("LeakyRelu", {"alpha": 0.25}), ("Elu", {}), ("Celu", {"alpha": 0.5}), ("Selu", {}), ("HardSigmoid", {}),
    ("HardSwish", {}), ("Softplus", {}), ("Softsign", {}), ("ThresholdedRelu", {"alpha": 0.5}),
]  # fmt: skip
IMAGE = {"x": np.random.default_rng(5).standard_normal((1, 3, 9, 9)).astype(np.float32)}
FILTERS = {
    "w": np.random.default_rng(6).standard_normal((3, 3, 3, 3)).astype(np.float32), "b": np.arange(3, dtype=np.float32),
    "zero": np.float32(0), "six": np.float32(6),
}  # fmt: skip


@pytest.mark.parametrize(("op", "attributes"), ELEMENTWISE)
def test_elementwise_activations_join_their_layer(op, attributes):
    loaded = model([*GEMM[1:2], (op, ["g"], ["y"], attributes)], {"r": X["x"][0]}, ["y"], {k: CONSTANTS[k] for k in "wb"})
    assert lowered_ops(loaded, {"r": X["x"][0]}) == {"Linear": 1}
    for layer in ("Conv", "ConvTranspose"):
        nodes = [(layer, ["x", "w", "b"], ["c"], {"strides": [2, 2]}), (op, ["c"], ["y"], attributes)]
        assert lowered_ops(model(nodes, IMAGE, ["y"], FILTERS), IMAGE, atol=1e-5) == {layer: 1}


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh"])
def test_a_convolution_takes_an_activation(op):
    nodes = [("Conv", ["x", "w", "b"], ["c"], {}), (op, ["c"], ["y"], {})]
    assert lowered_ops(model(nodes, IMAGE, ["y"], FILTERS), IMAGE, atol=1e-5) == {"Conv": 1}
    others_read = [*nodes, ("Neg", ["c"], ["z"], {})]
    assert lowered_ops(model(others_read, IMAGE, ["y", "z"], FILTERS), IMAGE, atol=1e-5) == {"Conv": 1, op: 1, "Neg": 1}


@pytest.mark.parametrize("bounds", [["zero", "six"], ["zero"], ["", "six"]])
def test_a_clip_with_constant_bounds_joins(bounds):
    nodes = [("Conv", ["x", "w", "b"], ["c"], {}), ("Clip", ["c", *bounds], ["y"], {})]
    assert lowered_ops(model(nodes, IMAGE, ["y"], FILTERS), IMAGE, atol=1e-5) == {"Conv": 1}
    by_attributes = [("Conv", ["x", "w", "b"], ["c"], {}), ("Clip", ["c"], ["y"], {"min": 0.0, "max": 6.0})]
    assert lowered_ops(model(by_attributes, IMAGE, ["y"], FILTERS, opset=9), IMAGE, atol=1e-5) == {"Conv": 1}


def test_a_clip_with_computed_bounds_stays():
    feeds = {**IMAGE, "high": np.full((), 2, np.float32)}
    nodes = [("Conv", ["x", "w", "b"], ["c"], {}), ("Clip", ["c", "zero", "high"], ["y"], {})]
    assert lowered_ops(model(nodes, feeds, ["y"], FILTERS), feeds, atol=1e-5) == {"Conv": 1, "Clip": 1}


def test_a_quantized_convolution_takes_an_activation():
    nodes = [("Conv", ["x", "w", "b"], ["c"], {}), ("LeakyRelu", ["c"], ["y"], {"alpha": 0.25})]
    quantized = model(nodes, IMAGE, ["y"], FILTERS).quantize_dynamic({"Conv"})
    assert lowered_ops(quantized, IMAGE, atol=0.1) == {"DynamicQuantizedConv": 1}


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [0, 1]}, {"strides": [2]}, {"dilations": [1, 0]}, {"group": 2}, {"strides": [100, 100]}, {"strides": 2},
        {"strides": [1.5, 2.0]}, {"activation": "none"},
    ],
)  # fmt: skip
def test_a_transposed_convolution_that_the_kernel_was_not_written_for_stays(attributes):
    nodes = [("ConvTranspose", ["x", "w", "b"], ["y"], attributes)]
    loaded = model(nodes, IMAGE, ["y"], FILTERS)
    assert [n.domain for n in pipeline.lowered(clone(loaded.graph)).nodes] == [""]


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("LeakyRelu", {"alpha": "x"}), ("Elu", {"alpha": [1.0, 2.0]}), ("Celu", {"alpha": -1.0}), ("HardSigmoid", {"alpha": "x"}),
    ],
)  # fmt: skip
def test_an_activation_whose_attributes_are_wrong_stays(op, attributes):
    nodes = [("Conv", ["x", "w", "b"], ["c"], {}), (op, ["c"], ["y"], attributes)]
    lowered = pipeline.lowered(clone(model(nodes, IMAGE, ["y"], FILTERS).graph))
    assert [n.op_type for n in lowered.nodes] == ["Conv", op]
    if op == "HardSigmoid":
        gate = [("HardSigmoid", ["x"], ["g"], attributes), ("Mul", ["x", "g"], ["y"], {})]
        assert [n.op_type for n in pipeline.lowered(clone(model(gate, IMAGE, ["y"]).graph)).nodes] == ["HardSigmoid", "Mul"]


SQUARE = {name: np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32) / 3 for seed, name in enumerate("uvw")}
SQUARE |= {"n": SQUARE["u"][:, :2], "m": SQUARE["v"][:2], "b": np.arange(8, dtype=np.float32)}
ADDED = [("MatMul", ["x", "w"], ["p"], {}), ("Relu", ["x"], ["r"], {}), ("Add", ["r", "p"], ["s"], {})]


def inputs_of(loaded, op_type="Linear"):
    """How many of x, weight, bias, residual, addend each layer has, and which."""
    graph = pipeline.lowered(clone(loaded.graph))
    return [tuple(value is not None for value in node.inputs[2:]) for node in graph.nodes if node.op_type == op_type]


def test_what_is_added_before_an_activation_joins():
    loaded = model([*ADDED, ("Gelu", ["s"], ["y"], {})], X, ["y"], SQUARE, opset=20)
    assert lowered_ops(loaded, X) == {"Relu": 1, "Linear": 1}
    assert inputs_of(loaded) == [(False, False, True)]


def test_a_bias_behind_it_and_a_residual_behind_the_activation_join_too():
    nodes = [*ADDED, ("Add", ["s", "b"], ["t"], {}), ("Sigmoid", ["t"], ["g"], {}), ("Add", ["g", "r"], ["y"], {})]
    loaded = model(nodes, X, ["y"], SQUARE)
    assert lowered_ops(loaded, X) == {"Relu": 1, "Linear": 1}
    assert inputs_of(loaded) == [(True, True, True)]


def test_two_additions_join_and_a_third_stays():
    nodes = [*ADDED, ("Relu", ["s"], ["t"], {}), ("Add", ["t", "r"], ["q"], {}), ("Add", ["q", "r"], ["y"], {})]
    loaded = model(nodes, X, ["y"], SQUARE)
    assert lowered_ops(loaded, X) == {"Relu": 1, "Linear": 1, "Add": 1}
    nodes = [*ADDED, ("Add", ["s", "r"], ["t"], {}), ("Add", ["t", "r"], ["y"], {})]
    assert lowered_ops(model(nodes, X, ["y"], SQUARE), X) == {"Relu": 1, "Linear": 1, "Add": 1}


def test_of_two_layers_the_one_with_fewer_inputs_adds_the_other():
    """Whichever comes first; what follows joins that one."""
    narrow = [("MatMul", ["x", "n"], ["t"], {}), ("MatMul", ["t", "m"], ["l"], {})]
    wide = [("MatMul", ["x", "w"], ["h"], {})]
    for nodes in ([*narrow, *wide], [*wide, *narrow]):
        for pair in (["h", "l"], ["l", "h"]):
            loaded = model([*nodes, ("Add", pair, ["s"], {}), ("Relu", ["s"], ["y"], {})], X, ["y"], SQUARE)
            assert lowered_ops(loaded, X) == {"Linear": 3}
            assert sorted(inputs_of(loaded)) == [(False, False), (False, False), (False, False, True)]


def test_a_quantized_layer_leaves_the_addition_to_the_branch():
    nodes = [
        ("MatMul", ["x", "w"], ["h"], {}), ("MatMul", ["x", "n"], ["t"], {}), ("MatMul", ["t", "m"], ["l"], {}),
        ("Add", ["h", "l"], ["s"], {}), ("Relu", ["s"], ["y"], {}),
    ]  # fmt: skip
    quantized = model(nodes, X, ["y"], SQUARE)
    name = next(node.outputs[0].name for node in quantized.graph.nodes if node.input(1).shape == (8, 8))
    quantized = quantized.quantize_dynamic({name})
    assert lowered_ops(quantized, X, atol=0.1) == {"DynamicQuantizedLinear": 1, "Linear": 2}
    assert inputs_of(quantized, "DynamicQuantizedLinear") == [(False, False)]


def test_a_quantized_layer_takes_no_addend():
    quantized = model([*ADDED, ("Relu", ["s"], ["y"], {})], X, ["y"], SQUARE).quantize_dynamic()
    assert lowered_ops(quantized, X, atol=0.1) == {"DynamicQuantizedLinear": 1, "Relu": 2}
