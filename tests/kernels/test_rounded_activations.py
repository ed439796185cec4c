"""Activations rounded to E4M3 per row, and to codes of a range: kernels against definitions and independent formulations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

import qruntime  # noqa: F401 (puts a rung in force)
from qruntime import _kernels
from qruntime.ir.formats import FP8
from qruntime.ops.rounded_activations import round_to_codes, round_to_float8

F32 = np.float32


@pytest.fixture(params=_kernels.available_isas(), autouse=True)
def rung(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _kernels.isa()
    _kernels.set_isa(request.param)
    yield request.param
    _kernels.set_isa(before)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(F32)


def float8(x: np.ndarray, threads: int = 1) -> np.ndarray:
    (y,) = _kernels.call_node("round_to_float8", [x], num_threads=threads)
    return y


def to_codes(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int, most: int, name: str = "round_to_codes") -> np.ndarray:
    (y,) = _kernels.call_node(name, [x, scale, zero], [axis, 2, most])
    return y


def values_of_e4m3() -> np.ndarray:
    return FP8.values[np.isfinite(FP8.values)]


def test_every_number_of_e4m3_stays():
    values = values_of_e4m3()
    assert values.size == 254
    np.testing.assert_array_equal(float8(values), values)
    assert float8(F32([448, 2.0**-9, -(2.0**-9)])).tolist() == [448, 2.0**-9, -(2.0**-9)]


def test_ties_go_to_the_even_number():
    """Between two numbers next to each other to the nearer one; of two equally near to the one whose code is even."""
    positive = np.sort(values_of_e4m3()[values_of_e4m3() >= 0])[1:]
    low, high = positive[:-1], positive[1:]
    middle = (low + high) / 2
    even = np.where(np.arange(len(low)) % 2 == 0, low, high)  # codes of positive numbers count them
    row = np.concatenate([middle, -middle, np.nextafter(middle, F32(0)), np.nextafter(middle, F32(1e3)), F32([448])])
    np.testing.assert_array_equal(float8(row), np.concatenate([even, -even, low, high, F32([448])]))
    assert float8(F32([448, 2.0**-10, 3 * 2.0**-10, 2.0**-10 * 1.001])).tolist() == [448, 0, 2.0**-8, 2.0**-9]


@pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 31, 64, 75, 129, 1000])
def test_rows_have_scales_of_their_own(k: int):
    x = random(9, k) * np.logspace(-30, 30, 9, dtype=F32)[:, None]
    x[4] = 0
    y = float8(x)
    np.testing.assert_array_equal(y, round_to_float8(x))
    scale = (np.abs(x).max(axis=1).astype(np.float64) / 448).astype(F32)
    scale[4] = 1
    positive = np.sort(values_of_e4m3())
    shares = (x * (F32(1) / scale)[:, None]).astype(np.float64)
    nearest = positive[np.abs(shares[..., None] - positive).argmin(axis=-1)]
    away = np.abs(shares - (y / scale[:, None]).astype(np.float64))
    assert (away <= np.abs(shares - nearest) * (1 + 1e-6) + 1e-6 * np.abs(shares)).all()
    for threads in (1, 2):
        for i in range(9):
            np.testing.assert_array_equal(float8(x[i : i + 1], threads), y[i : i + 1])


def test_agrees_with_casts_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = random(40, 129)
    scale = (np.abs(x).max(axis=1, keepdims=True).astype(np.float64) / 448).astype(F32)
    shares = np.clip(x * (F32(1) / scale), -448, 448)
    np.testing.assert_array_equal(float8(x), shares.astype(ml_dtypes.float8_e4m3fn).astype(F32) * scale)


def test_what_is_no_number_spoils_its_row_alone():
    x = random(5, 40)
    x[1, 7], x[3, 39] = math.nan, -math.inf
    y = float8(x)
    assert np.isnan(y[1::2]).all()
    np.testing.assert_array_equal(y[::2], float8(x[::2]))
    np.testing.assert_array_equal(np.isnan(round_to_float8(x)), np.isnan(y))


def test_extremes():
    x = F32([[3e38, -3.4e38, 0], [1e-45, 0, -1e-45], [-0.0, 0, 0], [np.finfo(F32).tiny, 0, 0]])
    np.testing.assert_array_equal(float8(x), round_to_float8(x))
    assert np.isfinite(float8(x)).all()
    assert float8(x[:0]).shape == (0, 3)
    assert float8(x[:, :0]).shape == (4, 0)
    assert float8(random(2, 3, 5)).shape == (2, 3, 5)
    assert _kernels.call_node("round_to_float8", [F32(1).reshape(())]) is None
    assert _kernels.call_node("round_to_float8", [x.astype(np.float64)]) is None


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("k", [1, 2, 33, 75])
def test_rounding_is_what_codes_stand_for(bits: int, channels: bool, k: int):
    most = 2**bits - 1
    rng = np.random.default_rng(k)
    shape = (k,) if channels else ()
    scale = rng.uniform(0.05, 0.5, shape).astype(F32)
    zero = np.asarray(rng.integers(0, most + 1, shape), np.uint8)
    x = random(2, 5, k) * F32(4)
    x[0, 0, 0], x[1, 4, k - 1], x[0, 1, 0] = math.nan, math.inf, -math.inf
    with np.errstate(invalid="ignore"):
        shares = np.nan_to_num(np.rint(x / scale), nan=0, posinf=1e6, neginf=-1e6) + zero
    codes = np.clip(shares, 0, most)
    np.testing.assert_array_equal(to_codes(x, scale, zero, -1, most, "quantize_linear"), codes)
    expected = (codes.astype(F32) - zero.astype(F32)) * scale
    np.testing.assert_array_equal(to_codes(x, scale, zero, -1, most), expected)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(round_to_codes(x, scale, zero, axis=-1, most=most), expected)


def test_declines_what_does_not_fit():
    x, scale, zero = random(2, 3), F32([1, 2, 3]), np.zeros(3, np.uint8)
    for inputs, ints in (
        ([x, scale[:2], zero[:2]], [-1, 2, 15]), ([x, scale, zero[:2]], [-1, 2, 15]), ([x, scale, zero], [-1, 2, 256]),
        ([x, scale, zero], [-1, 2, -1]), ([x, scale, zero.astype(np.int8)], [-1, 2, 15]), ([x, scale, zero], [2, 2, 15]),
        ([x.astype(np.float64), scale, zero], [-1, 2, 15]), ([x], [-1, 2, 15]), ([x, scale, zero.view(np.int8)], [-1, 3, 200]),
    ):  # fmt: skip
        for name in ("round_to_codes", "quantize_linear"):
            assert _kernels.call_node(name, inputs, ints) is None
