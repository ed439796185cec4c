"""A few numbers of a stored tensor that its codes would hold too badly, each at its position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

_GAPS = (np.uint16, np.uint32, np.int64)
_LEAST_REACH, _GREATEST_HALF = 2.0**-13, 65504
"""Where the greatest of some numbers lies between them, float16 keeps all to 2⁻¹¹ of themselves or of that."""


@dataclass(frozen=True, eq=False)
class Outliers:
    """Numbers that stand in place of what the codes of a tensor say.

    Positions are counted row after row, those of a matrix that `is_turned` column after column.
    """

    gaps: np.ndarray
    """[count] uint16, or wider where one is longer: from the beginning to the first position, and from each to the next."""
    values: np.ndarray
    """[count] float16 or float32"""
    is_turned: bool = False

    @classmethod
    def of(cls, positions: np.ndarray, values: np.ndarray) -> Outliers:
        """Of int64 positions that ascend; values in float16 where it keeps them."""
        gaps = np.diff(positions, prepend=0)
        longest = int(gaps.max(initial=0))
        dtype = next(dtype for dtype in _GAPS if longest <= np.iinfo(dtype).max)
        reach = np.abs(values).max(initial=0)
        return cls(gaps.astype(dtype), values.astype(np.float16) if reach == 0 or _LEAST_REACH <= reach <= _GREATEST_HALF else values)

    @classmethod
    def where(cls, mask: np.ndarray, numbers: np.ndarray) -> Outliers | None:
        """Of `numbers` (float32) where `mask` says so, both of the shape of the tensor; None where it says so nowhere."""
        positions = np.flatnonzero(mask)
        return cls.of(positions, np.asarray(numbers, np.float32).reshape(-1)[positions]) if positions.size else None

    @property
    def count(self) -> int:
        return self.gaps.size

    @property
    def nbytes(self) -> int:
        return self.gaps.nbytes + self.values.nbytes

    def positions(self) -> np.ndarray:
        """[count] int64"""
        return np.cumsum(self.gaps, dtype=np.int64)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether every position lies in a tensor of that shape, after those before it, and every value is finite."""
        if self.gaps.shape != self.values.shape or self.gaps.ndim != 1 or self.values.dtype not in (np.float16, np.float32):
            return False
        if self.gaps.dtype not in _GAPS or not np.isfinite(self.values).all():
            return False
        if self.count == 0:
            return True
        return self.gaps[0] >= 0 and self.gaps[1:].min(initial=1) > 0 and float(self.gaps.sum(dtype=np.float64)) < math.prod(shape)

    def indices(self, shape: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Positions by axis in a tensor of that shape."""
        if self.is_turned:
            return tuple(reversed(np.unravel_index(self.positions(), tuple(shape)[::-1])))
        return tuple(np.unravel_index(self.positions(), tuple(shape)))

    def put_into(self, numbers: np.ndarray) -> None:
        """Replace what `numbers` have at these positions."""
        numbers[self.indices(numbers.shape)] = self.values

    def transposed(self) -> Outliers:
        return replace(self, is_turned=not self.is_turned)

    def row_major(self, shape: Sequence[int]) -> Outliers:
        """The same numbers, counted row after row."""
        if not self.is_turned:
            return self
        flat = np.ravel_multi_index(self.indices(shape), tuple(shape))
        order = np.argsort(flat)
        return Outliers.of(flat[order], self.values[order])

    def scaled(self, factor: float) -> Outliers:
        return replace(self, values=self.values * np.float32(factor))

    def slices(self, shape: Sequence[int], picked: np.ndarray) -> Outliers | None:
        """Those of a tensor made of the slices `picked` (int64 [p], not negative) of the first axis; None where there are none."""
        ordered, each = self.row_major(shape), max(1, math.prod(shape[1:]))
        owner, within = np.divmod(ordered.positions(), each)
        first, last = np.searchsorted(owner, picked), np.searchsorted(owner, picked, side="right")
        counts = last - first
        if not counts.any():
            return None
        new_owner = np.repeat(np.arange(len(picked)), counts)
        source = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
        return Outliers.of(new_owner * each + within[source], ordered.values[source])


def stack_outliers(parts: Sequence[Outliers | None], shape: Sequence[int]) -> Outliers | None:
    """Those of tensors of one shape along a new first axis."""
    size = math.prod(shape)
    found = [(i, part.row_major(shape)) for i, part in enumerate(parts) if part is not None]
    if not found:
        return None
    return Outliers.of(
        np.concatenate([part.positions() + i * size for i, part in found]), np.concatenate([part.values for _, part in found])
    )
