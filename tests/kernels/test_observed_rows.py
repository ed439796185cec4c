"""Extremes of rows and columns: those of numpy, NaN and infinity seen, whatever the shape."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime._kernels import observe_rows
from tests.small_models import assert_same_bits, random


def observed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, high, peaks = (np.full(size, 7, np.float32) for size in (x.shape[1], x.shape[1], len(x)))
    observe_rows([x[: len(x) // 3], x[len(x) // 3 :]], low, high, peaks)
    return low, high, peaks


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 63, 64, 65, 130, 1100])
@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 255, 256, 257, 600])
def test_extremes_are_those_of_numpy(rows: int, columns: int) -> None:
    x = random(rows, columns, seed=rows) * np.exp2(random(1, columns, seed=2) * 9)
    low, high, peaks = observed(x)
    assert_same_bits(low, x.min(axis=0))
    assert_same_bits(high, x.max(axis=0))
    assert_same_bits(peaks, np.abs(x).max(axis=1))


@pytest.mark.parametrize("row", [0, 3, 4, 64, 96, 98])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_seen_and_no_other(row: int, value: float) -> None:
    x = random(99, 300)
    x[row, 299] = value
    peaks = observed(x)[2]
    assert np.isnan(peaks[row]) == np.isnan(value)
    assert np.flatnonzero(~np.isfinite(peaks)).tolist() == [row]


def test_no_columns_and_what_does_not_fit() -> None:
    assert observed(np.empty((3, 0), np.float32))[2].tolist() == [0, 0, 0]
    x, ends, peaks = random(4, 6), np.empty(6, np.float32), np.empty(4, np.float32)
    for rows, *given in ((x[:0], ends, ends, peaks[:0]), (x, ends, ends[:5], peaks), (x, ends, ends, peaks[:3])):
        with pytest.raises(ValueError, match="rows of 6 channels need a row at least"):
            observe_rows([rows], *given)
    with pytest.raises(ValueError, match="rows of 5 channels are needed, got some of 6"):
        observe_rows([x], ends[:5], ends, peaks)
