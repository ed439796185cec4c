"""Norm Tweaking: High-performance Low-bit Quantization of Large Language Models. Li et al. (2023), arXiv 2309.02784.

After any method that makes codes, block by block, factors and summands of norms alone are moved, so that every channel of what
the block makes has the mean and the variance that the float block would give it:

    L = (1/C) Σ_c ( |μ_c(f) − μ_c(q)| + |σ²_c(f) − σ²_c(q)| )         equation 2, over all tokens of the feeds of a step

f and q are the float block and the block of codes, both on what the blocks before, tweaked already, make (algorithm 1). Data
pass once; the rate of a block is lr · (1 + growth · l / L), since errors add up with depth (equation 3). Codes, their scales and
biases stay as they are, bit for bit.

What differs from the paper. Where a pass has made a block no better on the data, its norms stay as they were. The rate is not one
for a model: each of `rates` is tried on every block. The authors calibrate on text that the model itself makes; here on `data`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qruntime.quantization.arguments import check_rate, check_rates, check_whole
from qruntime.quantization.steps import Tuned

if TYPE_CHECKING:
    from qruntime.quantization.tuning.parts import Part


@dataclass(frozen=True)
class NormTweaking:
    """`rates`: of Adam, in the first block. `growth`: how much more in the last. `steps`: at most so many in the pass over the data."""

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    growth: float = 1.0
    steps: int = 16

    def __post_init__(self) -> None:
        check_rates(self.rates)
        check_rate("growth", self.growth)
        check_whole("steps", self.steps, 0)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    @property
    def follows_codes(self) -> bool:
        return True

    def tune(self, part: Part) -> Tuned:
        from qruntime.quantization.tuning.descent import Objective, descend
        from qruntime.quantization.tuning.losses import ChannelDistance
        from qruntime.quantization.tuning.parameters import NORM
        from qruntime.quantization.tuning.parts import QUANTIZED

        start = {name: one.tensor() for name, one in part.parameters.items() if one.role == NORM}
        if not start:
            return Tuned(facts={"NormTweaking": "the block has no norm"})
        objective = Objective(part, ChannelDistance(), lambda variables: (variables, {}), against=QUANTIZED)
        before = objective.value(start)
        depth = 1 + self.growth * part.index / part.count
        found = descend(objective, start, [rate * depth for rate in self.rates], min(self.steps, part.batches))
        if not found.loss < before:
            return Tuned(facts={"channel distance": before, "channel distance before": before})
        facts = {"channel distance": found.loss, "channel distance before": before, "rate": found.rate}
        return Tuned({name: tensor.numpy() for name, tensor in found.variables.items()}, facts=facts)
