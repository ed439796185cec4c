"""ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale Transformers. Yao et al., arXiv 2206.01861.

int8 weights, symmetric, with a scale for each group of rows, and activations quantized per token at every run (section 4.1). Its
mixed form has int4 in the feed-forward layers. Nothing in a weight tells those from attention, where keys and values of few heads
look like them, so a call says which they are, by names that both exporters of torch keep:

    model.quantize("ZeroQuant", overrides={"*mlp*": "W4A8-sym"})

`groups` is the number of groups, as `quantize_groups` of the paper's code is, not their size: 1 is one scale for the tensor, one
for each row (None, the finest) is per channel.

What differs from the paper. Its code divides by 2^(b−1) and clips the largest weight by one step; codes here reach it. Its
layer-by-layer distillation is a step of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qruntime.ir.stored import numbers
from qruntime.quantization.grid import nearest, nearest_for, parameters
from qruntime.quantization.rounding import Rounded
from qruntime.quantization.scheme import GROUP, TENSOR, Granularity, QArgs
from qruntime.quantization.statistics import Statistics
from qruntime.quantization.steps import Solved


@dataclass(frozen=True)
class RowGroups:
    """Codes nearest to the weights; consecutive rows of a group share their scale. Of N rows in g groups each has ⌈N / g⌉, the last
    what is left; more groups than rows are one for each."""

    groups: int | None = None

    def __post_init__(self) -> None:
        if self.groups is not None and self.groups < 1:
            raise ValueError(f"groups is how many there are, 1 or more, got {self.groups}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    def solve(self, weight: np.ndarray, args: QArgs, statistics: Statistics | None = None, start: Rounded | None = None) -> Solved:
        """Raises ValueError for a weight that is not finite, and for groups of rows where the scheme has groups of columns."""
        if self.groups is None:
            return Solved(nearest(weight, args))
        if args.granularity.kind == GROUP:
            raise ValueError(f"a weight has groups of rows, groups={self.groups}, or groups of columns, {args.granularity}, not both")
        size = -(-len(weight) // self.groups)
        one = replace(args, granularity=Granularity(TENSOR))
        shared = [parameters(weight[start : start + size], one) for start in range(0, len(weight), size)]
        owner = np.arange(len(weight)) // size
        scale = np.concatenate([numbers(scale) for scale, _ in shared])[owner]
        zero_points = [numbers(zero_point) for _, zero_point in shared if zero_point is not None]
        return Solved(nearest_for(weight, args, scale, np.concatenate(zero_points)[owner] if zero_points else None))
