"""Layers whose activations have a range for each cluster of channels multiply codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.ir import Node, clone
from qruntime.ops.clustered_linear import clustered_linear, clusters_of
from qruntime.passes.pipeline import lowered
from qruntime.passes.rounded_activations import code_bounds
from tests.small_models import assert_same_bits, model_bytes, random

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
K, N = 64, 24
LABELS = np.arange(K) % 3
SCALE, ZERO = np.float32([0.1, 0.25, 0.7])[LABELS], np.uint8([3, 0, 12])[LABELS]


def limited(most: int = 15, **constants: np.ndarray) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """x in the ranges of its channels, as "r", by codes 0 … most."""
    ends = {"scale": SCALE, "zero": ZERO} | constants
    low, high = code_bounds(ends["scale"], ends["zero"], most)
    nodes = [
        helper.make_node("Max", ["x", "low"], ["above"]), helper.make_node("Min", ["above", "high"], ["limited"]),
        helper.make_node("QuantizeLinear", ["limited" if most < 255 else "x", "scale", "zero"], ["codes"], axis=-1),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["r"], axis=-1),
    ]  # fmt: skip
    return nodes if most < 255 else nodes[2:], ends | {"low": low, "high": high}


def weight(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes of 4 bits, whose zero point is 5, and scales of columns."""
    codes = np.random.default_rng(seed).integers(0, 16, (K, N)).astype(np.uint8)
    return codes, random(N, seed=seed) ** 2 + np.float32(0.01)


def model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], weights: dict[str, tuple], outputs: list | None = None
) -> qruntime.Model:
    """`weights`: by their names what `weight` says."""
    infos = [helper.make_tensor_value_info("x", FLOAT, ["b", "m", K])]
    outputs = outputs or [helper.make_tensor_value_info(name, FLOAT, [None, None, N]) for name in nodes[-1].output]
    initializers, before = [onnx.numpy_helper.from_array(np.asarray(data), name) for name, data in constants.items()], []
    for name, (codes, scale) in weights.items():
        packed = (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)
        initializers.append(helper.make_tensor(f"{name}_q", TensorProto.UINT4, [K, N], packed.tobytes(), raw=True))
        initializers.append(onnx.numpy_helper.from_array(scale, f"{name}_s"))
        zero = np.full(N // 2, 5 | 5 << 4, np.uint8)
        initializers.append(helper.make_tensor(f"{name}_z", TensorProto.UINT4, [N], zero.tobytes(), raw=True))
        before.append(helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [name], axis=1))
    graph = helper.make_graph([*before, *nodes], "small", infos, outputs, initializers)
    return qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString())


def nodes_of(made: qruntime.Model) -> list[Node]:
    return lowered(clone(made.graph)).nodes


def kinds(made: qruntime.Model) -> list[str]:
    return [node.op_type for node in nodes_of(made)]


def exact(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, most: int = 15) -> np.ndarray:
    """In float64, from codes and scales."""
    q = np.clip(np.rint(x / SCALE) + ZERO.astype(np.float32), 0, most)
    real = (q.astype(np.float64) - ZERO) * SCALE.astype(np.float64)
    return real @ ((codes.astype(np.float64) - 5) * scale.astype(np.float64))


def test_a_layer_multiplies_codes():
    nodes, constants = limited()
    one = weight()
    made = model([*nodes, helper.make_node("MatMul", ["r", "w"], ["y"])], constants, {"w": one})
    assert kinds(made) == ["QuantizeLinear", "Gather", "ClusteredLinear"]
    x = random(2, 5, K) * np.float32(4)
    want = exact(x, *one)
    np.testing.assert_allclose(made(x), want, atol=2e-6 * np.abs(want).max())
    profile = made.profile({"x": x}, repeat=1)
    assert [node.kernel for node in profile.nodes] == ["quantize_linear", "gather", "clustered_linear"]


