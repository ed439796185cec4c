"""Winograd's products: where they take the place of convolutions in blocks, where not, and how to go without."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from onnx import helper

import qruntime
from qruntime.passes import pipeline
from qruntime.passes.winograd import multiply_less
from qruntime.runtime.segments import Frontier, Segment
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random


def two_convolutions(channels: int = 40, window: tuple[int, int] = (3, 3), **attributes: Any) -> bytes:
    """Each as the other; the first one reads what is not in blocks yet."""
    weights = {
        name: random(channels, channels // int(attributes.get("group", 1)), *window, seed=seed) for seed, name in enumerate(("v", "w"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["h"], **attributes),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"], **attributes),
    ]
    return model_bytes(nodes, [("x", FLOAT, [None, channels, None, None])], [("y", FLOAT, None)], weights)


def kinds(model: qruntime.Model) -> list[str]:
    graph = pipeline.lowered(qruntime.ir.clone(model.graph))
    return [node.attr("kind") for node in graph.nodes if node.op_type == "BlockedConv"]


def test_windows_of_3_by_3_are_made_with_fewer_products():
    model = qruntime.load(two_convolutions(pads=[1, 1, 1, 1]))
    assert kinds(model) == ["winograd", "winograd"]
    x = random(2, 40, 9, 11, seed=3)
    exact = qruntime.load(two_convolutions(pads=[1, 1, 1, 1]), exact=True)
    np.testing.assert_allclose(model(x), exact(x), rtol=0, atol=1e-5 * np.abs(exact(x)).max())
    assert_same_bits(model(x)[1:], model(x[1:]))


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"strides": [2, 2]}, "its windows have strides or dilations"),
        ({"dilations": [1, 2]}, "its windows have strides or dilations"),
        ({"window": (1, 3)}, "its windows are not of 3 × 3"),
        ({"channels": 64, "group": 2}, "its channels are in groups"),
        ({"channels": 24}, "24 channels are too few"),
    ],
)
def test_it_declines(attributes: dict, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setenv("QRUNTIME_TRACE", "passes")
    model = qruntime.load(two_convolutions(**attributes))
    assert "winograd" not in kinds(model)
    assert why in capsys.readouterr().err


def test_exact_goes_without():
    model = qruntime.load(two_convolutions(), exact=True)
    assert kinds(model) == ["blocks", "blocks"]
    assert multiply_less in pipeline.SHORTER <= set(pipeline.LOWERED)


@pytest.mark.parametrize("exact", [False, True])
def test_what_calibration_sees_is_as_exact(exact: bool):
    model, x = qruntime.load(two_convolutions(pads=[1, 1, 1, 1]), exact=exact), random(1, 40, 9, 9, seed=3)
    graph = model.graph
    segment = Segment(graph, graph.inputs, graph.outputs, num_threads=1, lower=True)
    assert_same_bits(segment.run({graph.inputs[0]: x})[graph.outputs[0]], model(x))
    (walked,) = Frontier(graph, [{graph.inputs[0]: x}], num_threads=1, lower=True).finish()
    assert_same_bits(walked[0], model(x))


def test_exact_stays_with_copies(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(two_convolutions())
    x = random(1, 40, 9, 9, seed=3)
    for source in (str(path), path.read_bytes()):
        model = qruntime.load(source, exact=True)
        assert pickle.loads(pickle.dumps(model)).exact
        assert_same_bits(pickle.loads(pickle.dumps(model))(x), model(x))
        assert model.quantize_dynamic({"Linear"}).exact
    assert not np.array_equal(qruntime.load(path)(x), model(x))
