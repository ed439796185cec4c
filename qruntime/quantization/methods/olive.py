"""OliVe: Guo, Tang, Hu, Leng, Zhang, Yang, Liu, Guo, Zhu, "OliVe: Accelerating Large Language Models via Hardware-friendly
Outlier-Victim Pair Quantization", ISCA 2023, arXiv 2304.07493.

Two neighbours share a byte. Both are integers of 4 bits (§3.1), or one of them is an outlier, stored as a float of two bits of
exponent and one of mantissa (abfloat, §3.3), and the other its victim, which becomes 0: code 1000, which no integer of
−7 … 7 needs, says so. Outliers stay, at 4 bits a number and without a list of where they are. Pairs run along the input
channels of weights and along the channels of activations.

The scale is the one of several ratios of (|μ| + 3σ) / 7 at which the whole rounding loses least (§4.1): one for each output channel of
a weight, one for ever for a tensor of activations.

Deviations. What is lost is that of the outputs, where the paper takes that of the tensor: squares of an input channel count by what
the weights make of them, Σ_i W_ij², those of a weight by its inputs, mean X_j², as far as channels are apart. Ratios run from `low`
to `high`, each by `step` larger than the one before, where the paper's begin at 0.75: 3σ of a tensor whose outliers are many is
theirs. Normal values are integers; the authors also try flint4 for each tensor, whose outliers up to 192 fit no byte, so that
sums of products would not be exact. Of two outliers in a pair the larger stays; the authors' program keeps the first. A last
channel without partner is clipped to the integers in weights, where no code is left for a marker, and may be an outlier in
activations. Scales of activations come from a sample of rows and from those of the greatest numbers, not from all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qruntime.quantization import outlier_pairs
from qruntime.quantization.grid import nearest_for, rounded_scale
from qruntime.quantization.rounding import Rounded
from qruntime.quantization.scheme import Inputs, QArgs
from qruntime.quantization.statistics import Statistics
from qruntime.quantization.steps import InputRange, Solved


@dataclass(frozen=True)
class OliVe:
    """Weights and activations in outlier-victim pairs, a scheme of ovp4."""

    low: float = 0.1
    high: float = 2.5
    step: float = 0.08

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.high < np.inf and 0 < self.step < np.inf):
            raise ValueError(f"0 < low ≤ high and step > 0 are needed, got {self.low}, {self.high} and {self.step}")

    @property
    def ratios(self) -> tuple[float, ...]:
        count = int(np.log(self.high / self.low) / np.log1p(self.step) * (1 + 1e-9)) + 1
        return tuple(self.low * (1 + self.step) ** i for i in range(count))

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    def solve(self, weight: np.ndarray, args: QArgs, statistics: Statistics | None = None, start: Rounded | None = None) -> Solved:
        """Pairs of a weight [N, K]; what an earlier step made is not looked at."""
        if not args.format.is_paired:
            raise ValueError(f"OliVe makes pairs, Wovp4, and the scheme asks for {args.format}")
        sample = None if statistics is None else statistics.sample
        counts = None if sample is None else outlier_pairs.powers(sample)
        scales = rounded_scale(outlier_pairs.scales(weight, args.granularity, self.ratios, counts), args)
        made = nearest_for(weight, args, scales, None)
        return Solved(made, {"outlier_pairs": outlier_pairs.outlier_share(made.stored.values())})

    def range(self, inputs: Inputs, statistics: Statistics, weights: Sequence[np.ndarray] = ()) -> InputRange:
        """The scale of a tensor, from what is known of its rows and of what reads them, as the range of the integers."""
        if not inputs.format.is_paired:
            raise ValueError(f"OliVe makes pairs, Aovp4, and the scheme asks for {inputs}")
        return outlier_pairs.input_range(statistics, self.ratios, weights)
