"""Steps of several methods in one recipe, orders that make no sense, and models that are quantized again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qruntime
from qruntime.errors import QuantizationError
from qruntime.ir.formats import UINT8
from qruntime.quantization import recipes
from qruntime.quantization.methods import (
    AWQ,
    GPTQ,
    RTN,
    ClipRanges,
    ClusterCaches,
    ClusterInputs,
    ClusterRanges,
    LowRank,
    MoFQ,
    OliVe,
    OutlierSuppressionPlus,
    QuantEase,
    RowGroups,
    SmoothQuant,
)
from qruntime.quantization.scheme import Inputs, Scheme
from tests.quantization.architectures import ARCHITECTURES, NAMES
from tests.small_models import assert_same_bits

MADE = ARCHITECTURES["block"]
FEED = MADE.feed(100, 2)


@cache
def quantized(recipe: Any, scheme: str) -> qruntime.Model:
    given = list(recipe) if isinstance(recipe, tuple) else recipe
    return MADE.load(threads=1).quantize(given, scheme=scheme, data=MADE.feeds())


def loss(model: qruntime.Model) -> float:
    """Of the outputs, as a share of what they are. What the head makes of a few tokens loses 0.05 or 1, by the tokens: 500 of them."""
    feed = MADE.feed(100, 100)
    wanted = MADE.load(threads=1).run(feed)
    lost = [np.mean((array - wanted[name]) ** 2) / np.mean(wanted[name] ** 2) for name, array in model.run(feed).items()]
    return float(np.mean(lost))


def errors(model: qruntime.Model) -> np.ndarray:
    return np.array([row.error for row in model.report.layers])


@pytest.mark.parametrize(
    ("steps", "scheme", "alone"),
    [
        ((SmoothQuant(), GPTQ()), "W4A8-g16-static", (SmoothQuant(),)),
        ((AWQ(), GPTQ()), "W4A16-g16", (AWQ(),)),
        ((GPTQ(), LowRank(8)), "W4A16-g16", (GPTQ(),)),
        (("GPTQ", "QuantEase"), "W3A16", (GPTQ(),)),
        ((MoFQ(), GPTQ()), "W4A16-g16", (MoFQ(),)),
        ((AWQ(), ClipRanges(), QuantEase(), LowRank(4)), "W4A16-g16", "AWQ"),
        ((ClusterInputs(4), ClusterRanges(), GPTQ()), "W4A8", (ClusterInputs(4), ClusterRanges())),
    ],
    ids=str,
)
def test_together_they_lose_less(steps: Sequence[object], scheme: str, alone: object, tmp_path: Path):
    model = quantized(steps, scheme)
    assert len(model.report.layers) == 8
    assert errors(model).mean() < 0.9 * errors(quantized(alone, scheme)).mean()
    model.save(tmp_path / "saved.onnx")
    again = qruntime.load(tmp_path / "saved.onnx", threads=1).run(FEED)
    for name, array in model.run(FEED).items():
        assert_same_bits(again[name], array)


def test_every_step_leaves_its_facts():
    (facts,) = quantized((AWQ(), ClipRanges(), QuantEase(), LowRank(4)), "W4A16-g16").report.layers[0].facts
    assert {"ratio", "clipped", "rows that no sweep made better", "rank", "error_left"} <= facts.keys()
    both = ARCHITECTURES["decoder"].load(threads=1).quantize([MoFQ(), GPTQ()], scheme="W4A16-g16", data=ARCHITECTURES["decoder"].feeds())
    assert {row.scheme for row in both.report.layers} == {"int4 g16", "float4_e2m1fn g16"}


@pytest.mark.parametrize("name", [name for name in NAMES if "KV" not in recipes[name].scheme])
def test_caches_in_codes_beside_every_recipe(name: str):
    scheme = recipes[name].scheme.replace("-g128", "-g16").replace("-g256", "-g32")
    model = MADE.load(threads=1).quantize(name, scheme=f"{scheme}-KV8", data=MADE.feeds())
    assert len(model.report.caches) == 2
    assert len(model.report.layers) == 8
    feed = {"ids": FEED["ids"]}
    for info in model.inputs[1:]:
        feed[info.name] = np.zeros([2 if d == "b" else 0 if d is None else d for d in info.shape], info.dtype)
    y = next(iter(model.run(feed).values()))
    assert y.shape == (2, 5, 64)
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("steps", "scheme", "message"),
    [
        ([GPTQ(), AWQ()], "W4A16", r"AWQ changes tensors .* cannot follow GPTQ.*; the order is \[AWQ, GPTQ\]"),
        ([GPTQ(), MoFQ()], "W4A16", r"the order is \[MoFQ, GPTQ\]"),
        ([LowRank(8), GPTQ()], "W4A16", r"the order is \[GPTQ, LowRank\]"),
        ([GPTQ(), SmoothQuant()], "W8A8", r"the order is \[SmoothQuant, GPTQ\]"),
        ([ClusterRanges(), ClusterInputs()], "W4A4", r"the order is \[ClusterInputs, ClusterRanges\]"),
        (["QuantEase", "GPTQ"], "W3A16", r"drop those of QuantEase; \[GPTQ, QuantEase\] would go on from its codes"),
        (["GPTQ", "AWQ"], "W4A16", r"AWQ changes tensors .* cannot follow GPTQ.*; the order is \[AWQ, GPTQ\]"),
        (["ZeroQuant-V2", "GPTQ"], "W4A16", r"GPTQ makes the codes, so it cannot follow LowRank.*; the order is \[GPTQ, LowRank\]"),
        (["RTN", "GPTQ"], "W4A16", r"drop those of RTN; \[GPTQ\] has one of them"),
        ([AWQ(), ClipRanges(), GPTQ()], "W4A16", r"would drop those of ClipRanges; \[AWQ, GPTQ\] has one of them"),
        ([RTN(), GPTQ()], "W4A16", r"drop those of RTN; \[GPTQ\] has one of them"),
        ([GPTQ(), ClusterCaches()], "W4A16-KV4", r"the order is \[ClusterCaches, GPTQ\]"),
        ([ClusterCaches(), ClusterCaches(2)], "W4A16-KV4", "ClusterCaches stands in the recipe twice"),
        ([ClusterInputs(), GPTQ()], "W4A4", "no step of the recipe chooses the clusters of"),
        ([MoFQ()], "W3A16", "MoFQ chooses between integers and floats of 4 or of 8 bits"),
        ([GPTQ(), 3], "W4A16", "a recipe has steps such as"),
        ("gptq, awq", "W4A16", "recipe 'gptq, awq' is no recipe; there are RTN, "),
    ],
)
def test_what_makes_no_sense_is_an_error(steps: Any, scheme: str, message: str):
    with pytest.raises(QuantizationError, match=message):
        MADE.load().quantize(steps, scheme=scheme, data=MADE.feeds())


@pytest.mark.parametrize(
    ("steps", "scheme", "reason"),
    [
        ([OliVe()], "W4A16", "OliVe makes pairs, Wovp4, and the scheme asks for uint4"),
        ([OliVe()], "W4A8-static", "OliVe makes pairs, Aovp4, and the scheme asks for"),
        ([GPTQ()], "Wovp4Aovp4", "columns of ovp4 cannot be rounded one after the other"),
        ([QuantEase()], "Wovp4A16", "columns of ovp4 cannot be rounded one after the other"),
        ([RowGroups(2)], "W4A16-g16", "not both"),
        ([OliVe(), QuantEase()], "Wovp4Aovp4", "columns of ovp4 cannot be rounded one after the other"),
    ],
    ids=str,
)
def test_a_step_that_has_no_codes_for_a_scheme_leaves_all_as_it_was(steps: Any, scheme: str, reason: str):
    """Also what the layers read: no range stays before a layer that stays float."""
    model = MADE.load(threads=1)
    left = model.quantize(steps, scheme=scheme, data=MADE.feeds())
    assert not left.report.layers
    assert sum(reason in row.reason for row in left.report.skipped) == 8
    for name, array in model.run(FEED).items():
        assert_same_bits(left.run(FEED)[name], array)
    with pytest.raises(QuantizationError, match="strict=True and 8 layers cannot be quantized"):
        model.quantize(steps, scheme=scheme, data=MADE.feeds(), strict=True)


def test_a_scheme_of_float_weights_changes_nothing_but_caches():
    model = MADE.load(threads=1)
    left = model.quantize("GPTQ", scheme=Scheme(None), data=MADE.feeds())
    assert {row.reason for row in left.report.skipped} >= {"the scheme leaves its weights float"}
    assert not left.report.layers
    cached = model.quantize(scheme=Scheme(None, cache=UINT8))
    assert len(cached.report.caches) == 2
    with pytest.raises(QuantizationError, match="got float; write A16"):
        Scheme(None, Inputs())


def rounding_nodes(model: qruntime.Model) -> int:
    return sum(node.is_op("QuantizeLinear") or node.op_type == "OutlierVictimPairs" for node in model.graph.nodes)


@pytest.mark.parametrize("first", ["SmoothQuant", "RPTQ", "OliVe", "Outlier Suppression+"])
def test_ranges_of_an_earlier_call_go_with_its_codes(first: str, tmp_path: Path):
    """A layer that is quantized again reads what it read before activations were static, from a file too."""
    scheme = recipes[first].scheme
    model = quantized(first, scheme)
    assert rounding_nodes(model) == 5
    model.save(tmp_path / "first.onnx")
    for one in (model, qruntime.load(tmp_path / "first.onnx")):
        assert rounding_nodes(one.quantize("RTN", scheme="W8A16")) == 0
        again = one.quantize(first, scheme=scheme, data=MADE.feeds())
        assert rounding_nodes(again) == 5
        assert rounding_nodes(one.quantize("RTN", scheme="W8A16", exclude=["*/down"])) == 1


@pytest.mark.parametrize("name", NAMES)
def test_quantized_again_it_stays_a_model(name: str):
    scheme = recipes[name].scheme.replace("-g128", "-g16").replace("-g256", "-g32")
    once = quantized(name, scheme)
    twice = once.quantize(name, scheme=scheme, data=MADE.feeds())
    assert [row.name for row in twice.report.layers] == [row.name for row in once.report.layers]
    assert all(row.source != "float" for row in twice.report.layers)
    assert loss(once) < 0.3
    assert loss(twice) < 1.5 * loss(once)


def test_steps_that_change_nothing_say_why():
    again = quantized((SmoothQuant(), OutlierSuppressionPlus()), "W8A8-static").quantize("SmoothQuant", scheme="W8A8", data=MADE.feeds())
    assert all(row.facts[0]["SmoothQuant"] == "its weight can follow no change of what it reads" for row in again.report.layers)
