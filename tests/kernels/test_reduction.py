"""Reductions on every rung against numpy in float64."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from qruntime import _kernels as kernels

EPSILON = float(np.finfo(np.float32).eps)
WIDTHS = [*range(1, 11), 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 2047, 2048, 2049, 70001]
FORMULAS: dict[str, Callable[..., Any]] = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "prod": np.prod,
    "l1": lambda x, **k: np.sum(np.abs(x), **k),
    "l2": lambda x, **k: np.sqrt(np.sum(x * x, **k)),
    "sum_square": lambda x, **k: np.sum(x * x, **k),
}


def reduce(
    name: str,
    x: np.ndarray,
    axes: tuple[int, ...] = (),
    keepdims: bool = False,
    noop: bool = False,
    num_threads: int = 1,
) -> np.ndarray | None:
    ints = [kernels.REDUCE[name], int(keepdims), int(noop), *axes]
    result = kernels.call_node("reduce", [x], ints=ints, num_threads=num_threads)
    return None if result is None else result[0]


def assert_reduced(name: str, x: np.ndarray, axes: tuple[int, ...], keepdims: bool, actual: np.ndarray | None) -> None:
    """Blocks of 2048 in 4·VL lanes leave some (64 + n/2048) roundings on the longest path."""
    exact = np.asarray(FORMULAS[name](x.astype(np.float64), axis=axes, keepdims=keepdims))
    assert actual is not None
    assert actual.dtype == np.float32
    assert actual.shape == exact.shape
    n = x.size // max(1, exact.size)
    if name in ("max", "min"):
        np.testing.assert_array_equal(actual, exact)
        return
    magnitude = np.abs(exact) if name == "prod" else FORMULAS[name](np.abs(x.astype(np.float64)), axis=axes, keepdims=keepdims)
    roundings = n + 2 if name == "prod" else min(n, 160 + n / 2048) + 3
    assert (np.abs(actual - exact) <= EPSILON * roundings * magnitude).all()


def test_every_opcode_is_tested() -> None:
    assert set(kernels.REDUCE) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_rows_and_columns(rung: str, name: str) -> None:
    rng = np.random.default_rng(1)
    for n in WIDTHS:
        x = rng.standard_normal((2, n)).astype(np.float32)
        if name == "prod":
            x = (1 + x / 100).astype(np.float32)
        assert_reduced(name, x, (1,), False, reduce(name, x, (1,)))
        columns = np.ascontiguousarray(x.T)
        assert_reduced(name, columns, (0,), True, reduce(name, columns, (0,), True))
        wide = x if n < 1000 else x[:, :999]
        assert_reduced(name, wide, (0,), False, reduce(name, wide, (0,)))


@pytest.mark.parametrize("name", FORMULAS)
def test_any_set_of_axes(rung: str, name: str) -> None:
    x = np.random.default_rng(2).standard_normal((2, 3, 1, 4, 5)).astype(np.float32)
    for count in range(1, 6):
        for axes in combinations(range(5), count):
            for keepdims in (False, True):
                assert_reduced(name, x, axes, keepdims, reduce(name, x, tuple(a - 5 for a in axes), keepdims))
    everything = tuple(range(5))
    assert_reduced(name, x, everything, False, reduce(name, x))
    assert_reduced(name, np.array(x[0, 0, 0, 0, 0]), (), False, reduce(name, np.array(x[0, 0, 0, 0, 0])))


def test_axes_as_an_input(rung: str) -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 4)).astype(np.float32)
    ints = [kernels.REDUCE["sum"], 1, 0]
    for axes in ([1], [-1, 0], []):
        (actual,) = kernels.call_node("reduce", [x, np.array(axes, np.int64)], ints=ints)
        assert_reduced("sum", x, tuple(axes) or (0, 1, 2), True, actual)
    for axes in ([3], [-4], [0, 0], [1, -2]):
        assert kernels.call_node("reduce", [x, np.array(axes, np.int64)], ints=ints) is None
    np.testing.assert_array_equal(reduce("sum", x, noop=True), x)
    np.testing.assert_array_equal(reduce("sum_square", x, noop=True), x * x)


@pytest.mark.parametrize("name", ["sum", "max", "min", "prod"])
def test_int64(rung: str, name: str) -> None:
    x = np.random.default_rng(4).integers(-50, 50, (3, 4, 5))
    for axes in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)):
        np.testing.assert_array_equal(reduce(name, x, axes), FORMULAS[name](x, axis=axes))
    assert reduce("mean", x, (0,)) is None


@pytest.mark.parametrize("name", ["max", "min", "sum", "mean"])
def test_nan_and_inf_stay_in_their_row(rung: str, name: str) -> None:
    for n in (1, 5, 8, 9, 40, 300):
        for position in {0, n // 2, n - 1}:
            x = np.ones((4, n), np.float32)
            x[1, position], x[2, position], x[3, position] = np.nan, np.inf, -np.inf
            np.testing.assert_array_equal(reduce(name, x, (1,)), FORMULAS[name](x, axis=1))
            np.testing.assert_array_equal(reduce(name, np.ascontiguousarray(x.T), (0,)), FORMULAS[name](x, axis=1))


def test_nothing_to_reduce(rung: str) -> None:
    x = np.zeros((3, 0, 2), np.float32)
    np.testing.assert_array_equal(reduce("sum", x, (1,)), np.zeros((3, 2)))
    np.testing.assert_array_equal(reduce("prod", x, (1,)), np.ones((3, 2)))
    assert reduce("sum", x, (0,)).shape == (0, 2)
    assert reduce("max", x, (1,)) is None


@pytest.mark.parametrize("name", FORMULAS)
def test_blind_to_neighbours_and_threads(rung: str, name: str) -> None:
    x = np.random.default_rng(5).standard_normal((70, 513)).astype(np.float32)
    rows, columns = reduce(name, x, (1,)), reduce(name, x, (0,))
    for i in range(0, 70, 11):
        np.testing.assert_array_equal(reduce(name, x[i], (0,)), rows[i])
        np.testing.assert_array_equal(reduce(name, np.ascontiguousarray(x[:, i:]), (0,)), columns[i:])
    for num_threads in (2, 3):
        np.testing.assert_array_equal(reduce(name, x, (1,), num_threads=num_threads), rows)
        np.testing.assert_array_equal(reduce(name, x, (0,), num_threads=num_threads), columns)


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("last", [False, True])
def test_index_of_the_extreme(rung: str, name: str, last: bool) -> None:
    rng = np.random.default_rng(6)
    formula = {"argmax": np.argmax, "argmin": np.argmin}[name]
    # Rows short and long, columns in strips, and tiles: of few columns, over several of them, the last not full.
    for shape in ((1,), (7,), (3, 5), (2, 3, 70), (2, 40, 3), (4, 1000), (2, 3, 1030), (130, 70, 2), (3, 130, 7), (133, 31), (70, 33)):
        for source in (
            rng.integers(0, 5, shape),
            rng.choice([-0.0, 0.0, -np.inf, np.inf, np.nan, -np.nan], shape),
            np.where(rng.random(shape) < 0.05, np.nan, rng.standard_normal(shape)),
        ):
            x = np.asarray(source, np.float32)
            for axis in range(-x.ndim, x.ndim):
                expected = formula(x, axis=axis)
                if last:
                    expected = x.shape[axis] - 1 - formula(np.flip(x, axis), axis=axis)
                for keepdims in (0, 1):
                    (actual,) = kernels.call_node(name, [x], ints=[axis, keepdims, int(last)], num_threads=1 + keepdims)
                    assert actual.dtype == np.int64
                    np.testing.assert_array_equal(actual, np.expand_dims(expected, axis) if keepdims else expected)
    assert kernels.call_node(name, [np.zeros((2, 0), np.float32)], ints=[1, 0, 0]) is None
    assert kernels.call_node(name, [np.zeros((2, 3), np.float32)], ints=[2, 0, 0]) is None


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
def test_cumsum(rung: str, dtype: type, reverse: bool, exclusive: bool) -> None:
    x = np.random.default_rng(7).integers(-9, 9, (3, 4, 5)).astype(dtype)
    for axis in range(-3, 3):
        flipped = np.flip(x, axis) if reverse else x
        expected = np.cumsum(flipped, axis=axis, dtype=dtype)
        if exclusive:
            expected = expected - flipped
        if reverse:
            expected = np.flip(expected, axis)
        (actual,) = kernels.call_node("cumsum", [x, np.array(axis)], ints=[int(exclusive), int(reverse)])
        np.testing.assert_array_equal(actual, expected)
    assert kernels.call_node("cumsum", [x, np.array(3)], ints=[0, 0]) is None
    assert kernels.call_node("cumsum", [x[:0], np.array(1)], ints=[0, 0])[0].shape == (0, 4, 5)
