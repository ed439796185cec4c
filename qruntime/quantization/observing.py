"""Statistics of rows as they come from a run: what steps ask for, and no more."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from qruntime._kernels import observe_rows
from qruntime.errors import CalibrationError
from qruntime.quantization.statistics import MEANS, SAMPLE, SIGMA, Statistics, exact_gram, exact_mean

SAMPLE_ROWS = 512
GREATEST_ROWS = 128
_HASHED = 16
_ODD = np.random.default_rng(0x5EED).integers(1 << 62, size=_HASHED, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def statistics_of(batches: Sequence[np.ndarray], kinds: Collection[str], name: str, places: Sequence[int] | None = None) -> Statistics:
    """Of the rows [T_i, K] float32 that the tensor `name` held in each batch; `places` are those of the batches in the data, if not all.

    Nothing depends on how the rows are cut into batches or on their order. CalibrationError, with the place, where a
    row holds NaN or infinity, and when there is no row.
    """
    rows = [batch for batch in batches if len(batch)]
    if not rows:
        raise CalibrationError(f"data: {name!r} has no row in any feed; give feeds that are not empty")
    low, high, peaks, hashes = _observed(rows)
    if not np.isfinite(peaks).all():
        at = next(i for i, batch in enumerate(batches) if not np.isfinite(batch).all())
        at = at if places is None else places[at]
        raise CalibrationError(f"data[{at}] makes NaN or infinity of {name!r}; leave that feed out, or exclude the layers that read it")
    sample, greatest = _chosen(rows, peaks, hashes) if SAMPLE in kinds else (None, None)
    return Statistics(
        sum(map(len, rows)),
        low,
        high,
        exact_mean(rows, low, high) if MEANS in kinds else None,
        exact_gram(rows, low, high) if SIGMA in kinds else None,
        sample,
        greatest,
    )


def _observed(batches: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The least and greatest of each channel [K], the greatest magnitude of each row [T], and a number that its bits make [T]."""
    low, high = np.empty((2, batches[0].shape[1]), np.float32)
    peaks = np.empty(sum(map(len, batches)), np.float32)
    hashes = np.empty(len(peaks), np.uint64)
    observe_rows(list(batches), low, high, peaks, _ODD, hashes)
    return low, high, peaks, hashes


def _chosen(batches: Sequence[np.ndarray], peaks: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`SAMPLE_ROWS` rows that their own bits choose and `GREATEST_ROWS` of the greatest numbers, in orders that depend on
    nothing else."""
    first = _least(hashes, SAMPLE_ROWS)
    sample = first[np.argsort(hashes[first], kind="stable")[:SAMPLE_ROWS]]
    first = _least(-peaks, GREATEST_ROWS)
    greatest = first[np.lexsort((hashes[first], -peaks[first]))[:GREATEST_ROWS]]
    return _rows(batches, sample), _rows(batches, greatest)


def _least(values: np.ndarray, count: int) -> np.ndarray:
    """Where the least `count` of `values` are, and those that are equal to the last of them, in ascending order."""
    if len(values) <= count:
        return np.arange(len(values))
    return np.flatnonzero(values <= np.partition(values, count - 1)[count - 1])


def _rows(batches: Sequence[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Rows at indices that count through all batches."""
    starts = np.cumsum([0, *map(len, batches)])
    which = np.searchsorted(starts, chosen, side="right") - 1
    return np.stack([batches[i][row - starts[i]] for i, row in zip(which.tolist(), chosen.tolist(), strict=True)])
