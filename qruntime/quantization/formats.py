"""What is stored: int8 codes with scale and zero point, and the arithmetic that makes them.

    real = scale · (q − zero_point)

Weights are rounded half to even. Affine ranges include 0, symmetric ones are −127 … 127 around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from qruntime._kernels import weight_codes
from qruntime.quantization.ranges import STEPS, best_share, row_blocks, shared_range

QMIN, QMAX = -128, 127


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
    reason: str = ""
    """Why the scales are one per channel although one for the tensor was preferred."""

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + self.scale.nbytes + self.zero_point.nbytes


def quantize(weight: np.ndarray, form: Int8) -> QuantizedTensor:
    """Round `weight` (float32, finite, any rank) to the nearest codes of `form`.

    Raises ValueError when the weight holds NaN or infinity: no scale could represent it.
    """
    sliced = _Sliced(weight, form.axis)
    if form.range == "mse" and (form.axis is not None or not form.symmetric):
        raise ValueError("range 'mse' is for one symmetric scale")
    if form.symmetric and (exact := sliced.exact(form.axis is None)):
        return exact[0]
    share = best_share(weight, float(sliced.peaks.max(initial=0))) if form.range == "mse" else 1.0
    return sliced.rounded(form.axis is None, share, form.symmetric)[0]


def quantize_shared(weight: np.ndarray, channels: int, *, strict: bool = False) -> QuantizedTensor:
    """One symmetric scale for `weight` (float32, finite) where every slice along `channels` can bear that, else one for each.

    What a slice can bear is said in ranges.py. With `strict` one scale in any case: the one whose worst slice loses least.

    Raises ValueError when the weight holds NaN or infinity.
    """
    sliced = _Sliced(weight, channels)
    if exact := sliced.exact(True):
        return exact[0]
    shared = shared_range(sliced.matrix, sliced.along, sliced.peaks, sliced.powers)
    if shared.holds or strict:
        return sliced.rounded(True, shared.share)[0]
    own, own_db = sliced.exact(False) or sliced.rounded(False)
    channel = shared.channel
    told = f"one scale would leave channel {channel} at {shared.channel_db:.1f} dB, its own holds {own_db[channel]:.1f}"
    return replace(own, reason=told)


class _Sliced:
    """A weight as a matrix, its slices along `axis` in the rows or, where that is the last axis, in the columns."""

    def __init__(self, weight: np.ndarray, axis: int | None):
        self.axis, self.shape = axis, weight.shape
        if axis is None:
            axis, weight = 0, weight if weight.ndim else weight.reshape(1)
        self.along = int(axis == weight.ndim - 1 > 0)
        moved = weight if self.along else np.moveaxis(weight, axis, 0)
        count = weight.shape[axis]
        rest = weight.size // max(1, count)
        self.moved = moved.shape
        self.matrix = moved.reshape((rest, count) if self.along else (count, rest))
        self.lows, self.highs, self.powers = self._measured()
        if not (np.isfinite(self.lows).all() and np.isfinite(self.highs).all()):
            raise ValueError("the weight holds NaN or infinity")
        self.peaks = np.maximum(-self.lows, self.highs)

    def _measured(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Least and greatest value of each slice, 0 among them, NaN where it holds one; and its sum of squares."""
        lows, highs = np.zeros((2, self.matrix.shape[self.along]), np.float32)
        powers = np.zeros(lows.size)
        for part in row_blocks(self.matrix):
            block, mine = self.matrix[part], slice(None) if self.along else part
            lows[mine] = np.minimum(lows[mine], block.min(axis=1 - self.along, initial=0))
            highs[mine] = np.maximum(highs[mine], block.max(axis=1 - self.along, initial=0))
            powers[mine] += _powers(block, self.along)
        if not 1e-30 < powers.max(initial=1) < 1e38:  # squares left float32
            powers = _powers(self.matrix.astype(np.float64), self.along)
        return lows, highs, powers

    def _wide(self, values: np.ndarray) -> np.ndarray:
        """One value, or one for each slice laid along them."""
        return values.reshape((1, -1) if self.along else (-1, 1)) if values.ndim else values

    def exact(self, one: bool) -> tuple[QuantizedTensor, np.ndarray] | None:
        """With `one` scale or one for each slice, if every weight is a multiple of its scale already; else None."""
        scale, zero_point = self._parameters(one, 1.0, True, QMAX)
        wide = self._wide(scale)
        codes = self.matrix[:8] / (wide if one or self.along else wide[:8])
        if np.abs(codes - np.rint(codes)).max(initial=0) > 1e-4:  # as far as float32 can tell
            return None
        made = self._round(scale, zero_point, True)
        return made if made[0].snr_db == math.inf else None

    def rounded(self, one: bool, share: float = 1.0, symmetric: bool = True) -> tuple[QuantizedTensor, np.ndarray]:
        """With `one` scale over `share` of the whole range, or one scale for each slice; and the decibels of each slice."""
        return self._round(*self._parameters(one, share, symmetric, STEPS), symmetric)

    def _parameters(self, one: bool, share: float, symmetric: bool, steps: float) -> tuple[np.ndarray, np.ndarray]:
        lows, highs = self.lows.astype(np.float64) * share, self.highs.astype(np.float64) * share
        if one:
            lows, highs = lows.min(initial=0.0), highs.max(initial=0.0)
        span = np.asarray(np.maximum(-lows, highs) / steps if symmetric else (highs - lows) / 255.0)
        # A weight of zeros takes any scale; a scale below the smallest normal number would have no reciprocal.
        scale = np.where(span == 0, 1.0, np.maximum(span, np.finfo(np.float32).tiny)).astype(np.float32)
        if symmetric:
            return scale, np.zeros(scale.shape, np.int8)
        return scale, np.clip(np.rint(QMIN - lows / scale), QMIN, QMAX).astype(np.int8)

    def _round(self, scale: np.ndarray, zero_point: np.ndarray, symmetric: bool) -> tuple[QuantizedTensor, np.ndarray]:
        """Codes, and signal-to-noise ratios from powers in units of each scale, as squares of weights could leave float32."""
        lowest = -127 if symmetric else QMIN
        one = not scale.ndim
        zero = zero_point.astype(np.float64)
        forms = np.empty((5, self.matrix.shape[self.along]), np.float32)
        forms[:] = np.stack([scale, 1.0 / scale.astype(np.float64), lowest - zero, QMAX - zero, zero]).reshape(5, -1)
        q = np.empty(self.matrix.shape, np.int8)
        signal, noise = np.zeros((2, forms.shape[1]))
        for part in row_blocks(self.matrix):  # a block of a view that is not contiguous is copied
            block, mine = np.ascontiguousarray(self.matrix[part], np.float32), slice(None) if self.along else part
            own = forms if self.along else np.ascontiguousarray(forms[:, part])
            weight_codes(block, bool(self.along), own, q[part], signal[mine], noise[mine])
        squares = scale.astype(np.float64) ** 2
        total = _decibels(np.sum(signal * squares), np.sum(noise * squares))
        codes = q.reshape(self.moved)
        codes = codes if self.along or self.axis is None else np.ascontiguousarray(np.moveaxis(codes, 0, self.axis))
        made = QuantizedTensor(codes.reshape(self.shape), scale, zero_point, None if one else self.axis, float(total))
        return made, _decibels(signal, noise)


def _powers(block: np.ndarray, along: int) -> np.ndarray:
    """Sums of squares of the rows of `block`, or of its columns."""
    return np.einsum("ij,ij->j" if along else "ij,ij->i", block, block)


def _decibels(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.where(noise == 0, np.inf, 10 * np.log10(np.maximum(signal, 1e-300) / np.where(noise == 0, 1, noise)))
