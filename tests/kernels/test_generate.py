"""Nodes that make tensors from shapes and numbers, and running sums: bit for bit what their definitions make."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.native_call import check, check_agreement, run_native
from tests.kernels.test_layout import ANY_INT, DTYPES, ints, tensors

FLOATS = st.floats(-40, 40, width=32)


@given(tensors(), ANY_INT, ANY_INT)
def test_shape(x: np.ndarray, start: int, end: int) -> None:
    check("Shape", [x], start=start, end=end)
    check("Shape", [x], start=start)
    check("Shape", [x], version=1)
    check("Size", [x])


@given(st.lists(st.integers(0, 5), max_size=4), st.sampled_from(DTYPES), st.integers(0, 1))
def test_constant_of_shape(dims: list[int], dtype: type, number: int) -> None:
    check("ConstantOfShape", [ints(*dims)])
    check("ConstantOfShape", [ints(*dims)], value=np.array([number], dtype))


def test_constant_of_shape_values() -> None:
    for value in (np.float32(-0.0), np.float32(np.nan), np.int64(-1), np.float64(1e300), np.int8(-3)):
        check("ConstantOfShape", [ints(3, 5)], value=np.array([value]))
    for bad in (ints(-1), ints(2**62, 4), ints(2**41), np.zeros((1, 1), np.int64)):
        assert run_native("ConstantOfShape", [bad]) is None
    assert run_native("ConstantOfShape", [ints(1)], value=np.zeros(2)) is None


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-7, 7), st.sampled_from([np.int32, np.int64]))
def test_range_of_integers(start: int, limit: int, delta: int, dtype: type) -> None:
    inputs = [np.array(v, dtype) for v in (start, limit, delta)]
    if delta:
        check("Range", inputs)
    else:
        assert run_native("Range", inputs) is None


@given(FLOATS, FLOATS, FLOATS.filter(lambda v: abs(v) > 0.01), st.sampled_from([np.float32, np.float64]))
def test_range_of_floats(start: float, limit: float, delta: float, dtype: type) -> None:
    check("Range", [np.array(v, dtype) for v in (start, limit, delta)])


def test_range_extremes() -> None:
    low, high = -(2**31), 2**31 - 1
    check("Range", [np.array(v, np.int32) for v in (low, high, 2**30)])
    check("Range", [np.array(v, np.int32) for v in (high, low, -(2**30))])
    for values in ((-(2**63), 2**63 - 1, 2**60), (0, 5, -(2**63)), (-(2**63), 0, -1), (2**63 - 1, 2**63 - 3, -1)):
        check_agreement("Range", [np.array(v) for v in values])
    assert run_native("Range", [np.array(v) for v in (0, 2**62, 1)]) is None
    for values in ((0, math.nan, 1), (0, math.inf, 1), (0, 1, 0), (0, 1e30, 1e-3)):
        assert run_native("Range", [np.array(v, np.float32) for v in values]) is None
    assert run_native("Range", [np.array(0), np.array(1, np.int32), np.array(1)]) is None
    assert run_native("Range", [np.array(0), np.array(1)]) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
@given(data=st.data())
def test_cumsum(dtype: type, data: st.DataObject) -> None:
    dims = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    axis = data.draw(st.integers(-len(dims), len(dims) - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(0, 2.0 ** rng.integers(0, 30), dims).astype(dtype)
    for exclusive in (0, 1):
        for reverse in (0, 1):
            check("CumSum", [x, np.array(axis)], exclusive=exclusive, reverse=reverse)


def test_cumsum_keeps_signs_and_wraps() -> None:
    for exclusive in (0, 1):
        check("CumSum", [np.array([-0.0, -0.0, np.inf, -np.inf], np.float32), np.array(0)], exclusive=exclusive)
        check("CumSum", [np.full(3, 2**31 - 1, np.int32), np.array(0)], exclusive=exclusive)
    assert run_native("CumSum", [np.float32(1), np.array(0)]) is None
    assert run_native("CumSum", [np.ones(3, np.float32), np.array(1)]) is None
