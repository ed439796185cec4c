"""A QuantizedModule under training, without a loop of one's own."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.quantization.steps import Facts
from qruntime.quantization.tuning.checkpoint import Checkpoint, digest
from qruntime.quantization.tuning.engine import measured
from qruntime.quantization.tuning.output_losses import Loss
from qruntime.quantization.tuning.training import LOOKS, Plan, Told, Training

FROZEN_SHARE = 0.2
"""Ranges of static activations stay as they are for the last of all steps; Jacob et al. (2018) freeze them at the end."""

VERSION = 4
"""Of checkpoints."""


def train_module(
    module: Any,
    feeds: Sequence[Mapping[str, Any]],
    loss: Loss,
    *,
    epochs: int,
    lr: float,
    weight_decay: float,
    seed: int,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Told | None = None,
) -> Facts:
    """`epochs` passes over `feeds`, each of which is one step, in an order that `seed` gives; what reports say of it."""
    asked = {"version": VERSION, "epochs": epochs, "lr": lr, "weight_decay": weight_decay, "seed": seed}
    held = None if checkpoint is None else Checkpoint(checkpoint, asked | _origin(module, feeds))
    plan = Plan(epochs=epochs, rate=lr, seed=seed, is_cosine=True)
    module.train()
    course = Training(_Aware(module, loss, weight_decay), feeds, plan, checkpoint=held, told=progress).run()
    module.eval()
    span = max(1, len(course.losses) // LOOKS)
    facts: Facts = {"loss": [float(np.mean(course.losses[:span])), float(np.mean(course.losses[-span:]))]}
    return facts | ({"interrupted": f"after {len(course.losses)} of {course.steps} steps"} if course.was_interrupted else {})


class _Aware:
    def __init__(self, module: Any, loss: Loss, weight_decay: float):
        self.module, self._loss = module, loss
        decayed = [one for name, one in module.named_parameters() if one.ndim > 1 and not _is_step(name)]
        others = [one for name, one in module.named_parameters() if one.ndim <= 1 or _is_step(name)]
        self.groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

    def loss(self, feed: Mapping[str, Any]) -> Any:
        return measured(self._loss, self.module.outputs(feed), feed)

    def begin(self, done: int, steps: int) -> None:
        if done >= math.ceil((1 - FROZEN_SHARE) * steps) and done > 0:
            self.module.freeze_ranges()

    def settle(self) -> None:
        """Parameters may be anything."""

    def state(self) -> dict[str, Any]:
        return self.module.state_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state)


def _origin(module: Any, feeds: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """What a run starts from, by what it means that another run starts from something else."""
    parameters = {name: one.detach().numpy() for name, one in module.named_parameters()}
    schemes = {name: np.array(text) for name, text in module.schemes.items()}
    return {"another model": digest([parameters]), "another scheme": digest([schemes]), "other data": digest(feeds)}


def _is_step(name: str) -> bool:
    return "_step" in name.rpartition(".")[2]
