"""Factors of Σ = XᵀX for solvers that take columns one after the other: once for all weights that read one input.

GPTQ's update w_j ← w_j − Σ_{i<j} err_i U_ij, err_i = (w_i − ŵ_i) / U_ii, with H⁻¹ = UᵀU and U upper triangular, needs no inverse.
The errors are W − Ŵ = Err · U. With R = U⁻¹, which is upper triangular too, Err = (W − Ŵ) R and H = R Rᵀ, so that

    w_j + Σ_{i<j} (w_i − ŵ_i) R_ij / R_jj

is what column j is rounded to. R is the Cholesky factor of H taken from its last row and column to the first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from qruntime._kernels import COLUMN_PANEL
from qruntime.ops.products import matmul
from qruntime.quantization.statistics import Statistics

T = TypeVar("T")

_MOST_DAMPING = 10.0
"""Of the mean of the diagonal: with that a matrix that Σ can be has a factor, whatever was rounded."""

_CORNER = 64


@dataclass(frozen=True, eq=False)
class Factor:
    """Of the damped H = Σ + λI, in the order of its columns."""

    order: np.ndarray
    """[K] int32: the column taken first, second …"""
    coupling: np.ndarray
    """[⌈K / COLUMN_PANEL⌉, K, COLUMN_PANEL] float64: R_ij / R_jj as panels."""
    dead: np.ndarray
    """[K] bool: inputs that were 0 in all rows."""
    damping: float
    """λ as a share of the mean of the diagonal."""


@dataclass(frozen=True, eq=False)
class ColumnGroup:
    """Columns that share scales. When those before them are rounded, w + (w − ŵ)_before · `carry` is what the updates have made of
    its weights, and from there on the group is rounded like a matrix of its own."""

    index: int
    """Which of the groups along K it is."""
    columns: slice
    """Its place in the order of columns."""
    carry: np.ndarray
    """[columns before it, G] float64: R_before,group · R_group⁻¹."""
    coupling: np.ndarray
    """[⌈G / COLUMN_PANEL⌉, G, COLUMN_PANEL] float64: R_ij / R_jj within the group, as panels."""


@dataclass(frozen=True, eq=False)
class GroupedFactor:
    """Of the damped H, group after group."""

    order: np.ndarray
    """[K] int32: groups by the sum of their H_jj, the largest first, and so the columns of each."""
    groups: tuple[ColumnGroup, ...]
    """In that order."""
    pivots: np.ndarray
    """[K] float64: R_jj² = 1 / U_jj², in that order: what the square of a loss counts."""
    dead: np.ndarray
    """[K] bool: inputs that were 0 in all rows."""
    damping: float
    """λ as a share of the mean of the diagonal."""


@dataclass(frozen=True, eq=False)
class Ordered:
    """Σ in an order of its columns."""

    order: np.ndarray
    """[K] int32"""
    sigma: np.ndarray
    """[⌈K / COLUMN_PANEL⌉, K, COLUMN_PANEL] float64: as panels."""
    diagonal: np.ndarray
    """[K] float64"""
    most: float
    """No eigenvalue is above it, and it is not far above the greatest."""


_made: WeakKeyDictionary[Statistics, dict[Hashable, Any]] = WeakKeyDictionary()
_lock = threading.Lock()


def factor_of(statistics: Statistics, dampening_frac: float, descending: bool) -> Factor:
    """The factor of Σ, damped by `dampening_frac` of the mean of its diagonal, by ten times as much while it has none.

    `descending`: columns in the order of Σ_jj, the largest first, else in their own. Kept as long as `statistics` lives.
    Raises ValueError where Σ is missing, not finite or zero.
    """
    return _once(statistics, ("factor", dampening_frac, descending), lambda sigma: _factor(sigma, dampening_frac, descending))


def grouped_factor_of(statistics: Statistics, dampening_frac: float, size: int) -> GroupedFactor:
    """The same factor for columns in groups of `size` along K, the last of which may be shorter. Raises ValueError likewise."""
    return _once(statistics, ("grouped", dampening_frac, size), lambda sigma: _grouped(sigma, dampening_frac, size))


def ordered(statistics: Statistics, descending: bool) -> Ordered:
    """Σ itself, kept as the factor is. Raises ValueError as `factor_of` does."""
    return _once(statistics, ("ordered", descending), lambda sigma: _ordered(sigma, descending))


def _once(statistics: Statistics, key: Hashable, make: Callable[[np.ndarray], T]) -> T:
    """What `make` makes of Σ, also where several threads ask for it at the same time."""
    with _lock:
        known = _made.setdefault(statistics, {})
        if key not in known:
            known[key] = make(_checked(statistics))
        made: T = known[key]
        return made


def _checked(statistics: Statistics) -> np.ndarray:
    sigma = statistics.sigma
    if sigma is None:
        raise ValueError("Σ of the inputs is not known; the step must ask for it in `requires`")
    if not np.isfinite(sigma).all():
        raise ValueError("the inputs of the calibration data hold NaN or infinity, or their squares leave float64")
    if not sigma.diagonal().any():
        raise ValueError("all inputs of this layer are zero in the calibration data")
    return sigma


def _factor(sigma: np.ndarray, dampening_frac: float, descending: bool) -> Factor:
    order = _column_order(sigma.diagonal(), descending)
    upper, damping = _damped_upper(sigma, order, dampening_frac)
    return Factor(order, _panels(upper, upper.diagonal()), sigma.diagonal() <= 0, damping)


def _grouped(sigma: np.ndarray, dampening_frac: float, size: int) -> GroupedFactor:
    diagonal = sigma.diagonal()
    owner = np.arange(len(diagonal)) // size
    sums = np.bincount(owner, diagonal)
    order = np.lexsort((-diagonal, owner, -sums[owner])).astype(np.int32)
    upper, damping = _damped_upper(sigma, order, dampening_frac)
    groups, first = [], 0
    while first < len(order):
        index = owner[order[first]]
        own = slice(first, first + int(np.sum(owner == index)))
        corner = upper[own, own]
        carry = _over(upper[:first, own], corner)
        groups.append(ColumnGroup(int(index), own, carry, _panels(corner, corner.diagonal())))
        first = own.stop
    return GroupedFactor(order, tuple(groups), upper.diagonal() ** 2, diagonal <= 0, damping)


def _damped_upper(sigma: np.ndarray, order: np.ndarray, dampening_frac: float) -> tuple[np.ndarray, float]:
    """R of the damped H in that order of columns, and how much it is damped by."""
    diagonal = sigma.diagonal()
    dead = diagonal <= 0
    mean = float(diagonal[~dead].mean())
    backwards = order[::-1]
    own = np.where(dead, mean, diagonal)[backwards]
    damping = dampening_frac
    while True:
        hessian = _in_order(sigma, backwards)
        np.fill_diagonal(hessian, own + damping * mean)
        try:
            return _cholesky(hessian)[::-1, ::-1], damping
        except np.linalg.LinAlgError:
            damping = max(10 * damping, 1e-6)
            if damping > _MOST_DAMPING:
                raise ValueError("Σ of the inputs is no positive matrix, whatever is added to its diagonal") from None


def _over(rows: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """`rows` [M, K] · `upper`⁻¹, by corners as the factor."""
    made = np.zeros(rows.shape)
    for a in range(0, len(upper) if len(rows) else 0, _CORNER):
        corner = slice(a, a + _CORNER)
        left = rows[:, corner] - matmul(made[:, :a], upper[:a, corner])
        made[:, corner] = matmul(left, np.linalg.inv(upper[corner, corner]))
    return made


def _cholesky(matrix: np.ndarray) -> np.ndarray:
    """L with L Lᵀ = `matrix` [K, K] float64, in its place. Raises LinAlgError when it is not positive.

    Corners of 64 rows by LAPACK, which has no threads for so few, the rest by our own product: a factor of large matrices by
    LAPACK alone would depend on the number of its threads, and takes several times as long beside other work.
    """
    k = len(matrix)
    for a in range(0, k, _CORNER):
        b = min(a + _CORNER, k)
        if a:
            matrix[a:, a:b] -= matmul(matrix[a:, :a], matrix[a:b, :a].T)
        corner = matrix[a:b, a:b] = np.linalg.cholesky(matrix[a:b, a:b])
        matrix[b:, a:b] = matmul(matrix[b:, a:b], np.linalg.inv(corner).T)
        matrix[a:b, b:] = 0
    return matrix


def _ordered(sigma: np.ndarray, descending: bool) -> Ordered:
    order = _column_order(sigma.diagonal(), descending)
    return Ordered(order, _panels(_in_order(sigma, order)), np.ascontiguousarray(sigma.diagonal()[order]), _most(sigma))


def _column_order(diagonal: np.ndarray, descending: bool) -> np.ndarray:
    """[K] int32: columns by Σ_jj, the largest first, of equals the first; or as they are."""
    return (np.argsort(-diagonal, kind="stable") if descending else np.arange(len(diagonal))).astype(np.int32)


def _in_order(sigma: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Rows and columns of Σ in an order."""
    return sigma.take(order, axis=0).take(order, axis=1)


