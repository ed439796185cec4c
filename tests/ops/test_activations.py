"""Activations and other pointwise operators of every version: each has a fast path, and it is the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.ops.registry import find

ACTIVATIONS: dict[str, dict[str, Any]] = {
    "Relu": {}, "LeakyRelu": {"alpha": 0.3}, "ThresholdedRelu": {"alpha": 0.75}, "Elu": {"alpha": 1.5},
    "Celu": {"alpha": 0.5}, "Selu": {"alpha": 1.5, "gamma": 1.25}, "Sigmoid": {}, "HardSigmoid": {"alpha": 0.25, "beta": 0.375},
    "HardSwish": {}, "Swish": {"alpha": 1.5}, "Mish": {}, "Softplus": {}, "Softsign": {}, "Shrink": {"lambd": 0.25, "bias": 0.125},
    "Gelu": {}, "Tanh": {}, "Erf": {},
}  # fmt: skip
SINCE = {"ThresholdedRelu": 10, "Celu": 12, "HardSwish": 14, "Swish": 24, "Mish": 18, "Shrink": 9, "Gelu": 20, "Erf": 9}


def model_of(node: onnx.NodeProto, opset: int, *names: str) -> qruntime.Model:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return qruntime.load(proto.SerializeToString())


def assert_native(model: qruntime.Model) -> None:
    assert "not native" not in model.summary()


@pytest.mark.parametrize("defaults", [True, False])
@pytest.mark.parametrize("op_type", ACTIVATIONS)
def test_an_activation_is_native_and_the_definition(op_type: str, defaults: bool) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-5, 5, 301), [0, -0.0, np.nan]]).astype(np.float32)
    attributes = {} if defaults else ACTIVATIONS[op_type]
    first = SINCE.get(op_type, 6)
    for opset in sorted({first, max(first, 13), 24}):
        model = model_of(helper.make_node(op_type, ["x"], ["y"], **attributes), opset, "x")
        actual = model.run({"x": x})["y"]
        assert_native(model)
        spec = find("", op_type, opset)
        assert spec is not None
        np.testing.assert_allclose(actual, spec(x, **attributes), rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("opset", [7, 9, 16])
def test_prelu_is_native(opset: int) -> None:
    rng = np.random.default_rng(1)
    x, slope = rng.standard_normal((2, 3, 4, 5)).astype(np.float32), rng.standard_normal((3, 1, 1)).astype(np.float32)
    model = model_of(helper.make_node("PRelu", ["x", "s"], ["y"]), opset, "x", "s")
    np.testing.assert_array_equal(model.run({"x": x, "s": slope})["y"], np.where(x < 0, x * slope, x))
    assert_native(model)


def test_celu_without_a_positive_alpha_is_the_definition() -> None:
    """Where alpha is negative the exponent is positive, which the kernel was not written for."""
    x = np.float32([-2, -1, 0, 1])
    for alpha in (-1.5, 0.0):
        model = model_of(helper.make_node("Celu", ["x"], ["y"], alpha=alpha), 12, "x")
        spec = find("", "Celu", 12)
        assert spec is not None
        np.testing.assert_array_equal(model.run({"x": x})["y"], spec(x, alpha=alpha))
