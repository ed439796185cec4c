"""What is stored: int8 codes with scale and zero point, and the arithmetic that makes them.

    real = scale · (q − zero_point)

Weights are rounded half to even. Affine ranges include 0, symmetric ones are −127 … 127 around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

QMIN, QMAX = -128, 127

STEPS = 127.5
"""Steps from 0 to the end of a symmetric range: half a step beyond the last code, as far as rounding moves any value.

Weights that are codes already, times a scale, end at the last code itself and are kept exactly.
"""


@dataclass(frozen=True)
class Int8:
    """How a weight becomes int8.

    `axis` None: one scale for the tensor (shape []); an index: one per slice along it (shape [n]).
    `symmetric`: zero point 0 and codes −127 … 127.
    `range`: "minmax" covers every value; "mse" covers what makes the squared error smallest and clips the
    rest, which a single scale needs when a few values are far larger than all others.
    """

    axis: int | None = None
    symmetric: bool = True
    range: str = "minmax"


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes int8 of the weight's shape; scale float32 and zero_point int8, [] or [n] along `axis`."""

    q: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None
    snr_db: float
    """Power of the weight over the power of its rounding error, in decibels; inf when nothing was lost."""

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + self.scale.nbytes + self.zero_point.nbytes


def quantize(weight: np.ndarray, form: Int8) -> QuantizedTensor:
    """Round `weight` (float32, finite, any rank) to the nearest codes of `form`.

    Raises ValueError when the weight holds NaN or infinity: no scale could represent it.
    """
    if form.axis is None:
        low, high = (float(weight.min()), float(weight.max())) if weight.size else (0.0, 0.0)
        lows, highs = np.array(low), np.array(high)
    else:
        others = tuple(i for i in range(weight.ndim) if i != form.axis)
        lows, highs = weight.min(axis=others, initial=0.0), weight.max(axis=others, initial=0.0)
    if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
        raise ValueError("the weight holds NaN or infinity")
    if form.symmetric:
        scale, zero_point = _parameters(np.minimum(lows, 0), np.maximum(highs, 0), True, steps=QMAX)
        if _holds_codes(weight, scale, form.axis):
            q, snr_db = _round(weight, scale, zero_point, form)
            if snr_db == float("inf"):
                return QuantizedTensor(q, scale, zero_point, form.axis, snr_db)
    if form.range == "mse":
        if form.axis is not None or not form.symmetric:
            raise ValueError("range 'mse' is for one symmetric scale")
        share = best_share(weight, max(-float(lows), float(highs)))
        lows, highs = lows * share, highs * share
    scale, zero_point = _parameters(np.minimum(lows, 0), np.maximum(highs, 0), form.symmetric)
    q, snr_db = _round(weight, scale, zero_point, form)
    return QuantizedTensor(q, scale, zero_point, form.axis, snr_db)


def _holds_codes(weight: np.ndarray, scale: np.ndarray, axis: int | None) -> bool:
    """Whether the first slices of `weight` are whole multiples of `scale`, as far as float32 can tell."""
    if not weight.ndim:
        return False
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    along = scale.reshape(shape)
    codes = weight[:8] / (along[:8] if axis == 0 else along)
    return bool(np.abs(codes - np.rint(codes)).max(initial=0) < 1e-4)


def _parameters(low: np.ndarray, high: np.ndarray, symmetric: bool, steps: float = STEPS) -> tuple[np.ndarray, np.ndarray]:
    low, high = low.astype(np.float64), high.astype(np.float64)
    span = np.maximum(-low, high) / steps if symmetric else (high - low) / 255.0
    # A weight of zeros takes any scale; a scale below the smallest normal number would have no reciprocal.
    scale = np.where(span == 0, 1.0, np.maximum(span, np.finfo(np.float32).tiny)).astype(np.float32)
    if symmetric:
        return scale, np.zeros(scale.shape, np.int8)
    zero_point = np.clip(np.rint(QMIN - low / scale), QMIN, QMAX).astype(np.int8)
    return scale, zero_point


_BINS = 4096
_RUNS, _RUN = 512, 1024
_SHARES = np.linspace(1.0, 0.1, 91)


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


_BLOCK = 1 << 15


def _round(weight: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, form: Int8) -> tuple[np.ndarray, float]:
    """Codes and signal-to-noise ratio, block by block so that temporaries stay in cache."""
    lowest = -127 if form.symmetric else QMIN
    q = np.empty(weight.shape, np.int8)
    signal = noise = 0.0
    shape = [1] * weight.ndim
    if form.axis is not None:
        shape[form.axis] = -1
    scale, zero_point = scale.reshape(shape if weight.ndim else ()), zero_point.astype(np.float32).reshape(shape if weight.ndim else ())
    inverse = (1.0 / scale.astype(np.float64)).astype(np.float32)
    unit = scale.max(initial=np.finfo(np.float32).tiny)
    rows = weight.shape[0] if weight.ndim else 1
    step = max(1, _BLOCK // max(1, weight.size // max(1, rows)))
    for start in range(0, rows, step):
        part = (slice(start, start + step),) if weight.ndim else ()
        along = part if form.axis == 0 else ()
        s, z, inv = scale[along], zero_point[along], inverse[along]
        block = weight[part]
        codes = np.rint(block * inv)
        codes += z
        np.clip(codes, lowest, QMAX, out=codes)
        q[part] = codes
        # Powers in units of the largest scale: squares of the weights themselves could leave float32.
        block = block * np.float32(1 / unit)
        codes -= z
        codes *= s / unit
        signal += float(np.vdot(block, block))
        codes -= block
        noise += float(np.vdot(codes, codes))
    if noise == 0:
        return q, float("inf")
    return q, 10 * float(np.log10(max(signal, 1e-300) / noise))
