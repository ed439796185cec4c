"""Convolution against float64 numpy, on every rung."""

import itertools
from typing import Any

import numpy as np
import pytest

import qruntime  # noqa: F401 (puts a rung in force)
from qruntime import _kernels

pytestmark = pytest.mark.usefixtures("rung")

EPS = float(np.finfo(np.float32).eps)
NONE, RELU = 0, 1
AUTO = {"NOTSET": 0, "SAME_UPPER": 1, "SAME_LOWER": 2}


def conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    group: int = 1,
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    activation: int = NONE,
    auto_pad: str = "NOTSET",
    threads: int = 1,
    packed: object = (),
) -> np.ndarray | None:
    r = x.ndim - 2
    strides, dilations, pads = strides or [1] * r, dilations or [1] * r, pads or [0] * (2 * r)
    ints = [r, group, activation, AUTO[auto_pad], *strides, *pads, *dilations]
    result = _kernels.call_node("conv", [x, w] + ([] if b is None else [b]), ints, packed=packed, num_threads=threads)
    return None if result is None else result[0]


def expected(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    group: int = 1,
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
) -> np.ndarray:
    """Sum over taps of strided slices of the padded image, in float64."""
    r = x.ndim - 2
    strides, dilations, pads = strides or [1] * r, dilations or [1] * r, pads or [0] * (2 * r)
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *zip(pads[:r], pads[r:], strict=True)])
    out = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], w.shape[2:], dilations, strides, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    maps, channels = w.shape[0] // group, w.shape[1]
    for tap in itertools.product(*map(range, w.shape[2:])):
        window = tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilations, out, strides, strict=True))
        for g in range(group):
            part = x[(slice(None), slice(g * channels, (g + 1) * channels), *window)]
            weight = w[(slice(g * maps, (g + 1) * maps), slice(None), *tap)].astype(np.float64)
            y[:, g * maps : (g + 1) * maps] += np.einsum("mc,nc...->nm...", weight, part)
    return y if b is None else y + b.reshape(-1, *[1] * r)


def check(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    activation: int = NONE,
    threads: int = 1,
    **attributes: Any,
) -> np.ndarray:
    got, reference = (
        conv(x, w, b, activation=activation, threads=threads, **attributes),
        expected(x, w, b, **attributes),
    )
    if activation == RELU:
        reference = np.maximum(reference, 0)
    k = int(np.prod(w.shape[1:]))
    largest = np.abs(x).max(initial=0) * np.abs(w).max(initial=0) + (0 if b is None else np.abs(b).max(initial=0))
    np.testing.assert_allclose(got, reference, rtol=0, atol=4 * EPS * np.sqrt(max(1, k)) * max(1.0, largest))
    assert got.dtype == np.float32
    return got


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("length", [3, 4, 15, 16, 17, 33, 100])
@pytest.mark.parametrize(("stride", "pads", "dilation"), [(1, [0, 0], 1), (2, [1, 2], 1), (3, [0, 1], 2), (1, [4, 4], 1)])
def test_one_dimension(length: int, stride: int, pads: list[int], dilation: int) -> None:
    rng = np.random.default_rng(length)
    if length + sum(pads) < 2 * dilation + 1:
        pads = [2, 2]
    for c, m in ((1, 1), (3, 7), (16, 20)):
        check(
            random(rng, 2, c, length),
            random(rng, m, c, 3),
            random(rng, m),
            strides=[stride],
            pads=pads,
            dilations=[dilation],
        )


