"""Rounding to nearest: a weight as a matrix becomes int8 codes with one scale, or one for each output channel.

    real = scale · (q − zero_point)

Weights are rounded half to even. Affine ranges include 0, symmetric ones are −127 … 127 around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from qruntime._kernels import weight_codes
from qruntime.ir import HeldCodes, StoredTensor
from qruntime.ir.formats import FLOAT16, INT8, Format
from qruntime.quantization.ranges import STEPS, best_share, row_blocks, shared_range

QMIN, QMAX = INT8.qmin, INT8.qmax
_BLOCK = 1 << 14
FLOAT16_MAX = np.float32(65504)


class Matrix(NamedTuple):
    """The weight of one product as the model stores it: output channels along axis 0, [N, K], or along axis 1, [K, N]."""

    values: np.ndarray
    """float32 of rank 2."""
    along: int

    def stored(self, stored: StoredTensor) -> StoredTensor:
        """Codes that lie as `values` do, as [N, K]."""
        return stored.transposed() if self.along else stored


class Rounded(NamedTuple):
    """What became of a matrix."""

    stored: StoredTensor
    """[N, K]"""
    snr_db: float
    """Power of the weight over the power of its rounding error, in decibels; inf when nothing was lost."""
    reason: str = ""
    """What decided that it is stored otherwise than was preferred, or that something was lost beyond rounding."""
    facts: Mapping[str, Any] = MappingProxyType({})
    """What the steps that made it found out, by name."""


@dataclass(frozen=True)
class RoundToNearest:
    """int8, symmetric. `per_channel` None: one scale where every output channel can bear that, else one for each; what a
    channel can bear is said in ranges.py. False: one in any case, the one whose worst channel loses least."""

    per_channel: bool | None = None
    format: Format = INT8

    def solve(self, matrix: Matrix) -> Rounded:
        """Raises ValueError when the weight holds NaN or infinity: no scale could represent it."""
        if self.per_channel:
            return quantize(matrix, per_channel=True)
        return quantize_shared(matrix, strict=self.per_channel is False)


@dataclass(frozen=True)
class RoundToHalf:
    """float16, saturated to ±65504 as torch does; the reason says so where that changed a weight."""

    format: Format = FLOAT16

    def solve(self, matrix: Matrix) -> Rounded:
        """Raises ValueError when the weight holds NaN or infinity."""
        weight = matrix.values
        if not np.isfinite(weight).all():
            raise ValueError("the weight holds NaN or infinity")
        beyond = int(np.count_nonzero(np.abs(weight) > FLOAT16_MAX))
        reason = f"{beyond} weight{'s' if beyond > 1 else ''} beyond ±65504, the range of float16, clamped to it" if beyond else ""
        codes = np.clip(weight, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)
        return Rounded(matrix.stored(StoredTensor(FLOAT16, HeldCodes(codes))), snr_db(weight, codes.astype(np.float32)), reason)


def quantize(matrix: Matrix, *, per_channel: bool = False, symmetric: bool = True, range: str = "minmax") -> Rounded:
    """Round a finite float32 matrix to the nearest int8 codes.

    `symmetric`: zero point 0 and codes −127 … 127. `range`: "minmax" covers every value; "mse" covers what makes the squared
    error smallest and clips the rest, which a single scale needs when a few values are far larger than all others.

    Raises ValueError when the weight holds NaN or infinity: no scale could represent it.
    """
    sliced = _Sliced(matrix)
    if range == "mse" and (per_channel or not symmetric):
        raise ValueError("range 'mse' is for one symmetric scale")
    if symmetric and (exact := sliced.exact(not per_channel)):
        return exact[0]
    share = best_share(matrix.values, float(sliced.peaks.max(initial=0))) if range == "mse" else 1.0
    return sliced.rounded(not per_channel, share, symmetric)[0]


def quantize_shared(matrix: Matrix, *, strict: bool = False) -> Rounded:
    """One symmetric scale where every output channel can bear that, else one for each; with `strict` one in any case.

    Raises ValueError when the weight holds NaN or infinity.
    """
    sliced = _Sliced(matrix)
    if exact := sliced.exact(True):
        return exact[0]
    shared = shared_range(matrix.values, matrix.along, sliced.peaks, sliced.powers)
    if shared.holds or strict:
        return sliced.rounded(True, shared.share)[0]
    own, own_db = sliced.exact(False) or sliced.rounded(False)
    channel = shared.channel
    told = f"one scale would leave channel {channel} at {shared.channel_db:.1f} dB, its own holds {own_db[channel]:.1f}"
    return own._replace(reason=told)


class _Sliced:
    """A matrix with the extremes and powers of its output channels."""

    def __init__(self, matrix: Matrix):
        self.of, self.matrix, self.along = matrix, matrix.values, matrix.along
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

    def exact(self, one: bool) -> tuple[Rounded, np.ndarray] | None:
        """With `one` scale or one for each slice, if every weight is a multiple of its scale already; else None."""
        scale, zero_point = self._parameters(one, 1.0, True, QMAX)
        wide = self._wide(scale)
        codes = self.matrix[:8] / (wide if one or self.along else wide[:8])
        if np.abs(codes - np.rint(codes)).max(initial=0) > 1e-4:  # as far as float32 can tell
            return None
        made = self._round(scale, zero_point, True)
        return made if made[0].snr_db == math.inf else None

    def rounded(self, one: bool, share: float = 1.0, symmetric: bool = True) -> tuple[Rounded, np.ndarray]:
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

    def _round(self, scale: np.ndarray, zero_point: np.ndarray, symmetric: bool) -> tuple[Rounded, np.ndarray]:
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
        sizes = (1, 1) if one else (1, -1) if self.along else (-1, 1)
        stored = StoredTensor(INT8, HeldCodes(q), scale.reshape(sizes), zero_point.reshape(sizes))
        return Rounded(self.of.stored(stored), float(total)), _decibels(signal, noise)


def _powers(block: np.ndarray, along: int) -> np.ndarray:
    """Sums of squares of the rows of `block`, or of its columns."""
    return np.einsum("ij,ij->j" if along else "ij,ij->i", block, block)


def _decibels(signal: np.ndarray | np.floating, noise: np.ndarray | np.floating) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.where(noise == 0, np.inf, 10 * np.log10(np.maximum(signal, 1e-300) / np.where(noise == 0, 1, noise)))


def snr_db(weight: np.ndarray, restored: np.ndarray) -> float:
    """Power of the weight over that of its rounding error, in decibels; inf when nothing was lost."""
    signal = noise = 0.0
    flat, other = weight.ravel(), restored.ravel()
    for start in range(0, flat.size, _BLOCK):  # blocks that stay in cache
        block = flat[start : start + _BLOCK]
        signal += power(block)
        noise += power(other[start : start + _BLOCK] - block)
    return decibels(signal, noise)


def power(block: np.ndarray) -> float:
    """Sum of squares of float32: in float32 where it is far from the ends of that, else in float64."""
    flat = block.reshape(-1)
    total = float(np.einsum("i,i->", flat, flat))
    if 1e-24 < total < 1e36 or not flat.any():
        return total
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def decibels(signal: float, noise: float) -> float:
    """The ratio of two powers; inf when there is no noise."""
    with np.errstate(divide="ignore"):
        return float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise))
