"""Quantized layers of one input become one node."""

from collections import Counter

import numpy as np

import qruntime
from qruntime.ir import clone
from qruntime.passes import pipeline
from tests.passes.lowering import model

RNG = np.random.default_rng(5)
X = {"x": RNG.standard_normal((2, 7, 8)).astype(np.float32)}
WEIGHTS = {name: RNG.standard_normal((8, 8)).astype(np.float32) for name in ("q", "k", "v", "o")}
WEIGHTS["gate"] = RNG.standard_normal((8, 24)).astype(np.float32)


def layers(*names: str, x: str = "x") -> list:
    return [("MatMul", [x, name], [f"{name}_y"], {}) for name in names]


def quantized(nodes: list, outputs: list[str], **options) -> tuple[qruntime.Model, Counter]:
    made = model(nodes, X, outputs, WEIGHTS).quantize_dynamic(**options)
    return made, Counter(node.op_type for node in pipeline.lowered(clone(made.graph)).walk_nodes())


def test_projections_are_merged_and_stay_what_they_were():
    made, ops = quantized(layers("q", "k", "v"), ["q_y", "k_y", "v_y"])
    assert ops == {"MergedDynamicQuantizedLinear": 1}
    for name, y in zip("qkv", made.run(X).values()):
        single, ops = quantized(layers(name), [f"{name}_y"])
        assert ops == {"DynamicQuantizedLinear": 1}
        np.testing.assert_array_equal(y, single.run(X)[f"{name}_y"])


def test_a_gate_keeps_its_activation():
    nodes = [*layers("q", "k"), ("Sigmoid", ["k_y"], ["s"], {}), ("Mul", ["q_y", "s"], ["y"], {})]
    made, ops = quantized(nodes, ["y"])
    assert ops == {"MergedDynamicQuantizedLinear": 1, "Mul": 1}
    q, k = (quantized(layers(name), [f"{name}_y"])[0].run(X)[f"{name}_y"] for name in "qk")
    np.testing.assert_allclose(made.run(X)["y"], q / (1 + np.exp(-k)), rtol=1e-5, atol=1e-6)


def test_a_layer_of_another_input_or_with_a_residual_stays():
    nodes = [*layers("q", "k"), *layers("o", x="q_y"), ("Relu", ["x"], ["r"], {}), *layers("v"), ("Add", ["v_y", "r"], ["y"], {})]
    _, ops = quantized(nodes, ["k_y", "o_y", "y"])
    assert ops == {"MergedDynamicQuantizedLinear": 1, "DynamicQuantizedLinear": 2, "Relu": 1}


def test_layers_with_others_between_them_stay():
    nodes = [*layers("q"), *layers("o", x="q_y"), *layers("k")]
    _, ops = quantized(nodes, ["o_y", "k_y"])
    assert ops == {"DynamicQuantizedLinear": 3}


def test_engines_of_other_runtimes_stay():
    _, ops = quantized(layers("q", "k"), ["q_y", "k_y"], engine="fbgemm")
    assert ops == {"DynamicQuantizedLinear": 2}


def test_the_definition_agrees(monkeypatch):
    from qruntime.ops import linear

    made, _ = quantized(layers("q", "k", "gate"), ["q_y", "k_y", "gate_y"])
    native = list(made.run(X).values())
    monkeypatch.setattr(linear.merged_dynamic_quantized_linear, "binder", None)
    again, _ = quantized(layers("q", "k", "gate"), ["q_y", "k_y", "gate_y"])
    for ours, defined in zip(native, again.run(X).values()):
        np.testing.assert_array_equal(ours, defined)
