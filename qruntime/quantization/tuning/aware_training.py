"""The loop that trains a QuantizedModule: AdamW, a rate that falls to 0, checkpoints, an end at any time.

Nothing depends on the clock or on how often the loop was stopped: a run that goes on from a checkpoint makes the bits of one that
was never stopped.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.quantization.steps import Facts
from qruntime.quantization.tuning.checkpoint import Checkpoint, digest
from qruntime.quantization.tuning.engine import measured, tensor_of
from qruntime.quantization.tuning.output_losses import Loss

Progress = Callable[[int, int, str], None]

CHECKS = 10
"""So many times in a pass the mean loss since the last time is looked at, and a checkpoint written."""

FROZEN_SHARE = 0.2
"""Ranges of static activations stay as they are for the last of all steps; Jacob et al. (2018) freeze them at the end."""

VERSION = 3
"""Of checkpoints."""


class Training:
    """`epochs` passes over `feeds`, each of which is one step, in an order that `seed` gives."""

    def __init__(
        self,
        module: Any,
        feeds: Sequence[Mapping[str, Any]],
        loss: Loss,
        *,
        epochs: int,
        lr: float,
        weight_decay: float,
        seed: int,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ):
        import torch

        self.module, self.feeds, self.loss, self.seed = module, feeds, loss, seed
        self.total, self.progress = epochs * len(feeds), progress or (lambda done, total, what: None)
        decayed = [one for name, one in module.named_parameters() if one.ndim > 1 and not _is_step(name)]
        others = [one for name, one in module.named_parameters() if one.ndim <= 1 or _is_step(name)]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr)
        self.rate = lr
        self.done = 0
        self.losses: list[float] = []
        self.best: tuple[float, dict[str, Any]] | None = None
        """The least mean of losses between two looks, and the parameters then."""
        asked = {"version": VERSION, "epochs": epochs, "lr": lr, "weight_decay": weight_decay, "seed": seed}
        self.checkpoint = None if checkpoint is None else Checkpoint(checkpoint, asked | _origin(module, feeds))

    def run(self) -> Facts:
        """Train to the end, or until Ctrl-C, which leaves the best parameters so far in the module."""
        self._resume()
        began, first = time.monotonic(), self.done
        self.module.train()
        facts: Facts = {}
        try:
            while self.done < self.total:
                self._step()
                if self._is_look():
                    self._look()
                left = (time.monotonic() - began) / (self.done - first) * (self.total - self.done)
                self.progress(self.done, self.total, f"loss {self.losses[-1]:.4g}, {_spoken(left)} left")
        except KeyboardInterrupt:
            if self.best is not None:
                self.module.load_state_dict(self.best[1])
            facts["interrupted"] = f"after {self.done} of {self.total} steps"
        self.module.eval()
        span = max(1, len(self.losses) // CHECKS)
        if self.losses:
            facts["loss"] = [float(np.mean(self.losses[:span])), float(np.mean(self.losses[-span:]))]
        return facts

    def _step(self) -> None:
        import torch

        place = int(self._order(self.done // len(self.feeds))[self.done % len(self.feeds)])
        tensors = {name: tensor_of(array) for name, array in self.feeds[place].items()}
        if self.done >= math.ceil((1 - FROZEN_SHARE) * self.total) and self.done > 0:
            self.module.freeze_ranges()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * (1 + math.cos(math.pi * self.done / self.total)) / 2
        with torch.random.fork_rng(devices=()):  # what Dropout draws is that of the step, wherever the run began
            torch.manual_seed(np.random.SeedSequence([self.seed, self.done]).generate_state(1, np.uint64).item())
            loss = measured(self.loss, self.module.outputs(tensors), tensors)
        if not bool(torch.isfinite(loss)):
            odd = [name for name, one in tensors.items() if isinstance(one, torch.Tensor) and not bool(torch.isfinite(one).all())]
            cause = f"{odd[0]!r} of it holds such numbers too" if odd else f"a lower lr= may keep it finite, now {self.rate}"
            raise QuantizationError(f"the loss of step {self.done} is {float(loss.detach())}, on feed {place}: {cause}")
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # before the next forward pass, which takes memory of its own
        self.losses.append(float(loss.detach()))
        self.done += 1

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.feeds))

    def _is_look(self) -> bool:
        return self.done == self.total or self.done % max(1, len(self.feeds) // CHECKS) == 0

    def _look(self) -> None:
        span = max(1, len(self.feeds) // CHECKS)
        mean = float(np.mean(self.losses[-span:]))
        if self.best is None or mean < self.best[0]:
            self.best = None  # one copy at a time
            self.best = mean, _copied(self.module.state_dict())
        if self.checkpoint is not None:
            self._save(self.checkpoint)

    def _save(self, checkpoint: Checkpoint) -> None:
        checkpoint.write(
            {
                "done": self.done, "losses": self.losses, "best": self.best, "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        )  # fmt: skip

    def _resume(self) -> None:
        held = None if self.checkpoint is None else self.checkpoint.read()
        if held is None:
            return
        self.module.load_state_dict(held["module"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.done, self.losses, self.best = held["done"], held["losses"], held["best"]


def _origin(module: Any, feeds: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """What a run starts from, by what it means that another run starts from something else."""
    parameters = {name: one.detach().numpy() for name, one in module.named_parameters()}
    schemes = {name: np.array(text) for name, text in module.schemes.items()}
    return {"another model": digest([parameters]), "another scheme": digest([schemes]), "other data": digest(feeds)}


def _is_step(name: str) -> bool:
    return "_step" in name.rpartition(".")[2]


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one.clone() if hasattr(one, "clone") else one for name, one in state.items()}


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
