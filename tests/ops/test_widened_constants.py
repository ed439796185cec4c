"""Constants of narrow floats that kernels of float32 read: widened once, when a plan is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.ops.registry import find

HALF = TensorProto.FLOAT16
RNG = np.random.default_rng(0)


def half(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float16)


def model(nodes: list[Any], weights: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",)) -> qruntime.Model:
    """Of nodes (operator, inputs, output, attributes) that read x and the weights."""
    protos = [helper.make_node(op, names, [output], **attributes) for op, names, output, attributes in nodes]
    graph = helper.make_graph(
        protos, "g", [helper.make_tensor_value_info("x", HALF, None)],
        [helper.make_tensor_value_info(name, HALF, None) for name in outputs],
        [numpy_helper.from_array(data, name) for name, data in weights.items()],
    )  # fmt: skip
    return qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


CASES: dict[str, tuple[str, np.ndarray, dict[str, np.ndarray], dict[str, Any]]] = {
    "Conv": ("Conv", half(2, 8, 9, 9), {"w": half(6, 8, 3, 3), "b": half(6)}, {"pads": [1] * 4}),
    "Conv depthwise": ("Conv", half(1, 8, 9, 9), {"w": half(8, 1, 3, 3)}, {"group": 8}),
    "ConvTranspose": ("ConvTranspose", half(2, 8, 5, 5), {"w": half(8, 4, 3, 3), "b": half(4)}, {"strides": [2, 2]}),
    "ConvTranspose in groups": ("ConvTranspose", half(1, 8, 7), {"w": half(8, 3, 4)}, {"group": 2, "pads": [1, 0]}),
    "LayerNormalization": ("LayerNormalization", half(3, 16), {"s": half(16), "b": half(16)}, {}),
    "a constant in front": ("MatMul", half(16, 3), {"w": half(5, 16)}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_result_is_that_of_the_definition(name: str) -> None:
    op, x, weights, attributes = CASES[name]
    names = [*weights, "x"] if name == "a constant in front" else ["x", *weights]
    loaded = model([(op, names, "y", attributes)], weights)
    calls = loaded._plan(("y",)).nodes
    if name != "a constant in front":
        assert [array.dtype for call in calls for _, array in call.widened] == [np.float32] * len(weights)
    spec = find("", op, 17)
    assert spec is not None
    expected = spec(*[x if n == "x" else weights[n] for n in names], **attributes)
    expected = expected[0] if isinstance(expected, tuple) else expected
    for _ in range(2):
        y = loaded(x)
        assert y.dtype == np.float16
        # One rounding to 11 bits, of sums that float32 adds in another order.
        np.testing.assert_allclose(y.astype(np.float32), expected.astype(np.float32), rtol=2**-10, atol=2**-10)
    assert {call.source for call in loaded._plan(("y",)).as_run()} == {"native"}


def test_plans_and_nodes_share_them() -> None:
    w = half(8, 8, 3, 3)
    nodes = [("Conv", ["x", "w"], "h", {"pads": [1] * 4}), ("Conv", ["h", "w"], "y", {"pads": [1] * 4})]
    loaded = model(nodes, {"w": w}, ("h", "y"))
    x = half(1, 8, 5, 5)
    both = loaded.run({"x": x})
    assert loaded.run({"x": x}, ["h"])["h"].tobytes() == both["h"].tobytes()
    wide = {id(array) for names in (("h", "y"), ("h",)) for call in loaded._plan(names).nodes for _, array in call.widened}
    assert len(wide) == 1
    assert loaded.memory().constants >= 2 * w.nbytes


def test_an_activation_after_it_is_rounded_apart() -> None:
    weights = {"w": half(8, 4, 3, 3)}
    nodes = [("ConvTranspose", ["x", "w"], "h", {}), ("Sigmoid", ["h"], "y", {})]
    loaded = model(nodes, weights, ("y",))
    assert [call.node.op_type for call in loaded._plan(("y",)).nodes] == ["ConvTranspose", "Sigmoid"]


def test_mixed_types_are_refused_as_before() -> None:
    """Float32 in, a float16 weight: widening the weight must not make that a valid model."""
    weights = {"s": half(16), "b": half(16)}
    node = helper.make_node("LayerNormalization", ["x", "s", "b"], ["y"])
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(data, name) for name, data in weights.items()],
    )  # fmt: skip
    loaded = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    loaded.run({"x": np.ones((3, 16), np.float32)})
    assert {call.source for call in loaded._plan(("y",)).as_run()} == {"numpy"}
