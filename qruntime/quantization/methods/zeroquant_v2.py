"""ZeroQuant-V2: weights in fine groups, and beside each layer a branch of low rank that makes good for a part of what its codes lost.

Zhewei Yao, Xiaoxia Wu, Cheng Li, Stephen Youn, Yuxiong He, "ZeroQuant-V2: Exploring Post-training Quantization in LLMs from
Comprehensive Study to Low Rank Compensation", arXiv 2303.08302.

    E = W − Ŵ = U diag(σ) Vᵀ,    left = U_m diag(√σ_m),    right = diag(√σ_m) V_mᵀ,    y = x Ŵᵀ + (x rightᵀ) leftᵀ

Ŵ is what the codes stand for, whichever step made them. The branch reads the activations as floats, where the layer
quantizes its own too: the product is small, and a second error on x would be a second error on what it corrects.

Defaults of the step as in the paper: rank 8, factors in 8 bits; the recipe takes rank 16, which a small model needs (SmolLM2 with
3 bits per channel: 6.34 nats without, 5.88 with rank 8, 5.57 with 16). Deviations: each row of a factor has a scale of its own,
after the columns of `left` were brought to one size, so that every component is as exact as the first. `activation_aware`, which
the paper does not have, takes E Σ^½ for E: the branch then makes the error of the outputs least, not that of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir.formats import FORMATS
from qruntime.quantization.grid import nearest
from qruntime.quantization.scheme import QArgs
from qruntime.quantization.statistics import SIGMA, Statistics
from qruntime.quantization.steps import LowRankFactors

_KRYLOV_STEPS, _SPARE = 12, 8
"""After so many steps with so many vectors more than are wanted, the power that is left is off by 1e-6 of itself at most,
on spectra as flat as those of rounding errors."""


@dataclass(frozen=True)
class LowRank:
    """The `rank` components of the error of the weight that hold most of it, with factors of `bits` (2 to 8; None: floats)."""

    rank: int = 8
    bits: int | None = 8
    activation_aware: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise QuantizationError(f"LowRank(rank={self.rank}): need 1 or more")
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise QuantizationError(f"LowRank(bits={self.bits}): factors have 2 to 8 bits, or are floats with None")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({SIGMA}) if self.activation_aware else frozenset()

    def branch(self, weight: np.ndarray, restored: np.ndarray, statistics: Statistics | None = None) -> LowRankFactors:
        """Raises ValueError where `activation_aware` has no Σ to go by."""
        error = weight.astype(np.float64) - restored
        sigma = None
        if self.activation_aware:
            if statistics is None or statistics.sigma is None:
                raise ValueError("LowRank(activation_aware=True) needs the rows that the weight multiplies")
            sigma = statistics.sigma
        made = self._coded(*_balanced(error, _directions(error, min(self.rank, *error.shape), sigma)))
        power = np.sum(error * error)
        left = np.sum((error - made.product()) ** 2)
        made.facts.update({"rank": made.rank, "error_left": float(left / power) if power > 0 else 0.0})
        return made

    def _coded(self, left: np.ndarray, right: np.ndarray) -> LowRankFactors:
        if self.bits is None or not left.shape[1]:
            return LowRankFactors(left.astype(np.float32), right.astype(np.float32))
        size = np.abs(left).max(axis=0, initial=0)
        args = QArgs(FORMATS[f"int{self.bits}"])
        left, right = (left / size).astype(np.float32), (right * size[:, None]).astype(np.float32)
        return LowRankFactors(nearest(left, args).stored, nearest(right, args).stored)


def _directions(error: np.ndarray, rank: int, sigma: np.ndarray | None) -> np.ndarray:
    """The left singular vectors [N, rank] of error · Σ^½ (Σ None: of error) that hold most of it, the greatest first.

    Whatever they are, the best right factor beside them is directionsᵀ · error.
    """
    n, k = error.shape
    if n <= k:
        return _leading(error @ (error.T if sigma is None else sigma @ error.T), rank)
    seen = error if sigma is None else error @ _root(sigma)
    made, _ = np.linalg.qr(seen @ _leading(seen.T @ seen, rank))
    return made


def _balanced(error: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both factors with √σ, without components that hold nothing."""
    right = directions.T @ error
    size = np.linalg.norm(right, axis=1)
    kept = size > np.finfo(np.float64).eps * size.max(initial=0)
    root = np.sqrt(size[kept])
    return directions[:, kept] * root, right[kept] / root[:, None]


def _root(sigma: np.ndarray) -> np.ndarray:
    """C with C · Cᵀ = Σ, also where Σ has no inverse."""
    values, vectors = np.linalg.eigh(sigma)
    return vectors * np.sqrt(np.maximum(values, 0))


def _leading(gram: np.ndarray, rank: int) -> np.ndarray:
    """Eigenvectors [n, rank] of the greatest eigenvalues of a symmetric matrix without negative ones, the greatest first.

    Few of many are found in a Krylov space of blocks, which takes a fraction of the time of all.
    """
    block = rank + _SPARE
    if 2 * block * _KRYLOV_STEPS > len(gram):
        return np.linalg.eigh(gram)[1][:, ::-1][:, :rank]
    spans = [np.linalg.qr(np.random.default_rng(0).standard_normal((len(gram), block)))[0]]
    for _ in range(1, _KRYLOV_STEPS):
        fresh, known = gram @ spans[-1], np.concatenate(spans, axis=1)
        spans.append(np.linalg.qr(fresh - known @ (known.T @ fresh))[0])
    basis, _ = np.linalg.qr(np.concatenate(spans, axis=1))
    within = basis.T @ (gram @ basis)
    return basis @ np.linalg.eigh(within)[1][:, ::-1][:, :rank]