def test_kernel_and_definition_agree():
    nodes, constants = limited()
    made = model([*nodes, helper.make_node("MatMul", ["r", "w"], ["y"])], constants, {"w": weight()})
    x = random(3, 7, K) * np.float32(4)
    layer = nodes_of(made)[-1]
    q = np.clip(np.rint(x / SCALE) + ZERO.astype(np.float32), 0, 15).astype(np.uint8)
    inputs = [q[..., clusters_of(SCALE, ZERO).places], layer.input(1).stored, None, None, SCALE, ZERO]
    assert_same_bits(made(x), clustered_linear.definition(*inputs))


def test_layers_share_codes_in_their_order():
    nodes, constants = limited()
    several = {"w": weight(), "v": weight(1), "u": weight(2)}
    layers = [helper.make_node("MatMul", ["r", name], [f"{name}_y"]) for name in several]
    outputs = [helper.make_tensor_value_info(f"{name}_y", FLOAT, None) for name in several]
    made = model([*nodes, *layers], constants, several, outputs)
    assert kinds(made) == ["QuantizeLinear", "Gather", *["ClusteredLinear"] * 3]
    x = random(1, 9, K) * np.float32(3)
    for y, one in zip(made(x), several.values(), strict=True):
        want = exact(x, *one)
        np.testing.assert_allclose(y, want, atol=2e-6 * np.abs(want).max())


