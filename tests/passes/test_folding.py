"""Constants are computed when a model is loaded, but not written where that would only make the file larger."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import qruntime
from qruntime.passes import pipeline
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

SCALARS = {name: np.float32(value).reshape(()) for name, value in {"zero": 0, "n": 64, "one": 1, "turn": 2 * np.pi / 64}.items()}


def fourier_nodes(weight: str) -> list[onnx.NodeProto]:
    """cos(2π · k · t / 64) as exporters write a Fourier matrix: from nothing but a range."""
    return [
        helper.make_node("Range", ["zero", "n", "one"], ["t"]),
        helper.make_node("Unsqueeze", ["t", "last"], ["column"]),
        helper.make_node("Mul", ["column", "t"], ["kt"]),
        helper.make_node("Mul", ["kt", "turn"], ["angle"]),
        helper.make_node("Cos", ["angle"], [weight]),
    ]


def fourier_bytes(*more: onnx.NodeProto, **weights: np.ndarray) -> bytes:
    nodes = [*fourier_nodes("w"), *more, helper.make_node("MatMul", ["x", "w"], ["y"], name="dft")]
    return model_bytes(nodes, [("x", FLOAT, ["m", 64])], [("y", FLOAT, ["m", 64])], {**SCALARS, "last": np.int64([-1]), **weights})


def ops(graph) -> list[str]:
    return [node.op_type for node in graph.walk_nodes()]


def test_a_small_program_stays_one_and_runs_as_a_constant(tmp_path):
    model = qruntime.load(fourier_bytes())
    assert "Cos" in ops(model.graph)
    x = random(3, 64)
    angle = np.float32(2 * np.pi / 64) * np.arange(64, dtype=np.float32)[:, None] * np.arange(64, dtype=np.float32)
    np.testing.assert_allclose(model(x), x @ np.cos(angle), atol=1e-3)
    assert [call.node.op_type for call in model._plan(("y",)).nodes] == ["Linear"]
    model.save(tmp_path / "again.onnx")
    onnx.checker.check_model(str(tmp_path / "again.onnx"), full_check=True)
    assert (tmp_path / "again.onnx").stat().st_size < 64 * 64  # a quarter of the matrix
    assert_same_bits(qruntime.load(tmp_path / "again.onnx")(x), model(x))


def test_such_a_weight_is_not_quantized_and_the_report_says_why(tmp_path):
    model = qruntime.load(fourier_bytes())
    quantized = model.quantize_dynamic(strict=True)
    assert not quantized.report.layers
    assert "computed from fewer numbers than it holds" in quantized.report.skipped[0].reason
    x = random(3, 64)
    assert_same_bits(quantized(x), model(x))


def merged_bytes() -> bytes:
    """w + a·b: an adapter of low rank that an exporter left beside its weight."""
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["ab"]),
        helper.make_node("Add", ["base", "ab"], ["sum"]),
        helper.make_node("Transpose", ["sum"], ["w"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="fc"),
    ]
    weights = {"a": random(32, 2), "b": random(2, 48), "base": random(32, 48, seed=3)}
    return model_bytes(nodes, [("x", FLOAT, ["m", 48])], [("y", FLOAT, None)], weights)


def test_what_is_no_larger_than_its_sources_is_a_weight():
    model = qruntime.load(merged_bytes())
    assert ops(model.graph) == ["MatMul"]
    assert [layer.name for layer in model.quantize_dynamic().report.layers] == ["fc"]


def test_small_results_are_constants():
    """Shapes, axes, a few numbers: nobody saves bytes there."""
    nodes = [helper.make_node("Range", ["zero", "n", "one"], ["t"]), helper.make_node("Add", ["x", "t"], ["y"])]
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", 64])], [("y", FLOAT, None)], SCALARS))
    assert ops(model.graph) == ["Add"]


@pytest.mark.parametrize("shared", [False, True])
def test_in_branches_too(shared: bool):
    """A branch that reads a program of the outer graph, or has its own."""
    own = [] if shared else fourier_nodes("w")
    branch = helper.make_graph(
        [*own, helper.make_node("MatMul", ["x", "w"], ["p"])], "then", [], [helper.make_tensor_value_info("p", FLOAT, None)]
    )
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", FLOAT, None)])
    nodes = [*(fourier_nodes("w") if shared else []), helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=other)]
    inputs = [("flag", onnx.TensorProto.BOOL, []), ("x", FLOAT, ["m", 64])]
    model = qruntime.load(model_bytes(nodes, inputs, [("y", FLOAT, None)], {**SCALARS, "last": np.int64([-1])}))
    assert "Cos" in ops(model.graph)
    x = random(3, 64)
    assert_same_bits(model(True, x), qruntime.load(fourier_bytes())(x))
    assert_same_bits(model(False, x), -x)


def test_lowering_leaves_the_model_as_it_is():
    model = qruntime.load(fourier_bytes())
    before = ops(model.graph)
    model(random(1, 64))
    assert ops(model.graph) == before
    assert [one.__name__ for one in pipeline.LOWERED[:2]] == ["decode_bare_codes", "fold_all_constants"]


def turned_in(branch: str, scale: str) -> onnx.GraphProto:
    """x · (scale · concat(w[32:], w[:32]))ᵀ, as both branches of an If of torch's exporter order the gates of one LSTM."""
    n = helper.make_node
    nodes = [
        n("Slice", ["w", "half", "all", "zero"], [branch + "_a"]),
        n("Slice", ["w", "zero", "half", "zero"], [branch + "_b"]),
        n("Concat", [branch + "_a", branch + "_b"], [branch + "_c"], axis=0),
        n("Mul", [branch + "_c", scale], [branch + "_d"]),
        n("Transpose", [branch + "_d"], [branch + "_e"], perm=[1, 0]),
        n("MatMul", ["x", branch + "_e"], [branch], name=branch),
    ]
    return helper.make_graph(nodes, branch, [], [helper.make_tensor_value_info(branch, FLOAT, None)])


@pytest.mark.parametrize(("scales", "weights"), [(("two", "two"), 1), (("two", "three"), 2)])
def test_what_two_branches_compute_of_the_same_is_one_constant(scales: tuple[str, str], weights: int, tmp_path):
    branches = [turned_in(name, scale) for name, scale in zip(("then", "else"), scales)]
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])
    numbers = {"zero": np.int64([0]), "half": np.int64([32]), "all": np.int64([64]), "two": np.float32(2), "three": np.float32(3)}
    w, x = random(64, 48), random(3, 48, seed=1)
    inputs = [("flag", onnx.TensorProto.BOOL, []), ("x", FLOAT, ["m", 48])]
    model = qruntime.load(model_bytes([node], inputs, [("y", FLOAT, None)], {"w": w, **numbers}))
    assert len([v for v in model.graph.constants() if v.data.nbytes >= w.nbytes]) == weights
    for flag, scale in zip((True, False), scales):
        np.testing.assert_allclose(model(flag, x), x @ (numbers[scale] * np.roll(w, -32, axis=0)).T, rtol=1e-5, atol=1e-4)
    model.save(tmp_path / "again.onnx")
    assert weights * w.nbytes < (tmp_path / "again.onnx").stat().st_size < weights * w.nbytes + 2000
    assert len(model.quantize_dynamic().report.layers) == 2
