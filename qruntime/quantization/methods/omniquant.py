"""OmniQuant: Omnidirectionally Calibrated Quantization for Large Language Models. Shao et al. (2023), arXiv 2308.13137.

Block by block two things are learned by what the block makes, while its weights stay what they are:

    learnable weight clipping               of every group the ends of its range, γ max(w) and β min(w), γ = σ(u), β = σ(v)    eq. 2
    learnable equivalent transformation     X ← X / s, W ← W · s, where activations are quantized                              eq. 3
    argmin ‖ F(W, X) − F(Q_w(W; γ, β, s), Q_a(X; s)) ‖²                                                                        eq. 1

The inputs of the float block are those of the float model, the others come from the blocks that are quantized already. u and v
begin at 4, where σ is 0.982, s at what SmoothQuant has for α = 0.5.

What differs from the paper. A block takes `steps` steps, not twenty passes. From u = 4 a rate of 0.01 hardly moves in few
steps (σ′ = 0.018), so that the rate is that of `rates` which leaves the least loss on the data: in the first block, and wherever the
one that is kept from there gains nothing. Where even the best lies above the loss of full ranges without a transformation these
stay. s is learned as its logarithm, behind norms alone: values, queries and keys of
attention keep theirs. Channels are not shifted: OutlierSuppressionPlus() before this step does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qruntime.quantization.arguments import check_rates, check_whole
from qruntime.quantization.steps import Facts, Tuned

if TYPE_CHECKING:
    from qruntime.quantization.sites import Site
    from qruntime.quantization.tuning.parameters import Parameter
    from qruntime.quantization.tuning.parts import Part

START = 4.0
"""Of u and v."""
SCALES = 0.05
"""The rate of log s, as a share of that of u and v."""


@dataclass(frozen=True)
class OmniQuant:
    """`steps`: of Adam, for each block; 0 leaves full ranges. `rates`: of u and v, all tried in the
    first block. `transform`: False for clipping alone."""

    steps: int = 15
    rates: tuple[float, ...] = (0.1, 0.3)
    transform: bool = True

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 0)
        check_rates(self.rates)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    @property
    def follows_codes(self) -> bool:
        return False

    def tune(self, part: Part) -> Tuned:
        from qruntime.quantization.tuning.clipping import has_ranges
        from qruntime.quantization.tuning.descent import Objective, descend_as_before
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
        scaled = Scaled(part, clipped if self.transform else {})
        full = Objective(part, SquaredError(), lambda variables: ({}, {})).value({})
        objective = Objective(part, SquaredError(), lambda variables: _shaped(variables, clipped, scaled), begin=scaled.begin)
        logarithms = scaled.start(clipped)
        start = logarithms | {key: tensor for one in clipped.values() for key, tensor in one.start().items()}
        found = descend_as_before(self, objective, start, rates, self.steps, full, dict.fromkeys(logarithms, SCALES))
        if not found.loss < full:
            return Tuned(facts=facts | {"block loss": full, "block loss of full ranges": full})
        facts |= {"block loss": found.loss, "block loss of full ranges": full, "rate": found.rate}
        scales = scaled.scales(found.variables)
        grids = {
            name: [_arrays(*grid) for grid in one.grids(found.variables, scaled.of_weight(name, scales))] for name, one in clipped.items()
        }
        return Tuned(grids=grids, scales={name: scale.numpy() for name, scale in scales.items()}, facts=facts)


def _shaped(variables: Mapping[str, Any], clipped: Mapping[str, Clipped], scaled: Scaled) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scales of tensors, and what the weights become."""
    scales = scaled.scales(variables)
    return scales, {name: one.rounded(variables, scaled.of_weight(name, scales)) for name, one in clipped.items()}


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

    def grids(self, variables: Mapping[str, Any], scale: Any | None = None) -> list[tuple[Any, Any | None]]:
        """Of the matrices, times `scale` [K]."""
        from qruntime.quantization.tuning.clipping import extremes, grid_of

        found = []
        ends = self.extremes if scale is None else [extremes(matrix * scale, self.args) for matrix in self.matrices]
        for number, (low, high) in enumerate(ends):
            upper = variables[self._key("γ", number)].sigmoid()
            lower = upper if self.is_symmetric else variables[self._key("β", number)].sigmoid()
            found.append(grid_of(lower * low, upper * high, self.args))
        return found

    def rounded(self, variables: Mapping[str, Any], scale: Any | None = None) -> Any:
        """What the weight becomes; of one that is rounded when it is multiplied with `scale`, divided by it again."""
        from qruntime.quantization.tuning.fake_quantization import with_parameters

        made = []
        for matrix, grid in zip(self.matrices, self.grids(variables, scale), strict=True):
            if scale is None:
                made.append(with_parameters(matrix, self.args, *grid))
            else:
                made.append(with_parameters(matrix * scale, self.args, *grid) / scale)
        return self.parameter.joined(made)

    def _key(self, letter: str, number: int) -> str:
        return f"{self.parameter.name} {letter}{number}"


