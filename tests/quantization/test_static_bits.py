"""Activations in ranges from data in 2 to 8 bits, for the tensor or for clusters of channels; and those of 8-bit floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import qruntime
from qruntime.errors import QuantizationError
from qruntime.ir.formats import FORMATS
from qruntime.ops.linear import dynamic_quantized_linear
from qruntime.ops.rounded_activations import round_to_float8
from qruntime.quantization.scheme import Inputs, Scheme, parse
from qruntime.quantization.static_ranges import parameters
from qruntime.quantization.statistics import Statistics
from qruntime.quantization.steps import InputRange
from tests.small_models import assert_same_bits, model_bytes, random

FLOAT = onnx.TensorProto.FLOAT
STATIC = ["W8A8-static", "W8A5-static", "W6A6-static", "W4A4-static", "W4A3-static-g32", "W3A8-static", "Wfp4A6-static-g16", "W8A2-static"]
K = 75


@dataclass(frozen=True)
class Clusters:
    """Channels in so many clusters by their number, as a method would choose them."""

    count: int
    requires = frozenset[str]()

    def range(self, inputs: Inputs, statistics: Statistics, weights: Sequence[np.ndarray]) -> InputRange:
        assert inputs.clusters == self.count
        low, high, members = statistics.low.copy(), statistics.high.copy(), np.arange(len(statistics.low)) % self.count
        for cluster in range(self.count):
            low[members == cluster], high[members == cluster] = low[members == cluster].min(), high[members == cluster].max()
        return InputRange(low, high)


def two_readers(opset: int = 17, k: int = K) -> qruntime.Model:
    nodes = [helper.make_node("MatMul", ["x", weight], [output]) for weight, output in (("w", "y"), ("v", "z"))]
    weights = {"w": random(k, 13), "v": random(k, 40, seed=1)}
    outputs = [("y", FLOAT, ["b", "m", 13]), ("z", FLOAT, ["b", "m", 40])]
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["b", "m", k])], outputs, weights, opset=opset))


def rows(seed: int, m: int = 7) -> np.ndarray:
    """Channels of very different ranges, none around 0 alone."""
    return random(2, m, K, seed=seed) * np.logspace(-1, 1, K, dtype=np.float32) + np.linspace(-2, 3, K, dtype=np.float32)


DATA = [{"x": rows(seed)} for seed in range(3)]


def clustered(bits: int, count: int, weights: str = "W4A16") -> Scheme:
    return Scheme(parse(weights).weights, Inputs(FORMATS[f"uint{bits}"], "cluster", count, True))


def rounded(x: np.ndarray, low: Any, high: Any, bits: int) -> np.ndarray:
    """x by the formula of static_ranges.py, and not by its code."""
    low, high, most = np.minimum(low, 0).astype(np.float64), np.maximum(high, 0).astype(np.float64), 2**bits - 1
    scale = ((high - low) / most).astype(np.float32)
    zero = np.clip(np.rint(-low / scale.astype(np.float64)), 0, most).astype(np.float32)
    return (np.clip(np.rint(x / scale) + zero, 0, most) - zero) * scale


def check_file(quantized: qruntime.Model, x: np.ndarray, path: Path) -> None:
    """The same bits from a file, which is for onnx the same model."""
    outputs = quantized(x)
    quantized.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    again = qruntime.load(path)
    for one, other in zip(again(x), outputs, strict=True):
        assert_same_bits(one, other)
    assert [node.op_type for node in again.graph.nodes] == [node.op_type for node in quantized.graph.nodes]
    for alone, together in zip(again(x[:, 2:3]), outputs, strict=True):
        assert_same_bits(alone, together[:, 2:3])
    if quantized.graph.nodes[0].version >= 19:  # the least that the reference knows QuantizeLinear of
        expected = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})
        for y, z in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(y, z, atol=2e-5 * np.abs(z).max())


@pytest.mark.parametrize("scheme", STATIC)
@pytest.mark.parametrize("opset", [10, 17, 21])
def test_one_range_for_the_tensor(scheme: str, opset: int, tmp_path: Path):
    bits, x = int(scheme.split("A")[1][0]), rows(9) * np.float32(1.3)  # beyond what the data held
    if opset == 10 and scheme[1] != "8":
        return  # files of that opset hold no fewer bits of weights
    quantized = two_readers(opset).quantize(scheme=scheme, data=DATA)
    limits = ["Clip"] if bits < 8 else []
    assert [node.op_type for node in quantized.graph.nodes] == [*limits, "QuantizeLinear", "DequantizeLinear", "MatMul", "MatMul"]
    every = np.concatenate([feed["x"] for feed in DATA])
    taken = rounded(x, every.min(), every.max(), bits)
    for node, y in zip(quantized.graph.nodes[-2:], quantized(x), strict=True):
        assert (node.mark.activations, node.mark.codes) == ("static", f"uint{bits}")
        exact = taken.astype(np.float64) @ node.input(1).stored.decoded()
        np.testing.assert_allclose(y, exact, atol=1e-5 * np.abs(exact).max())
    check_file(quantized, x, tmp_path / "q.onnx")
    kinds = [(node.op_type, node.kernel) for node in quantized.profile({"x": x}, repeat=1).nodes]
    if scheme[1] in "5678":
        assert kinds == [("QuantizeLinear", "quantize_linear"), *[("QLinearMatMul", "qlinear_matmul")] * 2]
        return
    assert kinds == [("RoundToCodes", "round_to_codes"), ("MergedDynamicQuantizedLinear", "linear_nbits_q8")]
    scale, zero = (float(value.data) for value in quantized.graph.nodes[-3].inputs[1:])
    for node, y in zip(quantized.graph.nodes[-2:], quantized(x), strict=True):
        known = {"range": "static", "bits": bits, "scale": scale, "zero_point": int(zero)}
        assert_same_bits(y, dynamic_quantized_linear(taken, node.input(1).stored, None, **known))


@pytest.mark.parametrize(("bits", "count"), [(2, 3), (4, 1), (4, 5), (6, K), (8, 4)])
@pytest.mark.parametrize("opset", [13, 21])
def test_a_range_for_each_cluster(bits: int, count: int, opset: int, tmp_path: Path):
    x = rows(9) * np.float32(1.3)
    quantized = two_readers(opset).quantize(Clusters(count), scheme=clustered(bits, count), data=DATA)
    limits = ["Max", "Min"] if bits < 8 else []
    assert [node.op_type for node in quantized.graph.nodes] == [*limits, "QuantizeLinear", "DequantizeLinear", "MatMul", "MatMul"]
    every = np.concatenate([feed["x"].reshape(-1, K) for feed in DATA])
    low, high = (np.array([end(every[:, c::count]) for c in range(count)])[np.arange(K) % count] for end in (np.min, np.max))
    taken = rounded(x, low, high, bits)
    for node, y in zip(quantized.graph.nodes[-2:], quantized(x), strict=True):
        exact = taken.astype(np.float64) @ node.input(1).stored.decoded()
        np.testing.assert_allclose(y, exact, atol=1e-5 * np.abs(exact).max())
    check_file(quantized, x, tmp_path / "q.onnx")
    kinds = [(node.op_type, node.kernel) for node in quantized.profile({"x": x}, repeat=1).nodes]
    if count == K:  # too few channels in each
        assert kinds == [("RoundToCodes", "round_to_codes"), *[("Linear", "linear_nbits")] * 2]
    elif count > 1:
        codes = [("QuantizeLinear", "quantize_linear"), ("Gather", "gather")]
        assert kinds == [*codes, *[("ClusteredLinear", "clustered_linear")] * 2]
    else:
        assert kinds == [("RoundToCodes", "round_to_codes"), ("MergedDynamicQuantizedLinear", "linear_nbits_q8")]


def test_one_cluster_is_the_tensor():
    x = rows(9)
    one = two_readers().quantize(Clusters(1), scheme=clustered(4, 1), data=DATA)(x)
    for y, z in zip(one, two_readers().quantize(scheme="W4A4-static", data=DATA)(x), strict=True):
        assert_same_bits(y, z)


def test_ranges_of_channels():
    found = InputRange(np.float32([-3, 2, -3, 0]), np.float32([1, 9, -2, 0]))
    scale, zero = parameters(found, FORMATS["uint4"])
    np.testing.assert_array_equal(scale, np.float32([4 / 15, 9 / 15, 3 / 15, 1]))
    assert zero.tolist() == [11, 0, 15, 0]
    assert [part.dtype for part in (scale, zero)] == [np.float32, np.uint8]
    assert parameters(InputRange(found.low[:0], found.high[:0]), FORMATS["uint4"])[0].shape == (0,)
    scale, _ = parameters(InputRange(np.float32(0), np.float32(1e-45)), FORMATS["uint8"])
    assert np.isfinite(1 / scale)


@pytest.mark.parametrize("scheme", ["W8A8-static", "W6A6-static", "W4A4-static", "clusters of 4", "clusters of 8"])
def test_onnx_runtime_computes_the_same(scheme: str, tmp_path: Path):
    runtime = pytest.importorskip("onnxruntime")
    x, model = rows(9), two_readers()
    if scheme.startswith("W"):
        quantized = model.quantize(scheme=scheme, data=DATA)
    else:
        quantized = model.quantize(Clusters(5), scheme=clustered(int(scheme[-1]), 5), data=DATA)
    quantized.save(tmp_path / "q.onnx")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(str(tmp_path / "q.onnx"), options, providers=["CPUExecutionProvider"])
    for y, z in zip(quantized(x), session.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(y, z, atol=1e-5 * np.abs(z).max())


def test_what_cannot_have_clusters():
    with pytest.raises(QuantizationError, match="no step of the recipe chooses the clusters of 'x'"):
        two_readers().quantize(scheme=clustered(4, 3), data=DATA)
    report = two_readers(opset=12).quantize(Clusters(3), scheme=clustered(4, 3), data=DATA).report
    assert {row.reason for row in report.skipped} == {"opset 12 cannot quantize channels apart, need 13"}


def test_readers_with_ranges_of_different_bits(tmp_path: Path):
    model = two_readers()
    mixed = model.quantize(scheme="W4A4-static", overrides={model.graph.nodes[1].name or "z": "W4A8-static"}, data=DATA)
    x = rows(9)
    assert_same_bits(mixed(x)[0], model.quantize(scheme="W4A4-static", data=DATA)(x)[0])
    assert_same_bits(mixed(x)[1], model.quantize(scheme="W4A8-static", data=DATA)(x)[1])
    check_file(mixed, x, tmp_path / "q.onnx")


def numbers_of_float8(rounded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of E4M3 that rows are, times a scale [..., 1] each."""
    scale = np.abs(rounded).max(axis=-1, keepdims=True) / np.float32(448)
    share = rounded * (1 / scale)
    quantum = np.ldexp(np.float32(1), np.maximum(np.frexp(share)[1] - 4, -9))
    return np.rint(share / quantum) * quantum, scale


