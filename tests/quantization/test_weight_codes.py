"""Rounding weights and tables to codes, against their definitions in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime._kernels import table_codes, weight_codes
from tests.small_models import assert_same_bits, random

SHAPES = [(1, 1), (3, 5), (70, 257), (129, 300), (2, 16641), (0, 4), (4, 0)]


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_definition(shape: tuple[int, int], symmetric: bool, by_column: bool):
    x = random(*shape) * np.float32(3)
    slices = shape[by_column]
    scale = np.float32(2.0) ** (np.arange(slices) % 4 - 5)
    # Halves of steps are ties; the largest values lie beyond the codes.
    x = np.where(random(*shape, seed=1) > 0, x, np.rint(x) / 64).astype(np.float32)
    zero = np.zeros(slices) if symmetric else np.arange(slices) * 37 % 256 - 128.0
    lowest = -127 if symmetric else -128
    forms = np.stack([scale, 1 / scale, lowest - zero, 127 - zero, zero]).astype(np.float32)
    q, signal, noise = np.empty(shape, np.int8), np.ones(slices), np.ones(slices)
    weight_codes(x, by_column, forms, q, signal, noise)
    s, z = (part[None] if by_column else part[:, None] for part in (scale.astype(np.float64), zero))
    steps = x / s
    codes = np.clip(np.rint(steps) + z, lowest, 127)
    np.testing.assert_array_equal(q, codes)
    # Powers are added to what was there. At most 64 positive terms in float, each of a few roundings, then double.
    bound = 80 * 2.0**-24
    np.testing.assert_allclose(signal - 1, (steps**2).sum(1 - by_column), rtol=bound, atol=1e-12)
    np.testing.assert_allclose(noise - 1, ((codes - z - steps) ** 2).sum(1 - by_column), rtol=bound, atol=1e-12)


def test_what_does_not_fit_is_refused():
    x, q = np.zeros((3, 4), np.float32), np.zeros((3, 4), np.int8)
    with pytest.raises(ValueError, match="q needs the shape of x"):
        weight_codes(x, True, np.ones((5, 4), np.float32), q[:2], np.zeros(4), np.zeros(4))
    with pytest.raises(ValueError, match="need 4 columns"):
        weight_codes(x, True, np.ones((5, 3), np.float32), q, np.zeros(4), np.zeros(4))


EPSILON = 2.0**-23


def table_rows(x: np.ndarray, low: int, high: int, epsilon: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """torch's arithmetic: codes, scale and offset of each row, every step rounded to float32."""
    least, greatest, steps = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True), high - low
    with np.errstate(all="ignore"):
        scale = (greatest - least) / np.float32(steps)
        scale = np.where(np.isfinite(scale), scale, (greatest.astype(np.float64) - least) / steps).astype(np.float32)
        scale = np.where(scale > np.float32(epsilon), scale, np.float32(1))
        zero_point = -least / scale
        q = np.clip(np.rint(x * (np.float32(1) / scale) + zero_point), low, high)
        offset = -zero_point * scale
    return np.nan_to_num(q).astype(np.uint8), scale[:, 0], offset[:, 0]


def hostile_table(rows: int, columns: int) -> np.ndarray:
    """Rows of many magnitudes; of one number; of two; far from zero; of zeros; over the whole range of float32."""
    x = random(rows, columns) * np.float32(10.0) ** (np.arange(rows) % 60 - 30).astype(np.float32)[:, None]
    x[1::9] = np.float32(-7.25)
    x[2::9] = np.where(random(*x[2::9].shape, seed=1) > 0, np.float32(3), np.float32(-2))
    x[3::9] += np.float32(1e4)
    x[4::9] = 0
    x[5::9] = np.where(random(*x[5::9].shape, seed=2) > 0, np.float32(3.4e38), np.float32(-3.4e38))
    x[6::9] = np.float32(1e30) * (1 + 2.0**-20 * np.arange(columns, dtype=np.float32))
    return x


@pytest.mark.parametrize("epsilon", [EPSILON, 1e-3, 1e-45])
@pytest.mark.parametrize("codes", [(0, 255), (0, 15), (0, 127), (0, 1)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (20, 2), (65, 31), (64, 33), (30, 770), (9, 2081), (7, 5000)], ids=str)
def test_tables_against_the_definition(shape: tuple[int, int], codes: tuple[int, int], epsilon: float):
    x = hostile_table(*shape)
    q, scale, offset = np.empty(shape, np.uint8), np.empty(shape[0], np.float32), np.empty(shape[0], np.float32)
    signal, noise = table_codes(x, *codes, epsilon, q, scale, offset)
    expected = table_rows(x, *codes, epsilon)
    for found, wanted in zip((scale, offset, q), (expected[1], expected[2], expected[0]), strict=True):
        assert_same_bits(found, wanted)
    with np.errstate(all="ignore"):
        error = q * scale[:, None] + offset[:, None] - x
    # Of float32 sums at most 64 positive terms, each rounded once, then double.
    bound = 80 * 2.0**-24
    np.testing.assert_allclose(signal, (x.astype(np.float64) ** 2).sum(), rtol=bound)
    np.testing.assert_allclose(noise, (error.astype(np.float64) ** 2).sum(), rtol=bound)


def test_each_row_of_a_table_alone():
    x = hostile_table(40, 70)
    q, scale, offset = np.empty(x.shape, np.uint8), np.empty(40, np.float32), np.empty(40, np.float32)
    table_codes(x, 0, 255, EPSILON, q, scale, offset)
    for i in range(40):
        one = np.empty((1, 70), np.uint8), np.empty(1, np.float32), np.empty(1, np.float32)
        table_codes(x[i : i + 1], 0, 255, EPSILON, *one)
        for found, wanted in zip(one, (q[i : i + 1], scale[i : i + 1], offset[i : i + 1]), strict=True):
            assert_same_bits(found, wanted)


@pytest.mark.parametrize("odd", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 31), (3, 32), (5, 69)], ids=str)
def test_tables_that_are_not_finite_are_refused(place: tuple[int, int], odd: float):
    x = random(6, 70)
    x[place] = odd
    with pytest.raises(ValueError, match="the table holds NaN or infinity"):
        table_codes(x, 0, 255, EPSILON, np.empty(x.shape, np.uint8), np.empty(6, np.float32), np.empty(6, np.float32))


def test_tables_that_do_not_fit_are_refused():
    x, q, each = random(3, 4), np.empty((3, 4), np.uint8), np.empty(3, np.float32)
    for wrong in ((q[:2], each, each), (q, each[:2], each), (q, each, each[:2])):
        with pytest.raises(ValueError, match="q needs the shape of x, scale and offset 3 elements"):
            table_codes(x, 0, 255, EPSILON, *wrong)
    for low, high in ((-1, 255), (0, 256), (5, 5), (9, 3)):
        with pytest.raises(ValueError, match="do not lie in a byte"):
            table_codes(x, low, high, EPSILON, q, each, each)
    for shape in ((0, 4), (3, 0)):
        empty = np.empty(shape, np.float32)
        with pytest.raises(ValueError, match="x is empty"):
            table_codes(empty, 0, 255, EPSILON, np.empty(shape, np.uint8), each[: shape[0]], each[: shape[0]])
