"""OliVe: pairs of 4 bits, their scales, and what computes with them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import qruntime
from qruntime.errors import QuantizationError
from qruntime.ir import StoredTensor
from qruntime.ir.formats import MARKER, OVP4
from qruntime.ir.held_codes import HeldCodes
from qruntime.ir.stored import held
from qruntime.ops.outlier_pairs import pair_values
from qruntime.quantization import outlier_pairs
from qruntime.quantization.grid import nearest
from qruntime.quantization.layers import Layer
from qruntime.quantization.methods import RECIPES
from qruntime.quantization.methods.olive import OliVe
from qruntime.quantization.scheme import CHANNEL, TENSOR, Granularity, Inputs, QArgs, Scheme, parse
from qruntime.quantization.static_pairs import insert_pairs
from qruntime.quantization.statistics import Statistics
from qruntime.runtime.segments import Segment
from tests.small_models import assert_same_bits, model_bytes, random

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
PAIRS = QArgs(OVP4)
INPUTS = Inputs(OVP4, TENSOR, is_static=True)


def heavy(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)


def outlier_rows(channels: int = 64, rows: int = 256, seed: int = 0) -> np.ndarray:
    """Activations, two of whose channels are far larger than the others."""
    x = np.random.default_rng(seed).normal(size=(rows, channels)).astype(np.float32)
    x[:, [5, channels // 2]] *= 25
    return x


def clipped_error(x: np.ndarray, bits: int = 4) -> float:
    """What the best symmetric clip of plain integers loses."""
    most, top = (1 << bits - 1) - 1, np.abs(x).max()
    scales = [np.float32(top * share / most) for share in np.linspace(0.02, 1, 99)]
    return min(float(((np.clip(np.rint(x / s), -most, most) * s - x) ** 2).sum(dtype=np.float64)) for s in scales)


def model(k: int = 75, opset: int = 19) -> qruntime.Model:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Gemm", ["h", "v", "b"], ["y"], name="second", transB=1, alpha=0.5),
    ]
    weights = {"w": heavy(k, 13), "v": heavy(9, 13, seed=1), "b": random(9, seed=2)}
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", k])], [("y", FLOAT, ["m", 9])], weights, opset=opset))


# ------------------------------------------------------------------------------------------- format


def test_every_byte_can_be_decoded():
    """Two integers; or a marker and an outlier, whichever comes first."""
    assert OVP4.pairs is not None
    integers = {code: code - 16 * (code > 7) for code in range(16) if code != MARKER}
    outliers = {code: OVP4.pairs[16 + code] for code in range(16)}
    assert sorted(set(map(abs, outliers.values()))) == [0, 12, 16, 24, 32, 48, 64, 96]
    for first, second in itertools.product(range(16), repeat=2):
        stored = StoredTensor(OVP4, HeldCodes(held(np.array([[first, second]], np.uint8), OVP4)), np.ones((1, 1), np.float32), block_axis=1)
        assert stored.codes.data.tolist() == [first | second << 4]  # type: ignore[union-attr]
        if second == MARKER:
            expected = [outliers[first], 0]
        elif first == MARKER:
            expected = [0, outliers[second]]
        else:
            expected = [integers[first], integers[second]]
        assert stored.decoded().tolist() == [expected]


@pytest.mark.parametrize("k", [1, 2, 33, 64])
def test_codes_stand_for_what_the_definition_says(k: int):
    w = heavy(7, k, seed=k) * 3
    made = OliVe().solve(w, PAIRS).rounded.stored
    assert made.scale is not None
    values = pair_values(w, np.asarray(made.scale))
    if k % 2:
        values[:, -1] = np.clip(values[:, -1], -7, 7)
    np.testing.assert_array_equal(made.decoded(), values.astype(np.float32) * made.scale)
    np.testing.assert_array_equal(made.in_int8.decoded(), made.decoded())
    np.testing.assert_array_equal(made.transposed().decoded(), made.decoded().T)
    np.testing.assert_array_equal(made.rows(np.array([3, 0])).decoded(), made.decoded()[[3, 0]])
    first, second = values[:, : k // 2 * 2 : 2], values[:, 1::2]
    assert not ((np.abs(first) > 7) & (second != 0)).any()
    assert not ((np.abs(second) > 7) & (first != 0)).any()
    assert made.codes.nbytes == -(-7 * k // 2)


def test_no_integer_takes_the_code_of_the_marker():
    """−8, which two's complement of 4 bits has, is clipped."""
    w = np.array([[-8.4, -7.6, -9.4, 3.0]], np.float32)
    codes = outlier_pairs.codes(w, np.ones((1, 1), np.float32))
    assert MARKER not in codes
    assert codes.tolist() == [[9, 9, 9, 3]]