@pytest.mark.parametrize("scheme", ["Wfp4Afp8-g32", "W4Afp8", "W8Afp8", "W8Afp8-g32", "Wnf4Afp8-g16", "Wfp8Afp8", "W16Afp8"])
def test_rows_of_eight_bit_floats(scheme: str, tmp_path: Path):
    """Rounded once for both readers, then multiplied as float activations are, but for the scale of a row, which weights of few bits have
    at the end."""
    x = rows(9)
    quantized, plain = (two_readers(opset=21).quantize(scheme=name) for name in (scheme, scheme.replace("Afp8", "A16")))
    outputs = quantized(x)
    codes, scale = numbers_of_float8(round_to_float8(x))
    wanted = plain(round_to_float8(x)) if scheme == "W16Afp8" else [y * scale for y in plain(codes)]
    for y, z in zip(outputs, wanted, strict=True):
        assert_same_bits(y, z)
    kinds = [node.op_type for node in quantized.profile({"x": x}, repeat=1).nodes]
    assert kinds == ["RoundToFloat8", "Linear", "Linear"]
    quantized.save(tmp_path / "q.onnx")
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    again = qruntime.load(tmp_path / "q.onnx")
    for one, other, alone in zip(again(x), outputs, again(x[1:, 3:4]), strict=True):
        assert_same_bits(one, other)
        assert_same_bits(alone, other[1:, 3:4])
    expected = ReferenceEvaluator(onnx.load(tmp_path / "q.onnx")).run(None, {"x": x})
    for y, z in zip(plain(x), expected, strict=True):
        np.testing.assert_allclose(y, z, atol=2e-5 * np.abs(z).max())


def test_eight_bit_floats_are_for_linear_layers():
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, [1, 6, 9])], [("y", FLOAT, [1, 5, 7])], {"w": random(5, 6, 3)}))
    (row,) = model.quantize(overrides={"Conv": "W8Afp8"}).report.skipped
    assert "fp8 activations are for linear layers" in row.reason


def test_small_numbers_beside_a_large_one_survive_in_eight_bit_floats():
    x = random(1, 8, K, seed=3)
    x[..., 5] = 400
    kept = np.delete(round_to_float8(x) - x, 5, axis=-1)
    eye = np.eye(K, dtype=np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    same = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["b", "m", K])], [("y", FLOAT, ["b", "m", K])], {"w": eye}))
    lost = np.delete(same.quantize(scheme="W8A8")(x) - x, 5, axis=-1)
    assert np.square(kept).mean() * 5 < np.square(lost).mean()
