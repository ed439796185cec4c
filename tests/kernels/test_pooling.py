"""Poolings: maxima exactly, means within rounding of a sum in another order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.native_call import run_definition, run_native

F32 = np.float32
EPS = np.finfo(F32).eps


def close(y: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> None:
    """Equal where not finite; else within `bound`."""
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(y[~finite], expected[~finite])
    difference = np.abs(y[finite].astype(np.float64) - expected[finite])
    assert (difference <= np.broadcast_to(bound, y.shape)[finite]).all(), difference.max()


@st.composite
def poolings(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, Any]]:
    rank = draw(st.integers(1, 3))
    attributes: dict[str, Any] = {
        "kernel_shape": tuple(draw(st.integers(1, 4)) for _ in range(rank)),
        "auto_pad": draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])),
        "ceil_mode": draw(st.integers(0, 1)),
    }
    if draw(st.booleans()):
        attributes["strides"] = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    if draw(st.booleans()):
        attributes["dilations"] = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    if attributes["auto_pad"] == "NOTSET" and draw(st.booleans()):
        attributes["pads"] = tuple(draw(st.integers(0, 5)) for _ in range(2 * rank))
    dims = (draw(st.integers(0, 2)), draw(st.integers(0, 3)), *(draw(st.integers(0, 12)) for _ in range(rank)))
    x = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).normal(size=dims).astype(F32)
    if x.size > 3 and draw(st.booleans()):
        x.flat[:3] = (np.nan, np.inf, -np.inf)
    return x, attributes


def agree(op: str, x: np.ndarray, taps: int, **attributes: Any) -> None:
    native = run_native(op, [x], **attributes)
    try:
        with np.errstate(all="ignore"):
            (expected,) = run_definition(op, [x], **attributes)
    except ValueError:
        assert native is None
        return
    if native is None:
        assert x.size == 0, "the kernel declined"
        return
    if op == "MaxPool":
        np.testing.assert_array_equal(native[0], expected)
    else:
        finite = np.abs(x[np.isfinite(x)])
        close(native[0], expected, 2 * taps * EPS * finite.max(initial=0) + 0.0)


@settings(max_examples=300)
@given(poolings())
def test_max_pool(case: tuple[np.ndarray, dict[str, Any]]) -> None:
    agree("MaxPool", case[0], 1, **case[1])


@settings(max_examples=300)
@given(poolings(), st.integers(0, 1))
def test_average_pool(case: tuple[np.ndarray, dict[str, Any]], count_include_pad: int) -> None:
    x, attributes = case
    agree("AveragePool", x, int(np.prod(attributes["kernel_shape"])), count_include_pad=count_include_pad, **attributes)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_planes_do_not_depend_on_neighbours_or_threads(op: str) -> None:
    x = np.random.default_rng(0).normal(size=(3, 16, 56, 57)).astype(F32)
    attributes = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
    (whole,) = run_native(op, [x], **attributes)
    for threads in (2, 3):
        np.testing.assert_array_equal(run_native(op, [x], num_threads=threads, **attributes)[0], whole)
    for n in range(3):
        np.testing.assert_array_equal(run_native(op, [x[n : n + 1, 5:6]], **attributes)[0], whole[n : n + 1, 5:6])


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 1, 1), (1, 3, 2)])
def test_volumes_do_not_depend_on_neighbours_or_threads(op: str, kernel: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(2, 6, 9, 30, 31)).astype(F32)
    attributes = {"kernel_shape": kernel, "pads": (*(k // 2 for k in kernel), *(k // 2 for k in kernel))}
    (whole,) = run_native(op, [x], **attributes)
    for threads in (2, 3):
        np.testing.assert_array_equal(run_native(op, [x], num_threads=threads, **attributes)[0], whole)
    np.testing.assert_array_equal(run_native(op, [x[1:, 5:6]], **attributes)[0], whole[1:, 5:6])


def test_refusals() -> None:
    x = np.zeros((1, 1, 4, 4), F32)
    for bad in ((5, 1), (2**40, 1), (0, 1), (1,), (1, 1, 1)):
        assert run_native("MaxPool", [x], kernel_shape=bad) is None
    assert run_native("MaxPool", [x], kernel_shape=(1, 1), strides=(0, 1)) is None
    assert run_native("MaxPool", [x], kernel_shape=(1, 1), pads=(0, 0, 0, -1)) is None
    assert run_native("MaxPool", [x.astype(np.float64)], kernel_shape=(1, 1)) is None
    assert run_native("MaxPool", [x], kernel_shape=(1, 1), num_outputs=2) is None
    assert run_native("GlobalMaxPool", [np.zeros((1, 1, 0), F32)]) is None
    assert run_native("GlobalAveragePool", [np.zeros(3, F32)]) is None


@given(st.integers(0, 3), st.integers(0, 3), st.lists(st.integers(1, 20), max_size=3), st.integers(0, 2**32 - 1))
def test_global_pools(n: int, c: int, spatial: list[int], seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, c, *spatial)).astype(F32)
    (largest,) = run_native("GlobalMaxPool", [x])
    np.testing.assert_array_equal(largest, run_definition("GlobalMaxPool", [x])[0])
    (mean,) = run_native("GlobalAveragePool", [x])
    axes = tuple(range(2, x.ndim))
    exact = x.mean(axis=axes, keepdims=True, dtype=np.float64)
    count = int(np.prod(spatial))
    # Sixteen sums side by side, then four additions and one division.
    bound = (count / 16 + 6) * EPS * np.abs(x).mean(axis=axes, keepdims=True, dtype=np.float64)
    assert mean.shape == exact.shape
    assert (np.abs(mean - exact) <= bound).all()


def test_global_pools_of_nan_and_infinity() -> None:
    x = np.zeros((1, 3, 5, 7), F32)
    x[0, 0, 4, 6], x[0, 1, 0, 0] = np.nan, -np.inf
    for op in ("GlobalMaxPool", "GlobalAveragePool"):
        np.testing.assert_array_equal(run_native(op, [x])[0], run_definition(op, [x])[0])
