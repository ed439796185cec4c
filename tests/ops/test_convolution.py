"""Conv and its kin against loops over every output element, and what they answer to bad input."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qruntime.ops.convolution import col2im, conv, conv_integer, conv_transpose, qlinear_conv
from qruntime.ops.pooling import average_pool, max_pool, max_unpool
from qruntime.ops.windows import Window, window


def _loop_conv(x: np.ndarray, w: np.ndarray, group: int, win: Window) -> np.ndarray:
    """One multiplication at a time, in float64."""
    y = np.zeros((x.shape[0], w.shape[0], *win.output))
    per_in, per_out = w.shape[1], w.shape[0] // group
    for n, m in itertools.product(range(x.shape[0]), range(w.shape[0])):
        for position in np.ndindex(*win.output):
            for c in range(per_in):
                for tap in np.ndindex(*win.kernel):
                    at = [p * s - b + t * d for p, s, b, t, d in zip(position, win.strides, win.begin, tap, win.dilations, strict=True)]
                    if all(0 <= a < size for a, size in zip(at, x.shape[2:], strict=True)):
                        channel = m // per_out * per_in + c
                        y[(n, m, *position)] += float(x[(n, channel, *at)]) * float(w[(m, c, *tap)])
    return y


@st.composite
def _convolutions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    rank = draw(st.integers(1, 3))
    small = 3 if rank < 3 else 2
    group = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, small)) for _ in range(rank)]
    dilations = [draw(st.integers(1, 2)) for _ in range(rank)]
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = [draw(st.integers(e, e + small)) for e in extents]
    attributes: dict[str, Any] = {
        "group": group,
        "dilations": tuple(dilations),
        "strides": tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        "auto_pad": draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])),
    }
    if attributes["auto_pad"] == "NOTSET":
        attributes["pads"] = tuple(draw(st.integers(0, 3)) for _ in range(2 * rank))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    channels = draw(st.integers(1, 2))
    x = random.standard_normal((draw(st.integers(0, 2)), group * channels, *sizes)).astype(np.float32)
    w = random.standard_normal((group * draw(st.integers(1, 2)), channels, *kernel)).astype(np.float32)
    return x, w, attributes


def _window(x: np.ndarray, w: np.ndarray, attributes: dict[str, Any]) -> Window:
    geometry = {name: attributes.get(name) for name in ("strides", "dilations", "pads")}
    return window(x.shape[2:], w.shape[2:], auto_pad=attributes["auto_pad"], **geometry)


@settings(max_examples=60, deadline=None)
@given(_convolutions())
def test_conv_equals_loops(case: tuple[np.ndarray, np.ndarray, dict[str, Any]]) -> None:
    x, w, attributes = case
    expected = _loop_conv(x, w, attributes["group"], _window(x, w, attributes))
    bias = np.arange(w.shape[0], dtype=np.float32)
    actual = conv(x, w, bias, **attributes)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected + bias.reshape(-1, *(1,) * (x.ndim - 2)), rtol=1e-4, atol=1e-4, strict=False)
    assert actual.shape == expected.shape


@settings(max_examples=40, deadline=None)
@given(_convolutions(), st.integers(0, 255), st.integers(-128, 127))
def test_conv_integer_equals_loops(case: tuple[np.ndarray, np.ndarray, dict[str, Any]], x_zero: int, w_zero: int) -> None:
    x, w, attributes = case
    quantized = np.clip(x * 60 + 128, 0, 255).astype(np.uint8)
    weights = np.clip(w * 60, -128, 127).astype(np.int8)
    expected = _loop_conv(
        quantized.astype(np.int64) - x_zero,
        weights.astype(np.int64) - w_zero,
        attributes["group"],
        _window(x, w, attributes),
    )
    actual = conv_integer(quantized, weights, np.uint8(x_zero), np.int8(w_zero), **attributes)
    assert actual.dtype == np.int32
    np.testing.assert_array_equal(actual, expected.astype(np.int64))


@settings(max_examples=40, deadline=None)
@given(_convolutions())
def test_conv_transpose_is_the_adjoint_of_conv(case: tuple[np.ndarray, np.ndarray, dict[str, Any]]) -> None:
    """<conv(x, w), y> = <x, conv_transpose(y, w)> for every x and y."""
    x, w, attributes = case
    win = _window(x, w, attributes)
    attributes = {**attributes, "auto_pad": "NOTSET", "pads": (*win.begin, *win.end)}
    y = np.random.default_rng(1).standard_normal((x.shape[0], w.shape[0], *win.output)).astype(np.float32)
    strides = zip(win.output, win.strides, win.extents, win.begin, win.end, x.shape[2:], strict=True)
    rest = tuple(n + b + e - ((o - 1) * s + k) for o, s, k, b, e, n in strides)
    back = conv_transpose(y, w, output_padding=rest, **attributes)
    assert back.shape == x.shape
    forth = conv(x, w, **attributes)
    np.testing.assert_allclose(np.vdot(forth.astype(np.float64), y), np.vdot(x.astype(np.float64), back), rtol=1e-3, atol=1e-3)


def test_integer_sums_are_exact_where_float32_is_not() -> None:
    x = np.full((1, 2000, 1), 255, np.uint8)
    w = np.full((1, 2000, 1), 127, np.int8)
    w[0, 0, 0] = 126
    assert conv_integer(x, w).item() == 255 * 127 * 2000 - 255


def test_a_large_image_is_unfolded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 4, 9, 7)).astype(np.float32)
    w = random.standard_normal((6, 2, 3, 3)).astype(np.float32)
    whole = conv(x, w, group=2, pads=(1, 1, 1, 1))
    monkeypatch.setattr("qruntime.ops.convolution.COLUMN_ELEMENTS", 1)
    np.testing.assert_allclose(conv(x, w, group=2, pads=(1, 1, 1, 1)), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "needed"),
    [
        ({"strides": (0, 1)}, "strides must be at least 1"),
        ({"dilations": (1, 0)}, "dilations must be at least 1"),
        ({"strides": (1,)}, "strides must have 2 values"),
        ({"pads": (1, 1)}, "pads must have 4 values"),
        ({"pads": (-1, 0, 0, 0)}, "pads must be at least 0"),
        ({"pads": (2**40, 0, 0, 0)}, "more than .* elements"),
        ({"dilations": (2**40, 1)}, "the kernel reaches over"),
        ({"group": 0}, "group 0 must divide"),
        ({"group": 3}, "group 3 must divide"),
        ({"group": 2}, "W must have 2 input channels"),
        ({"kernel_shape": (2, 2)}, "kernel_shape"),
        ({"auto_pad": "SOMETIMES"}, "auto_pad must be one of"),
    ],
)
def test_conv_refuses(attributes: dict[str, Any], needed: str) -> None:
    x, w = np.zeros((1, 4, 5, 5), np.float32), np.zeros((2, 4, 3, 3), np.float32)
    with pytest.raises(ValueError, match=needed):
        conv(x, w, **attributes)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, w = np.zeros((1, 4, 5, 5), np.float32), np.zeros((2, 4, 3, 3), np.float32)
    with pytest.raises(ValueError, match="rank 3 or more"):
        conv(x[0, 0], w)
    with pytest.raises(ValueError, match="rank of X"):
        conv(x, w[..., 0])
    with pytest.raises(ValueError, match=r"B must have the shape \(2,\)"):
        conv(x, w, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="channels first"):
        conv_transpose(x, w)
    with pytest.raises(ValueError, match="not negative"):
        conv_transpose(x, w.reshape(4, 2, 3, 3), pads=(9, 9, 9, 9))
    with pytest.raises(ValueError, match="input must have the shape"):
        col2im(np.zeros((1, 5, 4), np.float32), np.array([4, 4]), np.array([2, 2]))
    one, zero = np.float32(1), np.uint8(0)
    with pytest.raises(ValueError, match="w_scale must have 1 or 2 values"):
        qlinear_conv(x.astype(np.uint8), one, zero, w.astype(np.uint8), np.ones(3, "f4"), zero, one, zero)


def test_pooling_of_nan_and_of_padding() -> None:
    x = np.array([[[1.0, np.nan, -np.inf, -np.inf]]], np.float32)
    y, at = max_pool(x, kernel_shape=(2,), strides=(2,), num_outputs=2)
    np.testing.assert_array_equal(y, max_pool(x, kernel_shape=(2,), strides=(2,)))
    assert np.isnan(y[0, 0, 0])
    assert at.tolist() == [[[1, 2]]]
    padded = max_pool(np.full((1, 1, 2), -5, np.int8), kernel_shape=(2,), pads=(1, 1))
    assert padded.tolist() == [[[-5, -5, -5]]]
    mean = average_pool(np.ones((1, 1, 3), np.float32), kernel_shape=(2,), strides=(2,), ceil_mode=1)
    assert mean.tolist() == [[[1.0, 1.0]]]


def test_unpooling_refuses_positions_outside() -> None:
    x = np.ones((1, 1, 2), np.float32)
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 3\]"):
        max_unpool(x, np.array([[[0, 4]]]), kernel_shape=(2,), strides=(2,))
