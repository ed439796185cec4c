"""Step sizes of weights that are learned: Esser et al., Learned Step Size Quantization (2020).

    s = s₀ exp(p / r)         p = 0 at first, r the root of the mean square of the weights that share the step

What an optimizer like Adam does to a number depends on its rate alone, and a step size is as much smaller than the weights that it
rounds as their codes are large: a rate that moves weights by a hundredth of their size would move a step of 8 bits by a third.
Of p the rate says for s what it says for w: p += δ makes s (1 + δ / r) of s, as w += δ makes w (1 + δ / r) of a weight of size r.
Steps stay above 0, and a decay of p draws them to s₀.

Plain gradient descent on p is LSQ's on s, with its gradient scale 1 / √(numbers of a step · qmax): the gradient of p is multiplied
with (r / s)², by which Δs = (s / r)² ∂L/∂s would fall short of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qruntime.quantization.scheme import GROUP, TENSOR, QArgs
from qruntime.quantization.steps import Grid
from qruntime.quantization.tuning.fake_quantization import parameters, with_parameters, with_scaled_gradient

_SHARES = np.linspace(1, 0.4, 13).tolist()


class StepSizes:
    """Those of a matrix [N, K] that `args` will store, and its zero points, which stay: [N or 1, groups]. To begin with those of
    `grid`, where codes are there already."""

    def __init__(self, weight: Any, args: QArgs, grid: Grid | None = None):
        self._first, self.zero_point = (initial_step(weight, args), parameters(weight, args)[1]) if grid is None else _tensors(grid)
        counts = _by_step(weight.new_ones(weight.shape), args)
        size = (_by_step(weight.detach().square(), args) / counts).sqrt()
        self._size = size.where(size > 0, size.new_ones(()))
        self._scale = 1 / (counts * _most(args)).sqrt()

    def start(self) -> Any:
        """p to begin with."""
        return self._first.new_zeros(self._first.shape)

    def sizes(self, learned: Any) -> Any:
        """s for p."""
        steps = self._first * (learned.detach() / self._size).exp()
        scaled = with_scaled_gradient(learned, self._scale * (self._size / steps).square())
        return self._first * (scaled / self._size).exp()


def initial_step(weight: Any, args: QArgs) -> Any:
    """Step sizes to begin with: of shares of those that cover every number, 1 to 0.4, the ones that leave the least squared error."""
    import torch

    whole, zero_point = parameters(weight, args)
    best, least = whole.clone(), torch.full_like(whole, math.inf)
    for share in _SHARES:
        rounded = with_parameters(weight.detach(), args, whole * share, zero_point)
        error = _by_step((rounded - weight.detach()).square(), args)
        best, least = torch.where(error < least, whole * share, best), torch.minimum(error, least)
    return best


def _tensors(grid: Grid) -> tuple[Any, Any | None]:
    import torch

    scale, zero_point = grid
    return torch.from_numpy(scale), None if zero_point is None else torch.from_numpy(zero_point)


def _by_step(numbers: Any, args: QArgs) -> Any:
    """Sums over the numbers [N, K] that share a step."""
    import torch

    kind, size = args.granularity.kind, args.granularity.size
    if kind == TENSOR:
        return numbers.sum().reshape(1, 1)
    if kind != GROUP:
        return numbers.sum(1, keepdim=True)
    return torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % size)).unflatten(1, (-1, size)).sum(-1)


def _most(args: QArgs) -> float:
    form = args.format
    return float(np.nanmax(form.values)) if form.table is not None else (form.qmax if args.symmetric else (form.qmax - form.qmin) / 2)
