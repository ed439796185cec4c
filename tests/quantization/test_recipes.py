"""From `model.quantize("…", data=…)` to a file that was saved: every recipe, with the scheme of its paper, on every architecture."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qruntime
from qruntime.passes.rounded_activations import before_rounding
from qruntime.passes.scaled_codes import is_dequantize
from qruntime.quantization import recipes
from qruntime.quantization.scheme import parse
from qruntime.quantization.selection import layer_kind, layer_name
from qruntime.runtime.segments import Segment, fed_values
from tests.quantization.architectures import ARCHITECTURES, NAMES, Feed
from tests.small_models import assert_same_bits

NEAREST = ("RTN", "ZeroQuant", "ZeroQuant-V2")
"""Recipes whose codes are those of round to nearest."""
FUSED = ("AWQ", "SmoothQuant", "Outlier Suppression+", "FPTQ")
"""Recipes that change tensors look at the operators before these: they see norms in both forms."""
CASES = [(kind, name) for kind in ARCHITECTURES for name in NAMES if kind != "block" and (not kind.startswith("fused") or name in FUSED)]
EVERY = pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda text: text.replace(" ", "_"))
OF_BLOCK = pytest.mark.parametrize("name", NAMES)
SEED = 100


def scheme_of(name: str) -> str:
    """That of a recipe, with groups for layers of few inputs."""
    return recipes[name].scheme.replace("-g128", "-g16").replace("-g256", "-g32")


def quantize(kind: str, name: str, data: Any = None, threads: int = 1, **keywords: Any) -> qruntime.Model:
    made = ARCHITECTURES[kind]
    scheme = scheme_of(name)
    if kind == "cnn":
        keywords["overrides"] = {"Conv": scheme}
    return made.load(threads=threads).quantize(name, scheme=scheme, data=made.feeds() if data is None else data, **keywords)


@cache
def quantized(kind: str, name: str) -> qruntime.Model:
    return quantize(kind, name)


def feed_of(kind: str) -> Feed:
    """What no calibration saw."""
    return ARCHITECTURES[kind].feed(SEED, 3)


@cache
def outputs(kind: str, name: str) -> dict[str, np.ndarray]:
    return quantized(kind, name).run(feed_of(kind))


def file_of(model: qruntime.Model, tmp_path: Path) -> bytes:
    model.save(tmp_path / "saved.onnx")
    return (tmp_path / "saved.onnx").read_bytes()


def assert_same_runs(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert list(a) == list(b)
    for name, one in a.items():
        assert_same_bits(one, b[name])


@EVERY
def test_the_report_knows_every_layer(kind: str, name: str):
    """Nothing is left out in silence, and of what was done the error is there beside that of round to nearest."""
    report = quantized(kind, name).report
    made, left = [row.name for row in report.layers], [row.name for row in report.skipped if row.op_type != "cache"]
    candidates = [layer_name(node) for node in ARCHITECTURES[kind].load().graph.walk_nodes() if layer_kind(node)]
    assert sorted(made + left) == sorted(candidates)
    assert made
    assert all(row.reason for row in report.skipped)
    for row in report.layers:
        assert 0 <= row.error < 1
        assert 0 < row.rtn_error < 1
        assert row.bits_per_weight < 32
    if name in ("RTN", "ZeroQuant"):
        assert all(row.error == row.rtn_error for row in report.layers)
    if name in ("GPTQ", "QuantEase", "AWQ", "ZeroQuant-V2"):
        assert sum(row.error for row in report.layers) < 0.9 * sum(row.rtn_error for row in report.layers)


@EVERY
def test_saved_and_loaded_it_is_the_same(kind: str, name: str, tmp_path: Path):
    model = quantized(kind, name)
    file_of(model, tmp_path)
    onnx.checker.check_model(str(tmp_path / "saved.onnx"), full_check=True)
    again = qruntime.load(tmp_path / "saved.onnx", threads=1)
    assert_same_runs(again.run(feed_of(kind)), outputs(kind, name))
    of_data = dict.fromkeys(("error", "rtn_error"), None) | {"facts": (), "snr_db": 0.0, "reason": ""}
    assert [row._replace(**of_data) for row in again.report.layers] == [row._replace(**of_data) for row in model.report.layers]


@EVERY
def test_other_runtimes_read_the_file(kind: str, name: str, tmp_path: Path):
    """With the same outputs but where activations are quantized at every run, of which files tell us alone."""
    runtime = pytest.importorskip("onnxruntime")
    file_of(quantized(kind, name), tmp_path)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL  # others may make activations 8 bits
    session = runtime.InferenceSession(str(tmp_path / "saved.onnx"), options, providers=["CPUExecutionProvider"])
    names = [info.name for info in session.get_outputs()]
    found = dict(zip(names, session.run(names, dict(feed_of(kind))), strict=True))
    inputs = parse(scheme_of(name)).inputs
    if inputs is None or inputs.is_static or name == "RPTQ":
        for one, array in outputs(kind, name).items():
            assert np.abs(found[one] - array).max() <= 5e-5 * np.abs(array).max(), one


@EVERY
def test_a_row_knows_of_no_other(kind: str, name: str):
    axes, feed = ARCHITECTURES[kind].axes, feed_of(kind)
    alone = quantized(kind, name).run({one: np.take(array, [1], axis=axes[one]) for one, array in feed.items()})
    assert_same_runs(alone, {one: np.take(array, [1], axis=axes[one]) for one, array in outputs(kind, name).items()})


@OF_BLOCK
def test_nothing_depends_on_threads_or_batches(name: str, tmp_path: Path):
    made = ARCHITECTURES["block"]
    whole = file_of(quantized("block", name), tmp_path)
    other = quantize("block", name, threads=2)
    assert file_of(other, tmp_path) == whole
    assert_same_runs(other.run(feed_of("block")), outputs("block", name))
    rows = [{one: array[i : i + 1] for one, array in feed.items()} for feed in made.feeds() for i in range(len(feed["ids"]))]
    assert file_of(quantize("block", name, rows[::-1]), tmp_path) == whole


@OF_BLOCK
def test_it_is_more_than_round_to_nearest_and_looks_at_the_data(name: str, tmp_path: Path):
    mine = file_of(quantized("block", name), tmp_path)
    scheme = scheme_of(name)
    nearest = ARCHITECTURES["block"].load().quantize(scheme=scheme, data=ARCHITECTURES["block"].feeds())
    assert (file_of(nearest, tmp_path) == mine) == (name in ("RTN", "ZeroQuant"))
    assert file_of(quantize("block", name, seed=0), tmp_path) == mine
    scaled = [feed | {one: 3 * array for one, array in feed.items() if one != "ids"} for feed in ARCHITECTURES["block"].feeds()]
    is_blind = not recipes[name].requires and not parse(scheme).needs_data
    assert (file_of(quantize("block", name, scaled), tmp_path) == mine) == is_blind


@OF_BLOCK
def test_the_model_itself_stays(name: str, tmp_path: Path):
    made = ARCHITECTURES["block"]
    model = made.load(threads=1)
    before, saved = model.run(feed_of("block")), file_of(model, tmp_path)
    other = model.quantize(name, scheme=scheme_of(name), data=made.feeds())
    assert other is not model
    assert_same_runs(model.run(feed_of("block")), before)
    assert file_of(model, tmp_path) == saved
    assert model.quantize(name, scheme=scheme_of(name), data=made.feeds(), inplace=True) is model
    assert_same_runs(model.run(feed_of("block")), outputs("block", name))
    copy = pickle.loads(pickle.dumps(other))
    assert copy.report == other.report
    assert_same_runs(copy.run(feed_of("block")), outputs("block", name))


@pytest.mark.parametrize("name", ["SmoothQuant", "Outlier Suppression+"])
def test_static_ranges_are_those_of_tensors_that_changed(name: str):
    """Not of what they were, and not otherwise where several layers read a tensor."""
    graph, feeds = quantized("decoder", name).graph, ARCHITECTURES["decoder"].feeds()
    rounded = [node for node in graph.nodes if is_dequantize(node) and not node.input(0).is_constant]
    tensors = [before_rounding(node.outputs[0]) for node in rounded]
    segment = Segment(graph, graph.inputs, tensors, num_threads=1, lower=True)
    runs = [segment.run(fed_values(graph, feed)) for feed in feeds]
    assert len(rounded) == 9
    for node, tensor in zip(rounded, tensors, strict=True):
        every = np.concatenate([np.ravel(run[tensor]) for run in runs])
        span = float(node.input(1).data) * ((1 << parse(scheme_of(name)).inputs.format.bits) - 1)
        assert 0.6 < (every.max() - every.min()) / span < 1.6