def test_bias_activation_and_residual_follow():
    nodes, constants = limited()
    one, other = weight(), weight(1)
    layers = [
        helper.make_node("MatMul", ["r", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["q"]), helper.make_node("Relu", ["q"], ["a"]),
        helper.make_node("MatMul", ["r", "v"], ["t"]), helper.make_node("Add", ["t", "a"], ["y"]),
    ]  # fmt: skip
    made = model([*nodes, *layers], constants | {"b": random(N)}, {"w": one, "v": other})
    found = [node for node in nodes_of(made) if node.op_type == "ClusteredLinear"]
    assert kinds(made) == ["QuantizeLinear", "Gather", "ClusteredLinear", "ClusteredLinear"]
    assert {node.attr("activation"): node.input(3) is not None for node in found} == {"relu": True, "none": False}
    x = random(2, 3, K)
    want = np.maximum(exact(x, *one) + random(N), 0) + exact(x, *other)
    np.testing.assert_allclose(made(x), want, atol=4e-6 * np.abs(exact(x, *one)).max())


def test_gemm_with_a_bias():
    nodes, constants = limited()
    layers = [
        helper.make_node("Reshape", ["r", "rows"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"], alpha=2.0),
    ]
    made = model([*nodes, *layers], constants | {"b": random(N), "rows": np.int64([-1, K])}, {"w": weight()})
    assert "ClusteredLinear" not in kinds(made)  # a Reshape stands in between
    nodes[0].input[0] = "flat"
    layers = [helper.make_node("Reshape", ["x", "rows"], ["flat"]), *nodes, helper.make_node("Gemm", ["r", "w", "b"], ["y"], alpha=2.0)]
    one = weight()
    made = model(layers, constants | {"b": random(N), "rows": np.int64([-1, K])}, {"w": one})
    assert kinds(made) == ["Reshape", "QuantizeLinear", "Gather", "ClusteredLinear"]
    x = random(2, 3, K)
    want = 2 * exact(x, *one).reshape(-1, N) + random(N)
    np.testing.assert_allclose(made(x), want, atol=2e-6 * np.abs(want).max())


def test_eight_bits_of_activations():
    nodes, constants = limited(255)
    one = weight()
    made = model([*nodes, helper.make_node("MatMul", ["r", "w"], ["y"])], constants, {"w": one})
    assert kinds(made) == ["QuantizeLinear", "Gather", "ClusteredLinear"]
    x = random(2, 5, K) * np.float32(40)
    want = exact(x, *one, most=255)
    np.testing.assert_allclose(made(x), want, atol=2e-6 * np.abs(want).max())


def test_codes_that_are_given():
    """As calibration gives them to the part of a graph that follows."""
    nodes = [helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["r"], axis=-1), helper.make_node("MatMul", ["r", "w"], ["y"])]
    weights = {"scale": SCALE, "zero": ZERO, "w": random(K, N)}
    data = model_bytes(nodes, [("x", UINT8, ["m", K])], [("y", FLOAT, ["m", N])], weights, opset=21)
    made = qruntime.load(data).quantize(scheme="W4A16")
    assert kinds(made) == ["Gather", "ClusteredLinear"]
    codes = np.random.default_rng(0).integers(0, 256, (6, K)).astype(np.uint8)
    want = ((codes.astype(np.float64) - ZERO) * SCALE) @ made.graph.nodes[-1].input(1).stored.decoded()
    np.testing.assert_allclose(made(codes), want, atol=2e-6 * np.abs(want).max())


def test_others_may_read_the_rounded_numbers():
    nodes, constants = limited()
    outputs = [helper.make_tensor_value_info(name, FLOAT, None) for name in ("y", "z")]
    readers = [helper.make_node("MatMul", ["r", "w"], ["y"]), helper.make_node("Neg", ["r"], ["z"])]
    made = model([*nodes, *readers], constants, {"w": weight()}, outputs)
    assert sorted(kinds(made)) == ["ClusteredLinear", "Gather", "Neg", "QuantizeLinear", "RoundToCodes"]
    x = random(1, 4, K)
    np.testing.assert_allclose(made(x)[0], exact(x, *weight()), atol=1e-4)


def declined(made: qruntime.Model, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of it, once the model is seen to run in floats."""
    monkeypatch.setenv("QRUNTIME_TRACE", "passes")
    assert "ClusteredLinear" not in kinds(made)
    monkeypatch.delenv("QRUNTIME_TRACE")
    return next((line for line in capsys.readouterr().err.splitlines() if "multiply_clusters declines" in line), "")


def test_many_clusters_stay_floats(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    nodes, constants = limited(scale=np.linspace(0.1, 0.9, K, dtype=np.float32))
    made = model([*nodes, helper.make_node("MatMul", ["r", "w"], ["y"])], constants, {"w": weight()})
    assert "64 clusters of 64 channels" in declined(made, capsys, monkeypatch)


@pytest.mark.parametrize("scheme", ["W4A16-g32", "W8A16-channel-asym", "Wnf4A16", "Wfp4A16"])
def test_weights_of_other_forms_stay_floats(scheme: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    nodes, constants = limited(255)
    data = model_bytes(
        [*nodes, helper.make_node("MatMul", ["r", "w"], ["y"])], [("x", FLOAT, ["m", K])], [("y", FLOAT, ["m", N])],
        constants | {"w": random(K, N)}, opset=21,
    )  # fmt: skip
    made = qruntime.load(data).quantize(scheme=scheme)
    assert "no form of the kernel" in declined(made, capsys, monkeypatch)


def test_weights_in_floats_and_other_axes_are_left_alone(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    nodes, constants = limited(255)
    data = model_bytes(
        [*nodes, helper.make_node("MatMul", ["r", "w"], ["y"])], [("x", FLOAT, ["m", K])], [("y", FLOAT, ["m", N])],
        constants | {"w": random(K, N)}, opset=21,
    )  # fmt: skip
    assert not declined(qruntime.load(data), capsys, monkeypatch)
    rows = [helper.make_node(node.op_type, list(node.input), list(node.output), axis=0) for node in nodes]
    layer = helper.make_node("MatMul", ["r", "w"], ["y"])
    data = model_bytes([*rows, layer], [("x", FLOAT, [K, K])], [("y", FLOAT, [K, N])], constants | {"w": random(K, N)}, opset=21)
    assert not declined(qruntime.load(data).quantize(scheme="W4A16"), capsys, monkeypatch)


def test_a_saved_model_has_its_codes_again(tmp_path: Any):
    nodes, constants = limited()
    made = model([*nodes, helper.make_node("MatMul", ["r", "w"], ["y"])], constants, {"w": weight()})
    x = random(2, 5, K)
    y = made(x)  # the kernel alone has the codes now
    made.save(tmp_path / "again.onnx")
    onnx.checker.check_model(str(tmp_path / "again.onnx"), full_check=True)
    again = qruntime.load(tmp_path / "again.onnx")
    assert_same_bits(again(x), y)
    stored = again.graph.nodes[-1].input(1).stored
    np.testing.assert_array_equal(stored.unpacked(), weight()[0])
