"""QuantEase: Optimization-based Quantization for Language Models. Behdin et al., arXiv 2309.01885.

Coordinate descent for ‖W X − Ŵ X‖² over the codes (algorithm 1): column after column goes to the codes nearest to its best value
while all others stay as they are, equation 7,

    β_j = ŵ_j + [(W − Ŵ) Σ]_j / Σ_jj      Σ = X Xᵀ, without damping or inverse

from Ŵ = W on a grid that stays, or from the codes of an earlier step. With `relaxation` every third sweep takes β_j itself
(section 3.3), which leaves poor minima; the last one never does. Defaults are the paper's: 25 sweeps, no groups.

With `outliers`, a share of the weights, W ≈ Ŵ + H with so many entries of H that are not 0, anywhere or in whole columns
(`structured`), algorithm 3: a sweep over Ŵ and a step of iterative hard thresholding on H take turns,

    H ← P_k(H + (W − Ŵ − H) Σ / λ),      λ no less than the greatest eigenvalue of Σ

and neither makes the error larger. The grid covers the weights that are no outliers at first.

What differs from the paper. Columns are taken in the order of Σ_jj, the largest first. From the codes of an earlier step every
row ends no worse than it began: one that relaxed sweeps left worse keeps what it had. With outliers no sweep is relaxed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qruntime._kernels import round_by_descent
from qruntime.ir import StoredTensor
from qruntime.ir.outliers import Outliers
from qruntime.ops.products import matmul
from qruntime.quantization.grid import block_of, code_grid, parameters, stored_as
from qruntime.quantization.hessian import Ordered, ordered
from qruntime.quantization.rounding import Rounded, snr_db
from qruntime.quantization.scheme import QArgs
from qruntime.quantization.second_level import Part
from qruntime.quantization.statistics import SIGMA, Statistics
from qruntime.quantization.steps import Facts, Solved

_RELAXED_OF = 3
"""Of so many sweeps the second is relaxed."""


@dataclass(frozen=True)
class QuantEase:
    """`iterations`: sweeps over all columns. `outliers`: the share of weights that are stored beside the codes, `structured` in
    whole columns."""

    iterations: int = 25
    relaxation: bool = True
    outliers: float = 0.0
    structured: bool = False

    refines = True

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be 1 or more, got {self.iterations}")
        if not 0 <= self.outliers < 0.5:
            raise ValueError(f"outliers must be a share of the weights from 0 to 0.5, got {self.outliers}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({SIGMA})

    def solve(self, weight: np.ndarray, args: QArgs, statistics: Statistics | None, start: Rounded | None = None) -> Solved:
        """Raises ValueError for a weight that is not finite, a start of another scheme, and statistics without Σ."""
        assert statistics is not None
        known = ordered(statistics, descending=True)
        assert statistics.sigma is not None
        weight = np.ascontiguousarray(weight, np.float32)
        if self.outliers:
            return self._with_outliers(weight, args, known, statistics.sigma, start)
        descent = _Descent.to(weight, args, known) if start is None else _Descent.going_on(start, args, known)
        before = descent.values
        descent.sweep(weight, self._relaxed())
        facts: Facts = {}
        if start is not None:
            ended, began = (_row_errors(weight - values, statistics.sigma) for values in (descent.values, before))
            descent.keep(ended > began, start)
            facts["rows that no sweep made better"] = int(np.sum(ended >= began))
        stored = descent.stored()
        return Solved(Rounded(stored, snr_db(weight, stored.decoded())), facts)

    def _relaxed(self) -> np.ndarray:
        """[iterations] uint8"""
        sweeps = np.arange(self.iterations)
        return (self.relaxation & (sweeps % _RELAXED_OF == 1) & (sweeps < self.iterations - 1)).astype(np.uint8)

    def _with_outliers(self, weight: np.ndarray, args: QArgs, known: Ordered, sigma: np.ndarray, start: Rounded | None) -> Solved:
        mask = self._largest(weight) if start is None else np.zeros(weight.shape, bool)
        apart = np.where(mask, weight, 0)
        descent = _Descent.to(weight - apart, args, known) if start is None else _Descent.going_on(start, args, known)
        for sweep in range(self.iterations):
            if sweep or start is not None:
                lost = weight.astype(np.float64) - descent.values - apart
                wanted = apart + matmul(lost, sigma) / known.most
                mask = self._largest(wanted)
                apart = np.where(mask, wanted, 0).astype(np.float32)
            descent.sweep(weight - apart, np.zeros(1, np.uint8))
        stored = replace(descent.stored(), outliers=Outliers.where(mask, descent.values + apart))
        return Solved(Rounded(stored, snr_db(weight, stored.decoded())), {"outliers": float(mask.mean())})

    def _largest(self, values: np.ndarray) -> np.ndarray:
        """Where the entries are that may be apart: the largest, or those of the columns of the largest norm; exactly as many as may be."""
        sizes = np.sum(values**2, axis=0) if self.structured else np.abs(values).reshape(-1)
        count = max(1, int(self.outliers * sizes.size))
        chosen = np.zeros(sizes.size, bool)
        chosen[np.argpartition(-sizes, count - 1)[:count]] = True
        return np.broadcast_to(chosen, values.shape) if self.structured else chosen.reshape(values.shape)


class _Descent:
    """Codes on a grid that stays, and what they stand for, while sweeps go over them."""

    def __init__(self, args: QArgs, known: Ordered, scale: Part, zero_point: Part | None, values: np.ndarray):
        self.args, self.known, self.scale, self.zero_point = args, known, scale, zero_point
        self.grid = code_grid(args, scale, zero_point, values.shape)
        self.values = values
        """[N, K] float32: Ŵ"""
        self.codes = np.zeros(values.shape, args.format.code_dtype)
        self.is_feasible = False
        """Whether `values` are those of `codes`."""

    @classmethod
    def to(cls, weight: np.ndarray, args: QArgs, known: Ordered) -> _Descent:
        """From the weight itself."""
        return cls(args, known, *parameters(weight, args), weight)

    @classmethod
    def going_on(cls, start: Rounded, args: QArgs, known: Ordered) -> _Descent:
        """From codes. Raises ValueError when they are of another scheme."""
        stored, block = start.stored, block_of(args, start.stored.shape[1])
        if (stored.format, stored.block) != (args.format, block) or stored.scale is None or stored.outliers is not None:
            raise ValueError(f"QuantEase goes on from codes of {args} alone, got {stored.format} in blocks of {stored.block}")
        made = cls(args, known, stored.scale, stored.zero_point, stored.decoded())
        made.codes[:], made.is_feasible = stored.unpacked(), True
        return made

    def sweep(self, weight: np.ndarray, is_relaxed: np.ndarray) -> None:
        known, codes = self.known, self.codes.view(np.uint8)
        round_by_descent(weight, known.order, known.sigma, known.diagonal, self.grid, self.values, self.is_feasible, is_relaxed, codes)
        self.values, self.is_feasible = self.stored().decoded(), True

    def keep(self, rows: np.ndarray, start: Rounded) -> None:
        """The codes that some rows had at first."""
        self.codes[rows] = start.stored.unpacked()[rows]

    def stored(self) -> StoredTensor:
        return stored_as(self.args, self.codes, self.scale, self.zero_point)


def _row_errors(lost: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """[N] float64: what each row of `lost` [N, K] makes of the error."""
    wide = lost.astype(np.float64)
    return np.asarray(np.sum(matmul(wide, sigma) * wide, axis=1))