def test_pairs_do_not_run_from_row_to_row():
    w = np.array([[1, 2, 50], [60, 1, 2]], np.float32)
    codes = outlier_pairs.codes(w, np.ones((1, 1), np.float32))
    stored = StoredTensor(OVP4, HeldCodes(held(codes, OVP4)), np.ones((1, 1), np.float32), block_axis=1)
    assert stored.decoded().tolist() == [[1, 2, 7], [64, 0, 2]]


# ------------------------------------------------------------------------------------------- scales


@pytest.mark.parametrize("granularity", [Granularity(), Granularity(TENSOR), Granularity("group", 16)], ids=str)
def test_the_scale_loses_least(granularity: Granularity):
    w, step = heavy(5, 40, seed=3), OliVe()
    made = step.solve(w, QArgs(OVP4, granularity)).rounded.stored
    assert len(step.ratios) == 42
    assert step.ratios[-1] == pytest.approx(0.1 * 1.08**41)
    rows = w.reshape(1, -1) if granularity.kind == TENSOR else w
    parts = [slice(0, 16), slice(16, 32), slice(32, 40)] if granularity.size else [slice(None)]
    scales = np.asarray(made.scale)
    for row, i in itertools.product(range(len(rows)), range(len(parts))):
        part = rows[row, parts[i]].astype(np.float64)
        three_sigma = max(abs(part.mean() + 3 * part.std()), abs(part.mean() - 3 * part.std()))
        tried = [np.float32(r * three_sigma / 7) for r in step.ratios]
        lost = [((pair_values(part.astype(np.float32), s) * np.float64(s) - part) ** 2).sum() for s in tried]
        at = int(np.argmin(np.abs(np.array(tried) - scales[row, i])))
        assert tried[at] == pytest.approx(scales[row, i], rel=1e-6)
        assert lost[at] <= min(lost) * (1 + 1e-5)


def test_without_a_search_it_is_three_sigma():
    w = heavy(3, 50)
    mean, sigma = w.mean(axis=1, dtype=np.float64), w.std(axis=1, dtype=np.float64)
    found = outlier_pairs.scales(w, Granularity(CHANNEL))[:, 0]
    np.testing.assert_allclose(found, (np.abs(mean) + 3 * sigma) / 7, rtol=1e-6)
    assert OliVe().solve(w, PAIRS).rounded.snr_db >= nearest(w, PAIRS).snr_db


def test_without_outliers_it_is_as_good_as_plain_integers():
    x = np.random.default_rng(1).normal(size=(1, 4096)).astype(np.float32)
    x = x[:, np.abs(x[0]) < 2.9]
    made = OliVe().solve(x, PAIRS)
    assert ((made.rounded.stored.decoded() - x) ** 2).sum() <= 1.1 * clipped_error(x)


def test_with_outliers_it_is_far_better():
    x = outlier_rows()
    found = OliVe().range(INPUTS, Statistics(len(x), x.min(axis=0), x.max(axis=0), sample=x))
    scale = np.float32(found.high / 7)
    assert ((pair_values(x, scale) * scale - x) ** 2).sum() <= 0.4 * clipped_error(x)
    assert 0 < found.facts["outlier pairs of inputs"] < 0.1
    assert found.low == -found.high


def test_a_scale_is_the_one_at_which_outputs_lose_least():
    """Of activations for the weights that read them, of weights for the rows that they meet; channels are far apart here."""
    x, w = outlier_rows(64, 256), heavy(24, 64, seed=5)
    w[:, [5, 32]] /= 50
    seen = Statistics(len(x), x.min(axis=0), x.max(axis=0), sample=x)
    step = OliVe()
    blind, found = (float(step.range(INPUTS, seen, weights).high / 7) for weights in ((), [w]))
    lost = [np.sum((((pair_values(x, np.float32(s)) * np.float32(s)) - x) @ w.T) ** 2) for s in (blind, found)]
    assert found < 0.6 * blind
    assert lost[1] < 0.6 * lost[0]
    made = [step.solve(w, PAIRS, known).rounded.stored.decoded() for known in (None, seen)]
    assert np.sum((x @ (made[1] - w).T) ** 2) < 0.9 * np.sum((x @ (made[0] - w).T) ** 2)
    same = Statistics(1, x[0], x[0], sample=np.ones((1, 64), np.float32))
    np.testing.assert_array_equal(step.solve(w, PAIRS, same).rounded.stored.decoded(), made[0])


