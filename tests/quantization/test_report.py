"""What a report says: everything in JSON, what was not done and why, layers that are out of line with the rest."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import qruntime
from qruntime.quantization.json_values import json_value
from qruntime.quantization.outlying import outlying
from qruntime.quantization.reasons import Unobserved
from qruntime.quantization.report import QuantizedLayer
from tests.small_models import model_bytes, random

FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def chain(count: int = 6, *, bad: int | None = None, width: int = 64) -> qruntime.Model:
    """Linear layers and ReLUs; in the weight of the layer `bad` one number is 32 times the others."""
    nodes, weights, x = [], {}, "x"
    for at in range(count):
        nodes.append(helper.make_node("MatMul", [x, f"w{at}"], [f"h{at}"], name=f"fc{at}"))
        nodes.append(helper.make_node("Relu", [f"h{at}"], [f"r{at}"]))
        weights[f"w{at}"], x = random(width, width, seed=at) / 4, f"r{at}"
    if bad is not None:
        weights[f"w{bad}"][7, 5] = 8
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", width])], [(x, FLOAT, None)], weights))


DATA = [{"x": random(200, 64, seed=100)}]


@pytest.mark.parametrize("recipe", ["GPTQ", "AWQ", "FPTQ", "MoFQ", "RPTQ", "ZeroQuant-V2", "OliVe", "QuantEase"])
def test_all_of_it_is_json(recipe: str) -> None:
    report = chain().quantize(recipe, data=DATA).report
    told = report.to_dict()
    assert json.loads(report.to_json()) == told
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    for row, layer in zip(told["layers"], report.layers, strict=True):
        assert set(row) == {*QuantizedLayer._fields, "exact"}
        assert (row["name"], row["scheme"], row["error"], row["rtn_error"]) == (layer.name, layer.scheme, layer.error, layer.rtn_error)
        assert row["facts"] == json_value(layer.facts)
        assert layer.error is not None
        assert not row["exact"]
    assert told["weight_bytes_after"] == sum(row["bytes_after"] for row in told["layers"])


def test_what_is_not_known_is_none() -> None:
    report = chain().quantize(only=["fc1"]).report
    told = report.to_dict()
    assert [row["error"] for row in told["layers"]] == [None]
    assert {row["reason"] for row in told["skipped"]} == {"not selected by only="}
    exact = report._replace(layers=(report.layers[0]._replace(snr_db=math.inf), report.layers[0]._replace(snr_db=math.nan)))
    rows = exact.to_dict()["layers"]
    assert [(row["snr_db"], row["exact"]) for row in rows] == [(None, True), (None, False)]
    assert report._replace(layers=()).to_dict()["layers"] == []


def test_values_as_json() -> None:
    given = {
        "a": np.float32(0.5),
        2: np.int8(3),
        "c": (np.bool_(True), math.nan, np.float64(np.inf)),
        "d": np.float32([1, np.nan]),
        "e": Path("x"),
    }
    assert json_value(given) == {"a": 0.5, "2": 3, "c": [True, None, None], "d": [1.0, None], "e": "x"}
    assert json_value(Unobserved("why")) == "why"
    assert type(json_value(Unobserved("why"))) is str


def in_branches() -> qruntime.Model:
    """A linear layer, and one in each branch of an If."""
    branches = []
    for name in ("then", "else"):
        made = [helper.make_tensor_value_info(f"{name}_y", FLOAT, None)]
        node = helper.make_node("MatMul", ["h", f"w_{name}"], [f"{name}_y"], name=f"/{name}/MatMul")
        branches.append(helper.make_graph([node], name, [], made, []))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("If", ["which"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    weights = {"w": random(16, 16), "w_then": random(16, 8, seed=1), "w_else": random(16, 8, seed=2)}
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", 16]), ("which", BOOL, [])], [("y", FLOAT, None)], weights))


@pytest.mark.parametrize("recipe", ["GPTQ", "AWQ", "QuantEase"])
def test_layers_whose_inputs_are_not_seen_say_so(recipe: str) -> None:
    data = [{"x": random(64, 16, seed=5), "which": np.array(True)}]
    model = in_branches().quantize(recipe, scheme="W4A16", data=data)
    rows = {row.name: row for row in model.report.layers}
    for name in ("fc", "/then/MatMul"):
        assert rows[name].reason == ""
        assert rows[name].error is not None
    unseen = rows["/else/MatMul"]
    assert isinstance(unseen.reason, Unobserved)
    assert unseen.reason == f"rounded to nearest, without {recipe}: no feed reaches it"
    assert unseen.error is None
    assert f"1 layer is rounded to nearest, without {recipe}: no feed reaches it (/else/MatMul)" in model.summary()
    nearest = in_branches().quantize(scheme="W4A16")
    assert nearest.report.layers[2].snr_db == unseen.snr_db
    assert all(not row.reason for row in in_branches().quantize(scheme="W4A16", data=data).report.layers)


def test_tables_and_grouped_convolutions_say_so() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="table"),
        helper.make_node("Transpose", ["rows"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["turned", "k"], ["c"], name="conv", group=2),
        helper.make_node("Conv", ["c", "j"], ["y"], name="whole"),
    ]
    weights = {"table": random(50, 8), "k": random(8, 4, 1, seed=1), "j": random(4, 8, 1, seed=2)}
    model = qruntime.load(model_bytes(nodes, [("ids", INT64, ["b", "t"])], [("y", FLOAT, None)], weights))
    overrides = {"Embedding": "W8A16-channel", "Conv": "W4A16"}
    report = model.quantize("GPTQ", scheme="W4A16", overrides=overrides, data=[{"ids": np.arange(48).reshape(2, 24)}]).report
    reasons = {row.name: row.reason for row in report.layers}
    assert reasons == {
        "table": "rounded to nearest, without GPTQ: a table is looked up and multiplies nothing",
        "conv": "rounded to nearest, without GPTQ: what the groups of a Conv read apart is not observed",
        "whole": "",
    }


def test_what_a_transform_or_choice_passes_over_is_a_fact() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv"),
        helper.make_node("MatMul", ["c", "w"], ["y"], name="fc"),
    ]
    weights = {"k": random(4, 4, 1, seed=1), "w": random(24, 8, seed=2)}
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["b", 4, 24])], [("y", FLOAT, None)], weights))
    options: dict[str, Any] = {"scheme": "W4A16", "overrides": {"Conv": "W4A16"}, "data": [{"x": random(4, 4, 24)}]}
    facts = {row.name: row.facts[0] for row in model.quantize("AWQ", **options).report.layers}
    assert facts["conv"]["AWQ"] == "its weight can follow no change of what it reads"
    assert facts["fc"]["AWQ"] == "nothing before the tensor can absorb a scale"
    (conv,) = (row for row in model.quantize("MoFQ", **options).report.layers if row.name == "conv")
    assert conv.facts[0]["MoFQ"] == "chooses for linear layers, not for Conv"


def test_a_layer_out_of_line_is_pointed_out() -> None:
    model = chain(bad=3)
    for quantized in (
        model.quantize_dynamic(per_channel=False),
        model.quantize(scheme="W4A16-tensor"),
        model.quantize(scheme="W8A8-tensor"),
    ):
        (found,) = quantized.report.outlying
        assert (found.name, found.error) == ("fc3", None)
        assert found.snr_db is not None
        assert found.snr_db <= found.usual - 6
        summary = quantized.summary()
        assert f"1 layer has lost far more than others of as many bits:\n  fc3: weights at {found.snr_db:.1f} dB, where" in summary
        assert "what usually helps: scales per channel or per group, or exclude= for these layers" in summary
        assert [one["name"] for one in quantized.report.to_dict()["outlying"]] == ["fc3"]


@pytest.mark.parametrize("scheme", ["W2A16", "W3A16", "W4A16-g32", "Wnf4A16", "W8A8"])
def test_scales_of_their_own_keep_layers_in_line(scheme: str) -> None:
    assert chain(bad=3).quantize(scheme=scheme).report.outlying == ()
    assert chain().quantize(scheme=f"{scheme.split('-')[0]}-tensor").report.outlying == ()
    assert chain(bad=3).quantize_dynamic().report.outlying == ()
    assert "far more" not in chain(bad=3).quantize(scheme=scheme).summary()


def row(name: str, snr_db: float = 40.0, error: float | None = None, rtn_error: float | None = None, bits: float = 8.0) -> QuantizedLayer:
    return QuantizedLayer(
        name,
        "MatMul",
        "Linear",
        (8, 8),
        "int8",
        256,
        64,
        snr_db,
        bits_per_weight=bits,
        error=error,
        rtn_error=error if rtn_error is None else rtn_error,
    )


def names(*rows: QuantizedLayer) -> list[str]:
    return [one.name for one in outlying(rows)]


def test_when_a_layer_is_out_of_line() -> None:
    usual = [row(f"usual{at}", 40 + at / 10) for at in range(5)]
    assert names(*usual, row("bad", 29.9)) == ["bad"]
    assert names(*usual, row("enough", 30.0)) == []
    assert names(*[one._replace(snr_db=20.0) for one in usual], row("near", 14.1)) == []
    assert names(*[one._replace(snr_db=20.0) for one in usual], row("far", 14.0)) == ["far"]
    assert names(*usual[:2], row("bad", 10)) == []  # no median of three
    assert names(*usual, row("fewer", 12, bits=3.2)) == []  # alone with so few bits
    assert names(*usual, row("unknown", math.nan)) == []
    seen = [one._replace(error=0.002, rtn_error=0.002) for one in usual]
    assert names(*seen, row("bad", error=0.0201)) == ["bad"]
    assert names(*seen, row("twice", error=0.004)) == []
    assert names(*[one._replace(error=1e-4) for one in seen], row("small", error=9e-3)) == []
    assert names(*seen, row("paid", 20, error=0.002, rtn_error=0.01)) == []  # its weights pay for its outputs
    assert names(*seen, row("nearest", 20, error=0.002)) == ["nearest"]
