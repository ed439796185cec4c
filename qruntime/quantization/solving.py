"""What makes codes of a weight: the step that every way to quantize ends with."""

from __future__ import annotations

from typing import Protocol

from qruntime.ir.formats import Format
from qruntime.quantization.rounding import Matrix, Rounded


class Solve(Protocol):
    """Frozen and comparable: a weight that two layers share is solved once where they ask for the same."""

    @property
    def format(self) -> Format:
        """What the codes are of."""
        ...

    def solve(self, matrix: Matrix) -> Rounded:
        """Codes of one matrix. Raises ValueError with what is wrong with the weight."""
        ...
