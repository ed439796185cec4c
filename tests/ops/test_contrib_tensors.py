"""Arranging, sampling and multiplying operators of ONNX Runtime: edges, and inputs that do not fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qruntime.errors import QRuntimeError
from tests.ops.one_node import close, floats, run


def int64(*values):
    return np.array(values, np.int64)


def old(op, *inputs, **attributes):
    return run(op, list(inputs), domain="", opset=9, **attributes)


def test_operators_that_onnx_withdrew():
    x, image = floats(3, 4), floats(2, 3, 6, 5)
    close(old("Affine", x, alpha=2.0, beta=-1.0), 2 * x - 1)
    close(old("Scale", x, scale=0.5), x / 2)
    close(old("ScaledTanh", x, alpha=2.0, beta=0.5), 2 * np.tanh(x / 2))
    close(old("ParametricSoftplus", np.float32([-500, 0, 500]), alpha=2.0, beta=1.0), [0, 2 * np.log(2), 1000])
    close(old("ImageScaler", image, scale=2.0, bias=[1.0, 2.0, 3.0]), 2 * image + np.float32([1, 2, 3])[:, None, None])
    assert np.array_equal(old("Crop", image, border=[1, 0, 2, 3]), image[:, :, :3, 1:3])
    assert np.array_equal(old("Crop", image, border=[1, 2, 0, 0], scale=[3, 2]), image[:, :, 2:5, 1:3])
    assert np.array_equal(old("DynamicSlice", x, int64(1, 0), int64(3, -1)), x[1:3, :-1])
    assert np.array_equal(run("MemcpyToHost", [x], domain=""), x)


@pytest.mark.parametrize(
    ("op", "attributes", "message"),
    [
        ("ScaledTanh", {"alpha": 1.0}, "attribute 'beta'.*is missing"),
        ("ImageScaler", {"bias": [1.0]}, "each of the 3 channels"),
        ("Crop", {"border": [0, 0, 9, 0]}, "must lie in an image"),
        ("Crop", {"border": [0, -1, 0, 0]}, "none negative"),
        ("Crop", {"border": [0, 0, 0, 0], "scale": [7, 1]}, "must lie in an image"),
    ],
)
def test_withdrawn_operators_say_what_does_not_fit(op, attributes, message):
    with pytest.raises(QRuntimeError, match=message):
        old(op, floats(2, 3, 6, 5), **attributes)


def test_arranging():
    x = floats(4, 5)
    assert run("ExpandDims", [x, np.array(-1, np.int32)]).shape == (4, 5, 1)
    assert np.array_equal(run("UnfoldTensor", [x], size=2, dim=0, step=2)[1, 3], x[2:4, 3])
    assert np.array_equal(run("Range", [np.array([5.0]), np.array([1.0]), np.array([-2.0])]), [5, 3])
    assert np.array_equal(run("Range", [np.array(2, np.int16), np.array(5, np.int16)]), [2, 3, 4])
    values, places, counts = run("Unique", [np.float32([2, 1, 1, np.nan, 2, np.nan])], outputs=3)
    np.testing.assert_array_equal(values, np.float32([2, 1, np.nan, np.nan]))
    assert places.tolist() == [0, 1, 1, 2, 0, 3]
    assert counts.tolist() == [2, 2, 1, 1]
    for inputs, attributes in (([x], {"size": 6}), ([x], {"size": 0}), ([x], {"size": 1, "step": 0}), ([x], {"size": 1, "dim": 2})):
        with pytest.raises(QRuntimeError, match="UnfoldTensor"):
            run("UnfoldTensor", inputs, **attributes)


def test_a_zero_of_the_mask_ends_a_row_of_the_window():
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 6)
    mask = np.array([1, 1, 0, 1, 1, 0], np.int32).reshape(1, 1, 6)
    lowest = np.finfo(np.float32).min
    assert run("MaxpoolWithMask", [x, mask], kernel_shape=[2]).ravel().tolist() == [1, 1, lowest, 4, 4]
    with pytest.raises(QRuntimeError, match="mask must have the shape"):
        run("MaxpoolWithMask", [x, np.ones((1, 2, 6), np.int32)], kernel_shape=[2])


def test_crops_have_corners_on_corners():
    image = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    box, first, size = np.float32([[0, 0, 1, 1]]), np.zeros(1, np.int32), np.array([3, 4], np.int32)
    assert np.array_equal(run("CropAndResize", [image, box, first, size]), image)
    assert run("CropAndResize", [image, box, first, np.array([1, 1], np.int32)]).item() == 5.5
    outside = run("CropAndResize", [image, box + 2, first, size], extrapolation_value=-1.0)
    assert (outside == -1).all()
    assert run("CropAndResize", [image, np.zeros((0, 4), np.float32), first[:0], size]).shape == (0, 1, 3, 4)
    with pytest.raises(QRuntimeError, match=r"batch_indices must lie in \[0, 1\)"):
        run("CropAndResize", [image, box, first + 1, size])
    with pytest.raises(QRuntimeError, match="crop_size"):
        run("CropAndResize", [image, box, first, size * 0])


def cheapest(costs):
    """The lowest sum over all monotone paths, by trying them."""
    best = np.inf
    rows, columns = costs.shape
    for steps in itertools.product(((1, 1), (1, 0), (0, 1)), repeat=rows + columns - 2):
        i = j = 0
        total = costs[0, 0]
        for di, dj in steps:
            if (i, j) == (rows - 1, columns - 1):
                break
            i, j = i + di, j + dj
            if i >= rows or j >= columns:
                break
            total += costs[i, j]
        if (i, j) == (rows - 1, columns - 1):
            best = min(best, total)
    return best


def test_the_cheapest_path():
    costs = np.abs(floats(4, 3))
    path = run("DynamicTimeWarping", [costs])
    assert path[:, 0].tolist() == [0, 0]
    assert path[:, -1].tolist() == [3, 2]
    steps = np.diff(path, axis=1)
    assert ((steps >= 0) & (steps <= 1)).all()
    assert steps.any(axis=0).all()
    close(costs[tuple(path)].sum(), cheapest(costs))
    with pytest.raises(QRuntimeError, match="must not be empty"):
        run("DynamicTimeWarping", [costs[:0]])


def test_products_and_distances():
    a = np.full((1, 3), 32767, np.int16)
    assert run("MatMulInteger16", [a, a.T]).item() == 3 * 32767**2 - 2**32, "32 bits wrap around"
    x, y = floats(3, 4), floats(5, 4)
    expected = np.linalg.norm(x[:, None].astype(np.float64) - y, axis=2)
    close(run("CDist", [x, y], metric="euclidean"), expected)
    close(run("SparseToDenseMatMul", [x, y], transB=1, alpha=0.5), 0.5 * x @ y.T, atol=1e-5)
    with pytest.raises(QRuntimeError, match="metric"):
        run("CDist", [x, y], metric="cosine")
    with pytest.raises(QRuntimeError, match="int16"):
        run("MatMulInteger16", [a.astype(np.int32), a.T.astype(np.int32)])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_causal_convolution_goes_on_where_it_stopped(ndim):
    """Two calls that hand on the state give what one gives over all positions."""
    shape = (2, 3, *(4,) * (ndim - 1))
    whole, weight, bias = floats(*shape, 7), floats(3, 1, *(3,) * (ndim - 1), 2), floats(3)
    settings = {"ndim": ndim, "dilation": 2, "activation": "silu"}
    y, _ = run("CausalConvWithState", [whole, weight, bias], outputs=2, **settings)
    first, state = run("CausalConvWithState", [whole[..., :3], weight, bias], outputs=2, **settings)
    second, _ = run("CausalConvWithState", [whole[..., 3:], weight, bias, state], outputs=2, **settings)
    assert np.array_equal(np.concatenate([first, second], axis=-1), y)


def test_causal_convolution_keeps_the_last_states():
    x, weight, past = floats(1, 2, 3), floats(2, 1, 3), floats(4, 1, 2, 2)
    y, window = run("CausalConvWithState", [x, weight, None, past], outputs=2, state_window=4)
    history = np.concatenate([past[-1], x], axis=2)
    assert not window[0].any()
    for i in range(1, 4):
        assert np.array_equal(window[i], history[:, :, i : i + 2])
    expected = sum(weight[:, 0, t, None] * history[0, :, t : t + 3].astype(np.float64) for t in range(3))
    close(y[0], expected, atol=1e-6)
    wrong = {"state_length": 4}, {"dilation": 0}, {"ndim": 4}
    for attributes, message in zip(wrong, ("not supported", "positive dilation", "ndim 1, 2 or 3"), strict=True):
        with pytest.raises(QRuntimeError, match=message):
            run("CausalConvWithState", [x, weight], **attributes)
