"""Caches of keys and values as codes: how they are found, what they hold, and what files say of it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import qruntime
from qruntime.errors import QRuntimeError, QuantizationError
from qruntime.ir import clone
from qruntime.ir.formats import FORMATS
from qruntime.model import Model, _rebuild
from qruntime.model_file import serialized
from qruntime.ops.cache_codes import (
    dequantize_cache,
    dequantize_cache_clusters,
    fit_cache,
    fit_cache_clusters,
    quantize_cache,
    quantize_cache_clusters,
)
from qruntime.quantization.cache import CacheResult, Clusters, quantize_caches
from qruntime.quantization.cache_search import find_caches
from tests.quantization.decoders import HEADS, LAYERS, SHAPES, SIZE, WIDTH, Decoder, empty
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random


def with_codes(model: Model, bits: int = 4, clusters: Clusters | None = None) -> tuple[Model, CacheResult]:
    graph = clone(model.graph)
    result = quantize_caches(graph, FORMATS[f"uint{bits}"], clusters)
    graph.check()
    return Model(graph, model.info), result


def in_pieces(model: Model, x: np.ndarray, sizes: list[int]) -> dict[str, np.ndarray]:
    """Outputs of runs over so many tokens each, y of all of them joined."""
    caches, ys, start = empty(model, len(x)), [], 0
    for size in sizes:
        made = model.run({"x": x[:, start : start + size], **caches})
        caches = dict(zip(caches, (made[name] for name in list(made)[1:]), strict=True))
        ys.append(made["y"])
        start += size
    return {**made, "y": np.concatenate(ys, axis=1)}


def expected(x: np.ndarray, bits: int, inside: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes a byte each, scales and lows of one row, an element at a time."""
    codes, scales, lows = np.zeros(len(x), np.uint8), [], []
    for channels in inside:
        low, high, top = min(x[channels]), max(x[channels]), np.float32(2**bits - 1)
        scale = np.float32(np.float32(high - low) / top)
        for c in channels:
            codes[c] = 0 if scale == 0 else min(max(round(float(np.float32(np.float32(x[c] - low) / scale))), 0), int(top))
        scales.append(scale)
        lows.append(low)
    return codes, np.array(scales), np.array(lows)