def test_a_token_that_the_sample_misses_counts_once():
    """A sample of every eighth row, and the greatest rows beside it, decide as all rows do."""
    x = outlier_rows(rows=1024, seed=3)
    x[17] *= 40
    extremes = len(x), x.min(axis=0), x.max(axis=0)
    peaks = np.abs(x).max(axis=1)
    known = Statistics(*extremes, sample=x[::8], greatest=x[np.argsort(-peaks)[:16]])
    every, found, blind = (
        OliVe().range(INPUTS, one).high for one in (Statistics(*extremes, sample=x), known, Statistics(*extremes, sample=x[::8]))
    )
    assert found == pytest.approx(every, rel=0.1)
    assert blind < 0.5 * every


@pytest.mark.parametrize("value", [0.0, 1e-42, 3e38])
def test_extreme_weights(value: float):
    w = np.zeros((2, 6), np.float32)
    w[0, 1] = value
    made = OliVe().solve(w, PAIRS).rounded.stored
    assert np.isfinite(made.decoded()).all()
    assert (np.asarray(made.scale) > 0).all()
    assert made.decoded()[1].tolist() == [0] * 6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(value: float):
    w = heavy(3, 8)
    w[1, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        OliVe().solve(w, PAIRS)


def test_what_makes_no_sense():
    with pytest.raises(ValueError, match="Wovp4, and the scheme asks for uint4"):
        OliVe().solve(heavy(2, 4), parse("W4A16").weights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Aovp4"):
        OliVe().range(Inputs(), Statistics(1, np.zeros(2), np.ones(2), sample=np.zeros((1, 2), np.float32)))
    for low, high, step in ((0, 1, 0.1), (2, 1, 0.1), (1, 2, 0)):
        with pytest.raises(ValueError, match="0 < low"):
            OliVe(low, high, step)
    for text in ("Wovp4A16-asym", "Wovp4Aovp4-token", "Wovp4A16-g17", "Wnf4Aovp4"):
        with pytest.raises(QuantizationError):
            parse(text)
    with pytest.raises(QuantizationError, match="a static scale for the tensor"):
        Inputs(OVP4)
    assert parse("Wovp4Aovp4") == Scheme(PAIRS, INPUTS)
    assert parse("W8Aovp4-static").inputs == INPUTS


# ------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("scheme", ["Wovp4A16", "Wovp4A16-g16", "Wovp4A16-tensor", "Wovp4A8", "Wovp4A8-static", "Wovp4Aovp4", "W8Aovp4"])
@pytest.mark.parametrize("k", [64, 75])
def test_files_say_the_same(scheme: str, k: int, tmp_path: Path):
    """The checker takes them, standard operators compute the same, and they come back to the bit."""
    x = outlier_rows(k, 6)
    method = "OliVe" if scheme.startswith("Wovp4") and not scheme.endswith("A8-static") else None
    quantized = model(k).quantize(method, scheme=scheme, data=[{"x": outlier_rows(k, 64, seed=1)}])
    y, path = quantized(x), tmp_path / "q.onnx"
    quantized.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    again = qruntime.load(path)
    assert_same_bits(again(x), y)
    for before, after in zip(quantized.graph.nodes, again.graph.nodes, strict=True):
        assert before.op_type == after.op_type
        weight = after.input(1)
        if weight is not None and weight.stored is not None:
            np.testing.assert_array_equal(weight.stored.decoded(), before.input(1).stored.decoded())  # type: ignore[union-attr]
    if scheme != "Wovp4A8":  # whose activations other runtimes leave float
        expected = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})[0]
        np.testing.assert_allclose(y, expected, atol=2e-5 * np.abs(expected).max())


