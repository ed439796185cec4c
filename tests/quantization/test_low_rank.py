"""Branches of low rank beside layers: what the graph computes, what kernels make of it, what files and reports hold."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import qruntime
from qruntime.errors import QuantizationError
from qruntime.ir import clone
from qruntime.onnx_io.importer import load_graph
from qruntime.passes import pipeline
from qruntime.quantization.low_rank import branches_beside
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.methods.zeroquant_v2 import LowRank
from qruntime.runtime.plan import Planner
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

K, N, RANK = 48, 40, 6
X = random(10, K, seed=3)
DATA = [{"x": random(64, K, seed=4)}]
W, B = random(K, N) / 8, random(N, seed=1)


def layers(*nodes: onnx.NodeProto, opset: int = 21, n: int = N, **weights: np.ndarray) -> qruntime.Model:
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["b", K])], [("y", FLOAT, ["b", n])], weights, opset))


def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"/{output}/{op}", **attributes)


def plain() -> qruntime.Model:
    return layers(node("MatMul", ["x", "w"], "y"), w=W)


def with_branch(model: qruntime.Model, scheme: str = "W3A16", step: LowRank | None = None, **options: Any) -> qruntime.Model:
    return model.quantize([RTN(), step or LowRank(RANK)], scheme=scheme, data=DATA, **options)


def lowered(model: qruntime.Model) -> Counter[str]:
    """Operators of the lowered graph, none of which a kernel declined."""
    graph = pipeline.lowered(clone(model.graph))
    graph.check()
    plan = Planner(graph, num_threads=1).plan()
    plan.executable.run([X])
    assert not any(plan.executable.declined)
    return Counter(node.op_type for node in graph.nodes)


def the_branch(model: qruntime.Model) -> np.ndarray:
    """left · right [N, K] of the only branch."""
    (branch,) = (one for node in model.graph.nodes for one in branches_beside(node) if node.mark is not None)
    right, left = ((value.data if value.stored is None else value.stored.decoded()).astype(np.float64) for value in branch.weights)
    return (right @ left).T


LINEAR = {
    "MatMul": ([node("MatMul", ["x", "w"], "y")], {"w": W}),
    "MatMul, Add": ([node("MatMul", ["x", "w"], "h"), node("Add", ["b", "h"], "y")], {"w": W, "b": B}),
    "Gemm": ([node("Gemm", ["x", "w", "b"], "y")], {"w": W, "b": B}),
    "Gemm of W transposed": ([node("Gemm", ["x", "w", "b"], "y", transB=1, alpha=0.5, beta=2.0)], {"w": W.T.copy(), "b": B}),
}


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("bits", [8, None])
def test_every_linear_layer(kind: str, bits: int | None, tmp_path) -> None:
    """The float function with Ŵ + left · right for W; the file says the same to everybody; reloaded it is the same bits."""
    nodes, weights = LINEAR[kind]
    model = layers(*nodes, **weights)
    quantized = with_branch(model, step=LowRank(RANK, bits=bits))
    assert lowered(quantized) == {"Linear": 3}
    plain = model.quantize(scheme="W3A16", data=DATA)
    (row,), (plain_row,) = quantized.report.layers, plain.report.layers
    assert row.snr_db > plain_row.snr_db
    assert 0 < row.error < row.rtn_error == pytest.approx(plain_row.error)
    assert np.linalg.norm(quantized(X) - model(X)) < np.linalg.norm(plain(X) - model(X))
    np.testing.assert_allclose(quantized(X) - plain(X), X.astype(np.float64) @ the_branch(quantized).T, rtol=0, atol=2e-5)
    path = tmp_path / "model.onnx"
    quantized.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    again = qruntime.load(path)
    assert_same_bits(again(X), quantized(X))
    unsaid = {"facts": (), "error": 0.0, "rtn_error": 0.0, "snr_db": 0.0}
    assert again.report.layers[0]._replace(**unsaid) == row._replace(**unsaid)
    (y,) = ReferenceEvaluator(onnx.load(path)).run(None, {"x": X})
    np.testing.assert_allclose(quantized(X), y, rtol=0, atol=2e-5)


def test_the_row_of_the_layer_counts_its_branch() -> None:
    """Factors of r · (K + N) bytes with a scale for each of N + r rows, or of as many floats."""
    before = plain().quantize(scheme="W3A16").report.layers[0]
    for bits, size in ((8, RANK * (K + N) + 4 * (N + RANK)), (None, 4 * RANK * (K + N))):
        (row,) = with_branch(plain(), step=LowRank(RANK, bits=bits)).report.layers
        assert row.bytes_after == before.bytes_after + size
        assert row.bits_per_weight == pytest.approx(before.bits_per_weight + 8 * size / (K * N))
        assert row.scheme == f"uint3 channel affine + rank {RANK} in {'int8' if bits else 'float32'}"
        assert row.facts[0]["rank"] == RANK


@pytest.mark.parametrize("scheme", ["W4A8-g16", "W8A8", "W8A8-static", "W4A6-static", "W4A4-g16"])
@pytest.mark.parametrize("bits", [8, None])
def test_the_branch_reads_floats_where_the_layer_quantizes(scheme: str, bits: int | None) -> None:
    """An outlier makes the steps of activations so coarse that a branch over codes would be seen at once."""
    x = X.copy()
    x[:, 0] = 100
    data = [{"x": x}]
    model = plain()
    without = model.quantize(scheme=scheme, data=data if "static" in scheme else None)
    quantized = model.quantize([RTN(), LowRank(RANK, bits=bits)], scheme=scheme, data=data)
    static = {
        "W8A8-static": {"QLinearMatMul": 1, "QuantizeLinear": 1, "Linear": 2},
        "W4A6-static": {"RoundToCodes": 1, "DynamicQuantizedLinear": 1, "Linear": 2},
    }
    assert lowered(quantized) == static.get(scheme, {"DynamicQuantizedLinear": 1, "Linear": 2})
    added = the_branch(quantized)
    np.testing.assert_allclose(quantized(x) - without(x), x.astype(np.float64) @ added.T, rtol=0, atol=1e-5 * np.abs(without(x)).max())
    scale = np.float32(x.max() - x.min()) / 255
    assert np.abs((np.rint(x / scale) * scale - x) @ added.T).max() > 5e-5 * np.abs(without(x)).max()


@pytest.mark.parametrize("scheme", ["W4A16-g16", "W4A8-g16", "W8A8-static"])
def test_what_follows_the_layer_still_joins_it(scheme: str) -> None:
    """Bias, activation and residual: in one node with the last product of the branch."""
    model = layers(
        node("MatMul", ["x", "w"], "h"), node("Add", ["h", "b"], "hb"), node("Gelu", ["hb"], "g"),
        node("MatMul", ["g", "v"], "m"), node("Add", ["m", "c"], "mc"), node("Relu", ["x"], "r"), node("Add", ["r", "mc"], "y"),
        w=W, b=B, v=W.T.copy(), c=random(K, seed=6), n=K,
    )  # fmt: skip
    ops = lowered(with_branch(model, scheme))
    assert {"Add", "Gelu"}.isdisjoint(ops)
    assert ops["Linear"] == (6 if "A16" in scheme else 4)


def test_layers_of_one_input_still_share_what_they_quantize() -> None:
    nodes = [node("MatMul", ["x", name], f"h{name}") for name in "qkv"]
    model = layers(*nodes, node("Sum", ["hq", "hk", "hv"], "y"), **{name: random(K, N, seed=i) for i, name in enumerate("qkv")})
    quantized = with_branch(model, "W8A8")
    assert lowered(quantized) == {"MergedDynamicQuantizedLinear": 1, "Linear": 6, "Sum": 1}


def test_layers_that_share_a_weight_have_branches_of_their_own() -> None:
    square = random(K, K) / 8
    model = layers(node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "w"], "y"), n=K, w=square)
    quantized = model.quantize([RTN(), LowRank(RANK)], scheme="W3A16")
    first, second = quantized.report.layers
    assert [first.shared, second.shared] == [False, True]
    assert second.bytes_after == RANK * 2 * K + 4 * (K + RANK)
    assert np.linalg.norm(quantized(X) - model(X)) < np.linalg.norm(model.quantize(scheme="W3A16")(X) - model(X))


def test_factors_are_no_layers_later(tmp_path) -> None:
    """Neither for a call on the model in memory nor on the file; the branch stays, and still makes good for what was lost."""
    model, before = plain(), with_branch(plain())
    before.save(tmp_path / "model.onnx")
    for quantized in (before, qruntime.load(tmp_path / "model.onnx")):
        anew = quantized.quantize_dynamic({"/y/MatMul"}, activation="per_token")
        assert [row.name for row in anew.report.layers] == ["/y/MatMul"]
        assert anew.report.layers[0].scheme.endswith(f"+ rank {RANK} in int8")
        assert not anew.report.skipped
        assert np.linalg.norm(anew(X) - quantized(X)) < 0.05 * np.linalg.norm(quantized(X) - model(X) + 1)
        again = quantized.quantize(scheme="W8A16")
        assert [row.name for row in again.report.layers] == ["/y/MatMul"]
        np.testing.assert_allclose(again(X), quantized(X), rtol=0, atol=0.02 * np.abs(quantized(X)).max())
        assert str(quantized).count("Linear(") == 1


def test_a_second_branch_stands_beside_the_first() -> None:
    once, twice = with_branch(plain()), plain().quantize([RTN(), LowRank(RANK), LowRank(RANK)], scheme="W3A16")
    assert twice.report.layers[0].scheme == f"uint3 channel affine + rank {RANK} in int8 + rank {RANK} in int8"
    assert twice.report.layers[0].snr_db > once.report.layers[0].snr_db
    more = with_branch(once, "W2A16")
    assert more.report.layers[0].scheme == f"uint2 channel affine + rank {RANK} in int8 + rank {RANK} in int8"
    assert np.linalg.norm(more(X) - once(X)) < np.linalg.norm(once.quantize(scheme="W2A16")(X) - once(X))


def test_a_layer_that_nothing_can_be_added_to_says_so() -> None:
    lstm = helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], name="lstm", hidden_size=8)
    weights = {"w": random(1, 32, 5), "r": random(1, 32, 8, seed=1)}
    model = qruntime.load(model_bytes([lstm], [("x", FLOAT, [7, "b", 5])], [("h", FLOAT, [1, "b", 8])], weights))
    quantized = model.quantize([RTN(), LowRank(4)], scheme="W4A16")
    (row,) = quantized.report.layers
    assert all("stand beside linear layers, not beside LSTM" in facts["LowRank"] for facts in row.facts)
    assert_same_bits(quantized(random(7, 2, 5)), model.quantize(scheme="W4A16")(random(7, 2, 5)))


def test_rows_alone_and_threads(tmp_path) -> None:
    x = random(70, K, seed=9)
    for scheme in ("W4A16-g16", "W4A8-g16"):
        quantized = with_branch(plain(), scheme)
        y = quantized(x)
        for i in (0, 13, 69):
            assert_same_bits(quantized(x[i : i + 1]), y[i : i + 1])
        quantized.save(tmp_path / "model.onnx")
        assert_same_bits(qruntime.load(tmp_path / "model.onnx", threads=3)(x), y)
        assert quantized(x[:0]).shape == (0, N)


def test_a_layer_in_a_subgraph() -> None:
    branch = helper.make_graph([node("MatMul", ["x", "w"], "inner")], "g", [], [helper.make_tensor_value_info("inner", FLOAT, ["b", N])])
    other = helper.make_graph([node("MatMul", ["x", "v"], "outer")], "g", [], [helper.make_tensor_value_info("outer", FLOAT, ["b", N])])
    choose = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)
    model = layers(node("ReduceMax", ["x"], "top", keepdims=0), node("Less", ["top", "zero"], "c"), choose,
                   w=W, v=W * 2, zero=np.float32(1e9))  # fmt: skip
    quantized = model.quantize([RTN(), LowRank(RANK)], scheme="W3A16")
    assert [row.scheme for row in quantized.report.layers] == [f"uint3 channel affine + rank {RANK} in int8"] * 2
    assert np.linalg.norm(quantized(X) - model(X)) < np.linalg.norm(model.quantize(scheme="W3A16")(X) - model(X))


def test_float16() -> None:
    nodes = [node("MatMul", ["x", "w"], "h"), node("Add", ["h", "b"], "y")]
    weights = {"w": W.astype(np.float16), "b": B.astype(np.float16)}
    half = onnx.TensorProto.FLOAT16
    model = qruntime.load(model_bytes(nodes, [("x", half, ["b", K])], [("y", half, ["b", N])], weights, 21))
    x = X.astype(np.float16)
    for bits in (8, None):
        quantized = model.quantize([RTN(), LowRank(RANK, bits=bits)], scheme="W3A16")
        assert quantized(x).dtype == np.float16
        assert np.linalg.norm(quantized(x) - model(x)) < np.linalg.norm(model.quantize(scheme="W3A16")(x) - model(x))


def test_steps_see_what_the_layers_before_make_of_their_branches() -> None:
    """In the quantized stream the inputs of the second layer come from the first with its branch."""
    model = layers(node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "v"], "y"), w=W, v=W.T.copy(), n=K)
    whole = model.quantize([RTN(), LowRank(N, bits=None, activation_aware=True)], scheme="W2A8-static", data=DATA)
    np.testing.assert_allclose(whole(DATA[0]["x"]), model(DATA[0]["x"]), rtol=0, atol=0.05 * np.abs(model(X)).max())
    with pytest.raises(QuantizationError, match="LowRank looks at activations"):
        model.quantize([RTN(), LowRank(4, activation_aware=True)], scheme="W2A16")


def test_a_file_with_such_a_graph_by_others_is_fused_too() -> None:
    """A float layer with a branch beside it, its bias before or behind the addition."""
    a, b = random(K, 4, seed=7) / 8, random(4, N, seed=8) / 4
    for bias_first in (True, False):
        ends = ["h", "b"] if bias_first else ["h", "l"], ["s", "l"] if bias_first else ["s", "b"]
        nodes = [
            node("MatMul", ["x", "a"], "t"), node("MatMul", ["t", "d"], "l"), node("MatMul", ["x", "w"], "h"),
            node("Add", ends[0], "s"), node("Add", ends[1], "z"), node("Relu", ["z"], "y"),
        ]  # fmt: skip
        model = layers(*nodes, w=W, b=B, a=a, d=b)
        assert lowered(model) == {"Linear": 3}
        np.testing.assert_allclose(model(X), np.maximum(X @ W + X @ a @ b + B, 0), rtol=0, atol=1e-5)


def test_marks_of_factors_survive_the_file(tmp_path) -> None:
    with_branch(plain()).save(tmp_path / "model.onnx")
    graph = pipeline.canonical(load_graph((tmp_path / "model.onnx").read_bytes())[0])
    assert sorted(node.mark.role for node in graph.nodes if node.mark is not None) == ["layer", "low_rank", "low_rank"]
