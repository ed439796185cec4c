"""Quantization-aware training: the model is trained on with every number rounded as its codes will be.

    forward     x̂ = s (clip(round(x / s) + z) − z)  for weights and what layers read
    backward    ∂x̂/∂x = 1 where nothing was clipped; ∂x̂/∂s = round(x / s) − x / s there, and the code that it was clipped to elsewhere

Jacob et al. (2018) for the fake quantization, Bengio et al. (2013) for the straight-through estimator, Esser et al., LSQ (2020) for
step sizes that are learned, with gradients times 1 / √(numbers of a step · qmax). Codes are made of the master weights at the end, on
the grids of the last step.

What differs. Where `steps` is "minmax", step sizes are those of the range of the weights, found anew at every step. Where it is "lsq", they
start from the share of that range that leaves the least squared error, not from 2 · mean|w| / √qmax, which few steps of training do not
bring down far enough, and are learned as logarithms in the measure of their weights, so that one rate serves both (tuning/step_sizes.py).
Biases and norms are trained and stay float.

Behind steps that made codes, [GPTQ(), QAT(steps="lsq")], master weights begin as what the codes stand for and step sizes as theirs: each
weight in the middle of its cell, so that it takes as much to change a code as codes are apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qruntime.quantization.arguments import check_rate, check_whole
from qruntime.quantization.steps import Facts


@dataclass(frozen=True)
class QAT:
    """`loss`: "next_token", "distill", "mse", or a function of (outputs, feed), both {name: tensor}, which returns a scalar tensor;
    feeds may hold labels beside the inputs. `epochs` passes over the data, a step for each feed, with AdamW; `lr` falls to 0 as
    a cosine does. `steps`: "minmax" or "lsq", which is the one that goes on from codes. `recompute`: activations are made again for
    gradients instead of being kept. `checkpoint`: a file that a run which was stopped goes on from, to the same bits."""

    loss: str | Callable[[Mapping[str, Any], Mapping[str, Any]], Any] = "distill"
    epochs: int = 1
    lr: float = 1e-4
    steps: str = "minmax"
    weight_decay: float = 0.0
    recompute: bool = False
    checkpoint: str | os.PathLike[str] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_whole("epochs", self.epochs, 1)
        check_rate("lr", self.lr)
        check_rate("weight_decay", self.weight_decay)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    @property
    def takes_data(self) -> bool:
        return True

    @property
    def goes_on_from_codes(self) -> bool:
        return True

    def train(
        self, module: Any, teacher: Any, feeds: Sequence[Mapping[str, Any]], mask: str | None, progress: Callable[[int, int, str], None]
    ) -> Facts:
        """QuantizationError for a loss that is none, or that is not finite."""
        from qruntime.quantization.tuning.aware_training import train_module
        from qruntime.quantization.tuning.output_losses import loss_of, teacher_of

        loss = loss_of(self.loss, teacher.graph, teacher_of(teacher), mask)
        return train_module(
            module, feeds, loss, epochs=self.epochs, lr=self.lr, weight_decay=self.weight_decay, seed=self.seed or 0,
            checkpoint=self.checkpoint, progress=progress,
        )  # fmt: skip