@pytest.mark.parametrize("size", [(5, 5), (7, 16), (16, 17), (30, 9)])
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 1), (1, 2)])
def test_two_dimensions(size: tuple[int, int], window: tuple[int, int], strides: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(size))
    for group, channels, maps in ((1, 5, 8), (2, 4, 6), (3, 3, 3), (3, 3, 6), (1, 1, 13)):
        x, w, b = random(rng, 2, channels, *size), random(rng, maps, channels // group, *window), random(rng, maps)
        for pads in ([0, 0, 0, 0], [1, 2, 0, 1]):
            check(x, w, b, group=group, strides=list(strides), pads=pads)
            check(x, w, activation=RELU, group=group, strides=list(strides), pads=pads)


@pytest.mark.parametrize("dilations", [(1, 1, 1), (2, 1, 2)])
def test_three_dimensions(dilations: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, w = random(rng, 1, 4, 6, 7, 8), random(rng, 6, 2, 2, 3, 2)
    check(x, w, group=2, strides=[1, 2, 1], pads=[1, 0, 1, 0, 2, 1], dilations=list(dilations))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [5, 8])
def test_auto_pad(auto_pad: str, stride: int, size: int) -> None:
    rng = np.random.default_rng(1)
    x, w = random(rng, 1, 2, size, size), random(rng, 3, 2, 4, 4)
    total = max(0, (-(-size // stride) - 1) * stride + 4 - size)
    begin = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
    pads = [begin, begin, total - begin, total - begin]
    got = conv(x, w, strides=[stride] * 2, auto_pad=auto_pad)
    np.testing.assert_array_equal(got, conv(x, w, strides=[stride] * 2, pads=pads))
    assert got.shape[2:] == (-(-size // stride),) * 2


@pytest.mark.parametrize(("channels", "size", "maps"), [(64, 20, 64), (200, 10, 40), (1100, 3, 30)])
def test_depths_beyond_one_block(channels: int, size: int, maps: int) -> None:
    rng = np.random.default_rng(2)
    check(
        random(rng, 1, channels, size, size),
        random(rng, maps, channels, 3, 3),
        random(rng, maps),
        pads=[1, 1, 1, 1],
        activation=RELU,
    )


@pytest.mark.parametrize("kind", ["dense", "grouped", "depthwise", "pointwise"])
def test_does_not_depend_on_batch_nor_threads(kind: str) -> None:
    rng = np.random.default_rng(3)
    group = {"grouped": 4, "depthwise": 24}.get(kind, 1)
    window = 1 if kind == "pointwise" else 3
    x, w = random(rng, 3, 24, 30, 31), random(rng, 48, 24 // group, window, window)
    together = conv(x, w, group=group)
    for threads in (2, 3):
        np.testing.assert_array_equal(conv(x, w, group=group, threads=threads), together)
    for i in range(3):
        np.testing.assert_array_equal(conv(x[i : i + 1], w, group=group)[0], together[i])


def test_positions_do_not_depend_on_the_size_of_the_image() -> None:
    rng = np.random.default_rng(4)
    x, w = random(rng, 1, 8, 70), random(rng, 20, 8, 3)
    whole = conv(x, w)
    for length in (3, 4, 9, 18, 40):
        np.testing.assert_array_equal(conv(np.ascontiguousarray(x[:, :, :length]), w), whole[:, :, : length - 2])


@pytest.mark.parametrize("positions", [1, 2, 4, 6, 7])
def test_few_positions_with_packed_weights(positions: int) -> None:
    rng = np.random.default_rng(5)
    x, w, b = random(rng, 2, 30, positions), random(rng, 50, 30, 3), random(rng, 50)
    packed = [_kernels.PackedF32(w.reshape(50, 90).T)]
    for threads in (1, 3):
        got = conv(x, w, b, pads=[1, 1], activation=RELU, packed=packed, threads=threads)
        np.testing.assert_array_equal(got, conv(x, w, b, pads=[1, 1], activation=RELU))


def test_a_nan_spreads_over_its_windows_only() -> None:
    x = np.ones((1, 1, 9, 9), np.float32)
    x[0, 0, 4, 4] = np.nan
    y = conv(x, np.ones((2, 1, 3, 3), np.float32), pads=[1, 1, 1, 1])
    where = np.zeros((9, 9), bool)
    where[3:6, 3:6] = True
    np.testing.assert_array_equal(np.isnan(y[0, 0]), where)


def test_sizes_of_zero() -> None:
    zeros = np.zeros
    assert conv(zeros((0, 2, 5), "f"), zeros((3, 2, 3), "f")).shape == (0, 3, 3)
    assert conv(zeros((1, 2, 5), "f"), zeros((0, 2, 3), "f")).shape == (1, 0, 3)
    b = np.arange(3, dtype="f")
    np.testing.assert_array_equal(conv(zeros((1, 0, 5), "f"), zeros((3, 0, 3), "f"), b), np.broadcast_to(b[:, None], (1, 3, 3)))
    np.testing.assert_array_equal(conv(zeros((1, 2, 0), "f"), np.ones((3, 2, 2), "f"), pads=[1, 1]), zeros((1, 3, 1)))


def test_declines_what_does_not_fit() -> None:
    x, w = np.zeros((1, 4, 5, 5), "f"), np.zeros((6, 4, 3, 3), "f")
    assert conv(x, w) is not None
    assert conv(x.astype(np.float64), w) is None
    assert conv(x, w, group=2) is None
    assert conv(x, w, group=0) is None
    assert conv(x, w, np.zeros(5, "f")) is None
    assert conv(x, w, strides=[0, 1]) is None
    assert conv(x, w, dilations=[1, -1]) is None
    assert conv(x, w, dilations=[3, 3]) is None
    assert conv(x, w, pads=[-1, 0, 0, 0]) is None
    assert conv(x, w, pads=[2**62, 0, 2**62, 0]) is None
    assert conv(x, w, dilations=[2**62, 1]) is None
    assert conv(x, w[:, :, 0]) is None
    assert conv(np.zeros((1, 4, 2, 5), "f"), w) is None
    assert conv(x, w, activation=99) is None
