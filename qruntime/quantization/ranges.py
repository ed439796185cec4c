"""The range that one symmetric scale covers: what makes the squared error smallest, as far as no output channel pays for it.

Beyond the range weights are clipped, which is cheap for the tensor and may be ruin for a channel: the few largest weights
are often all of one channel. So every channel keeps a signal-to-noise ratio of FLOOR_DB, or what a scale of its own
would hold less SLACK_DB where that is lower. Where no range keeps all of them, one scale cannot hold the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

FLOOR_DB, SLACK_DB = 30.0, 1.0

STEPS = 127.5
"""Steps from 0 to the end of a symmetric range: half a step beyond the last code, as far as rounding moves any value.

Weights that are codes already, times a scale, end at the last code itself and are kept exactly.
"""

_BINS = 4096
_RUNS, _RUN = 256, 512
_SHARES = np.linspace(1.0, 0.1, 91)
_BLOCK = 1 << 16


def row_blocks(matrix: np.ndarray) -> Iterator[slice]:
    """The rows of `matrix` in pieces whose temporaries stay in cache."""
    rows, columns = matrix.shape
    step = max(1, _BLOCK // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))


def best_share(weight: np.ndarray, bound: float) -> float:
    """The share of the largest magnitude `bound` that a symmetric range should cover for the least squared error.

    From a histogram of magnitudes: beyond the range the error is the distance to it, below half a step
    it is the value itself, between them a uniform rounding error of step² / 12.
    """
    if bound == 0 or weight.size == 0:
        return 1.0
    values = weight.reshape(-1)
    if values.size > _RUNS * _RUN:
        # Runs drawn at random: a regular stride could meet the same columns over and over.
        starts = np.random.default_rng(0).integers(0, values.size - _RUN, _RUNS)
        parts = [values[start : start + _RUN] for start in starts]
    else:
        parts = [values]
    counts = np.zeros(_BINS)
    for part in range(0, len(parts), 16):  # temporaries stay in cache
        bins = (np.abs(np.concatenate(parts[part : part + 16])) / np.float32(bound) * np.float32(_BINS - 1)).astype(np.intp)
        counts += np.bincount(bins, minlength=_BINS)[:_BINS]
    centre = (np.arange(_BINS) + 0.5) / (_BINS - 1)
    # Running moments, so that each candidate costs a look-up.
    below = [np.concatenate([[0.0], np.cumsum(counts * centre**power)]) for power in (0, 1, 2)]

    def moment(power: int, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        return below[power][stop] - below[power][start]

    step = _SHARES / STEPS
    zeroed, covered = np.searchsorted(centre, step / 2), np.searchsorted(centre, _SHARES)
    first, last = np.zeros_like(zeroed), np.full_like(covered, _BINS)
    clipped = moment(2, covered, last) - 2 * _SHARES * moment(1, covered, last) + _SHARES**2 * moment(0, covered, last)
    error = moment(2, first, zeroed) + moment(0, zeroed, covered) * step**2 / 12 + clipped
    return float(_SHARES[int(np.argmin(error))])


class SharedRange(NamedTuple):
    """The best range of one scale: the share of the largest magnitude that it covers, whether every channel keeps what
    it needs, and else the channel that loses most with its signal-to-noise ratio."""

    share: float
    holds: bool
    channel: int
    channel_db: float


def shared_range(matrix: np.ndarray, along: int, peaks: np.ndarray, powers: np.ndarray) -> SharedRange:
    """The range for all channels of `matrix`, which lie along its axis `along`, have the largest magnitudes `peaks` and the
    sums of squares `powers`.

    At or above the range of least squared error for the tensor, where that error only grows: the first that every channel
    can bear, or where none is, the one whose worst channel suffers least.
    """
    bound, count = float(peaks.max(initial=0)), matrix.size / max(1, peaks.size)
    least = best_share(matrix, bound)
    if bound == 0:
        return SharedRange(least, True, 0, np.inf)
    power = powers / bound**2
    own = count * (peaks.astype(np.float64) / bound / STEPS) ** 2 / 12
    bearable = np.maximum(power * 10 ** (-FLOOR_DB / 10), own * 10 ** (SLACK_DB / 10))
    bearable[peaks == 0] = np.inf  # zeros stay zeros
    weakest = int(np.argmin(bearable))
    clipped = np.flatnonzero(peaks > least * bound)
    row, magnitude = _tail(matrix, along, clipped, least * bound)
    clipped = np.append(clipped, weakest)
    magnitude /= bound
    best, excess = SharedRange(1.0, False, weakest, 0.0), np.inf
    for share in _SHARES[::-1][_SHARES[::-1].searchsorted(least) :]:
        rounding = count * (share / STEPS) ** 2 / 12
        if rounding >= excess * bearable[weakest]:
            break
        noise = rounding + np.bincount(row, np.maximum(magnitude - share, 0) ** 2, clipped.size)
        worst = int(np.argmax(noise / bearable[clipped]))
        channel = int(clipped[worst])
        if noise[worst] < excess * bearable[channel]:
            excess = noise[worst] / bearable[channel]
            with np.errstate(divide="ignore"):
                best = SharedRange(float(share), bool(excess <= 1), channel, float(10 * np.log10(power[channel] / noise[worst])))
        if best.holds:
            break
    return best


def _tail(matrix: np.ndarray, along: int, channels: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Every weight that is larger than `least`: where its channel stands in the ascending `channels`, which name all that
    have such weights, and its magnitude."""
    positions, magnitudes = [np.empty(0, np.intp)], [np.empty(0)]
    rows = matrix if along else matrix[channels]  # picking columns costs more than looking at all
    for part in row_blocks(rows):
        block = np.abs(rows[part])
        found = np.flatnonzero(block > least)
        row, column = np.divmod(found, block.shape[1])
        positions.append(channels.searchsorted(column) if along else part.start + row)
        magnitudes.append(block.reshape(-1)[found].astype(np.float64))
    return np.concatenate(positions), np.concatenate(magnitudes)
