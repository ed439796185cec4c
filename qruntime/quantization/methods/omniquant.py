"""OmniQuant: Omnidirectionally Calibrated Quantization for Large Language Models. Shao et al. (2023), arXiv 2308.13137.

Block by block two things are learned by what the block makes, while its weights stay what they are:

    learnable weight clipping     of every group the ends of its range, γ max(w) and β min(w), γ = σ(u), β = σ(v)         eq. 2
    argmin ‖ F(W, X) − F(Q_w(W; γ, β), Q_a(X)) ‖²                                                                         eq. 1

The inputs of the float block are those of the float model, the others come from the blocks that are quantized already. u and v
begin at 4, where σ is 0.982.

What differs from the paper. A block takes `steps` steps, not twenty passes. From u = 4 a rate of 0.01 hardly moves in few
steps (σ′ = 0.018), so that the rate is that of `rates` which leaves the least loss on the data. Where even that lies above the loss
of full ranges these stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qruntime.errors import QuantizationError
from qruntime.quantization.steps import Facts, Tuned

if TYPE_CHECKING:
    from qruntime.quantization.tuning.parameters import Parameter
    from qruntime.quantization.tuning.parts import Part

START = 4.0
"""Of u and v."""


@dataclass(frozen=True)
class OmniQuant:
    """`steps`: of Adam, for each block; 0 leaves full ranges. `rates`: of u and v, all tried."""

    steps: int = 15
    rates: tuple[float, ...] = (0.1, 0.3)

    def __post_init__(self) -> None:
        if self.steps < 0 or not self.rates or min(self.rates) < 0:
            raise QuantizationError(f"OmniQuant needs steps and rates of 0 or more, got {self.steps} and {self.rates}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    @property
    def follows_codes(self) -> bool:
        return False

    def tune(self, part: Part) -> Tuned:
        from qruntime.quantization.tuning.clipping import has_ranges
        from qruntime.quantization.tuning.descent import Objective, descend
        from qruntime.quantization.tuning.losses import SquaredError

        facts: Facts = {}
        clipped = {}
        for name, one in part.parameters.items():
            if one.args is not None and has_ranges(one.args):
                clipped[name] = Clipped(one)
            elif one.args is not None:
                facts["ranges that are not learned"] = f"those of {one.args}"
        if not clipped:
            facts = facts or {"OmniQuant": "no weight of the block is float"}
        rates = [rate for rate in self.rates if rate > 0]
        if not clipped or not rates or not self.steps:
            return Tuned(facts=facts)
        start = {key: tensor for one in clipped.values() for key, tensor in one.start().items()}
        objective = Objective(part, SquaredError(), lambda variables: ({}, {name: one.rounded(variables) for name, one in clipped.items()}))
        full = Objective(part, SquaredError(), lambda variables: ({}, {})).value({})
        found = descend(objective, start, rates, self.steps)
        if not found.loss < full:
            return Tuned(facts=facts | {"block loss": full, "block loss of full ranges": full})
        grids = {name: [_arrays(*grid) for grid in one.grids(found.variables)] for name, one in clipped.items()}
        return Tuned(grids=grids, facts=facts | {"block loss": found.loss, "block loss of full ranges": full, "rate": found.rate})


class Clipped:
    """A weight in ranges that are learned."""

    def __init__(self, parameter: Parameter):
        from qruntime.quantization.tuning.clipping import extremes, is_symmetric

        assert parameter.args is not None
        self.parameter, self.args, self.is_symmetric = parameter, parameter.args, is_symmetric(parameter.args)
        self.matrices = parameter.matrices(parameter.tensor().float())
        self.extremes = [extremes(matrix, self.args) for matrix in self.matrices]

    def start(self) -> dict[str, Any]:
        """u, and v of affine grids, by names of their own."""
        import torch

        made = {}
        for number, (low, high) in enumerate(self.extremes):
            made[self._key("γ", number)] = torch.full_like(high, START)
            if not self.is_symmetric:
                made[self._key("β", number)] = torch.full_like(low, START)
        return made

    def grids(self, variables: Mapping[str, Any]) -> list[tuple[Any, Any | None]]:
        from qruntime.quantization.tuning.clipping import grid_of

        found = []
        for number, (low, high) in enumerate(self.extremes):
            upper = variables[self._key("γ", number)].sigmoid()
            lower = upper if self.is_symmetric else variables[self._key("β", number)].sigmoid()
            found.append(grid_of(lower * low, upper * high, self.args))
        return found

    def rounded(self, variables: Mapping[str, Any]) -> Any:
        from qruntime.quantization.tuning.fake_quantization import with_parameters

        grids = self.grids(variables)
        return self.parameter.joined([with_parameters(matrix, self.args, *grid) for matrix, grid in zip(self.matrices, grids, strict=True)])

    def _key(self, letter: str, number: int) -> str:
        return f"{self.parameter.name} {letter}{number}"


def _arrays(scale: Any, zero_point: Any | None) -> tuple[Any, Any | None]:
    return scale.numpy(), None if zero_point is None else zero_point.numpy()
