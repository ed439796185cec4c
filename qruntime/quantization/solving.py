"""What makes codes of one matrix of a layer: the point that every way to quantize comes down to.

`Storing` asks a `Rounding` and knows nothing else. Dynamic quantization and torch's observers bring their own; the steps of a
recipe become one when they are bound to what they are to make and to what is known of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qruntime.ir.formats import Format
from qruntime.quantization.grid import nearest_for
from qruntime.quantization.rounding import Matrix, Rounded
from qruntime.quantization.scheme import QArgs
from qruntime.quantization.statistics import Statistics
from qruntime.quantization.steps import Facts, Solve, Solved


class Rounding(Protocol):
    """Frozen and comparable: a weight that two layers share is solved once where they ask for the same."""

    @property
    def format(self) -> Format:
        """What the codes are of."""
        ...

    def solve(self, matrix: Matrix) -> Rounded:
        """Codes of one matrix. Raises ValueError with what is wrong with the weight."""
        ...


@dataclass(frozen=True, eq=False)
class OnGrid:
    """Codes that are nearest on a grid that is given: `scale` and `zero_point` [N or 1, groups], None of symmetric grids."""

    scale: np.ndarray
    zero_point: np.ndarray | None

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    def solve(self, weight: np.ndarray, args: QArgs, statistics: Statistics | None = None, start: Rounded | None = None) -> Solved:
        """Raises ValueError for NaN and infinity."""
        if not np.isfinite(weight).all():
            raise ValueError("the weight holds NaN or infinity")
        zero_point = None if self.zero_point is None else self.zero_point.astype(args.format.code_dtype)
        return Solved(nearest_for(weight, args, self.scale.astype(np.float32), zero_point))


@dataclass(frozen=True)
class Solving:
    """Steps bound to a scheme and to the rows that a matrix multiplies. Each step starts from what the one before it made.

    Statistics compare by identity: layers that read one weight share its codes where they share one `Statistics` too.
    """

    steps: tuple[Solve, ...]
    args: QArgs
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("nothing makes codes without a step that solves")

    @property
    def format(self) -> Format:
        return self.args.format

    def solve(self, matrix: Matrix) -> Rounded:
        """Raises ValueError with what is wrong with the weight."""
        weight = np.ascontiguousarray(matrix.values.T if matrix.along else matrix.values)
        made: Rounded | None = None
        facts: Facts = {}
        for step in self.steps:
            solved = step.solve(weight, self.args, self.statistics, made)
            made, facts = solved.rounded, facts | solved.facts
        assert made is not None
        return made._replace(facts=facts)
