"""How far an output lies from what it should be, over several runs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class Place(NamedTuple):
    """Where two outputs differ most: the run, the element, and both values."""

    run: int
    element: tuple[int, ...]
    expected: float
    got: float


class Difference(NamedTuple):
    """Measures over the elements compared so far; `a + b` is that of both. Powers are in units of `unit`²."""

    elements: int = 0
    equal: int = 0
    """Elements with the same bits, NaN beside NaN included."""
    nonfinite: int = 0
    """Elements that are NaN or infinite on one side only; they are in no other measure."""
    mismatch: str | None = None
    """Why outputs cannot be compared."""
    is_float: bool = False
    max_abs_error: float = 0.0
    largest: float = 0.0
    """Largest |expected|."""
    unit: float = 1.0
    noise: float = 0.0
    power: float = 0.0
    power_got: float = 0.0
    dot: float = 0.0
    worst: Place | None = None

    def __add__(self, other: Difference) -> Difference:  # type: ignore[override]
        unit = max(self.unit, other.unit)
        mine, theirs = (self.unit / unit) ** 2, (other.unit / unit) ** 2
        further = other.max_abs_error > self.max_abs_error or self.worst is None
        return Difference(
            self.elements + other.elements,
            self.equal + other.equal,
            self.nonfinite + other.nonfinite,
            self.mismatch or other.mismatch,
            self.is_float or other.is_float,
            max(self.max_abs_error, other.max_abs_error),
            max(self.largest, other.largest),
            unit,
            self.noise * mine + other.noise * theirs,
            self.power * mine + other.power * theirs,
            self.power_got * mine + other.power_got * theirs,
            self.dot * mine + other.dot * theirs,
            other.worst if further else self.worst,
        )

    @property
    def identical(self) -> bool:
        return self.mismatch is None and self.equal == self.elements

    @property
    def agreement(self) -> float:
        """Share of the elements that are equal."""
        return self.equal / self.elements if self.elements else 1.0

    @property
    def relative_error(self) -> float:
        """Largest |a − b| over largest |a|."""
        return self.max_abs_error / self.largest if self.largest else math.inf if self.max_abs_error else 0.0

    @property
    def snr_db(self) -> float:
        """Power of what is expected over that of the difference, in decibels."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.power / self.noise) if self.power else -math.inf

    @property
    def cosine(self) -> float | None:
        """None for fewer than two elements, which have no direction."""
        if self.elements < 2:
            return None
        if self.noise == 0:
            return 1.0
        return self.dot / math.sqrt(self.power * self.power_got) if self.power and self.power_got else 0.0


def difference(expected: Any, got: Any, run: int = 0, where: np.ndarray | None = None) -> Difference:
    """Compare one output of one run. `where`: a boolean array over the leading dimensions; only what it marks is compared.

    Elements where both are NaN or the same infinity agree.
    """
    if not isinstance(expected, np.ndarray) or not isinstance(got, np.ndarray):
        same = _same(expected, got)
        return Difference(1, int(same), mismatch=None if same else "not tensors, and not equal")
    if expected.shape != got.shape:
        return Difference(mismatch=f"shapes {list(expected.shape)} and {list(got.shape)}")
    if expected.dtype != got.dtype:
        return Difference(mismatch=f"types {expected.dtype} and {got.dtype}")
    if expected.dtype == object:
        equal = int(np.count_nonzero(expected == got))
        return Difference(expected.size, equal, mismatch=None if equal == expected.size else "different strings")
    positions = None
    if where is not None and expected.shape[: where.ndim] == where.shape:
        positions = np.nonzero(where)
        expected, got = expected[positions], got[positions]
    return _of_numbers(expected, got, run, positions)


def _of_numbers(expected: np.ndarray, got: np.ndarray, run: int, positions: tuple[np.ndarray, ...] | None) -> Difference:
    is_float = expected.dtype.kind in "fcV"
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(wide).ravel(), got.astype(wide).ravel()
    agree = (expected == got).ravel() | (np.isnan(a) & np.isnan(b))
    comparable = np.isfinite(a) & np.isfinite(b)
    odd = int(np.count_nonzero(~agree & ~comparable))
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.where(comparable, np.abs(a - b), 0.0)
    worst = None
    if errors.size and errors.max() > 0:
        at = int(errors.argmax())
        index = tuple(map(int, np.unravel_index(at, expected.shape)))
        if positions is not None:
            index = (*(int(axis[index[0]]) for axis in positions), *index[1:])
        worst = Place(run, index, float(a[at].real), float(b[at].real))
    a, b = a[comparable], b[comparable]
    largest = float(np.abs(a).max(initial=0.0))
    # Scaled so that squares neither overflow nor vanish.
    unit = max(largest, float(np.abs(b).max(initial=0.0))) or 1.0
    a, b = a / unit, b / unit
    noise, power, power_got = (float(np.vdot(x, x).real) for x in (a - b, a, b))
    return Difference(
        expected.size, int(np.count_nonzero(agree)), odd, None, is_float, float(errors.max(initial=0.0)), largest,
        unit, noise, power, power_got, float(np.vdot(a, b).real), worst,
    )  # fmt: skip


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))
