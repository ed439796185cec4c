"""Channels of caches that share a range, chosen by data."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import qruntime
from qruntime.errors import CalibrationError, QuantizationError
from qruntime.ir import clone
from qruntime.ir.formats import FORMATS
from qruntime.ops.cache_codes import dequantize_cache, dequantize_cache_clusters
from qruntime.quantization import ClusterCaches
from qruntime.quantization.cache import Clusters
from qruntime.quantization.cache_clusters import measured_clusters
from qruntime.quantization.calibration import Calibration
from qruntime.quantization.methods.rptq import clusters_of
from tests.quantization.decoders import HEADS, SHAPES, SIZE, WIDTH, Decoder, empty
from tests.small_models import FLOAT, model_bytes, random

KV4 = FORMATS["uint4"]


def feeds(model: qruntime.Model, count: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": random(2, 5, WIDTH, seed=seed), **empty(model, 2)} for seed in range(count)]


def measured(model: qruntime.Model, step: ClusterCaches) -> Clusters:
    graph = clone(model.graph)
    return measured_clusters(graph, KV4, step, Calibration(graph, feeds(model), num_threads=1))


def test_clusters_are_those_of_what_the_caches_hold():
    model = qruntime.load(Decoder("separate").bytes())
    found = measured(model, ClusterCaches(3, seed=1))
    runs = [model.run(feed) for feed in feeds(model)]
    assert list(found) == [i.name for i in model.inputs[1:]]
    for cache, output in zip(found, model.outputs[1:], strict=True):
        held = np.concatenate([run[output.name] for run in runs], axis=2)  # [b, heads, t, channels]
        points = np.stack([held.max(axis=(0, 2)), held.min(axis=(0, 2))], axis=-1).astype(np.float64)
        for head in range(HEADS):
            assert np.array_equal(found[cache][head], clusters_of(points[head], 3, 1))


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "merged heads"])
def test_every_spelling_of_a_cache_is_divided(kind: str):
    model = qruntime.load(Decoder(kind).bytes())
    quantized = model.quantize([ClusterCaches(2)], scheme="W16A16-KV4", data=feeds(model))
    assert quantized.report.caches
    assert {row.clusters for row in quantized.report.caches} == {2}
    x = random(2, 4, WIDTH, seed=9)
    made, near = quantized.run({"x": x, **empty(quantized, 2)}), model.run({"x": x, **empty(model, 2)})
    assert 0 < np.abs(made["y"] - near["y"]).max() < 0.5


@pytest.mark.parametrize("kind", ["separate", "tokens first", "stacked", "attention", "contrib attention"])
def test_padding_divides_nothing(kind: str):
    """What lies behind the padding is as if it were not there, and with other tokens in its place the clusters are others."""
    model = qruntime.load(Decoder(kind, vocabulary=12, has_positions=True).bytes())

    def fed(ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        caches = {i.name: i.shape for i in model.inputs if i.name.startswith("past")}
        sizes = {"b": len(ids), "t": 0}
        past = {name: np.zeros([d if isinstance(d, int) else sizes[str(d)] for d in shape], np.float32) for name, shape in caches.items()}
        return {"ids": ids, "attention_mask": mask, "position_ids": np.arange(ids.shape[1])[None].repeat(len(ids), 0), **past}

    def found(feeds: list[dict[str, np.ndarray]], mask: str | None) -> list[np.ndarray]:
        graph = clone(model.graph)
        calibration = Calibration(graph, feeds, num_threads=1, mask=mask)
        return list(measured_clusters(graph, KV4, ClusterCaches(3, seed=1), calibration).values())

    ids, ones = np.array([[1, 2, 3, 4], [5, 1, 4, 2]]), np.ones((2, 4), np.int64)
    plain = found([fed(ids, ones)], "attention_mask")
    padded = np.concatenate([ids, [[9, 10, 11], [8, 7, 6]]], axis=1)
    mask = np.concatenate([ones, np.zeros((2, 3), np.int64)], axis=1)
    without = found([fed(padded, mask)], "attention_mask")
    assert len(plain) == 4
    assert all(np.array_equal(one, other) for one, other in zip(without, plain, strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(found([fed(padded, mask)], None), plain, strict=True))
    with pytest.raises(CalibrationError, match=r"gets no token in any feed.*all padding"):
        found([fed(padded, 0 * mask)], "attention_mask")


@pytest.mark.parametrize("scheme", ["W8A8", "W16A16"])
def test_a_scheme_that_leaves_caches_float_is_told(scheme: str):
    model = qruntime.load(Decoder("separate").bytes())
    made = model.quantize([ClusterCaches(2)], scheme=scheme, data=feeds(model), strict=True)
    told = [row for row in made.report.skipped if row.op_type == "cache"]
    assert [row.name for row in told] == [i.name for i in model.inputs[1:]]
    assert {row.reason for row in told} == {
        "ClusterCaches divides the channels of caches of codes, and the scheme leaves caches float; add -KV8 or -KV4"
    }
    assert "add -KV8 or -KV4: cache ×4" in made.summary()
    assert not made.report.caches


def test_a_model_without_caches_has_none_to_divide():
    node, infos = helper.make_node("MatMul", ["x", "w"], ["y"]), [[(name, FLOAT, ["n", 8])] for name in "xy"]
    model, data = qruntime.load(model_bytes([node], *infos, {"w": random(8, 8)})), [{"x": random(4, 8)}]
    assert not model.quantize([ClusterCaches(2)], scheme="W8A8", data=data).report.skipped
    asked = model.quantize([ClusterCaches(2)], scheme="W8A8-KV4", data=data).report.skipped
    assert [row.reason for row in asked] == ["no input is extended, read by attention and given back"]


def test_heads_that_are_no_axis_have_one_range():
    model = qruntime.load(Decoder("merged heads").bytes())
    quantized = model.quantize([ClusterCaches(2)], scheme="W16A16-KV4", data=feeds(model))
    assert {row.clusters for row in quantized.report.caches} == {1}


def test_channels_of_other_sizes_do_not_cost_the_rest():
    decoder = Decoder("separate")
    for data in decoder.weights.values():
        if data.shape == (WIDTH, WIDTH):
            data[:, ::SIZE] *= 30
    model = qruntime.load(decoder.bytes())
    x, name, cache = random(2, 4, WIDTH, seed=9), model.outputs[1].name, model.inputs[1].name
    near = model.run({"x": x, **empty(model, 2)})[name]

    def error(back: np.ndarray) -> float:
        return float(np.square(back - near)[..., 1:].mean())

    plain = model.quantize(scheme="W16A16-KV4")
    made = plain.run({"x": x, **empty(plain, 2)})
    without = error(dequantize_cache(made[name], made[f"{name}_ranges"], bits=4))
    divided = model.quantize([ClusterCaches(2)], scheme="W16A16-KV4", data=feeds(model))
    made = divided.run({"x": x, **empty(divided, 2)})
    labels = measured(model, ClusterCaches(2, seed=0))[cache].astype(np.uint8)[:, None]
    assert error(dequantize_cache_clusters(made[name], made[f"{name}_ranges"], labels, bits=4, clusters=2)) < 0.05 * without


def test_what_cannot_be_is_an_error():
    model = qruntime.load(Decoder("separate").bytes())
    with pytest.raises(QuantizationError, match="data"):
        model.quantize([ClusterCaches()], scheme="W16A16-KV4")
    bad = feeds(model)
    bad[1]["x"][0, 0, 0] = np.nan
    with pytest.raises(CalibrationError, match="NaN"):
        model.quantize([ClusterCaches()], scheme="W16A16-KV4", data=bad)
    for count in (0, 17):
        with pytest.raises(QuantizationError, match="must be 1 to 16"):
            ClusterCaches(count)
