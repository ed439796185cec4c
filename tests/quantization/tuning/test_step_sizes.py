"""Step sizes that are learned: where they start, and how far a step of an optimizer moves them."""

from __future__ import annotations

import pytest

from tests.quantization.tuning.models import encoder
from tests.quantization.tuning.test_fake_quantization import args_of, awkward
from tests.small_models import random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

from qruntime.quantization import QuantizedModule  # noqa: E402
from qruntime.quantization.tuning import fake_quantization as fake  # noqa: E402
from qruntime.quantization.tuning.step_sizes import StepSizes, initial_step  # noqa: E402


@pytest.mark.parametrize("scheme", ["W2A16-g16", "W3A16", "W4A16-tensor", "Wnf4A16-g16"])
def test_step_sizes_start_where_the_squared_error_is_least(scheme: str):
    args, weight = args_of(scheme), torch.from_numpy(awkward(columns=40))
    weight[2, 3] = 5
    whole, zero_point = fake.parameters(weight, args)
    steps = initial_step(weight, args)
    assert ((steps <= whole) & (steps >= 0.39 * whole)).all()
    assert (steps < whole).any()

    def errors(scale: torch.Tensor) -> torch.Tensor:
        return (fake.with_parameters(weight, args, scale, zero_point) - weight).square()

    for share in (1, 0.7, 0.4):
        assert errors(steps).sum() <= errors(whole * share).sum() * (1 + 1e-6)


@pytest.mark.parametrize("scheme", ["W4A16-g16-sym", "W8A16", "W2A16-tensor"])
def test_plain_descent_is_that_of_lsq(scheme: str):
    """s − lr · g · ∂L/∂s, g = 1 / √(numbers of a step · qmax), to the first order."""
    args, weight, lr = args_of(scheme), torch.from_numpy(random(6, 48)), 1e-3
    steps = StepSizes(weight, args)
    learned = steps.start().requires_grad_()
    sizes = initial_step(weight, args).requires_grad_()
    assert torch.equal(steps.sizes(learned), sizes)
    wanted = torch.from_numpy(random(6, 48, seed=1))

    def loss(of: torch.Tensor) -> torch.Tensor:
        return ((fake.with_parameters(weight, args, of, steps.zero_point) - wanted) ** 2).sum()

    loss(steps.sizes(learned)).backward()
    loss(sizes).backward()
    torch.optim.SGD([learned], lr=lr).step()
    qmax = {"W4A16-g16-sym": 7, "W8A16": 127.5, "W2A16-tensor": 1.5}[scheme]
    numbers = {"W4A16-g16-sym": 16, "W8A16": 48, "W2A16-tensor": 288}[scheme]
    moved = -lr * (numbers * qmax) ** -0.5 * sizes.grad
    assert (steps.sizes(learned) - sizes - moved).abs().max() < 0.05 * moved.abs().max()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 30.0])
def test_adam_moves_a_step_by_the_share_by_which_it_moves_weights(bits: int, magnitude: float):
    args, weight = args_of(f"W{bits}A16"), magnitude * torch.from_numpy(random(6, 48))
    steps, rate = StepSizes(weight, args), 0.01 * magnitude
    learned = steps.start().requires_grad_()
    optimizer = torch.optim.Adam([learned], lr=rate)
    first = steps.sizes(learned).detach()
    steps.sizes(learned).sum().backward()
    optimizer.step()
    size = weight.square().mean(1, keepdim=True).sqrt()
    assert steps.sizes(learned).detach() / first == pytest.approx((-rate / size).exp(), rel=1e-4)


def test_what_is_all_zeros_has_a_step():
    steps = StepSizes(torch.zeros(3, 8), args_of("W4A16"))
    learned = steps.start().requires_grad_()
    made = steps.sizes(learned)
    made.sum().backward()
    assert (made > 0).all() and torch.isfinite(learned.grad).all()


def test_steps_stay_above_zero_at_any_rate():
    model, feed = encoder(layers=1)
    module = QuantizedModule(model, "W4A8", steps="lsq")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1.0, weight_decay=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        module(feed["x"]).square().mean().backward()
        optimizer.step()
    found = [one for several in module.step_sizes().values() for one in several]
    assert len(found) == 6 and all((one > 0).all() for one in found)


def test_one_rate_serves_weights_and_steps_of_8_bits():
    """A rate that trains weights well, at which steps as parameters of their own would lose the model."""
    model, feed = encoder(layers=1)
    target, x = torch.from_numpy(model(feed["x"])) * 0.7, torch.from_numpy(feed["x"])
    losses = {}
    for steps in ("minmax", "lsq"):
        module = QuantizedModule(model, "W8A8", steps=steps)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        for _ in range(40):
            loss = (module(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[steps] = loss.item()
    assert losses["lsq"] < 1.5 * losses["minmax"]
