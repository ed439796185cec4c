"""Recipes on layers that nobody thinks of: sizes, weights and activations at the edges, what is shared, what lies in branches and loops."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

import qruntime
from qruntime.errors import QuantizationError
from qruntime.quantization import recipes
from qruntime.quantization.methods import MoFQ
from qruntime.quantization.scheme import parse
from tests.quantization.architectures import NAMES
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

EVERY = pytest.mark.parametrize("name", NAMES)
HALF, INT64 = TensorProto.FLOAT16, TensorProto.INT64
K = 32
N = helper.make_node


def scheme_of(name: str) -> str:
    return recipes[name].scheme.replace("-g128", "-g16").replace("-g256", "-g32")


def rows(k: int = K, count: int = 96, seed: int = 5) -> np.ndarray:
    return random(count, k, seed=seed) * np.linspace(0.1, 3, k, dtype=np.float32)


def load(nodes: list[NodeProto], weights: Mapping[str, np.ndarray], outputs: Mapping[str, int], *, k: int = K, dtype: int = FLOAT) -> Any:
    """Of an input x [m, k] and outputs of so many columns."""
    floats = np.float16 if dtype == HALF else np.float32
    held = {name: data.astype(floats) if data.dtype == np.float32 else data for name, data in weights.items()}
    infos = [(name, dtype, ["m", n]) for name, n in outputs.items()]
    return qruntime.load(model_bytes(nodes, [("x", dtype, ["m", k])], infos, held), threads=1)


def linear(k: int = K, n: int = 8, weight: np.ndarray | None = None) -> qruntime.Model:
    nodes = [N("MatMul", ["x", "w"], ["h"], name="fc"), N("Add", ["h", "b"], ["y"])]
    return load(nodes, {"w": random(k, n) if weight is None else weight, "b": random(n)}, {"y": n}, k=k)


def quantize(model: qruntime.Model, name: str, x: np.ndarray | None = None, **keywords: Any) -> qruntime.Model:
    return model.quantize(name, scheme=scheme_of(name), data={"x": rows() if x is None else x}, **keywords)


def check(model: qruntime.Model, x: np.ndarray, tmp_path: Path) -> dict[str, np.ndarray]:
    """It runs on numbers, and its file is valid and the same."""
    made = model.run({"x": x})
    model.save(tmp_path / "saved.onnx")
    onnx.checker.check_model(str(tmp_path / "saved.onnx"), full_check=True)
    again = qruntime.load(tmp_path / "saved.onnx", threads=1).run({"x": x})
    for name, array in made.items():
        assert np.isfinite(array).all()
        assert_same_bits(again[name], array)
    return made


@EVERY
@pytest.mark.parametrize(("k", "n"), [(1, 1), (7, 1), (13, 5), (33, 2)])
def test_sizes_that_are_no_multiples(name: str, k: int, n: int, tmp_path: Path):
    model = linear(k, n)
    made = quantize(model, name, rows(k))
    (row,) = made.report.layers
    assert row.error <= 2 * 4.0 ** (1 - parse(scheme_of(name)).weights.format.bits)
    wanted = model(rows(k, 3))
    got = check(made, rows(k, 3), tmp_path)["y"]
    assert np.abs(got - wanted).max() <= 0.6 * np.abs(wanted).max()


@EVERY
def test_weights_at_the_edges(name: str, tmp_path: Path):
    """Zeros, one number for all, a column of zeros, the least and the greatest numbers."""
    part = random(K, 8)
    part[:, 3] = 0
    for weight in (np.zeros((K, 8), np.float32), np.full((K, 8), 0.5, np.float32), part, part * np.float32(1e-30), part * np.float32(1e30)):
        model = linear(weight=weight)
        made = quantize(model, name)
        check(made, rows(count=3), tmp_path)
        (row,) = made.report.layers
        assert row.error < 0.02


@EVERY
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_named(name: str, number: float, tmp_path: Path):
    """It stays float and forbids changes of what it reads; the layer beside it is quantized."""
    weight = random(K, 8)
    weight[3, 4] = number
    nodes = [
        N("LayerNormalization", ["x", "g", "b"], ["n"], name="ln"),
        N("MatMul", ["n", "bad"], ["z"], name="broken"),
        N("MatMul", ["n", "w"], ["y"], name="fc"),
    ]
    gain = np.where(np.arange(K) % 7 == 0, 30, 1).astype(np.float32)
    model = load(nodes, {"bad": weight, "w": random(K, 8), "g": gain, "b": random(K)}, {"y": 8, "z": 8})
    made = quantize(model, name)
    assert [row.name for row in made.report.layers] == ["fc"]
    assert [(row.name, row.reason) for row in made.report.skipped] == [("broken", "the weight holds NaN or infinity")]
    assert np.isfinite(made.run({"x": rows(count=3)})["y"]).all()
    with pytest.raises(QuantizationError, match="MatMul 'broken': the weight holds NaN or infinity"):
        quantize(model, name, strict=True)


@EVERY
def test_activations_at_the_edges(name: str, tmp_path: Path):
    dead, model = rows(), linear()
    dead[:, 5] = 0
    for x in (dead, np.ones_like(dead), dead * np.float32(1e20), dead * np.float32(1e-30), np.zeros_like(dead)):
        made = quantize(model, name, x)
        check(made, rows(count=3), tmp_path)
        assert all(row.error < 0.03 for row in made.report.layers)
        assert [row.reason for row in made.report.skipped] in ([], ["all inputs of this layer are zero in the calibration data"])


@EVERY
def test_weights_that_layers_share(name: str, tmp_path: Path):
    """With an embedding too, and behind a norm that could change what one of them reads."""
    nodes = [
        N("MatMul", ["x", "w"], ["a"], name="first"),
        N("LayerNormalization", ["a", "g", "b"], ["n"], name="ln"),
        N("MatMul", ["n", "w"], ["c"], name="second"),
        N("Gemm", ["c", "table"], ["y"], name="head", transB=1),
        N("ArgMax", ["x"], ["ids"], axis=1, keepdims=0),
        N("Gather", ["table", "ids"], ["z"], name="embedding"),
    ]
    gain = np.where(np.arange(K) % 7 == 0, 30, 1).astype(np.float32)
    weights = {"w": random(K, K, seed=1), "table": random(40, K, seed=2), "g": gain, "b": random(K, seed=3)}
    model = load(nodes, weights, {"y": 40, "z": K})
    made = quantize(model, name)
    assert [row.name for row in made.report.layers] == ["first", "second", "head"]
    assert_same_bits(check(made, rows(count=3), tmp_path)["z"], model.run({"x": rows(count=3)})["z"])
    everything = quantize(model, name, overrides={"Embedding": "W8A16"})
    assert len(everything.report.layers) == (3 if name == "OliVe" else 4)
    check(everything, rows(count=3), tmp_path)


@EVERY
@pytest.mark.parametrize("outputs", [{"h": K, "y": 24, "z": 8}, {"n": K, "y": 24, "z": 8}], ids=["layer", "norm"])
def test_what_is_an_output_stays(name: str, outputs: dict[str, int], tmp_path: Path):
    nodes = [
        N("MatMul", ["x", "w"], ["h"], name="first"),
        N("LayerNormalization", ["h", "g", "b"], ["n"], name="ln"),
        N("MatMul", ["n", "v"], ["y"], name="second"),
        N("MatMul", ["n", "u"], ["z"], name="third"),
    ]
    gain = np.where(np.arange(K) % 7 == 0, 30, 1).astype(np.float32)
    weights = {"w": random(K, K), "v": random(K, 24, seed=1), "u": random(K, 8, seed=2), "g": gain, "b": random(K, seed=3)}
    model = load(nodes, weights, outputs)
    made = quantize(model, name, exclude=["first"])
    got, wanted = check(made, rows(count=3), tmp_path), model.run({"x": rows(count=3)})
    for one in ("h", "n"):
        if one in outputs:
            assert np.abs(got[one] - wanted[one]).max() <= 1e-5 * np.abs(wanted[one]).max()
    for one in ("y", "z"):
        assert np.abs(got[one] - wanted[one]).max() <= 0.5 * np.abs(wanted[one]).max()


@EVERY
def test_models_in_float16(name: str, tmp_path: Path):
    nodes = [
        N("MatMul", ["x", "w"], ["h"], name="first"),
        N("Add", ["h", "b"], ["s"]),
        N("Relu", ["s"], ["r"]),
        N("MatMul", ["r", "v"], ["y"], name="second"),
    ]
    weights = {"w": random(K, 48), "v": random(48, 24, seed=1), "b": random(48, seed=2)}
    x = rows().astype(np.float16)
    model = load(nodes, weights, {"y": 24}, dtype=HALF)
    made = quantize(model, name, x)
    assert len(made.report.layers) == 2
    got, wanted = check(made, x[:3], tmp_path)["y"], model(x[:3])
    assert got.dtype == np.float16
    assert np.abs(got - wanted).max() <= 0.4 * np.abs(wanted).max()
    wide = quantize(
        load(nodes, {one: data.astype(np.float16).astype(np.float32) for one, data in weights.items()}, {"y": 24}), name, rows()
    )
    (half_row, *_), (wide_row, *_) = made.report.layers, wide.report.layers
    if any("is float16" in str(facts.get("transform")) for facts in half_row.facts):  # what a change would make of it is rounded
        assert half_row.error == pytest.approx(wide_row.rtn_error, rel=1e-3)
    else:
        assert half_row.error == pytest.approx(wide_row.error, rel=0.3)
    again = made.quantize("RTN", scheme="W8A16")
    assert {node.op_type for node in again.graph.nodes} == {"MatMul", "Add", "Relu"}


def body(nodes: list[NodeProto], inputs: list[Any], outputs: list[Any], weights: Mapping[str, np.ndarray]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs, outputs, [numpy_helper.from_array(data, name) for name, data in weights.items()])


def info(name: str, dtype: int = FLOAT, shape: tuple[Any, ...] = ("m", K)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def branching() -> qruntime.Model:
    """Two branches, of which feeds with a sum above 0 take the first."""
    branches = [
        body([N("MatMul", ["h", f"w{i}"], [f"t{i}"], name=f"branch{i}"), N("Relu", [f"t{i}"], [f"o{i}"])], [], [info(f"o{i}")],
             {f"w{i}": random(K, K, seed=i)})
        for i in range(2)
    ]  # fmt: skip
    nodes = [
        N("MatMul", ["x", "w"], ["h"], name="before"),
        N("ReduceSum", ["x"], ["sum"], keepdims=0),
        N("Greater", ["sum", "zero"], ["is_above"]),
        N("If", ["is_above"], ["i"], then_branch=branches[0], else_branch=branches[1], name="if"),
        N("MatMul", ["i", "v"], ["y"], name="behind"),
    ]
    return load(nodes, {"w": random(K, K, seed=7), "v": random(K, 8, seed=8), "zero": np.float32(0)}, {"y": 8})


def looping() -> qruntime.Model:
    """Three rounds; the weight of the body is one of the graph around it, which a layer before reads too."""
    nodes = [N("MatMul", ["state", "w"], ["t"], name="inside"), N("Tanh", ["t"], ["next"]), N("Identity", ["go"], ["goes"])]
    inputs = [info("round", INT64, ()), info("go", TensorProto.BOOL, ()), info("state")]
    loop = body(nodes, inputs, [info("goes", TensorProto.BOOL, ()), info("next")], {})
    nodes = [
        N("MatMul", ["x", "w"], ["h"], name="before"),
        N("Loop", ["rounds", "", "h"], ["s"], body=loop, name="loop"),
        N("MatMul", ["s", "v"], ["y"], name="behind"),
    ]
    return load(nodes, {"w": random(K, K) / 4, "v": random(K, 8, seed=8), "rounds": np.int64(3)}, {"y": 8})


@EVERY
@pytest.mark.parametrize("make", [branching, looping])
def test_layers_of_branches_and_loops(name: str, make: Any, tmp_path: Path):
    """Every round and every branch that a feed takes is seen."""
    model = make()
    data = [{"x": rows() + np.float32(0.2)}, {"x": rows(seed=6) - np.float32(0.2)}]
    made = model.quantize(name, scheme=scheme_of(name), data=data)
    assert not made.report.skipped
    assert len(made.report.layers) == (4 if make is branching else 3)
    assert all(0 <= row.error < 0.02 and not row.reason for row in made.report.layers)
    if name in ("GPTQ", "QuantEase", "AWQ", "ZeroQuant-V2"):
        assert all(row.error < 0.95 * row.rtn_error for row in made.report.layers if row.name.startswith(("branch", "inside")))
    for x in (rows(count=3), -rows(count=3)):
        wanted, got = model(x), check(made, x, tmp_path)["y"]
        assert np.abs(got - wanted).max() <= 0.9 * np.abs(wanted).max()


@EVERY
def test_a_branch_that_no_feed_takes(name: str, tmp_path: Path):
    """It is rounded to nearest, or stays float where its ranges would have to be known; the report says why."""
    made = branching().quantize(name, scheme=scheme_of(name), data={"x": np.abs(rows())})
    inside = [row for row in made.report.layers if row.name == "branch1"]
    if parse(scheme_of(name)).needs_data:
        assert not inside
        assert [row.reason for row in made.report.skipped] == ["static activations come from runs, and no feed reaches it"]
    else:
        assert (inside[0].error, inside[0].rtn_error) == (None, None)
        assert ("no feed reaches it" in inside[0].reason) == bool(recipes[name].requires)
    check(made, -rows(count=3), tmp_path)


def test_a_step_that_needs_rows_leaves_layers_that_show_none():
    left = branching().quantize(MoFQ("output"), scheme="W4A16", data={"x": np.abs(rows())})
    assert [row.name for row in left.report.skipped] == ["branch1"]
    assert "no run shows its inputs" in left.report.skipped[0].reason
