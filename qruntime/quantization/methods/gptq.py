"""GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers. Frantar et al., arXiv 2210.17323.

Columns are rounded one after the other, and what one loses is made good by those to come (equations 2 and 3, algorithm 1):

    q_j = quant(w_j)      w_k ← w_k − (w_j − q_j) [H⁻¹]_jk / [H⁻¹]_jj  for k > j      H = 2 XᵀX + λI

for the H⁻¹ of what is left. Defaults are the paper's: λ = 1 % of the mean diagonal, inputs that are
always 0 taken out, and their weights with them before scales are chosen. `mse` clips the ranges of scales where that loses less
(the authors' program has it, without default): with few bits a channel and weights far apart.

What differs from the paper. Scales of groups are those of the weights as they were, not of what the updates made of them, so
that columns can be taken in the order of H_jj, the largest first ("act-order" with static groups), without an order that a run would
have to know. The factor is R with H = R Rᵀ in place of that of the inverse (quantization/hessian.py): the same codes
with a third of the work. `mse` counts squares by H_jj (quantization/clipped_ranges.py), the authors' program powers of 2.4 of all
weights alike. λ counts inputs that are not always 0. Codes may be of any grid (ZeroQuant-FP rounds to FP4 so).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qruntime._kernels import round_with_feedback
from qruntime.quantization.clipped_ranges import clipped
from qruntime.quantization.grid import code_grid, parameters, stored_as
from qruntime.quantization.hessian import factor_of
from qruntime.quantization.rounding import Rounded, snr_db
from qruntime.quantization.scheme import QArgs
from qruntime.quantization.statistics import SIGMA, Statistics
from qruntime.quantization.steps import Solved

STATIC_GROUPS = "static"


@dataclass(frozen=True)
class GPTQ:
    """`block_size`: columns between two updates of those to come, for speed alone (128 in the paper). `dampening_frac`: λ over the
    mean of the diagonal of H. `actorder`: "static" takes columns in the order of H_jj, None as they are. `mse`: ranges at which
    rounding to nearest loses least, in place of the extremes."""

    block_size: int = 8
    dampening_frac: float = 0.01
    actorder: str | None = STATIC_GROUPS
    mse: bool = False

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be 1 or more, got {self.block_size}")
        if not 0 <= self.dampening_frac < np.inf:
            raise ValueError(f"dampening_frac must be 0 or more, got {self.dampening_frac}")
        if self.actorder not in (STATIC_GROUPS, None):
            raise ValueError(f"actorder must be {STATIC_GROUPS!r} or None, got {self.actorder!r}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({SIGMA})

    def solve(self, weight: np.ndarray, args: QArgs, statistics: Statistics | None, start: Rounded | None = None) -> Solved:
        """Raises ValueError for a weight that is not finite, and for statistics without a Σ that has a factor."""
        assert statistics is not None
        factor = factor_of(statistics, self.dampening_frac, self.actorder == STATIC_GROUPS)
        alive = np.ascontiguousarray(weight, np.float32)
        if factor.dead.any():
            alive = np.where(factor.dead, np.float32(0), alive)
        assert statistics.sigma is not None
        covered = clipped(alive, args, statistics.sigma.diagonal()) if self.mse else alive
        scale, zero_point = parameters(covered, args)
        codes = np.empty(weight.shape, args.format.code_dtype)
        grid = code_grid(args, scale, zero_point, alive.shape)
        round_with_feedback(alive, factor.order, factor.coupling, grid, codes.view(np.uint8), self.block_size)
        stored = stored_as(args, codes, scale, zero_point)
        facts = {"damping": factor.damping} if factor.damping > self.dampening_frac else {}
        if factor.dead.any():
            facts["dead inputs"] = int(factor.dead.sum())
        return Solved(Rounded(stored, snr_db(weight, stored.decoded())), facts)
