"""The loop: AdamW over feeds in an order of its own, with a rate that falls to 0 on a line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.quantization.arguments import check_rate, check_whole

Feed = TypeVar("Feed")
Told = Callable[[int, int, str], None]
"""told(step, steps, how it goes)"""


class Learning(Protocol):
    """What is under training."""

    @property
    def parameters(self) -> Sequence[Any]:
        """Tensors with gradients."""
        ...

    def project(self) -> None:
        """Bring parameters back to where they may be, after each step."""
        ...


@dataclass(frozen=True)
class Plan:
    """`steps`, or so many as `epochs` passes over the feeds have; `batch` feeds in each. `clip`: the most that the norm of all
    gradients may be."""

    steps: int | None = None
    epochs: int = 1
    batch: int = 1
    rate: float = 1e-3
    clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "batch"):
            if name != "steps" or self.steps is not None:
                check_whole(name, getattr(self, name), 1)
        check_whole("seed", self.seed, 0)
        check_rate("lr", self.rate)

    def steps_over(self, feeds: int) -> int:
        return self.epochs * self.a_pass(feeds) if self.steps is None else self.steps

    def a_pass(self, feeds: int) -> int:
        """How many steps a pass over the feeds has."""
        return -(-feeds // self.batch)

    def batches(self, feeds: Sequence[Feed]) -> Iterator[list[Feed]]:
        """The feeds of each step, each once in a pass."""
        random = np.random.default_rng(self.seed)
        left = self.steps_over(len(feeds))
        while left:
            order = random.permutation(len(feeds))
            for first in range(0, len(feeds), self.batch)[:left]:
                yield [feeds[i] for i in order[first : first + self.batch]]
            left -= min(left, self.a_pass(len(feeds)))


@dataclass
class Course:
    """How a training went."""

    steps: int
    losses: list[float] = field(default_factory=list)
    """Of each step that is done."""
    measured: dict[int, float] = field(default_factory=dict)
    """On the feeds kept apart, after so many steps."""
    was_interrupted: bool = False

    @property
    def best(self) -> int:
        """After so many steps the feeds kept apart were met best, the fewest of those alike."""
        return min(self.measured, key=lambda step: (self.measured[step], step))

    def __str__(self) -> str:
        """What was kept."""
        done = len(self.losses)
        if not self.measured:
            return f"what {done} of {self.steps} steps learned"
        return f"what {self.best} of {self.steps} steps learned, the best on the validation data (loss {self.measured[self.best]:.4g})"


def train(
    learning: Learning,
    loss: Callable[[Feed], Any],
    feeds: Sequence[Feed],
    plan: Plan,
    *,
    validation: Sequence[Feed] = (),
    threads: int = 1,
    told: Told | None = None,
) -> Course:
    """Change the parameters of `learning` so that `loss`, a tensor of one number, becomes less on `feeds`.

    Where there are feeds for `validation`, the loss on them is measured before, after each pass and at the end, and the
    parameters that did best stay; else the last. An interrupt after the first step ends the training with these too. The
    same feeds, plan and number of threads give the same bits. QuantizationError for a loss that is no finite number.
    """
    import torch

    outside = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _Run(learning, loss, feeds, plan, validation, told or (lambda step, steps, text: None)).done()
    finally:
        torch.set_num_threads(outside)


class _Run(Generic[Feed]):
    def __init__(
        self, learning: Learning, loss: Callable[[Feed], Any], feeds: Sequence[Feed], plan: Plan, validation: Sequence[Feed], told: Told
    ):
        import torch

        self.learning, self.loss, self.feeds, self.plan, self.validation, self.told = learning, loss, feeds, plan, validation, told
        self.optimizer = torch.optim.AdamW(learning.parameters, lr=plan.rate, betas=(0.9, 0.999), weight_decay=0.0)
        self.course = Course(plan.steps_over(len(feeds)))
        self.kept = self._copies()

    def done(self) -> Course:
        course, start = self.course, time.monotonic()
        try:
            self._measure()
            for batch in self.plan.batches(self.feeds):
                course.losses.append(self._step(batch, 1 - len(course.losses) / course.steps))
                done = len(course.losses)
                if not self.validation:
                    self.kept = self._copies()
                elif done % self.plan.a_pass(len(self.feeds)) == 0 or done == course.steps:
                    self._measure()
                left = (time.monotonic() - start) / done * (course.steps - done)
                self.told(done, course.steps, f"loss {course.losses[-1]:.4g}, {_lasting(left)} left")
        except KeyboardInterrupt:
            if not course.losses:
                raise
            course.was_interrupted = True
        for parameter, kept in zip(self.learning.parameters, self.kept, strict=True):
            parameter.data.copy_(kept)
        return course

    def _step(self, batch: Sequence[Feed], share: float) -> float:
        """The loss before the step, with that share of the rate."""
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for feed in batch:
            loss = self.loss(feed) / len(batch)
            total += self._finite(float(loss.detach()))
            loss.backward()
        if self.plan.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.learning.parameters, self.plan.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate * share
        self.optimizer.step()
        self.learning.project()
        return total

    def _measure(self) -> None:
        import torch

        if not self.validation:
            return
        with torch.no_grad():
            losses = [self._finite(float(self.loss(feed))) for feed in self.validation]
        done = len(self.course.losses)
        self.course.measured[done] = sum(losses) / len(losses)
        if self.course.best == done:
            self.kept = self._copies()

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise QuantizationError(f"the loss is {loss} after {len(self.course.losses)} steps; try a lower lr, and look for such in data")
        return loss

    def _copies(self) -> list[Any]:
        return [parameter.detach().clone() for parameter in self.learning.parameters]


def _lasting(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
