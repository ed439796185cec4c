"""SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression. Dettmers et al., arXiv 2306.03078.

GPTQ (methods/gptq.py) in small groups with three things more (algorithm 1):

  * A weight whose code would lose too much stays as it is, beside the codes. With err_ij = (w_ij − ŵ_ij) / U_jj that is one with

        err_ij² > T      T = τ · mean_ij (w_ij / U_jj)²

  * When the columns before a group are rounded, its scales are made for what the updates have made of its weights, without the
    likely outliers: those without which the others, with scales of their own, lose less than all of them do, by more than T.
  * Scales and zero points, which need not be whole, are codes themselves in blocks of 16 rows ("bilevel"), and are decoded
    before a weight is rounded with them, so that what they lose is made good for like all else.

Groups of 16 of 3 bits are the paper's.

What differs from the paper. λ is a tenth of the mean diagonal of H, where its recipe takes all of it: calibrated on 32 windows of a
text and measured on 16 others of it, SmolLM2 loses 0.104 with 0.1, 0.126 with 0.3, 0.150 with 1. τ = 0.22 in place of 0.2 keeps below
4.2 bits, whatever λ. Groups are those along K as it is, taken in the order of the sum of their
H_jj, and columns of a group in the order of H_jj, so that no run has to know an order. T counts squares around 0 in place of
variances, which a layer with few outputs does not have. Codes may be of any grid whose groups are made one by one, and of
whole channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qruntime._kernels import round_with_feedback
from qruntime.ir import StoredTensor
from qruntime.ir.outliers import Outliers
from qruntime.ir.stored import numbers
from qruntime.ops.products import matmul
from qruntime.quantization.grid import block_of, code_grid, parameters, round_to, stored_as
from qruntime.quantization.hessian import ColumnGroup, grouped_factor_of
from qruntime.quantization.rounding import Rounded, snr_db
from qruntime.quantization.scheme import BILEVEL, CHANNEL, ROW_POW2, TENSOR, Granularity, QArgs, ScaleCoding
from qruntime.quantization.second_level import Part, side_by_side
from qruntime.quantization.statistics import SIGMA, Statistics
from qruntime.quantization.steps import Solved

_BLOCK = 8
"""Columns between two updates of those to come, for speed alone."""


@dataclass(frozen=True)
class SpQR:
    """`outlier_threshold`: τ, infinite for no outliers. `dampening_frac`: λ over the mean of the diagonal of H."""

    outlier_threshold: float = 0.22
    dampening_frac: float = 0.1

    def __post_init__(self) -> None:
        if not self.outlier_threshold > 0:
            raise ValueError(f"outlier_threshold must be above 0, got {self.outlier_threshold}")
        if not 0 <= self.dampening_frac < np.inf:
            raise ValueError(f"dampening_frac must be 0 or more, got {self.dampening_frac}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({SIGMA})

    def solve(self, weight: np.ndarray, args: QArgs, statistics: Statistics | None, start: Rounded | None = None) -> Solved:
        """Raises ValueError for a weight that is not finite, a grid whose groups cannot be made one by one, and statistics
        without a Σ that has a factor."""
        assert statistics is not None
        if args.granularity.kind == TENSOR or args.scales.kind == ROW_POW2 or args.format.is_paired:
            raise ValueError(f"SpQR makes the scales of one group after the other, which {args} does not allow")
        if not np.isfinite(weight).all():
            raise ValueError("the weight holds NaN or infinity")
        k = weight.shape[1]
        factor = grouped_factor_of(statistics, self.dampening_frac, block_of(args, k) or k)
        alive = np.where(factor.dead, np.float32(0), weight)[:, factor.order].astype(np.float32)
        sizes = np.mean(alive.astype(np.float64) ** 2, axis=0) * factor.pivots
        threshold = self.outlier_threshold * max(float(sizes[~factor.dead[factor.order]].mean()), np.finfo(np.float64).tiny)
        rounding = _Rounding(alive, args, factor.pivots, threshold)
        parts = {group.index: rounding.round(group) for group in factor.groups}
        stored = rounding.stored(factor.order, [parts[index] for index in range(len(parts))])
        facts = {"outliers": float(rounding.apart.mean())}
        if factor.damping > self.dampening_frac:
            facts["damping"] = factor.damping
        if factor.dead.any():
            facts["dead inputs"] = int(factor.dead.sum())
        return Solved(Rounded(stored, snr_db(weight, stored.decoded())), facts)


class _Rounding:
    """What becomes of a weight whose columns are in the order of a factor."""

    def __init__(self, weight: np.ndarray, args: QArgs, pivots: np.ndarray, threshold: float):
        self.weight, self.args, self.pivots, self.threshold = weight, args, pivots, threshold
        self.of_group = replace(args, granularity=Granularity(CHANNEL))
        """For the columns of one group."""
        self.lost = np.zeros(weight.shape)
        """[N, K]: w − ŵ of the columns that are done."""
        self.codes = np.zeros(weight.shape, args.format.code_dtype)
        self.reals = np.zeros(weight.shape, np.float32)
        self.apart = np.zeros(weight.shape, np.uint8)

    def round(self, group: ColumnGroup) -> tuple[Part, Part | None]:
        """Scales and zero points of a group, [N, 1]; its columns are done then."""
        own, before = group.columns, slice(0, group.columns.start)
        weight = self.weight[:, own]
        now = np.ascontiguousarray(weight)
        if group.columns.start:
            now = (weight + matmul(self.lost[:, before], group.carry)).astype(np.float32)
        scale, zero_point = parameters(self._without_outliers(now, self.pivots[own]), self.of_group)
        codes, apart = np.empty(now.shape, self.codes.dtype), np.empty(now.shape, np.uint8)
        reals = np.empty(now.shape, np.float32)
        shift = None if zero_point is None else numbers(zero_point)
        grid = code_grid(self.of_group, numbers(scale), shift, now.shape)
        order, limits = np.arange(now.shape[1], dtype=np.int32), self.threshold / self.pivots[own]
        round_with_feedback(now, order, group.coupling, grid, codes.view(np.uint8), _BLOCK, limits, reals, apart)
        self.codes[:, own], self.reals[:, own], self.apart[:, own] = codes, reals, apart
        self.lost[:, own] = weight.astype(np.float64) - reals
        return scale, zero_point

    def _without_outliers(self, weight: np.ndarray, pivots: np.ndarray) -> np.ndarray:
        """The weights of a group with the mean of the others in place of the likely outliers."""
        if self.threshold == np.inf:
            return weight
        likely = gains(weight, self.args, pivots) > self.threshold
        others = np.sum(~likely, axis=1, keepdims=True)
        mean = np.sum(np.where(likely, 0, weight), axis=1, keepdims=True) / np.maximum(others, 1)
        return np.where(likely, mean, weight).astype(np.float32)

    def stored(self, order: np.ndarray, parts: list[tuple[Part, Part | None]]) -> StoredTensor:
        scales, zero_points = zip(*parts, strict=True)
        zero_point = None if zero_points[0] is None else side_by_side(zero_points)
        own = np.argsort(order)
        codes, reals, apart = (one[:, own] for one in (self.codes, self.reals, self.apart))
        stored = stored_as(self.args, codes, side_by_side(scales), zero_point)
        return replace(stored, outliers=Outliers.where(apart.astype(bool), reals))


def gains(weight: np.ndarray, args: QArgs, pivots: np.ndarray) -> np.ndarray:
    """[N, G] float64: by how much less the others of a group [N, G] lose without each of them, squares counted by `pivots` [G].

    Only the least and the greatest of a row reach the range; for all others it is what they lose themselves.
    """
    rows, wide = np.arange(len(weight)), weight.astype(np.float64)
    lost = _losses(wide, wide, args) * pivots
    whole = lost.sum(axis=1)
    gained = lost.copy()
    for end in (wide.argmin(axis=1), wide.argmax(axis=1)):
        rest = wide.copy()
        rest[rows, end] = 0
        left = _losses(wide, rest, args) * pivots
        gained[rows, end] = whole - left.sum(axis=1) + left[rows, end]
    return gained


def _losses(weight: np.ndarray, covered: np.ndarray, args: QArgs) -> np.ndarray:
    """Squares of what the nearest codes lose that have one scale for what is `covered` of a row."""
    form = args.format
    low, high = np.minimum(covered.min(axis=1, keepdims=True), 0), np.maximum(covered.max(axis=1, keepdims=True), 0)
    if form.table is not None or args.symmetric:
        plain = replace(args, granularity=Granularity(CHANNEL), scales=ScaleCoding())
        scale, _ = parameters(covered.astype(np.float32), plain)
        codes = round_to(weight.astype(np.float32), plain, scale, None)
        return np.asarray((weight - (codes if form.table is None else form.values[codes]) * scale) ** 2)
    scale = np.where(high > low, (high - low) / (form.qmax - form.qmin), 1)
    zero_point = -low / scale
    if args.scales.kind != BILEVEL:
        zero_point = np.rint(zero_point)
    codes = np.clip(np.rint(weight / scale + zero_point), 0, form.qmax - form.qmin)
    return np.asarray((weight - (codes - zero_point) * scale) ** 2)
