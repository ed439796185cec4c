"""The loop of everything that is trained as a whole: AdamW over feeds, a rate that falls to 0, the best so far, checkpoints, an end at
any time.

Nothing depends on the clock or on how often the loop was stopped: a run that goes on from a checkpoint makes the bits of one that
was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.quantization.arguments import check_rate, check_whole
from qruntime.quantization.tuning.checkpoint import Checkpoint
from qruntime.quantization.tuning.engine import tensor_of

Feed = Mapping[str, Any]
Told = Callable[[int, int, str], None]
"""told(step, steps, how it goes)"""

LOOKS = 10
"""So many times in a pass the losses are looked at, and a checkpoint written."""


class Learning(Protocol):
    """What is under training."""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Its parameters, as optimizers of torch take them."""
        ...

    def loss(self, feed: Feed) -> Any:
        """A tensor of one number, of a feed of tensors."""
        ...

    def begin(self, done: int, steps: int) -> None:
        """Before each step."""
        ...

    def settle(self) -> None:
        """Bring parameters back to where they may be, after each step."""
        ...

    def state(self) -> dict[str, Any]:
        """What `restore` takes, tensors that training goes on to change."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Plan:
    """`steps`, or so many as `epochs` passes over the feeds have; `batch` feeds in each. `clip`: the most that the norm of all
    gradients may be. `is_cosine`: the rate falls as a cosine does, not on a line."""

    steps: int | None = None
    epochs: int = 1
    batch: int = 1
    rate: float = 1e-3
    clip: float | None = None
    seed: int = 0
    is_cosine: bool = False

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

    def places(self, step: int, feeds: int) -> list[int]:
        """Which feeds a step sees: each once in a pass, in an order of the pass."""
        number, place = divmod(step, self.a_pass(feeds))
        order = np.random.default_rng([self.seed, number]).permutation(feeds)
        return order[place * self.batch : (place + 1) * self.batch].tolist()

    def rate_at(self, step: int, steps: int) -> float:
        share = (1 + math.cos(math.pi * step / steps)) / 2 if self.is_cosine else 1 - step / steps
        return self.rate * share


@dataclass
class Course:
    """How a training went."""

    steps: int
    losses: list[float] = field(default_factory=list)
    """Of each step that is done."""
    measured: dict[int, float] = field(default_factory=dict)
    """On the feeds kept apart, after so many steps."""
    was_interrupted: bool = False
    kept: int = 0
    """What was kept is what so many steps learned."""

    def __str__(self) -> str:
        """What was kept."""
        text = f"what {self.kept} of {self.steps} steps learned"
        if self.measured:
            return f"{text}, the best on the validation data (loss {self.measured[self.kept]:.4g})"
        return f"{text}, the best so far" if self.kept < len(self.losses) else text


class _Best(NamedTuple):
    loss: float
    done: int
    state: dict[str, Any]


class Training:
    """Changes the parameters of `learning` so that its loss becomes less on `feeds`.

    Where there are feeds for `validation`, the loss on them is measured before, after each pass and at the end, and the
    parameters that did best stay; else the last. An interrupt after the first step ends the training with those that did best so
    far, which without validation is known from the second pass on, by the mean loss of a pass up to them. The same feeds, plan and
    number of threads give the same bits.
    """

    def __init__(
        self,
        learning: Learning,
        feeds: Sequence[Feed],
        plan: Plan,
        *,
        validation: Sequence[Feed] = (),
        checkpoint: Checkpoint | None = None,
        told: Told | None = None,
    ):
        import torch

        self.learning, self.feeds, self.plan, self.validation, self.checkpoint = learning, feeds, plan, validation, checkpoint
        self.told = told or (lambda step, steps, text: None)
        self.optimizer = torch.optim.AdamW(learning.groups, lr=plan.rate, weight_decay=0.0)
        self.course = Course(plan.steps_over(len(feeds)))
        self.between = max(1, plan.a_pass(len(feeds)) // LOOKS)
        """Steps from one look to the next."""
        self.best: _Best | None = None

    def run(self) -> Course:
        """Train to the end, or until Ctrl-C. QuantizationError for a loss that is no finite number."""
        self._resume()
        course = self.course
        began, first = time.monotonic(), len(course.losses)
        try:
            if self.validation and not course.losses:
                self._look()
            while (done := len(course.losses)) < course.steps:
                self._step(done)
                if (done + 1) % self.between == 0 or done + 1 == course.steps:
                    self._look()
                left = (time.monotonic() - began) / (done + 1 - first) * (course.steps - done - 1)
                self.told(done + 1, course.steps, f"loss {course.losses[-1]:.4g}, {_lasting(left)} left")
        except KeyboardInterrupt:
            if not course.losses:
                raise
            course.was_interrupted = True
            self.learning.settle()  # of a step that was cut short
        course.kept = len(course.losses)
        if self.best is not None and (self.validation or course.was_interrupted):
            self.learning.restore(self.best.state)
            course.kept = self.best.done
        return course

    def _step(self, done: int) -> None:
        import torch

        self.learning.begin(done, self.course.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(done, self.course.steps)
        places, total = self.plan.places(done, len(self.feeds)), 0.0
        with torch.random.fork_rng(devices=()):  # what Dropout draws is that of the step, wherever the run began
            torch.manual_seed(np.random.SeedSequence([self.plan.seed, done]).generate_state(1, np.uint64).item())
            for place in places:
                loss = self._loss(self.feeds[place], place, f"the loss of step {done} is {{}}, on feed {{}}") / len(places)
                total += float(loss.detach())
                loss.backward()
        if self.plan.clip is not None:
            torch.nn.utils.clip_grad_norm_([one for group in self.optimizer.param_groups for one in group["params"]], self.plan.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # before the next forward pass, which takes memory of its own
        self.learning.settle()
        self.course.losses.append(total)

    def _loss(self, feed: Feed, place: int, what: str) -> Any:
        """`what` says where that is, of a loss and a place."""
        import torch

        tensors = {name: tensor_of(array) for name, array in feed.items()}
        try:
            loss = self.learning.loss(tensors)
        except QuantizationError as error:
            raise type(error)(f"feed {place}: {error}") from error
        if not bool(torch.isfinite(loss)):
            odd = [name for name, one in tensors.items() if isinstance(one, torch.Tensor) and not bool(torch.isfinite(one).all())]
            cause = f"{odd[0]!r} of it holds such numbers too" if odd else f"a lower lr= may keep it finite, now {self.plan.rate}"
            raise QuantizationError(f"{what.format(float(loss.detach()), place)}: {cause}")
        return loss

    def _look(self) -> None:
        """How good the parameters are now; they are kept where they are the best so far."""
        done, a_pass, is_last = len(self.course.losses), self.plan.a_pass(len(self.feeds)), len(self.course.losses) == self.course.steps
        if self.validation and (done % a_pass == 0 or is_last):
            self.course.measured[done] = self._measured()
            self._judge(self.course.measured[done])
        elif not self.validation and a_pass < done and not is_last:
            self._judge(float(np.mean(self.course.losses[-a_pass:])))
        if self.checkpoint is not None and done:
            self._save(self.checkpoint)

    def _judge(self, loss: float) -> None:
        if self.best is None or loss < self.best.loss:
            self.best = None  # one copy at a time
            copied = {name: one.clone() if hasattr(one, "clone") else one for name, one in self.learning.state().items()}
            self.best = _Best(loss, len(self.course.losses), copied)

    def _measured(self) -> float:
        import torch

        what = f"the loss after {len(self.course.losses)} steps is {{}}, on feed {{}} for validation"
        with torch.no_grad():
            losses = [float(self._loss(feed, place, what)) for place, feed in enumerate(self.validation)]
        return sum(losses) / len(losses)

    def _save(self, checkpoint: Checkpoint) -> None:
        checkpoint.write(
            {
                "losses": self.course.losses, "measured": self.course.measured, "best": None if self.best is None else tuple(self.best),
                "learning": self.learning.state(), "optimizer": self.optimizer.state_dict(),
            }
        )  # fmt: skip

    def _resume(self) -> None:
        held = None if self.checkpoint is None else self.checkpoint.read()
        if held is None:
            return
        self.learning.restore(held["learning"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.course.losses, self.course.measured = held["losses"], held["measured"]
        self.best = None if held["best"] is None else _Best(*held["best"])


def _lasting(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
