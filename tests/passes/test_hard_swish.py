"""HardSigmoid and HardSwish of mobile networks become one node; other slopes and bounds stay."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.passes.hard_swish import fuse_hard_swish
from tests.passes.lowering import after, model, reasons

X = {"x": np.linspace(-5, 5, 36, dtype=np.float32).reshape(6, 6)}
NUMBERS = {"zero": np.float32(0), "three": np.float32(3), "six": np.float32(6), "sixth": np.float32(1 / 6)}
SHIFT = ("Add", ["x", "three"], ["s"], {})
CLIP = ("Clip", ["s", "zero", "six"], ["c"], {})


def ops(nodes, outputs=("y",), opset=17, inputs=X, **changed):
    return after(fuse_hard_swish, model(nodes, inputs, outputs, NUMBERS | changed, opset).graph, inputs)


@pytest.mark.parametrize("last", [("Div", ["c", "six"]), ("Mul", ["c", "sixth"]), ("Mul", ["sixth", "c"])])
@pytest.mark.parametrize("opset", [10, 17])
def test_hard_sigmoid(last, opset):
    clip = CLIP if opset > 10 else ("Clip", ["s"], ["c"], {"min": 0.0, "max": 6.0})
    assert ops([SHIFT, clip, (*last, ["y"], {})], opset=opset) == {"HardSigmoid": 1}


@pytest.mark.parametrize("last", [("Div", ["p", "six"]), ("Mul", ["p", "sixth"])])
def test_hard_swish_of_a_clip(last):
    assert ops([SHIFT, CLIP, ("Mul", ["c", "x"], ["p"], {}), (*last, ["y"], {})]) == {"HardSwish": 1}


def test_hard_swish_of_what_was_a_clip_by_six():
    assert ops([SHIFT, CLIP, ("Div", ["c", "six"], ["g"], {}), ("Mul", ["x", "g"], ["y"], {})]) == {"HardSwish": 1}


def test_hard_swish_of_a_gate():
    gate = ("HardSigmoid", ["x"], ["g"], {"alpha": 1 / 6, "beta": 0.5})
    assert ops([gate, ("Mul", ["g", "x"], ["y"], {})]) == {"HardSwish": 1}


@pytest.mark.parametrize("attributes", [{}, {"alpha": 1 / 6, "beta": 0.4}, {"alpha": 0.25, "beta": 0.5}])
def test_another_gate_is_named(attributes, capsys, monkeypatch):
    monkeypatch.setenv("QRUNTIME_TRACE", "passes")
    found = ops([("HardSigmoid", ["x"], ["g"], attributes), ("Mul", ["x", "g"], ["y"], {})])
    assert found == {"HardSigmoid": 1, "Mul": 1}
    (reason,) = reasons(capsys)
    assert "FuseHardSwish declines at Mul 'y': the gate is clip(" in reason


def test_other_bounds_stay():
    assert ops([SHIFT, CLIP, ("Div", ["c", "six"], ["y"], {})], three=np.float32(2))["Clip"] == 1
    assert ops([SHIFT, CLIP, ("Div", ["c", "six"], ["y"], {})], zero=np.float32(-1))["Clip"] == 1


@pytest.mark.parametrize("read", ["s", "c", "p"])
def test_parts_that_others_read_stay(read):
    nodes = [SHIFT, CLIP, ("Mul", ["x", "c"], ["p"], {}), ("Div", ["p", "six"], ["y"], {})]
    assert ops(nodes, ("y", read))["HardSwish"] == 0


def test_narrow_floats_keep_the_roundings_in_between():
    gate = ("HardSigmoid", ["h"], ["g"], {"alpha": 1 / 6, "beta": 0.5})
    nodes = [("Cast", ["x"], ["h"], {"to": 10}), gate, ("Mul", ["h", "g"], ["z"], {}), ("Cast", ["z"], ["y"], {"to": 1})]
    assert after(fuse_hard_swish, model(nodes, X, ["y"]).graph, X, rtol=0, atol=0)["HardSwish"] == 0
