"""Rows of activations in 2 to 8 bits: every rung against an independent formulation, codes seen through weights that show them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

import qruntime  # noqa: F401 (puts a rung in force)
from qruntime import _kernels
from qruntime.ops.linear import quantize_rows

F32 = np.float32
PER_TOKEN, PER_TENSOR, STATIC = range(3)
BITS = range(2, 9)


@pytest.fixture(params=_kernels.available_isas(), autouse=True)
def rung(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _kernels.isa()
    _kernels.set_isa(request.param)
    yield request.param
    _kernels.set_isa(before)


def random(*shape: int) -> np.ndarray:
    rows = np.random.default_rng(shape).standard_normal(shape).astype(F32)
    return rows * np.linspace(0.1, 90, shape[0], dtype=F32)[:, None]


def codes_one_by_one(row: np.ndarray, bits: int) -> tuple[list[int], np.float32, int]:
    """Codes, scale and zero point of one row without NaN or infinity, a number at a time."""
    low, high, most = min(0.0, *map(float, row)), max(0.0, *map(float, row)), 2**bits - 1
    scale = F32((high - low) / most) if high > low else F32(1)
    scale = max(scale, np.finfo(F32).tiny)
    zero_point = min(max(round(float(F32(-low) / scale)), 0), most)
    inverse = F32(1) / scale
    return [min(max(round(float(x * inverse)) + zero_point, 0), most) for x in row], scale, zero_point


def restored(codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    return (codes.astype(F32) - zero_point.astype(F32)) * scale


def shown(
    x: np.ndarray, bits: int, kind: str, mode: int = PER_TOKEN, threads: int = 1, ints: Sequence[int] = (), floats: Sequence[float] = ()
) -> np.ndarray:
    """x as its codes stand for it: the product with a weight that is the identity."""
    k = x.shape[1]
    if kind == "int8":
        packed = _kernels.PackedQ8(np.eye(k, dtype=np.int8), np.ones(1, F32))
    else:
        identity = np.eye(k, dtype=np.uint8) + np.uint8(1 << int(kind) - 1)
        packed = _kernels.PackedNBits(identity, np.ones((k, -(-k // 16)), F32), bits=int(kind), group=16, activations="per_token")
    (y,) = _kernels.call_node("linear", [x], [0, *(ints or (mode, 2**bits - 1))], floats=floats, packed=[packed], num_threads=threads)
    return y


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["int8", "4"])
@pytest.mark.parametrize("k", [1, 2, 7, 16, 31, 33, 64, 75, 129])
def test_rows_are_rounded_as_they_say(bits: int, kind: str, k: int):
    x = random(9, k)
    x[3], x[4] = 0, np.abs(x[4])
    codes, scales, zeros = quantize_rows(x, bits)
    for row, got, scale, zero in zip(x, codes, scales[:, 0], zeros[:, 0], strict=True):
        assert codes_one_by_one(row, bits) == (got.tolist(), scale, zero)
    np.testing.assert_array_equal(shown(x, bits, kind), restored(codes, scales, zeros))
    for i in range(len(x)):
        np.testing.assert_array_equal(shown(x[i : i + 1], bits, kind), shown(x, bits, kind)[i : i + 1])


@pytest.mark.parametrize("bits", BITS)
def test_no_code_lies_beyond_the_last(bits: int):
    """Where both ends of a range round upwards, the upper one would be a code too far: it is cut."""
    most = 2**bits - 1
    x = F32([[-1.5], [-0.5]]) + np.arange(0, most + 0.25, 0.25, dtype=F32)
    codes, scales, zeros = quantize_rows(x, bits)
    assert codes.min() == 0
    assert codes.max(axis=1).tolist() == [most, most - 1]
    assert (np.rint(x / scales) + zeros).max() == most + 1
    np.testing.assert_array_equal(shown(x, bits, "int8"), restored(codes, scales, zeros))


@pytest.mark.parametrize("bits", [2, 4, 7])
@pytest.mark.parametrize("kind", ["int8", "4"])
def test_what_is_no_number_stays_in_its_row(bits: int, kind: str):
    x = random(5, 40)
    x[1, 7], x[3, 39] = math.nan, math.inf
    y = shown(x, bits, kind)
    assert np.isnan(y[1]).all()
    assert not np.isfinite(y[3]).any()
    np.testing.assert_array_equal(y[::2], shown(x[::2], bits, kind))


@pytest.mark.parametrize("bits", [2, 5])
@pytest.mark.parametrize("kind", ["int8", "2", "3", "8"])
def test_one_range_for_all_rows(bits: int, kind: str):
    x = random(70, 33)
    codes, scale, zero = quantize_rows(x.reshape(1, -1), bits)
    expected = restored(codes, scale, zero).reshape(x.shape)
    for threads in (1, 2):
        np.testing.assert_array_equal(shown(x, bits, kind, PER_TENSOR, threads), expected)


def test_extremes():
    x = F32([[3e38, -3e38, 0], [1e-45, 0, 0], [-0.0, 0, 0], [np.finfo(F32).tiny, 0, 0]])
    for bits in BITS:
        codes, scale, zero = quantize_rows(x, bits)
        np.testing.assert_array_equal(shown(x, bits, "int8"), restored(codes, scale, zero))
        assert np.isfinite(scale).all()
    assert shown(x[:0], 4, "int8").shape == (0, 3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["int8", "2", "3", "8"])
def test_a_range_that_is_known(bits: int, kind: str):
    """Numbers that stand for codes become these codes again, whatever the scale."""
    rng = np.random.default_rng(bits)
    for scale in (1e-30, 0.013, 0.1, 0.7, 3e30):
        zero = int(rng.integers(0, 2**bits))
        codes = rng.integers(0, 2**bits, (70, 33))
        x = (codes - zero).astype(F32) * F32(scale)
        floats = [0.0, 0.0, float(F32(scale))]
        y = shown(x, bits, kind, ints=[STATIC, 2**bits - 1, zero], floats=floats, threads=2)
        np.testing.assert_array_equal(y, (codes - zero).astype(F32) * F32(scale))
        np.testing.assert_array_equal(shown(x[3:4], bits, kind, ints=[STATIC, 2**bits - 1, zero], floats=floats), y[3:4])


def test_declines_grids_that_are_none():
    for ints, floats in (
        ([STATIC, 15, 16], [0, 0, 1]), ([STATIC, 15, -1], [0, 0, 1]), ([STATIC, 256, 0], [0, 0, 1]), ([STATIC, 15], [0, 0, 1]),
        ([STATIC, 15, 0], [1]), ([STATIC, 15, 0], []), ([STATIC, 15, 0], [0, 0, 0]), ([STATIC, 15, 0], [0, 0, -1]),
        ([STATIC, 15, 0], [0, 0, math.nan]), ([STATIC, 15, 0], [0, 0, math.inf]), ([PER_TOKEN, 15, 0], [0, 0, 1]),
        ([STATIC, 15, 0], [0, 0, 1e-39]), ([STATIC, 15, 0, 0], [0, 0, 1]),
    ):  # fmt: skip
        packed = _kernels.PackedQ8(np.eye(3, dtype=np.int8), np.ones(1, F32))
        assert _kernels.call_node("linear", [random(2, 3)], [0, *ints], floats=floats, packed=[packed]) is None
    packed = _kernels.PackedQ8(np.eye(3, dtype=np.int8), np.ones(1, F32))
    for ints in ([0, 0, 2], [0, 0, 256], [0, 0, -1], [0, 2, 15], [0, -1, 15], [0, 0, 15, 15], [0], [0, 0, 2**40 + 15]):
        assert _kernels.call_node("linear", [random(2, 3)], ints, packed=[packed]) is None
