"""What calibration saw of the rows that a weight multiplies.

Sums are exact, so that they do not depend on how rows are cut into batches, on the order of batches or on threads:
each channel is rounded to a step of its own, a power of two, so coarse that no sum of products leaves what float64 counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EXTREMES, MEANS, SIGMA, SAMPLE = "extremes", "means", "sigma", "sample"
KINDS = frozenset({EXTREMES, MEANS, SIGMA, SAMPLE})
"""What steps may ask for, in `requires`. Extremes are always there; the others only where a step asks."""

_EXACT_BITS = 52
"""Sums of whole numbers up to 2^52 are exact in float64, whatever their order."""


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


def exact_gram(batches: Sequence[np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Σ = XᵀX of the rows in `batches` (each [T_i, K], float32), the same bits for every order and every cut of the rows.

    `low` and `high` [K] bound them. A channel is rounded to 2⁻¹⁸ of its extreme for 2¹⁵ rows, to 2⁻¹⁵ for 2²¹: nothing
    beside the damping of any solver.
    """
    rows = max(1, sum(len(batch) for batch in batches))
    steps = _steps(np.maximum(-low, high).astype(np.float64), rows)
    total = np.zeros((len(steps), len(steps)))
    for batch in batches:
        units = np.rint(batch / steps.astype(np.float32)).astype(np.float64)
        total += units.T @ units
    return total * steps * steps[:, None]


def exact_mean(batches: Sequence[np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Mean |x| of each channel [K], as `exact_gram` sums."""
    rows = max(1, sum(len(batch) for batch in batches))
    steps = _steps(np.maximum(-low, high).astype(np.float64), rows)
    total = np.zeros(len(steps))
    for batch in batches:
        total += np.rint(np.abs(batch) / steps).sum(axis=0)
    return total * steps / rows


def _steps(absmax: np.ndarray, rows: int) -> np.ndarray:
    """Powers of two: rows · (absmax / step + 1/2)² ≤ 2^52."""
    most = math.isqrt((1 << _EXACT_BITS) // rows) - 1
    with np.errstate(divide="ignore"):
        steps = np.exp2(np.ceil(np.log2(absmax / max(1, most))))
    return np.where(steps >= np.finfo(np.float32).tiny, steps, 1.0)  # below it, a channel is as good as zero


_MOST_OUTPUTS = 1 << 22
"""Outputs that an error is measured on."""


def output_error(weight: np.ndarray, restored: np.ndarray, statistics: Statistics) -> float:
    """e = ‖X Wᵀ − X Qᵀ‖² / ‖X Wᵀ‖² of weights [N, K], on the sample of rows, else from Σ; NaN when neither is known."""
    difference, weight = _scaled(weight - restored, weight), _scaled(weight, weight)
    if statistics.sample is not None:
        sample = _scaled(statistics.sample, statistics.sample)[: max(16, _MOST_OUTPUTS // max(1, len(weight)))]
        lost, whole = _power(sample @ difference.T), _power(sample @ weight.T)
    elif statistics.sigma is not None:
        lost, whole = (float(np.sum((one @ statistics.sigma) * one)) for one in (difference.astype(np.float64), weight.astype(np.float64)))
    else:
        return math.nan
    return max(0.0, lost) / whole if whole > 0 else 0.0


def _scaled(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """`values` over the power of two next to the largest magnitude of `by`: products stay within float32, and no bit is lost."""
    _, exponent = np.frexp(np.abs(by).max(initial=0))
    return np.ldexp(values, -exponent)


def _power(values: np.ndarray) -> float:
    return float(np.einsum("ij,ij->", values, values, dtype=np.float64))
