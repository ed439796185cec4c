"""Zeros that a Pad puts around an image become pads of the convolution; whatever else it does stays."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.passes.padding import fold_padding
from tests.passes.lowering import after, as_loaded, model

RNG = np.random.default_rng(0)
SOUND = {"x": RNG.standard_normal((2, 3, 17), dtype=np.float32)}
IMAGE = {"x": RNG.standard_normal((2, 3, 9, 8), dtype=np.float32)}
W1 = RNG.standard_normal((4, 3, 3), dtype=np.float32)
W2 = RNG.standard_normal((4, 3, 3, 2), dtype=np.float32)
PAD = ("Pad", ["x", "pads"], ["p"], {})
CONV = ("Conv", ["p", "w"], ["y"], {})


def ops(inputs, weight, pads, pad=PAD, conv=CONV, *more, outputs=("y",), opset=18, **constants):
    constants = {"w": weight} | ({} if pads is None else {"pads": np.array(pads)}) | constants
    return after(fold_padding, model([pad, conv, *more], inputs, outputs, constants, opset).graph, inputs)


@pytest.mark.parametrize("pads", [[0, 0, 2, 0, 0, 0], [0, 0, 0, 0, 0, 5], [0, 0, 4, 0, 0, 9]])
@pytest.mark.parametrize("attributes", [{}, {"pads": [1, 0]}, {"dilations": [2], "strides": [2]}])
def test_one_axis(pads, attributes):
    assert ops(SOUND, W1, pads, conv=("Conv", ["p", "w"], ["y"], attributes)) == {"Conv": 1}


def test_two_axes_with_bias():
    conv, bias = ("Conv", ["p", "w", "b"], ["y"], {}), np.arange(4, dtype=np.float32)
    assert ops(IMAGE, W2, [0, 0, 1, 2, 0, 0, 3, 0], conv=conv, b=bias) == {"Conv": 1}


def test_axes_are_named():
    pad = ("Pad", ["x", "pads", "", "axes"], ["p"], {})
    assert ops(IMAGE, W2, [1, 2, 3, 4], pad, axes=np.array([-1, 2])) == {"Conv": 1}


def test_zero_is_given():
    assert ops(SOUND, W1, [0, 0, 2, 0, 0, 0], ("Pad", ["x", "pads", "zero"], ["p"], {}), zero=np.float32(0)) == {"Conv": 1}


def test_pads_are_attributes():
    assert ops(SOUND, W1, None, ("Pad", ["x"], ["p"], {"pads": [0, 0, 2, 0, 0, 1]}), opset=10) == {"Conv": 1}


def test_what_else_reads_the_pad_keeps_it():
    relu = ("Relu", ["p"], ["z"], {})
    assert ops(SOUND, W1, [0, 0, 2, 0, 0, 0], PAD, CONV, relu, outputs=("y", "z")) == {"Conv": 1, "Pad": 1, "Relu": 1}


@pytest.mark.parametrize(
    "pads",
    [[0, 0, -1, 0, 0, 2], [0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]],
    ids=["cuts", "channels before", "batches", "channels behind"],
)
def test_declines_other_places(pads):
    weight = RNG.standard_normal((4, 4 if pads[1] or pads[4] else 3, 3), dtype=np.float32)
    assert ops(SOUND, weight, pads) == {"Conv": 1, "Pad": 1}


@pytest.mark.parametrize(
    ("pad", "constants"),
    [
        (("Pad", ["x", "pads", "one"], ["p"], {}), {"one": np.float32(1)}),
        (("Pad", ["x", "pads"], ["p"], {"mode": "reflect"}), {}),
        (("Pad", ["x", "pads"], ["p"], {"mode": "edge"}), {}),
    ],
    ids=["ones", "reflect", "edge"],
)
def test_declines_what_is_no_zero(pad, constants):
    assert ops(SOUND, W1, [0, 0, 2, 0, 0, 1], pad, **constants) == {"Conv": 1, "Pad": 1}


def test_declines_pads_found_by_the_size():
    assert ops(SOUND, W1, [0, 0, 2, 0, 0, 0], conv=("Conv", ["p", "w"], ["y"], {"auto_pad": "SAME_UPPER"})) == {"Conv": 1, "Pad": 1}


def test_declines_weights_that_make_nan_of_padding():
    weight = W1.copy()
    weight[0, 0, 0] = np.inf
    graph = as_loaded(model([PAD, CONV], SOUND, ["y"], {"w": weight, "pads": np.array([0, 0, 2, 0, 0, 0])}, 18).graph)
    fold_padding(graph)
    assert [node.op_type for node in graph.nodes] == ["Pad", "Conv"]


def test_runs_with_pads_wider_than_the_window():
    net = model([PAD, CONV], SOUND, ["y"], {"w": W1, "pads": np.array([0, 0, 8, 0, 0, 7])}, 18)
    padded = np.pad(SOUND["x"], ((0, 0), (0, 0), (8, 7)))
    expected = sum(np.einsum("oc,bcl->bol", W1[:, :, t], padded[:, :, t : t + 30]) for t in range(3))
    np.testing.assert_allclose(net.run(SOUND)["y"], expected, rtol=1e-5, atol=1e-5)