def _panels(matrix: np.ndarray, divisors: np.ndarray | float = 1.0) -> np.ndarray:
    """A matrix [K, K], its columns divided by `divisors` [K], as [⌈K / COLUMN_PANEL⌉, K, COLUMN_PANEL] float64: so many of its columns
    each, the last filled up with zeros."""
    k = len(matrix)
    whole, rest = divmod(k, COLUMN_PANEL)
    panels = np.zeros((whole + (rest > 0), k, COLUMN_PANEL)) if rest else np.empty((whole, k, COLUMN_PANEL))
    by = np.broadcast_to(divisors, k)
    columns = matrix[:, : k - rest].reshape(k, whole, COLUMN_PANEL)
    np.divide(columns.transpose(1, 0, 2), by[: k - rest].reshape(whole, 1, COLUMN_PANEL), out=panels[:whole])
    if rest:
        panels[-1, :, :rest] = matrix[:, k - rest :] / by[k - rest :]
    return panels


def _most(sigma: np.ndarray) -> float:
    """‖Σ⁸‖^⅛ in Frobenius' norm: not below the greatest eigenvalue, nor above K^(1/16) times it."""
    norm = float(np.linalg.norm(sigma))
    power = sigma / norm
    for _ in range(3):
        power = matmul(power, power)
    return norm * float(np.linalg.norm(power)) ** 0.125
