"""Linear quantization: edges of the number range, granularities and bad input."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qruntime.ops.quantize_linear import dequantize_linear, dynamic_quantize_linear, qlinear_matmul, quantize_linear

ONE = np.float32(1)


@given(st.lists(st.floats(width=32), max_size=8), st.sampled_from([np.int8, np.uint8, np.int16, np.uint16]))
def test_quantization_of_any_float(values: list[float], dtype: type) -> None:
    limits = np.iinfo(dtype)
    y = quantize_linear(np.array(values, np.float32), ONE, np.array(3, dtype))
    assert y.dtype == dtype
    for value, q in zip(values, y.tolist(), strict=True):
        rounded = 0 if value != value else round(max(min(value, 1e6), -1e6))
        assert q == max(min(rounded + 3, limits.max), limits.min)


def test_ties_go_to_even() -> None:
    y = quantize_linear(np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32), ONE, np.int8(0))
    assert y.tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2])
def test_narrow_integers_saturate(dtype: Any) -> None:
    limits = ml_dtypes.iinfo(dtype)
    y = quantize_linear(np.array([-100, 1, 100], np.float32), ONE, np.zeros((), dtype))
    assert y.astype(np.int32).tolist() == [limits.min, 1, limits.max]
    np.testing.assert_array_equal(dequantize_linear(y, ONE), np.array([limits.min, 1, limits.max], np.float32))


def test_float8_saturates_only_when_asked() -> None:
    zero = np.zeros((), ml_dtypes.float8_e4m3fn)
    x = np.array([1e6, -np.inf, np.nan], np.float32)
    saturated = quantize_linear(x, ONE, zero).astype(np.float32)
    np.testing.assert_array_equal(saturated, np.array([448, -448, np.nan], np.float32))
    assert np.isnan(quantize_linear(x, ONE, zero, saturate=0).astype(np.float32)).all()


def test_the_last_block_may_be_short() -> None:
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    scale = np.array([[1, 2], [4, 8]], np.float32)
    y = quantize_linear(x, scale, np.zeros((2, 2), np.int8), axis=1, block_size=3)
    assert y.tolist() == [[0, 1, 2, 2, 2], [1, 2, 2, 1, 1]]
    spread = np.repeat(scale, 3, axis=1)[:, :5]
    np.testing.assert_array_equal(dequantize_linear(y, scale, axis=-1, block_size=3), y * spread)


def test_int32_differences_do_not_overflow() -> None:
    y = dequantize_linear(np.array([2**31 - 1], np.int32), ONE, np.array(-(2**31), np.int32))
    np.testing.assert_allclose(y, [2.0**32])


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [3e38, -3e38], [5.0], [-5.0]])
def test_dynamic_quantization_covers_the_range(values: list[float]) -> None:
    x = np.array(values, np.float32)
    y, scale, zero_point = dynamic_quantize_linear(x)
    assert (y.dtype, scale.dtype, zero_point.dtype) == (np.uint8, np.float32, np.uint8)
    assert scale.shape == zero_point.shape == ()
    assert np.isfinite(scale)
    assert scale > 0
    restored = (y.astype(np.float64) - int(zero_point)) * float(scale)
    np.testing.assert_allclose(restored, x, atol=float(scale) * 0.51)


@pytest.mark.parametrize(
    ("arguments", "attributes", "needed"),
    [
        ((np.ones(3, np.float32), np.zeros(3, np.int8)), {}, r"1 or 4 values \(axis 1\)"),
        ((np.ones(4, np.float32), np.zeros(2, np.int8)), {}, "differ in shape"),
        ((np.ones(4, np.float32),), {"axis": 2}, "axis must lie in"),
        ((np.ones((2, 2), np.float32),), {}, "needs block_size"),
        ((np.ones((2, 2), np.float32),), {"block_size": 3, "axis": 1, "output_dtype": 3}, None),
        ((np.ones((2, 3), np.float32),), {"block_size": 3}, r"must have the shape \(2, 2\)"),
        ((np.ones((2, 2), np.float32),), {"block_size": -1}, "block_size must not be negative"),
        ((ONE, np.int8(0)), {"output_dtype": 2}, "output_dtype uint8 differs"),
        ((ONE,), {"output_dtype": 11}, "cannot quantize to float64"),
    ],
)
def test_quantize_refuses(arguments: tuple[Any, ...], attributes: dict[str, Any], needed: str | None) -> None:
    x = np.zeros((2, 4), np.float32)
    if needed is None:
        assert quantize_linear(x, *arguments, **attributes).dtype == np.int8
        return
    with pytest.raises(ValueError, match=needed):
        quantize_linear(x, *arguments, **attributes)


def test_qlinear_matmul_refuses_what_does_not_fit() -> None:
    a, zero = np.zeros((2, 3), np.uint8), np.uint8(0)
    with pytest.raises(ValueError, match="cannot be multiplied"):
        qlinear_matmul(a, ONE, zero, a, ONE, zero, ONE, zero)
    with pytest.raises(ValueError, match=r"b_scale .* fits no axis"):
        qlinear_matmul(a, ONE, zero, a.T, np.ones(5, np.float32), zero, ONE, zero)