class Scaled:
    """Tensors of a block whose channels get scales that are learned: layers that read one round it divided by them, as they will when
    the norm before it makes it so."""

    def __init__(self, part: Part, clipped: Mapping[str, Clipped]):
        self.part = part
        roundings = part.student.roundings
        self.sites: dict[str, Site] = {}
        self._of_weight: dict[str, str] = {}
        self._now: dict[str, Any] = {}
        for site in part.sites if any(rounding is not None for rounding in roundings.values()) else ():
            names = [reader.weight.name for reader in site.readers]
            is_free = all(name in clipped and name not in self._of_weight for name in names)
            if is_free and all(roundings.get(reader.node) is not None for reader in site.readers):
                self.sites[site.value.name] = site
                self._of_weight |= dict.fromkeys(names, site.value.name)
                for reader in site.readers:
                    roundings[reader.node] = self._rounding(site.value.name, roundings[reader.node])

    def start(self, clipped: Mapping[str, Clipped]) -> dict[str, Any]:
        """log s, by names of their own, for magnitudes in what the quantized blocks before make."""
        import torch

        from qruntime.quantization.methods.smoothquant import SMALLEST
        from qruntime.quantization.tuning.student import Student

        if not self.sites:
            return {}
        part, values = self.part, [site.value for site in self.sites.values()]
        student = Student(part.graph, part.schemes, part.block.inputs, values)
        most: dict[str, Any] = {}
        with torch.no_grad():
            for feed in range(part.batches):
                for value, made in student.run(part.inputs(feed)).items():
                    found = made.float().abs().reshape(-1, made.shape[-1]).amax(0)
                    most[value.name] = torch.maximum(most.get(value.name, found), found)
        start = {}
        for name, site in self.sites.items():
            weights = torch.from_numpy(np.max([np.abs(reader.matrix).max(axis=0) for reader in site.readers], axis=0)).float()
            start[self._key(name)] = (most[name].clamp(min=SMALLEST).log() - weights.clamp(min=SMALLEST).log()) / 2
        return start

    def scales(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """s [K] by tensors."""
        return {name: variables[self._key(name)].exp() for name in self.sites}

    def of_weight(self, name: str, scales: Mapping[str, Any]) -> Any | None:
        return scales.get(self._of_weight.get(name, ""))

    def begin(self, tensors: Mapping[str, Any]) -> None:
        """The scales with which layers round from now on; none without."""
        self._now = {name: tensors[name] for name in self.sites if name in tensors}

    def _rounding(self, name: str, rounding: Any) -> Any:
        def rounded(x: Any) -> Any:
            scale = self._now.get(name)
            return rounding(x) if scale is None else rounding(x / scale) * scale

        return rounded

    @staticmethod
    def _key(name: str) -> str:
        return f"{name} log s"


def _arrays(scale: Any, zero_point: Any | None) -> tuple[Any, Any | None]:
    return scale.numpy(), None if zero_point is None else zero_point.numpy()
