"""Patterns: what users write about layers, against the names that exporters give to nodes."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
from onnx import helper

import qruntime
from qruntime import QuantizationError
from qruntime.quantization import default_dynamic_qconfig, per_channel_dynamic_qconfig
from qruntime.quantization.patterns import AROUND, OWN, rank
from tests.small_models import FLOAT, model_bytes, random

Q, C = default_dynamic_qconfig, per_channel_dynamic_qconfig


def chain(*names: str, op: str = "MatMul", weights: list[str] | None = None) -> qruntime.Model:
    """Layers one after the other, of the given node names, over x [n, 4] (or [n, 4, length] for Conv)."""
    weights = weights or [f"w{i}" for i in range(len(names))]
    shape = (4, 4, 1) if op == "Conv" else (4, 4)
    values = ["x", *(f"v{i}" for i in range(1, len(names))), "y"]
    nodes = [helper.make_node(op, [values[i], weights[i]], [values[i + 1]], name=name) for i, name in enumerate(names)]
    dims = ["n", 4, "length"] if op == "Conv" else ["n", 4]
    data = {name: random(*shape, seed=i) for i, name in enumerate(weights)}
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, dims)], [("y", FLOAT, None)], data))


def selected(model: qruntime.Model, **arguments: Any) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [layer.name for layer in model.quantize_dynamic(**arguments).report.layers]


TORCH = [
    "/bert/encoder/layer.0/attention/self/query/MatMul",
    "/bert/encoder/layer.1/intermediate/dense/MatMul",
    "/bert/encoder/layer.10/intermediate/dense/MatMul",
    "/bert/pooler/dense/Gemm/MatMul",
    "/classifier/classifier.0/MatMul",
]
LISTED = ("/o/MatMul", "/o_1/MatMul", "/o_x/MatMul", "/no_1/MatMul")
KERAS = [
    "StatefulPartitionedCall/model_1/dense/MatMul",
    "StatefulPartitionedCall/model_1/dense_1/Tensordot/MatMul",
    "StatefulPartitionedCall/model_1/block.2/dense/MatMul__41",
]
PLAIN = ["MatMul_0", "MatMul_10", "fc.1", "layers.0.fc"]


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        (TORCH, "layer.0", [0]),
        (TORCH, "layer.1", [1]),
        (TORCH, "encoder.layer.1", [1]),
        (TORCH, "encoder/layer.1", [1]),
        (TORCH, "bert.encoder.layer.1.intermediate.dense", [1]),
        (TORCH, "layer", [0, 1, 2]),
        (TORCH, "layer.", [0, 1, 2]),
        (TORCH, "dense", [1, 2, 3]),
        (TORCH, "intermediate.dense", [1, 2]),
        (TORCH, "/bert/encoder", [0, 1, 2]),
        (TORCH, "/bert/encoder/layer.10", [2]),
        (TORCH, "layer.1*", [1, 2]),
        (TORCH, "layer.[01]", [0, 1]),
        (TORCH, "layer.?.*", [0, 1]),
        (TORCH, "*/dense/*", [1, 2, 3]),
        (TORCH, "*.self.*", [0]),
        (TORCH, "encoder*dense", [1, 2]),
        (TORCH, "encoder.*", [0, 1, 2]),
        (TORCH, "bert/*", [0, 1, 2, 3]),
        (TORCH, "/bert/*", [0, 1, 2, 3]),
        (TORCH, "*quer*", [0]),
        (TORCH, "query/MatMul", [0]),
        (TORCH, "classifier.0", [4]),
        (TORCH, "classifier.classifier.0", [4]),
        (TORCH, "*", [0, 1, 2, 3, 4]),
        (TORCH, TORCH[2], [2]),
        (LISTED, "*/o/*", [0, 1]),
        (LISTED, "/o/*", [0, 1]),
        (LISTED, "*/o_1/*", [1]),
        (LISTED, "o", [0]),
        (KERAS, "dense", [0, 2]),
        (KERAS, "model_1.dense_1", [1]),
        (KERAS, "model_1/dense", [0]),
        (KERAS, "block.2", [2]),
        (KERAS, "dense_1/Tensordot", [1]),
        (KERAS, "*/dense*/*", [0, 1, 2]),
        (PLAIN, "MatMul_0", [0]),
        (PLAIN, "MatMul_1*", [1]),
        (PLAIN, "fc", [2, 3]),
        (PLAIN, "fc.1", [2]),
        (PLAIN, "layers.0", [3]),
        (PLAIN, "MatMul", [0, 1, 2, 3]),
    ],
)
def test_what_a_pattern_means(names: list[str], pattern: str, expected: list[int]):
    model = chain(*names)
    chosen = [names[i] for i in expected]
    assert selected(model, only=[pattern]) == chosen
    assert selected(model, exclude=[pattern]) == [name for name in names if name not in chosen]
    assert selected(model, qconfig_spec={pattern}) == chosen
    assert selected(model, qconfig_spec={"": Q, pattern: None}) == [name for name in names if name not in chosen]


@pytest.mark.parametrize(
    "pattern", ["/encoder/layer.1", "layer.1.attention", "ense", "layer.01", "bert.layer", "dense.layer", "/layer.0", "/*x"]
)
def test_what_a_pattern_does_not_mean(pattern: str):
    with pytest.warns(UserWarning, match=f"nothing in the model is selected by '{re.escape(pattern)}'"):
        model = chain(*TORCH).quantize_dynamic(only=[pattern])
    assert not model.report.layers
    assert model.report.idle == (pattern,)


@pytest.mark.parametrize("name", ["Conv_0", "Conv.0", "conv.0", "/a/Conv", "Conv/0", "a.Conv.1", "Conv", "/Conv/Conv", ""])
def test_a_kind_is_a_kind_whatever_nodes_are_called(name: str):
    model = chain(name, op="Conv")
    for spec in ({"Conv"}, {"Conv1d"}, {"Conv": Q}):
        assert len(selected(model, qconfig_spec=spec)) == 1
    assert selected(model) == []


@pytest.mark.parametrize("pattern", ["stem", "features.stem", "*ste*", "/features/*/Conv"])
def test_a_convolution_is_named_by_any_pattern_that_ends_at_it(pattern: str):
    model = chain("/features/stem/Conv", op="Conv")
    assert selected(model, qconfig_spec={pattern}) == ["/features/stem/Conv"]


@pytest.mark.parametrize("pattern", ["features", "*", "features.*", "*feat*"])
def test_a_container_names_no_convolution(pattern: str):
    assert selected(chain("/features/stem/Conv", op="Conv"), qconfig_spec={pattern}) == []


def test_a_name_that_says_nothing_leaves_it_to_the_weight():
    """What exporters before torch 1.13 wrote: Gemm_3 over encoder.0.fc.weight."""
    model = chain("MatMul_0", "MatMul_1", weights=["encoder.0.fc.weight", "encoder.1.fc.weight"])
    assert selected(model, only=["encoder.1"]) == ["MatMul_1"]
    assert selected(model, exclude=["encoder.1.fc"]) == ["MatMul_0"]
    tied = chain("/first/MatMul", "/second/MatMul", weights=["first.weight", "table.weight"])
    with pytest.warns(UserWarning, match="'table'"):
        tied.quantize_dynamic(only=["table"])


def test_an_unnamed_node_is_called_as_reports_call_it():
    model = chain("", "/b/MatMul")
    (name, _) = selected(model)
    assert selected(model, exclude=[name]) == ["/b/MatMul"]


@pytest.mark.parametrize(
    ("spec", "per_channel"),
    [
        ({"encoder": Q, "layer.0": C}, True),
        ({"encoder.layer.0": C, "encoder": Q}, True),
        ({"layer.0": C, "layer": Q, "encoder": Q}, True),
        ({"layer.0": Q, "fc": C}, True),
        ({"fc": Q, "layer.0.fc": C}, True),
        ({"*.fc": Q, "encoder.layer.0.fc": C}, True),
        ({"encoder.layer.0": Q, "*fc": C}, True),
        ({"encoder": C, "*": Q}, True),
        ({"*": C, "Linear": Q}, True),
        ({"MatMul": C, "Linear": Q}, True),
        ({"encoder.*": Q, "encoder.layer": C}, True),
        ({"fc": C, "/encoder/layer.0/fc/MatMul": Q}, False),
        ({"": C, "Linear": Q}, False),
    ],
)
def test_the_closest_pattern_counts(spec: dict[str, Any], per_channel: bool):
    (layer,) = chain("/encoder/layer.0/fc/MatMul").quantize_dynamic(spec).report.layers
    assert (layer.scheme == "per_channel_affine") is per_channel


def test_a_module_called_as_a_kind_is_not_passed_over_in_silence():
    model = chain("/LSTM/fc/MatMul", "/b/MatMul")
    assert selected(model, exclude=["LSTM"]) == ["/b/MatMul"]
    inner = chain("/a/LSTM/fc/MatMul", "/b/MatMul")
    assert selected(inner, exclude=["a.LSTM"]) == ["/b/MatMul"]
    with pytest.warns(UserWarning, match="nothing in the model is selected by 'LSTM'"):
        inner.quantize_dynamic(only=["LSTM"])
    assert selected(chain("/b/MatMul"), exclude=["LSTM"]) == ["/b/MatMul"]


@pytest.mark.parametrize(
    ("pattern", "close"),
    [
        ("Matmul", "'MatMul'"),
        ("linear", "'Linear'"),
        ("encoder.layr.0", "'encoder.layer.0'"),
        ("*intermediat.dens", "'intermediate.dense'"),
        ("/bert/encoder/layer.0/attention/self/quer/MatMul", "'/bert/encoder/layer.0/attention/self/query/MatMul'"),
        ("BERT", "'bert'"),
    ],
)
@pytest.mark.parametrize("argument", ["only", "exclude", "qconfig_spec"])
def test_what_selects_nothing_is_said_with_what_is_close(pattern: str, close: str, argument: str):
    model = chain(*TORCH)
    request = {"qconfig_spec": {pattern}} if argument == "qconfig_spec" else {argument: [pattern]}
    with pytest.warns(UserWarning, match=re.escape(f"selected by {pattern!r} (close: ")) as caught:
        report = model.quantize_dynamic(**request).report
    assert close in str(caught[0].message)
    assert caught[0].filename == __file__
    assert report.idle == (pattern,)
    with pytest.raises(QuantizationError, match=re.escape(close)):
        model.quantize_dynamic(**request, strict=True)


def test_without_anything_close_layers_are_listed():
    with pytest.warns(UserWarning, match=r"selected by '@'; layers are: /bert"):
        chain(*TORCH).quantize_dynamic(exclude=["@"])


def test_an_exclusion_may_name_what_is_no_layer():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="/fc/MatMul"),
        helper.make_node("Relu", ["a"], ["y"], name="/act/Relu"),
    ]
    data = model_bytes(nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], {"w": random(4, 4)})
    model = qruntime.load(data)
    assert selected(model, exclude=["act"]) == ["/fc/MatMul"]
    assert selected(model, qconfig_spec={"": Q, "Relu": None}) == ["/fc/MatMul"]
    with pytest.warns(UserWarning, match="'act'"):
        model.quantize_dynamic(only=["act"])


def test_hostile_names_are_only_text():
    long = "/".join("a" * 9 for _ in range(20_000))
    model = chain("[", "*", "a//..//b", long)
    assert selected(model, only=["a.b"]) == ["a//..//b"]
    assert selected(model, only=["[[]"]) == ["["]
    assert selected(model, only=["*aaa*"]) == [long]
    with pytest.warns(UserWarning, match="'aab'"):
        model.quantize_dynamic(only=["aab"])


def test_depth_of_a_match():
    (node,) = chain("/encoder/encoder.0/fc/MatMul").graph.nodes
    assert rank(node, "encoder").level == AROUND  # type: ignore[union-attr]
    assert rank(node, "encoder.0").depth > rank(node, "/encoder").depth  # type: ignore[union-attr]
    assert rank(node, "encoder.0.fc").level == OWN  # type: ignore[union-attr]
    assert rank(node, "/") is None
