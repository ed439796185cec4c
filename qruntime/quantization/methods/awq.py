"""AWQ: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (2023), arXiv 2306.00978.

    s = a^ρ,   a_j = mean|X_j|,   ρ* = argmin over ρ of ‖ f(W · s, X / s) − f(W, X) ‖²          eq. 4 and 5

The weights of channels that matter are made larger before they are rounded, so that they lose less. f is what the layers that
read the tensor compute together: attention, the gated product, else their outputs. ρ runs over 0, 1/grid, … below 1; 0 is
round to nearest, so that nothing is lost on the data. Scales are divided by √(max · min), as the authors' code does.

Then the range of every group is clipped where that lowers the error of its part of the outputs (§3.2, "weight clipping"): the
largest share of 1, 0.95 … 0.55 of the extremes. The authors leave queries and keys unclipped; here every layer is, for which
its own outputs on the data decide.

A tensor that nothing before it can absorb a scale of is left alone unless `insert` puts a Mul before its readers. Where another
method makes the codes, ["AWQ", "GPTQ"], only the scales are AWQ's: ranges that are clipped for rounding to nearest are not for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.quantization.grid import nearest, nearest_values
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.methods.smoothquant import tied
from qruntime.quantization.reasons import Reason, Unselected
from qruntime.quantization.rehearsal import rounded_weight
from qruntime.quantization.rounding import Rounded, decibels, power
from qruntime.quantization.scheme import TENSOR, QArgs
from qruntime.quantization.statistics import EXTREMES, MEANS, Statistics
from qruntime.quantization.steps import Equivalence, SiteView, Solved

SMALLEST = 1e-4
"""Of a scale before it is normalized, as in the authors' code."""


@dataclass(frozen=True)
class AWQ:
    """The scales. `grid`: how many ρ are tried."""

    grid: int = 20
    insert: bool = False

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise QuantizationError(f"grid of AWQ must be 1 or more, got {self.grid}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({EXTREMES, MEANS})

    def choose(self, site: SiteView) -> Equivalence | Reason:
        if not any(scheme is not None for scheme in site.schemes):
            return Unselected("no layer that reads the tensor is quantized")
        if "scale" not in site.allows and not self.insert:
            return Reason("nothing before the tensor can absorb a scale")
        assert site.statistics.mean_abs is not None
        floats = [np.ascontiguousarray(weight, np.float32) for weight in site.weights]
        wanted = site.outputs(site.runs, floats)

        def loss(scale: np.ndarray) -> float:
            weights = [rounded_weight(weight * scale, scheme) / scale for weight, scheme in zip(floats, site.schemes, strict=True)]
            return _loss(site.outputs(site.runs, weights), wanted)

        scales = [self.scale(site.statistics.mean_abs, step / self.grid, site.ties) for step in range(self.grid)]
        losses = site.side_by_side(loss, scales)
        best = int(np.argmin(losses))
        facts = {"ratio": best / self.grid, "loss": losses[best], "loss without": losses[0]}
        if best == 0:
            return Equivalence(facts=facts)
        return Equivalence(scale=scales[best], insert=self.insert, facts=facts)

    @staticmethod
    def scale(means: np.ndarray, ratio: float, ties: np.ndarray | None) -> np.ndarray:
        """Scales [K] float32 for means of magnitudes [K]."""
        scale = tied(np.maximum(means.astype(np.float64) ** ratio, SMALLEST), ties)
        return (scale / np.sqrt(scale.max() * scale.min())).astype(np.float32)


def _loss(made: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Mean squared error."""
    total = sum(power(one - other) for one, other in zip(made, wanted, strict=True))
    return total / max(1, sum(one.size for one in wanted))


@dataclass(frozen=True)
class ClipRanges:
    """Round to nearest in ranges that are clipped where the outputs of the layer gain by it. `shares`: tried of the extremes,
    down to 1 − `shrink`."""

    shares: int = 10
    shrink: float = 0.5

    gives_way = True

    def __post_init__(self) -> None:
        if self.shares < 1 or not 0 <= self.shrink < 1:
            raise QuantizationError(
                f"shares of ClipRanges must be 1 or more, shrink from 0 to below 1, got {self.shares} and {self.shrink}"
            )

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    def solve(self, weight: np.ndarray, args: QArgs, statistics: Statistics | None, start: Rounded | None) -> Solved:
        if statistics is None or statistics.sample is None or args.granularity.kind == TENSOR:
            return RTN().solve(weight, args, statistics, start)
        weight = np.ascontiguousarray(weight, np.float32)
        starts = np.arange(0, weight.shape[1], args.granularity.size or weight.shape[1])
        grams = _grams(statistics.sample, starts)
        best = np.full((len(weight), len(starts)), np.inf)
        clipped = weight.copy()
        for number in range(self.shares):
            share = np.float32(1 - self.shrink * number / self.shares)
            tried = _clipped(weight, starts, share)
            lost = _group_errors(nearest_values(tried, args) - weight, starts, grams)
            better = lost < best
            best = np.where(better, lost, best)
            clipped = np.where(_spread(better, starts, weight.shape[1]), tried, clipped)
        stored = nearest(clipped, args).stored
        clipped_share = float(np.mean(clipped != weight))
        rounded = Rounded(stored, decibels(power(weight), power(stored.decoded() - weight)))
        return Solved(rounded, {"clipped": clipped_share})


def _grams(sample: np.ndarray, starts: np.ndarray) -> list[np.ndarray]:
    """XᵀX of the channels of each group, for X with a largest magnitude near 1: squares stay within float32."""
    _, exponent = np.frexp(np.abs(sample).max(initial=0))
    parts = np.split(np.ldexp(sample, -exponent), starts[1:], axis=1)
    return [part.T @ part for part in parts]


def _group_errors(difference: np.ndarray, starts: np.ndarray, grams: list[np.ndarray]) -> np.ndarray:
    """[N, groups]: squared error of the outputs that each group alone makes."""
    parts = np.split(difference, starts[1:], axis=1)
    return np.stack([np.einsum("nk,nk->n", part @ gram, part) for part, gram in zip(parts, grams, strict=True)], axis=1)


def _clipped(weight: np.ndarray, starts: np.ndarray, share: np.float32) -> np.ndarray:
    """Every group within `share` of its largest magnitude."""
    most = np.maximum.reduceat(np.abs(weight), starts, axis=1) * share
    wide = _spread(most, starts, weight.shape[1])
    return np.clip(weight, -wide, wide)


def _spread(values: np.ndarray, starts: np.ndarray, k: int) -> np.ndarray:
    """[N, groups] with an entry for each channel."""
    return np.repeat(values, np.diff([*starts, k]), axis=1)
