"""Descent on what a block loses: Adam over feeds, at that of a few rates which leaves the least.

    objective = Objective(part, SquaredError(), lambda variables: (variables, {}))
    found = descend(objective, {"norm.weight": tensor}, rates=(1e-3,), steps=10)

Gradients of feeds are taken side by side, each by one thread, and added in the order of the feeds: bits are the same for any
number of threads. What is held at a time are the activations of one block for as many feeds as there are threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from qruntime.quantization.tuning.engine import torch_threads
from qruntime.quantization.tuning.losses import Loss
from qruntime.quantization.tuning.parts import FLOAT, QUANTIZED, Part

Variables = Mapping[str, Any]
"""Tensors by name."""

Shape = Callable[[Variables], tuple[Variables, Variables]]
"""Of variables, what a block runs with: tensors for parameters, and weights for what these become (Part.run)."""

T = TypeVar("T")


class Objective:
    """What the block `part` loses as a function of variables: on the inputs of `stream`, against what the float block makes of those
    of `against`. `begin` is told the tensors of `shape` before the block runs with them: those that are no parameters of it may be
    for how layers round what they read (Student.roundings)."""

    def __init__(
        self, part: Part, loss: Loss, shape: Shape, *, stream: str = QUANTIZED, against: str = FLOAT,
        begin: Callable[[Variables], None] = lambda tensors: None,
    ):  # fmt: skip
        self.part, self.loss, self.shape, self.stream, self.against, self.begin = part, loss, shape, stream, against, begin
        self.feeds = list(range(part.batches))

    def value(self, variables: Variables) -> float:
        """The loss on feeds from all over the data; infinite where it is no number."""
        import torch

        with torch_threads(1), torch.no_grad():
            tensors, weights = self.shape(variables)
            self.begin(tensors)
            value = self.loss.value(self._sums(tensors, weights, self.part.some))
        return value if math.isfinite(value) else math.inf

    def backward(self, variables: Variables, feeds: Sequence[int]) -> None:
        """Add to `grad` of the variables what the loss on `feeds` gives them."""
        import torch

        with torch_threads(1):
            tensors, weights = self.shape(variables)
            self.begin(tensors)
            with torch.no_grad():
                sums = self._sums(tensors, weights, feeds) if self.loss.is_joint else self._sums_of_targets(feeds)
            given = [tensor for tensor in (*tensors.values(), *weights.values()) if tensor.requires_grad]
            leaves = [tensor.detach().requires_grad_() for tensor in given]
            twins = {id(tensor): leaf for tensor, leaf in zip(given, leaves, strict=True)}
            parts = [{name: twins.get(id(tensor), tensor) for name, tensor in group.items()} for group in (tensors, weights)]
            self.begin(parts[0])

            def gradients(feed: int) -> Sequence[Any]:
                made, wanted = self._rows(feed, *parts)
                slope = self.loss.slope(made.detach(), wanted, sums)
                return torch.autograd.grad(made, leaves, slope, allow_unused=True)

            added: dict[int, Any] = {}
            for found in self._of_each(gradients, feeds):
                for place, gradient in enumerate(found):
                    if gradient is not None:
                        added[place] = gradient if place not in added else added[place] + gradient
            torch.autograd.backward([given[place] for place in added], list(added.values()))

    def _sums(self, tensors: Variables, weights: Variables, feeds: Sequence[int]) -> Any:
        def of_feed(feed: int) -> Any:
            import torch

            with torch.no_grad():  # of this thread
                return self.loss.sums(*self._rows(feed, tensors, weights))

        several = list(self._of_each(of_feed, feeds))
        return sum(several[1:], several[0])

    def _sums_of_targets(self, feeds: Sequence[int]) -> Any:
        targets = [self.part.rows(feed, self.part.target(feed, self.against)) for feed in feeds]
        several = [self.loss.sums(target, target) for target in targets]
        return sum(several[1:], several[0])

    def _rows(self, feed: int, tensors: Variables, weights: Variables) -> tuple[Any, Any]:
        """What is made of a feed and what is wanted, [t, C] without padding."""
        made = self.part.run(feed, tensors, weights=weights, stream=self.stream)
        return self.part.rows(feed, made), self.part.rows(feed, self.part.target(feed, self.against))

    def _of_each(self, function: Callable[[int], T], feeds: Sequence[int]) -> Iterator[T]:
        """In the order of the feeds, each as soon as it is there."""
        for feed in feeds:  # once, with all threads
            self.part.target(feed, self.against)
        with ThreadPoolExecutor(max(1, self.part.num_threads)) as pool:
            yield from pool.map(function, feeds)


class Descended(NamedTuple):
    variables: dict[str, Any]
    """Without gradients."""
    loss: float
    rate: float


def descend_as_before(
    step: Any, objective: Objective, start: Variables, rates: Sequence[float], steps: int, below: float,
    shares: Mapping[str, float] | None = None,
) -> Descended:  # fmt: skip
    """`descend` at the rate that did best where `step` descended before, in an earlier block; where there is none, and where it leaves
    no less than `below`, at all of `rates`. One that leaves less is kept for later blocks."""
    kept = objective.part.kept
    first = [kept[id(step)]] if id(step) in kept else list(rates)
    found = descend(objective, start, first, steps, shares)
    others = [rate for rate in rates if rate not in first]
    if not found.loss < below and others:
        found = min(found, descend(objective, start, others, steps, shares), key=lambda end: end.loss)
    if found.loss < below:
        kept[id(step)] = found.rate
    return found


def descend(
    objective: Objective, start: Variables, rates: Sequence[float], steps: int, shares: Mapping[str, float] | None = None
) -> Descended:
    """From `start` so many steps of Adam for each of `rates`, and of the ends the one with the least loss. `shares`: of the rate,
    for variables that have another.

    The steps see each feed once, as many in one as in another or one more; of fewer feeds one, again and again in turn.
    """
    import torch

    feeds, count = objective.feeds, len(objective.feeds)
    ends = []
    for rate in rates:
        variables = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}
        groups = [{"params": [tensor], "lr": rate * (shares or {}).get(name, 1.0)} for name, tensor in variables.items()]
        optimizer = torch.optim.Adam(groups)
        for step in range(steps):
            optimizer.zero_grad()
            share = slice(step * count // steps, (step + 1) * count // steps)
            objective.backward(variables, feeds[share] if steps < count else [feeds[step % count]])
            optimizer.step()
        ends.append(Descended({name: tensor.detach() for name, tensor in variables.items()}, objective.value(variables), rate))
    return min(ends, key=lambda end: end.loss)
