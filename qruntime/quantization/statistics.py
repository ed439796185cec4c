"""What calibration saw of the rows that a weight multiplies.

Sums are exact, so that they do not depend on how rows are cut into batches, on the order of batches or on threads:
each channel is rounded to a step of its own, a power of two, so coarse that no sum of products leaves what float64 counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qruntime._kernels import GRAM_CODE, gram_of_codes, sum_magnitudes
from qruntime.ops.products import matmul

EXTREMES, MEANS, SIGMA, SAMPLE = "extremes", "means", "sigma", "sample"
KINDS = frozenset({EXTREMES, MEANS, SIGMA, SAMPLE})
"""What steps may ask for, in `requires`. Extremes are always there; the others only where a step asks."""

_EXACT_BITS = 52
"""Sums of whole numbers up to 2^52 are exact in float64, whatever their order."""
_ORDINARY = 64.0
"""Times its mean |x|: a row with a channel beyond it is rare, and summed by itself."""
_CHUNK = 2048
"""Rows that are summed at a time."""
_SQUARE = 128


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of the rows [T, K] of one tensor."""

    rows: int
    """T"""
    low: np.ndarray
    """[K] float32: the least value of each channel."""
    high: np.ndarray
    """[K] float32: the greatest."""
    mean_abs: np.ndarray | None = None
    """[K] float64: mean |x|."""
    sigma: np.ndarray | None = None
    """[K, K] float64: Σ = XᵀX."""
    sample: np.ndarray | None = None
    """[≤ T, K] float32: rows that are chosen, and in an order that is given, by their own bits."""
    greatest: np.ndarray | None = None
    """[≤ T, K] float32, beside a sample: the rows that hold the greatest |x|. One token of hundreds can be a thousand times the
    others; a sample misses it, and ranges are made for it."""

    @property
    def absmax(self) -> np.ndarray:
        """[K] float32: max |x|."""
        return np.maximum(-self.low, self.high)

    def rows_with_times(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [t, K] that stand for all, and for how many each does [t]: those of the greatest numbers for themselves, others of the
        sample, with at most `most` numbers, for the rest. A sample is needed."""
        sample, greatest = self.sample, self.greatest
        assert sample is not None
        if greatest is None:
            return sample, np.ones(len(sample))
        others = sample[_peaks(sample) < _peaks(greatest).min(initial=np.inf)]
        others = others[:: max(1, -(-others.size // most))]
        times = np.ones(len(others) + len(greatest))
        times[: len(others)] = (self.rows - len(greatest)) / max(1, len(others))
        return np.concatenate([others, greatest]), times


def _peaks(rows: np.ndarray) -> np.ndarray:
    return np.abs(rows).max(axis=1, initial=0)


def exact_gram(batches: Sequence[np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Σ = XᵀX of the rows in `batches` (each [T_i, K], float32), the same bits for every order and every cut of the rows.

    `low` and `high` [K] bound them. A channel is rounded to 2⁻⁵ of its mean |x| or finer, which adds less than 10⁻⁴ to its
    Σ_kk, a hundredth of the damping of solvers. Rows that hold a number far from the others, and all where they are few, are
    summed in finer steps.
    """
    absmax = np.maximum(-low, high).astype(np.float64)
    if sum(map(len, batches)) <= _CHUNK:
        return _gram_of_few(np.concatenate(batches), absmax)
    steps = _steps(np.minimum(absmax, _ORDINARY * exact_mean(batches, low, high)), GRAM_CODE)
    total, apart = np.empty((len(steps), len(steps)), np.int64), np.empty(sum(map(len, batches)), np.uint8)
    gram_of_codes(list(batches), (1 / steps).astype(np.float32), total, apart)
    sigma = total * steps
    sigma *= steps[:, None]
    _mirror_upper(sigma)
    if apart.any():
        marks = np.split(apart != 0, np.cumsum(list(map(len, batches)))[:-1])
        sigma += _gram_of_few(np.concatenate([rows[mark] for rows, mark in zip(batches, marks, strict=True)]), absmax)
    return sigma


def _mirror_upper(matrix: np.ndarray) -> None:
    """What lies above the diagonal of a matrix [K, K] also below it, by blocks that stay in cache."""
    for a in range(0, len(matrix), _SQUARE):
        corner = matrix[a : a + _SQUARE, a : a + _SQUARE]
        corner[:] = np.triu(corner) + np.triu(corner, 1).T
        for b in range(a + _SQUARE, len(matrix), _SQUARE):
            matrix[b : b + _SQUARE, a : a + _SQUARE] = matrix[a : a + _SQUARE, b : b + _SQUARE].T


def _gram_of_few(rows: np.ndarray, absmax: np.ndarray) -> np.ndarray:
    """Σ of rows [T, K], in steps of 2⁻¹⁸ of the extreme of a channel for 2¹⁵ rows, of 2⁻¹⁵ for 2²¹."""
    steps = _steps(absmax, math.isqrt((1 << _EXACT_BITS) // max(1, len(rows))) - 1)
    total = np.zeros((len(steps), len(steps)))
    for start in range(0, len(rows), _CHUNK):
        rounded = np.rint(rows[start : start + _CHUNK] / steps.astype(np.float32)) * steps
        total += matmul(np.ascontiguousarray(rounded.T), rounded)
    return total


def exact_mean(batches: Sequence[np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Mean |x| of each channel [K], as `exact_gram` sums, in steps of 2⁻²⁰ of the extreme."""
    steps = _steps(np.maximum(-low, high).astype(np.float64), 1 << 20)
    total = np.empty(len(steps), np.int64)
    sum_magnitudes(list(batches), (1 / steps).astype(np.float32), total)
    return total * steps / max(1, sum(map(len, batches)))


def _steps(most: np.ndarray, code: int) -> np.ndarray:
    """Powers of two, of which `most` is at most `code`; a channel that is next to zero has 1."""
    with np.errstate(divide="ignore"):
        steps = np.exp2(np.ceil(np.log2(most / max(1, code))))
    return np.where(steps >= np.finfo(np.float32).tiny, steps, 1.0)


_MOST_OUTPUTS = 1 << 22
"""Outputs that an error is measured on."""
_MOST_EXPONENT = 126
"""Of a power of two in float32."""
_NEAR_ONE = 16
"""Numbers below 2 to it, and with an extreme not below one over it, are as they should be."""


def output_error(weight: np.ndarray, restored: np.ndarray, statistics: Statistics) -> float:
    """e = ‖X Wᵀ − X Qᵀ‖² / ‖X Wᵀ‖² of weights [N, K], on the sample of rows, else from Σ; NaN when neither is known."""
    return output_errors(weight, [restored], statistics)[0]


def output_errors(weight: np.ndarray, several: Sequence[np.ndarray], statistics: Statistics) -> list[float]:
    """The same of several Q."""
    power = _power_of_outputs(weight, statistics)
    if power is None:
        return [math.nan] * len(several)
    whole = power(weight)
    return [max(0.0, power(weight - restored)) / whole if whole > 0 else 0.0 for restored in several]


def _power_of_outputs(weight: np.ndarray, statistics: Statistics) -> Callable[[np.ndarray], float] | None:
    """‖X Dᵀ‖² of D, in units that `weight` and the rows are near 1 in."""
    if statistics.sample is not None:
        sample = _scaled(statistics.sample, statistics.sample)[: max(16, _MOST_OUTPUTS // max(1, len(weight)))]
        return lambda difference: _power(matmul(sample, _scaled(difference, weight).T))
    sigma = statistics.sigma
    if sigma is None:
        return None

    def by_sigma(difference: np.ndarray) -> float:
        wide = _scaled(difference, weight).astype(np.float64)
        return float(np.sum((wide @ sigma) * wide))

    return by_sigma


def _scaled(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """`values` over the power of two next to the largest magnitude of `by`, unless that is near 1: products stay within float32,
    and no bit is lost."""
    _, exponent = np.frexp(max(by.max(initial=0), -by.min(initial=0)))
    return values if abs(exponent) <= _NEAR_ONE else values * np.exp2(np.float32(min(-exponent, _MOST_EXPONENT)))


def _power(values: np.ndarray) -> float:
    return float(np.einsum("ij,ij->", values, values, dtype=np.float64))
