"""Extremes of rows and columns, and hashes of rows: those of numpy, NaN and infinity seen, whatever the shape."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime._kernels import observe_rows
from tests.small_models import assert_same_bits, random

FACTORS = np.random.default_rng(1).integers(1 << 63, size=16, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def observed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    low, high, peaks = (np.full(size, 7, np.float32) for size in (x.shape[1], x.shape[1], len(x)))
    hashes = np.full(len(x), 7, np.uint64)
    observe_rows([x[: len(x) // 3], x[len(x) // 3 :]], low, high, peaks, FACTORS, hashes)
    return low, high, peaks, hashes


def hashes_of(x: np.ndarray) -> np.ndarray:
    apart = max(1, x.shape[1] // len(FACTORS))
    bits = np.ascontiguousarray(x[:, ::apart][:, : len(FACTORS)] + np.float32(0)).view(np.uint32).astype(np.uint64)
    mixed = (bits * FACTORS[: bits.shape[1]]).sum(axis=1, dtype=np.uint64)
    return (mixed ^ mixed >> np.uint64(31)) * FACTORS[0]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 63, 64, 65, 130, 1100])
@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 255, 256, 257, 600])
def test_extremes_are_those_of_numpy(rows: int, columns: int) -> None:
    x = random(rows, columns, seed=rows) * np.exp2(random(1, columns, seed=2) * 9)
    low, high, peaks, hashes = observed(x)
    assert_same_bits(low, x.min(axis=0))
    assert_same_bits(high, x.max(axis=0))
    assert_same_bits(peaks, np.abs(x).max(axis=1))
    np.testing.assert_array_equal(hashes, hashes_of(x))


def test_both_zeros_have_one_hash() -> None:
    x = np.zeros((2, 40), np.float32)
    x[1] = -0.0
    hashes = observed(x)[3]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("row", [0, 3, 4, 64, 96, 98])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_seen_and_no_other(row: int, value: float) -> None:
    x = random(99, 300)
    x[row, 299] = value
    peaks = observed(x)[2]
    assert np.isnan(peaks[row]) == np.isnan(value)
    assert np.flatnonzero(~np.isfinite(peaks)).tolist() == [row]


def test_no_columns_and_what_does_not_fit() -> None:
    _, _, peaks, hashes = observed(np.empty((3, 0), np.float32))
    assert peaks.tolist() == hashes.tolist() == [0, 0, 0]
    x, ends, peaks = random(4, 6), np.empty(6, np.float32), np.empty(4, np.float32)
    own = np.empty(4, np.uint64)
    for rows, *given in (
        (x[:0], ends, ends, peaks[:0], FACTORS, own[:0]),
        (x, ends, ends[:5], peaks, FACTORS, own),
        (x, ends, ends, peaks[:3], FACTORS, own),
        (x, ends, ends, peaks, FACTORS[:0], own),
        (x, ends, ends, peaks, FACTORS, own[:3]),
    ):
        with pytest.raises(ValueError, match="rows of 6 channels need a row at least"):
            observe_rows([rows], *given)
    with pytest.raises(ValueError, match="rows of 5 channels are needed, got some of 6"):
        observe_rows([x], ends[:5], ends, peaks, FACTORS, own)
