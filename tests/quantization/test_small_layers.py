"""Layers that int8 does not make faster: named in the report, left float by faster_only."""

from __future__ import annotations

import numpy as np
import pytest

import qruntime
from tests.small_models import FLOAT, linear_bytes, one_node, random, recurrent_bytes


def conv_bytes(maps: int, channels: int, group: int) -> qruntime.Model:
    weights = {"w": random(maps, channels // group, 3, 3)}
    return one_node("Conv", [("x", FLOAT, [1, channels, 8, 8])], [("y", FLOAT, None)], weights, group=group)


LAYERS = {
    "linear 2×2": (lambda: qruntime.load(linear_bytes(2, 2)), "4096 weights or 32 outputs"),
    "linear 512×16": (lambda: qruntime.load(linear_bytes(512, 16)), "4096 weights or 32 outputs"),
    "linear 64×64": (lambda: qruntime.load(linear_bytes(64, 64)), None),
    "lstm 1→50": (lambda: qruntime.load(recurrent_bytes("LSTM", 1, 50)), None),
    "lstm 1→32": (lambda: qruntime.load(recurrent_bytes("LSTM", 1, 32)), "40 hidden units"),
    "gru 1→50": (lambda: qruntime.load(recurrent_bytes("GRU", 1, 50)), "64 hidden units"),
    "gru 8→64": (lambda: qruntime.load(recurrent_bytes("GRU", 8, 64)), None),
    "rnn 4→4, both directions": (lambda: qruntime.load(recurrent_bytes("RNN", 4, 4, directions=2)), "64 hidden units"),
    "conv 32→32": (lambda: conv_bytes(32, 32, 1), None),
    "conv 64→64 in 8 groups": (lambda: conv_bytes(64, 64, 8), "8192 weights a group"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_small_layers_are_named_or_left(name: str, tmp_path):
    make, reason = LAYERS[name]
    spec = {"Conv"} if name.startswith("conv") else None
    quantized = make().quantize_dynamic(spec)
    (layer,) = quantized.report.layers
    assert quantized.report.slower == ((layer.name,) if reason else ())
    assert ("faster_only=True" in quantized.summary()) == bool(reason)
    quantized.save(tmp_path / "q.onnx")
    assert qruntime.load(tmp_path / "q.onnx").report.slower == quantized.report.slower

    kept = make().quantize_dynamic(spec, faster_only=True, strict=True)
    assert kept.report.slower == ()
    assert len(kept.report.layers) == (0 if reason else 1)
    if reason:
        (skipped,) = kept.report.skipped
        assert skipped.reason == f"int8 is slower below {reason}, and faster_only=True"
        assert str(kept) == str(make())


def test_other_types_are_not_meant():
    halved = qruntime.load(linear_bytes(2, 2)).quantize_dynamic(dtype="float16", faster_only=True)
    assert len(halved.report.layers) == 1
    assert halved.report.slower == ()


def test_a_second_call_keeps_what_the_first_named():
    quantized = qruntime.load(linear_bytes(2, 2)).quantize_dynamic()
    assert quantized.quantize_dynamic(faster_only=True).report.slower == quantized.report.slower
    assert np.isfinite(quantized(random(3, 2))).all()