def test_four_bits_on_disk(tmp_path: Path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    loaded = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", 1024])], [("y", FLOAT, ["m", 512])], {"w": heavy(1024, 512)}))
    quantized = loaded.quantize("OliVe", scheme="Wovp4A16")
    path = tmp_path / "q.onnx"
    quantized.save(path)
    bits = 8 * path.stat().st_size / (1024 * 512)
    assert 4 + 32 / 1024 <= bits <= 4.08 + 8 * 4000 / (1024 * 512)  # the body of the function, once for a model
    (row,) = quantized.report.layers
    assert row.bits_per_weight == pytest.approx(4 + 32 / 1024)
    assert 0 < dict(row.facts[0])["outlier_pairs"] < 0.1


def test_sums_of_activations_in_pairs_are_exact(rung: str):
    """Whole numbers of both sides, then the scales: every rung, batch and number of threads to the bit."""
    x, loaded = outlier_rows(64, 33), model(64)
    quantized = loaded.quantize("OliVe", data=[{"x": outlier_rows(64, 64, seed=1)}], exclude=["second"])
    assert [node.op_type for node in quantized.graph.nodes] == ["OutlierVictimPairs", "MatMul", "Gemm"]
    pairs, product = quantized.graph.nodes[:2]
    scale, weight = pairs.input(1).data, product.input(1).stored  # type: ignore[union-attr]
    h = _hidden(quantized, x)
    total = pair_values(x, scale).astype(np.int64) @ weight.transposed().values().T.astype(np.int64)
    np.testing.assert_array_equal(h, total.astype(np.float32) * (scale * np.asarray(weight.scale)))
    whole = quantized(x)
    for i in (0, 7, 32):
        assert_same_bits(quantized(x[i : i + 1])[0], whole[i])


def _hidden(quantized: qruntime.Model, x: np.ndarray) -> Any:
    """What the first layer makes."""
    graph = quantized.graph
    value = graph.nodes[1].outputs[0]
    return Segment(graph, graph.inputs, [value], num_threads=3, lower=True).run({graph.inputs[0]: x})[value]


def test_layers_that_read_the_same_tensor_share_its_pairs():
    nodes = [helper.make_node("MatMul", ["x", name], [f"y_{name}"]) for name in "abc"]
    outputs = [(f"y_{name}", FLOAT, ["m", 8]) for name in "abc"]
    loaded = qruntime.load(
        model_bytes(nodes, [("x", FLOAT, ["m", 32])], outputs, {name: heavy(32, 8, seed=i) for i, name in enumerate("abc")})
    )
    quantized = loaded.quantize("OliVe", data=[{"x": outlier_rows(32)}])
    assert [node.op_type for node in quantized.graph.nodes].count("OutlierVictimPairs") == 1


def test_a_recurrent_layer_and_an_embedding_in_pairs(tmp_path: Path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embedding"),
        helper.make_node("LSTM", ["e", "W", "R"], ["", "h", ""], hidden_size=5, name="lstm"),
    ]
    weights = {"table": heavy(11, 7), "W": heavy(1, 20, 7, seed=1), "R": heavy(1, 20, 5, seed=2)}
    ids = ("ids", onnx.TensorProto.INT64, ["t", "b"])
    loaded = qruntime.load(model_bytes(nodes, [ids], [("h", FLOAT, [1, "b", 5])], weights))
    quantized = loaded.quantize("OliVe", scheme="Wovp4A16", overrides={"embedding": "Wovp4A16"})
    assert {row.scheme for row in quantized.report.layers} == {"ovp4 channel"}
    path, feed = tmp_path / "q.onnx", np.array([[1, 10], [4, 0], [2, 2]])
    quantized.save(path)
    assert_same_bits(qruntime.load(path)(feed), quantized(feed))
    expected = ReferenceEvaluator(onnx.load(path)).run(None, {"ids": feed})[0]
    np.testing.assert_allclose(quantized(feed), expected, atol=1e-5)


def test_what_has_no_pairs_says_why():
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    loaded = qruntime.load(model_bytes(nodes, [("x", FLOAT, [1, 4, "n"])], [("y", FLOAT, [1, 6, "m"])], {"w": heavy(6, 4, 3)}))
    report = loaded.quantize("OliVe", scheme="Wovp4A16", overrides={"Conv": "Wovp4A16"}).report
    assert "pairs run along one axis" in report.skipped[0].reason
    old = model(opset=11).quantize("OliVe", data=[{"x": outlier_rows(75)}]).report
    assert all("need 13" in row.reason for row in old.skipped)
    with pytest.raises(QuantizationError, match="give data="):
        model().quantize("OliVe")


def test_narrow_floats_are_widened_for_pairs():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    inputs, outputs = [("x", FLOAT16, ["m", 10])], [("y", FLOAT16, ["m", 4])]
    loaded = qruntime.load(model_bytes(nodes, inputs, outputs, {"w": heavy(10, 4).astype(np.float16)}))
    quantized = loaded.quantize("OliVe", data=[{"x": outlier_rows(10).astype(np.float16)}])
    y = quantized(outlier_rows(10, 3).astype(np.float16))
    assert y.dtype == np.float16
    assert np.isfinite(y).all()
    assert [node.op_type for node in quantized.graph.nodes] == ["Cast", "OutlierVictimPairs", "Cast", "MatMul"]


def test_what_is_inserted_rounds_what_the_layer_reads():
    loaded = model(64)
    node = loaded.graph.nodes[0]
    x = outlier_rows(64, 5)
    range_of = outlier_pairs.input_range(Statistics(len(x), x.min(axis=0), x.max(axis=0), sample=x))
    node.set_input(0, insert_pairs(loaded.graph, node.input(0), [Layer(node)], range_of))  # type: ignore[arg-type]
    rounded = pair_values(x, np.float32(range_of.high / 7)) * np.float32(range_of.high / 7)
    assert_same_bits(loaded(x), model(64)(rounded))


def test_the_recipe():
    assert str(RECIPES["OliVe"]) == "OliVe: Wovp4Aovp4\n  1. OliVe(low=0.1, high=2.5, step=0.08)"