# ------------------------------------------------------------------------- codes


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("channels", [8, 24, 64])
def test_codes_are_those_of_the_definition(bits: int, channels: int):
    x = random(3, 2, channels) * np.float32(7)
    x[0, 0], x[0, 1, 1:] = 2.5, x[0, 1, 0]
    codes, ranges = quantize_cache(x, bits=bits)
    assert (codes.dtype, codes.shape, ranges.shape) == (np.uint8, (3, 2, channels * bits // 8), (3, 2, 2))
    places = 8 // bits
    for row in np.ndindex(3, 2):
        own, scales, lows = expected(x[row], bits, [list(range(channels))])
        assert np.array_equal(ranges[row], [scales[0], lows[0]])
        for channel in range(channels):
            byte, place = channel % (channels // places), channel // (channels // places)
            assert codes[row][byte] >> (place * bits) & (2**bits - 1) == own[channel]
    back = dequantize_cache(codes, ranges, bits=bits)
    # Half a step, and what three roundings to float32 may add.
    assert np.all(np.abs(back - x) <= ranges[..., :1] / 2 + 4 * np.finfo(np.float32).eps * np.abs(x).max())
    assert np.array_equal(back[0], x[0])


def test_clusters_have_ranges_of_their_own():
    labels = np.array([[0, 2, 1, 0, 2, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]], np.uint8).reshape(2, 1, 8)
    x = random(3, 2, 5, 8) * np.array([1, 100, 1e-3, 1, 100, 1e-3, 1, 1], np.float32)
    codes, ranges = quantize_cache_clusters(x, labels, bits=4, clusters=3)
    fitted = fit_cache_clusters(x, labels, bits=4, clusters=3)
    for row in np.ndindex(3, 2, 5):
        inside = [np.flatnonzero(labels[row[1], 0] == c).tolist() for c in range(3)]
        own, scales, lows = expected(x[row], 4, [channels for channels in inside if channels])
        assert np.array_equal(codes[row], own[:4] | own[4:] << 4)
        used = [c for c in range(3) if inside[c]]
        assert np.array_equal(ranges[row][used], scales)
        assert np.array_equal(ranges[row][[3 + c for c in used]], lows)
        for c in used:
            if len(inside[c]) % 2 == 0:  # whole bytes
                assert np.array_equal(fitted[1][row][[c, 3 + c]], fit_cache(x[row][inside[c]], bits=4)[1])
    assert np.isfinite(ranges).all()
    plain = dequantize_cache(*quantize_cache(x, bits=4), bits=4)
    clustered = dequantize_cache_clusters(codes, ranges, labels, bits=4, clusters=3)
    assert np.abs(clustered - x)[:, 0, :, 2].max() < 1e-2 * np.abs(plain - x)[:, 0, :, 2].max()


def test_one_cluster_is_none():
    x = random(2, 3, 4, 16)
    made = quantize_cache_clusters(x, np.zeros(16, np.uint8), bits=4, clusters=1)
    assert all(map(np.array_equal, made, quantize_cache(x, bits=4)))
    assert all(map(np.array_equal, fit_cache_clusters(x, np.zeros(16, np.uint8), bits=4, clusters=1), fit_cache(x, bits=4)))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fitted_ranges_are_those_of_least_squared_error(bits: int):
    x = random(5, 64) * np.exp2(random(5, 1, seed=1) * 8) + 3
    plain, (codes, ranges) = quantize_cache(x, bits=bits), fit_cache(x, bits=bits)
    assert np.array_equal(codes, plain[0])
    for row, (scale, low), fitted in zip(x, plain[1], ranges, strict=True):
        best = np.polyfit(np.rint((row - low) / scale).astype(np.float64), row.astype(np.float64), 1)
        # Ranges are float32.
        assert (np.abs(best - fitted) <= scale / 65536 + np.spacing(np.abs(fitted))).all()

    def errors(made: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return np.square(dequantize_cache(*made, bits=bits).astype(np.float64) - x).sum(-1)

    assert (errors((codes, ranges)) < errors(plain)).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_comes_from_codes_is_stored_as_it_is(bits: int):
    x = random(50, 64, seed=3)
    x[0] = 0.75
    codes, ranges = fit_cache(x, bits=bits)
    once = dequantize_cache(codes, ranges, bits=bits)
    assert np.array_equal(once[0], x[0])
    again = fit_cache(once, bits=bits)
    assert np.array_equal(again[0], codes)
    assert np.allclose(dequantize_cache(*again, bits=bits), once, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38])
def test_rows_without_a_finite_range_are_nan(odd: float):
    x = random(4, 8)
    x[1, 3] = odd
    if odd == 3e38:
        x[1, 4] = -odd
    for made in (quantize_cache(x, bits=4), fit_cache(x, bits=4)):
        back = dequantize_cache(*made, bits=4)
        assert np.isnan(back[1]).all()
        assert np.isfinite(back[[0, 2, 3]]).all()


@pytest.mark.parametrize(("bits", "clusters"), [(3, 1), (True, 1), (4.0, 1), (4, 0), (4, 17), (4, "2")])
def test_attributes_that_mean_nothing(bits: object, clusters: object):
    with pytest.raises(ValueError, match="must be"):
        quantize_cache_clusters(random(2, 8), np.zeros(8, np.uint8), bits=bits, clusters=clusters)


def test_codes_and_labels_that_do_not_fit():
    codes, ranges = quantize_cache(random(2, 8), bits=4)
    with pytest.raises(ValueError, match="whole bytes"):
        quantize_cache(random(2, 7), bits=4)
    with pytest.raises(ValueError, match="float32"):
        quantize_cache(random(2, 8).astype(np.float64), bits=4)
    with pytest.raises(ValueError, match="ranges"):
        dequantize_cache(codes, ranges[:1], bits=4)
    with pytest.raises(ValueError, match="uint8"):
        dequantize_cache(codes.astype(np.int8), ranges, bits=4)
    for labels in (np.full(8, 2, np.uint8), np.zeros(7, np.uint8), np.zeros((3, 8), np.uint8), np.zeros(8, np.int8)):
        with pytest.raises(ValueError, match="labels"):
            quantize_cache_clusters(random(2, 8), labels, bits=4, clusters=2)


# ------------------------------------------------------------------------- models


@pytest.mark.parametrize("kind", SHAPES)
def test_a_prompt_in_one_run_and_in_many(kind: str):
    model = qruntime.load(Decoder(kind).bytes())
    quantized, (rows, skipped) = with_codes(model)
    assert not skipped
    assert sum(row.parts for row in rows) == 2 * LAYERS
    heads = 1 if kind == "merged heads" else HEADS
    assert sum(row.bytes_before for row in rows) == 2 * LAYERS * heads * SIZE * 4
    assert sum(row.bytes_after for row in rows) == 2 * LAYERS * heads * (SIZE // 2 + 2 * 4)
    x = random(2, 6, WIDTH)
    whole = quantized.run({"x": x, **empty(quantized, 2)})
    assert {name: value.dtype for name, value in whole.items() if name != "y"} == {
        name: np.float32 if name.endswith("_ranges") else np.uint8 for name in list(whole)[1:]
    }
    pieces = in_pieces(quantized, x, [2, 1, 1, 2])
    alone = quantized.run({"x": x[1:], **empty(quantized, 1)})
    assert np.array_equal(alone["y"][0], whole["y"][1])
    for name in whole:
        assert_same_bits(pieces[name], whole[name])
    floats = model.run({"x": x, **empty(model, 2)})["y"]
    assert 0 < np.abs(whole["y"] - floats).max() < 0.5


@pytest.mark.parametrize("kind", SHAPES)
def test_attention_reads_what_the_codes_stand_for(kind: str):
    """The float model on decoded caches and on the last token gives what the model of codes gives, but for that token's codes."""
    model = qruntime.load(Decoder(kind).bytes())
    quantized, _ = with_codes(model, 8)
    x = random(2, 5, WIDTH, seed=3)
    made = quantized.run({"x": x[:, :4], **empty(quantized, 2)})
    caches = {i.name: made[o.name] for i, o in zip(quantized.inputs[1:], quantized.outputs[1:], strict=True)}
    names = [i.name for i in model.inputs[1:]]
    decoded = {name: dequantize_cache(caches[name], caches[f"{name}_ranges"], bits=8) for name in names}
    y = quantized.run({"x": x[:, 4:], **caches})["y"]
    near = model.run({"x": x[:, 4:], **decoded})["y"]
    assert np.abs(y - near).max() < 0.05


@pytest.mark.parametrize("kind", SHAPES)
def test_files_say_the_same(kind: str, tmp_path: Path):
    quantized, (rows, _) = with_codes(qruntime.load(Decoder(kind).bytes()))
    path = tmp_path / "codes.onnx"
    quantized.save(path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    again = qruntime.load(path)
    assert again.report.caches == rows
    assert [str(i) for i in again.inputs] == [str(i) for i in quantized.inputs]
    x = random(2, 4, WIDTH)
    feed = {"x": x, **empty(again, 2)}
    made = quantized.run(feed)
    for name, value in again.run(feed).items():
        assert_same_bits(value, made[name])
    if kind == "contrib attention":
        return  # onnx.reference does not know it
    reference = dict(zip(made, ReferenceEvaluator(proto).run(None, feed), strict=True))
    assert np.abs(reference["y"] - made["y"]).max() < 1e-5
    for name, value in made.items():
        if value.dtype == np.uint8:
            assert np.mean(value != reference[name]) < 0.02  # sums of products may round otherwise


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_files_of_all_opsets_and_widths(opset: int, bits: int):
    labels = {"past": np.arange(SIZE) % 3}
    nodes = [
        NEW,
        helper.make_node("Concat", ["past", "new"], ["grown"], axis=2),
        helper.make_node("MatMul", ["q", "grown"], ["y"]),
    ]
    infos = [("q", FLOAT, ["b", HEADS, "s", "n"]), ("past", FLOAT, ["b", HEADS, "t", SIZE]), ("x", FLOAT, ["b", HEADS, "s", SIZE])]
    outputs = [("y", FLOAT, ["b", HEADS, "s", SIZE]), ("grown", FLOAT, ["b", HEADS, "n", SIZE])]
    model = qruntime.load(model_bytes(nodes, infos, outputs, opset=opset))
    for clusters, is_fitted in itertools.product((None, labels), (True, False)):
        quantized, result = with_codes(model, bits, clusters)
        assert not result.skipped
        for node in quantized._declared.nodes:
            if not is_fitted and node.op_type.startswith("FitCache"):  # as earlier versions saved it
                node.op_type = node.op_type.replace("Fit", "Quantize")
        quantized = _rebuild(serialized(quantized._declared, quantized.info), None, 1, quantized.report)
        proto = onnx.load_from_string(serialized(quantized._declared, quantized.info))
        onnx.checker.check_model(proto, full_check=True)
        codes, ranges = np.zeros((2, HEADS, 0, SIZE * bits // 8), np.uint8), np.zeros((2, HEADS, 0, 6 if clusters else 2), np.float32)
        new = random(2, HEADS, 3, SIZE)
        new[0, 0, 0] = 1.5
        feed = {"q": random(2, HEADS, 3, 3), "past": codes, "past_ranges": ranges, "x": new}
        made = quantized.run(feed)
        with np.errstate(invalid="ignore"):
            reference = dict(zip(made, ReferenceEvaluator(proto).run(None, feed), strict=True))
        assert np.array_equal(made["grown"], reference["grown"])
        assert np.array_equal(made["grown_ranges"], reference["grown_ranges"])
        assert np.allclose(made["y"], reference["y"], rtol=1e-6, atol=1e-6)


def test_half_precision_keeps_its_type():
    quantized, (rows, skipped) = with_codes(qruntime.load(Decoder("stacked", dtype=TensorProto.FLOAT16).bytes()))
    assert not skipped
    assert rows[0].bytes_before == 2 * LAYERS * HEADS * SIZE * 2
    x = random(2, 4, WIDTH).astype(np.float16)
    made = quantized.run({"x": x, **empty(quantized, 2)})
    assert made["y"].dtype == np.float16
    for name, value in in_pieces(quantized, x, [1, 3]).items():
        assert_same_bits(value, made[name])


def test_clusters_of_a_model():
    model = qruntime.load(Decoder("stacked").bytes())
    assert [cache.name for cache in find_caches(clone(model.graph))[0].caches] == [f"past[{i}, {j}]" for i in range(LAYERS) for j in (0, 1)]
    labels = {"past[0, 0]": np.arange(HEADS * SIZE).reshape(HEADS, SIZE) % 3, "past[1, 1]": np.arange(SIZE) // 4}
    quantized, (rows, _) = with_codes(model, 4, labels)
    assert (rows[0].clusters, rows[0].bytes_after) == (3, 2 * LAYERS * HEADS * (SIZE // 2 + 6 * 4))
    x = random(2, 5, WIDTH)
    whole = quantized.run({"x": x, **empty(quantized, 2)})
    for name, value in in_pieces(quantized, x, [3, 2]).items():
        assert_same_bits(value, whole[name])
    floats, plain = (one.run({"x": x, **empty(one, 2)})["y"] for one in (model, with_codes(model)[0]))
    assert not np.array_equal(plain, whole["y"])
    assert np.abs(whole["y"] - floats).max() < 0.5


@pytest.mark.parametrize(
    ("clusters", "said"),
    [
        ({"past[9, 0]": np.zeros(SIZE, int)}, "no cache 'past\\[9, 0\\]'"),
        ({"past[0, 0]": np.zeros(SIZE)}, "integers"),
        ({"past[0, 0]": np.zeros((3, SIZE), int)}, r"\[2, 8\]"),
        ({"past[0, 0]": np.zeros(SIZE + 1, int)}, r"\[2, 8\]"),
        ({"past[0, 0]": np.full(SIZE, 16)}, "0 to 15"),
        ({"past[0, 0]": np.full(SIZE, -1)}, "0 to 15"),
    ],
)
def test_clusters_that_do_not_fit(clusters: Clusters, said: str):
    with pytest.raises(QuantizationError, match=said):
        with_codes(qruntime.load(Decoder("stacked").bytes()), 4, clusters)


def test_formats_of_caches():
    with pytest.raises(QuantizationError, match="uint2, uint4 or uint8"):
        quantize_caches(clone(qruntime.load(Decoder("stacked").bytes()).graph), FORMATS["int4"])


def test_summary_says_so():
    quantized, (rows, _) = with_codes(qruntime.load(Decoder("separate").bytes()))
    text = quantized.summary()
    assert quantized.report.caches == rows
    assert "past.1.value" in text
    assert "4 caches hold codes: 256 → 96 bytes a token (2.67× smaller)" in text


def test_what_is_codes_already_is_left():
    quantized, (rows, _) = with_codes(qruntime.load(Decoder("stacked").bytes()))
    again, (rows_again, skipped) = with_codes(quantized, 8)
    assert rows_again == rows
    assert len(skipped) == 1
    assert [str(i) for i in again.inputs] == [str(i) for i in quantized.inputs]


# ------------------------------------------------------------------------- what stays float


def _grown(nodes: list[onnx.NodeProto], past: list[object], dtype: int = FLOAT, opset: int = 17, given: str = "grown") -> CacheResult:
    """Of a graph that reads past, x [1, 2, s, 8], of which `new` is made, and q [1, 2, s, n]."""
    infos = [("past", dtype, past), ("x", dtype, [1, 2, "s", 8]), ("q", dtype, [1, 2, "s", "n"])]
    nodes = [NEW, *nodes]
    outputs = [("y", dtype, None), (given, dtype, None)]
    model = qruntime.load(model_bytes(nodes, infos, outputs, opset=opset))
    before = str(model.graph.nodes)
    quantized, result = with_codes(model)
    assert str(quantized.graph.nodes) == before
    assert not result.caches
    return result


NEW = helper.make_node("Neg", ["x"], ["new"])
CONCAT = helper.make_node("Concat", ["past", "new"], ["grown"], axis=2)
PRODUCT = helper.make_node("MatMul", ["q", "grown"], ["y"])
PAST: list[object] = [1, 2, "t", 8]


@pytest.mark.parametrize(
    ("nodes", "past", "said"),
    [
        ([helper.make_node("Concat", ["past", "new"], ["grown"], axis=3), PRODUCT], [1, 2, "s", 8], "along its last axis"),
        ([CONCAT, helper.make_node("Relu", ["grown"], ["y"])], PAST, "Relu .* which is no attention"),
        (
            [CONCAT, helper.make_node("Shape", ["grown"], ["n"]), helper.make_node("Cast", ["n"], ["y"], to=FLOAT)],
            PAST,
            "no attention reads",
        ),
        ([CONCAT, PRODUCT], [1, 2, "t", "d"], "last axis.* not known"),
        (
            [CONCAT, helper.make_node("Exp", ["past"], ["e"]), helper.make_node("MatMul", ["e", "grown"], ["y"])],
            PAST,
            "Exp .* neither moves",
        ),
        ([helper.make_node("ScatterND", ["past", "places", "new"], ["grown"]), PRODUCT], PAST, "writes new tokens into it"),
        ([helper.make_node("Concat", ["past", "new", "past"], ["grown"], axis=2), PRODUCT], PAST, "joins 2 parts"),
    ],
)
def test_reasons(nodes: list[onnx.NodeProto], past: list[object], said: str):
    if nodes[0].op_type == "ScatterND":
        nodes = [helper.make_node("NonZero", ["new"], ["found"]), helper.make_node("Transpose", ["found"], ["places"]), *nodes]
    result = _grown(nodes, past)
    assert [row.name for row in result.skipped] == ["past"]
    assert re.search(said, result.skipped[0].reason)


def test_reasons_of_types_and_opsets():
    assert "float64" in _grown([CONCAT, PRODUCT], PAST, TensorProto.DOUBLE).skipped[0].reason
    assert "opset 12 lacks" in _grown([CONCAT, PRODUCT], PAST, opset=12).skipped[0].reason


def test_two_inputs_that_are_joined():
    infos = [("past", FLOAT, PAST), ("new", FLOAT, [1, 2, "s", 8]), ("q", FLOAT, [1, 2, "s", "n"])]
    model = qruntime.load(model_bytes([CONCAT, PRODUCT], infos, [("y", FLOAT, None), ("grown", FLOAT, None)]))
    assert all("which of them is the past" in row.reason for row in with_codes(model)[1].skipped)


def test_what_is_not_given_back_is_no_cache():
    nodes = [CONCAT, PRODUCT, helper.make_node("Relu", ["grown"], ["other"])]
    (row,) = _grown(nodes, PAST, given="other").skipped
    assert row.reason == "no input is extended, read by attention and given back"


def test_outputs_that_hold_more():
    more = helper.make_node("Concat", ["grown", "new"], ["both"], axis=2)
    (row,) = _grown([CONCAT, PRODUCT, more], PAST, given="both").skipped
    assert "'both' holds more than caches" in row.reason


def test_odd_numbers_of_channels():
    infos = [("past", FLOAT, [1, 2, "t", 7]), ("x", FLOAT, [1, 2, "s", 7]), ("q", FLOAT, [1, 2, "s", "n"])]
    model = qruntime.load(model_bytes([NEW, CONCAT, PRODUCT], infos, [("y", FLOAT, None), ("grown", FLOAT, None)]))
    assert "7 codes of 4 bits are no whole bytes" in with_codes(model)[1].skipped[0].reason
    assert not with_codes(model, 8)[1].skipped


def test_operators_that_make_keys_by_themselves():
    nodes = [
        helper.make_node(
            "GroupQueryAttention", ["q", "k", "v", "past.key", "past.value", "ends", "total"], ["y", "present.key", "present.value"],
            num_heads=2, kv_num_heads=2, do_rotary=0, domain="com.microsoft",
        )
    ]  # fmt: skip
    caches = [(f"past.{name}", FLOAT, ["b", 2, "t", 8]) for name in ("key", "value")]
    infos = [*((name, FLOAT, ["b", "s", 16]) for name in "qkv"), *caches, ("ends", 6, ["b"]), ("total", 6, [])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(*i) for i in infos],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in ("y", "present.key", "present.value")],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = qruntime.load(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())
    _, (rows, skipped) = with_codes(model)
    assert not rows
    assert [row.name for row in skipped] == ["past.key", "past.value"]
    assert all("GroupQueryAttention" in row.reason and "standard operators" in row.reason for row in skipped)


def test_caches_inside_of_branches():
    def branch(name: str) -> onnx.GraphProto:
        nodes = [helper.make_node("Concat", ["past", "new"], [f"{name}_grown"], axis=2)]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_grown", FLOAT, None)])

    nodes = [NEW, helper.make_node("If", ["use"], ["grown"], then_branch=branch("a"), else_branch=branch("b")), PRODUCT]
    infos = [("past", FLOAT, PAST), ("x", FLOAT, [1, 2, "s", 8]), ("q", FLOAT, [1, 2, "s", "n"]), ("use", TensorProto.BOOL, [])]
    model = qruntime.load(model_bytes(nodes, infos, [("y", FLOAT, None), ("grown", FLOAT, None)]))
    _, (rows, (skipped,)) = with_codes(model)
    assert not rows
    assert "inside of a subgraph" in skipped.reason


# ------------------------------------------------------------------------- hostile files


@pytest.mark.parametrize(
    ("attributes", "codes", "ranges"),
    [
        ({"bits": 3}, [2, 4], [2, 2]),
        ({"bits": -4}, [2, 4], [2, 2]),
        ({"bits": 1 << 62}, [2, 4], [2, 2]),
        ({"bits": 4}, [2, 4], [2, 3]),
        ({"bits": 4}, [2, 4], [1, 2]),
        ({"bits": 4}, [2, 0], [2, 2]),
        ({"bits": 4}, [], [2]),
        ({"bits": 4.0}, [2, 4], [2, 2]),
        ({"bits": [4]}, [2, 4], [2, 2]),
        ({}, [2, 4], [2, 2]),
    ],
)
def test_calls_that_mean_nothing(attributes: dict[str, object], codes: list[int], ranges: list[int]):
    nodes = [helper.make_node("DequantizeCache", ["codes", "ranges"], ["y"], domain="qruntime", **attributes)]
    infos = [helper.make_tensor_value_info("codes", TensorProto.UINT8, codes), helper.make_tensor_value_info("ranges", FLOAT, ranges)]
    graph = helper.make_graph(nodes, "g", infos, [helper.make_tensor_value_info("y", FLOAT, None)])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("qruntime", 1)]
    data = helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
    with pytest.raises(QRuntimeError):
        qruntime.load(data).run({"codes": np.zeros(codes, np.uint8), "ranges": np.zeros(ranges, np.float32)})


def test_calls_over_stored_weights():
    """A call reads numbers, also where a file gives it what is stored in few bits."""
    weights = {"w": np.arange(16, dtype=np.int8).reshape(2, 8), "s": np.array(0.5, np.float32), "z": np.array(0, np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["x"]),
        helper.make_node("QuantizeCache", ["x"], ["codes", "ranges"], domain="qruntime", bits=8),
    ]
    outputs = [helper.make_tensor_value_info(*info, None) for info in (("codes", TensorProto.UINT8), ("ranges", FLOAT))]
    graph = helper.make_graph(nodes, "g", [], outputs, [onnx.numpy_helper.from_array(data, name) for name, data in weights.items()])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("qruntime", 1)]
    made = qruntime.load(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()).run({})
    codes, ranges = quantize_cache((weights["w"] * 0.5).astype(np.float32), bits=8)
    assert np.array_equal(made["codes"], codes)
    assert np.array_equal(made["ranges"], ranges)
