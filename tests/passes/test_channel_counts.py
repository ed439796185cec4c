"""Channels that a graph asks of the shape of a convolved image become constants; whatever else it asks stays."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.passes.channel_counts import fold_channel_counts
from tests.passes.lowering import after, model

F32 = np.float32
X = {"x": np.linspace(-1, 1, 2 * 3 * 6 * 5, dtype=F32).reshape(2, 3, 6, 5)}
W = {
    "w": np.linspace(-1, 1, 8 * 3 * 9, dtype=F32).reshape(8, 3, 3, 3),
    "one": np.asarray([1]),
    "second": np.asarray(1),
    "two": np.asarray([2]),
    "last": np.asarray([-3]),
    "both": np.asarray([1, 2]),
    "half": np.asarray(0.5, F32),
    "grows": np.ones((1, 1, 1, 4, 3), F32),
}
CONV = ("Conv", ["x", "w"], ["h"], {})


def counts(nodes, opset=17):
    """Operators that are left for a shape y read as floats."""
    read = [CONV, *nodes, ("Cast", ["c"], ["y"], {"to": 1})]
    return after(fold_channel_counts, model(read, X, ["y"], W, opset).graph, X)


@pytest.mark.parametrize("index", ["one", "second", "last"])
def test_channels_are_a_constant(index):
    assert counts([("Shape", ["h"], ["s"], {}), ("Gather", ["s", index], ["c"], {})])["Gather"] == 0


@pytest.mark.parametrize(
    "between",
    [
        [("Relu", ["h"], ["r"], {})],
        [("Sigmoid", ["h"], ["g"], {}), ("Mul", ["h", "g"], ["r"], {})],
        [("MaxPool", ["h"], ["p"], {"kernel_shape": [2, 2]}), ("Mul", ["p", "half"], ["r"], {})],
    ],
)
def test_channels_are_kept_by(between):
    assert counts([*between, ("Shape", ["r"], ["s"], {}), ("Gather", ["s", "one"], ["c"], {})])["Gather"] == 0


@pytest.mark.parametrize("index", ["two", "both"])
def test_sizes_stay(index):
    assert counts([("Shape", ["h"], ["s"], {}), ("Gather", ["s", index], ["c"], {})])["Gather"] == 1


def test_what_may_have_another_rank_stays():
    nodes = [("Mul", ["h", "grows"], ["r"], {}), ("Shape", ["r"], ["s"], {}), ("Gather", ["s", "one"], ["c"], {})]
    assert counts(nodes)["Gather"] == 1


def test_a_part_of_a_shape_stays():
    assert counts([("Shape", ["h"], ["s"], {"start": 1}), ("Gather", ["s", "one"], ["c"], {})])["Gather"] == 1
