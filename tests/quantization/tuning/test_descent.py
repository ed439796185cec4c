"""Losses of blocks, their slopes, and the way down."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import qruntime
from qruntime.quantization.steps import Tuned
from tests.quantization.tuning.watching import Watched, feeds
from tests.small_models import assert_same_bits, encoder_bytes, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

from qruntime.quantization.tuning import descent  # noqa: E402
from qruntime.quantization.tuning.descent import Objective, descend  # noqa: E402
from qruntime.quantization.tuning.losses import ChannelDistance, SquaredError  # noqa: E402


def of_channels(made: Any, wanted: Any) -> Any:
    means = (made.mean(0) - wanted.mean(0)).abs()
    variances = (made.var(0, correction=0) - wanted.var(0, correction=0)).abs()
    return (means + variances).mean()


@pytest.mark.parametrize(("loss", "formula"), [(ChannelDistance(), of_channels), (SquaredError(), torch.nn.functional.mse_loss)])
def test_slopes_are_gradients_over_the_rows_of_all_feeds(loss: Any, formula: Any):
    made = [torch.from_numpy(random(rows, 8, seed=rows)).requires_grad_() for rows in (5, 3)]
    wanted = [torch.from_numpy(random(rows, 8, seed=rows + 9) * 2) for rows in (5, 3)]
    value = formula(torch.cat(made).double(), torch.cat(wanted).double())
    value.backward()
    sums = sum(loss.sums(one.detach(), other) for one, other in zip(made, wanted, strict=True))
    assert loss.value(sums) == pytest.approx(float(value.detach()), rel=1e-9)
    for one, other in zip(made, wanted, strict=True):
        assert torch.allclose(loss.slope(one.detach(), other, sums), one.grad, rtol=1e-5, atol=1e-9)


class First:
    """What a function finds of the first block; nothing is learned."""

    def __init__(self, function: Any):
        self.function, self.requires, self.follows_codes = function, frozenset(), False

    def tune(self, part: Any) -> Tuned:
        if part.index == 0:
            self.found = self.function(part)
        return Tuned()


def of_first_block(function: Any, threads: int = 1) -> Any:
    step = First(function)
    qruntime.load(encoder_bytes(), threads=threads).quantize([step], scheme="W4A8", data=feeds())
    return step.found


def objective_of(part: Any, loss: Any) -> tuple[Objective, dict[str, Any]]:
    start = {name: one.tensor() for name, one in part.parameters.items() if one.args is None}
    return Objective(part, loss, lambda variables: (variables, {})), start


@pytest.mark.parametrize("loss", [ChannelDistance(), SquaredError()])
def test_gradients_are_those_of_torch(loss: Any):
    def compare(part: Any) -> None:
        objective, start = objective_of(part, loss)
        variables = {name: tensor.requires_grad_() for name, tensor in start.items()}
        objective.backward(variables, [0, 1, 2])
        made = torch.cat([part.run(i, variables).flatten(0, -2) for i in range(3)])
        wanted = torch.cat([part.target(i).flatten(0, -2) for i in range(3)])
        value = of_channels(made, wanted) if loss.is_joint else torch.nn.functional.mse_loss(made, wanted)
        gradients = torch.autograd.grad(value, list(variables.values()))
        least = 1e-5 * max(float(gradient.abs().max()) for gradient in gradients)  # that of the biases of keys is 0
        for tensor, gradient in zip(variables.values(), gradients, strict=True):
            assert torch.allclose(tensor.grad, gradient, rtol=1e-3, atol=least)

    of_first_block(compare)


def test_the_bits_of_gradients_do_not_depend_on_threads():
    def gradients(part: Any) -> list[np.ndarray]:
        objective, start = objective_of(part, SquaredError())
        variables = {name: tensor.requires_grad_() for name, tensor in start.items()}
        objective.backward(variables, objective.feeds)
        return [tensor.grad.numpy() for tensor in variables.values()]

    alone, together = (of_first_block(gradients, threads) for threads in (1, 3))
    assert len(alone) == 10
    for one, other in zip(alone, together, strict=True):
        assert_same_bits(one, other)


def test_steps_go_through_the_data_once_or_again_and_again():
    def chosen(part: Any) -> list[list[list[int]]]:
        objective, start = objective_of(part, SquaredError())
        seen: list[list[list[int]]] = []
        backward = objective.backward
        objective.backward = lambda variables, of: (seen[-1].append(list(of)), backward(variables, of))  # type: ignore[method-assign]
        for steps in (4, 6, 8):
            seen.append([])
            descend(objective, start, [1e-3], steps)
        return seen

    few, each, many = of_first_block(chosen)
    assert few == [[0], [1, 2], [3], [4, 5]]
    assert each == [[feed] for feed in range(6)]
    assert many == [[feed] for feed in (0, 1, 2, 3, 4, 5, 0, 1)]


def test_of_several_rates_the_best_is_taken():
    def ends(part: Any) -> Any:
        objective, start = objective_of(part, SquaredError())
        alone = [descend(objective, start, [rate], 5) for rate in (1e-4, 1e-2, 10.0)]
        return alone, descend(objective, start, (1e-4, 1e-2, 10.0), 5), objective.value(start)

    alone, best, before = of_first_block(ends)
    assert best.rate == 1e-2
    assert best.loss == min(end.loss for end in alone) < before < alone[2].loss


def test_blocks_keep_to_the_rate_that_did_best_until_it_gains_nothing():
    def tried(part: Any) -> Any:
        objective, start = objective_of(part, SquaredError())
        before, seen, step = objective.value(start), [], object()
        for below in (before, before, 0.0):
            with patch.object(descent, "descend", wraps=descent.descend) as calls:
                found = descent.descend_as_before(step, objective, start, (1e-4, 1e-2, 10.0), 5, below)
            seen.append(([list(call.args[2]) for call in calls.call_args_list], found.rate, found.loss))
        return seen, part.kept == {id(step): 1e-2}, before

    seen, is_kept, before = of_first_block(tried)
    first, second, hopeless = seen
    assert first == ([[1e-4, 1e-2, 10.0]], 1e-2, first[2])
    assert first[2] < before
    assert second == ([[1e-2]], 1e-2, first[2])
    assert hopeless == ([[1e-2], [1e-4, 10.0]], 1e-2, first[2])
    assert is_kept


def test_padding_does_not_count():
    from tests.quantization.architectures import ARCHITECTURES

    made, values = ARCHITECTURES["encoder"], []
    for filler in (0, 7):
        data = [{**feed, "ids": np.where(feed["ids_mask"] > 0, feed["ids"], filler)} for feed in made.feeds(3)]
        step = Watched(First(lambda part: None), lambda part, tuned: Objective(part, SquaredError(), lambda variables: ({}, {})).value({}))
        made.load().quantize([step], scheme="W4A16", data=data, mask="ids_mask")
        values.append(step.seen)
    assert values[0] == values[1]
    assert values[0][0] > 0
