"""The layer-by-layer knowledge distillation of ZeroQuant. Yao et al. (2022), arXiv 2206.01861, section 4.2.

Block after block, every float of a block (weights, biases, norms) is trained so that the block with rounded weights and activations
makes what the float block makes; rounding passes gradients straight through. Codes are made of what was learned:

    argmin ‖ L_k(h) − L̂_k(h) ‖²

    model.quantize("ZeroQuant-LKD", overrides={"*mlp*": "W4A8-sym"}, data=feeds)
    model.quantize([LayerDistillation(), "ZeroQuant"], …)                        # the same

The student is a copy of one block, not a second model, and no labels are needed.

`stream`: what h is. "float", that of the paper: what the float blocks before make. "quantized": what the blocks that are quantized
already make of it, while the teacher sees that of the floats, so that a block also makes good for those before it.

What differs from the paper. A block takes `steps` steps of Adam, without decay of weights, at that of `rates` which leaves the least loss
on the data: in the first block, and wherever the one that is kept from there gains nothing. Where none lies below the loss of the
beginning nothing changes. Weights are rounded to nearest while they are trained:
of RowGroups(groups) the scales of groups are not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qruntime.errors import QuantizationError
from qruntime.quantization.arguments import check_rates, check_whole
from qruntime.quantization.steps import Tuned

if TYPE_CHECKING:
    from qruntime.quantization.tuning.parts import Part

STREAMS = ("float", "quantized")


@dataclass(frozen=True)
class LayerDistillation:
    """`steps`: of Adam, for each block. `rates`: all tried in the first."""

    steps: int = 10
    rates: tuple[float, ...] = (1e-4, 3e-4)
    stream: str = "float"

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 0)
        check_rates(self.rates)
        if self.stream not in STREAMS:
            raise QuantizationError(f"stream of LayerDistillation must be {' or '.join(map(repr, STREAMS))}, got {self.stream!r}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    @property
    def follows_codes(self) -> bool:
        return False

    def tune(self, part: Part) -> Tuned:
        from qruntime.quantization.tuning.descent import Objective, descend_as_before
        from qruntime.quantization.tuning.losses import SquaredError
        from qruntime.quantization.tuning.student import rounded

        parameters = part.parameters

        def shape(variables: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
            """Weights as their codes will stand for them, all else as it is."""
            weights = {name: rounded(parameters[name], tensor) for name, tensor in variables.items() if parameters[name].args is not None}
            return {name: tensor for name, tensor in variables.items() if name not in weights}, weights

        objective = Objective(part, SquaredError(), shape, stream=self.stream)
        start = {name: one.tensor() for name, one in parameters.items()}
        before = objective.value(start)
        found = descend_as_before(self, objective, start, self.rates, self.steps, before)
        if not found.loss < before:
            return Tuned(facts={"block loss": before, "block loss before": before})
        facts = {"block loss": found.loss, "block loss before": before, "rate": found.rate}
        return Tuned({name: tensor.numpy() for name, tensor in found.variables.items()}, facts=facts)
