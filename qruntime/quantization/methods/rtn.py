"""Round to nearest: every weight by itself, on a grid that covers all of them. What every other method is measured by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qruntime.quantization.grid import nearest
from qruntime.quantization.rounding import Rounded
from qruntime.quantization.scheme import QArgs
from qruntime.quantization.statistics import Statistics
from qruntime.quantization.steps import Solved


@dataclass(frozen=True)
class RTN:
    """Codes nearest to the weights; what an earlier step made is not looked at."""

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    def solve(self, weight: np.ndarray, args: QArgs, statistics: Statistics | None = None, start: Rounded | None = None) -> Solved:
        return Solved(nearest(weight, args))
