"""Grids whose ranges are learned."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.quantization.scheme import parse
from tests.small_models import assert_same_bits, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

from qruntime.quantization.tuning import fake_quantization as fake  # noqa: E402
from qruntime.quantization.tuning.clipping import extremes, grid_of, has_ranges  # noqa: E402

SCHEMES = ["W3A16", "W2A16-g16", "W4A16-g48", "W4A16-sym", "W8A16", "W8A16-asym", "W3A16-tensor", "Wnf4A16-g16", "Wfp4A16"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_full_ranges_are_round_to_nearest(scheme: str):
    args, weight = parse(scheme).weights, torch.from_numpy(random(6, 100))
    weight[0] = 0
    assert has_ranges(args)
    grid, nearest = grid_of(*extremes(weight, args), args), fake.parameters(weight, args)
    for one, other in zip(grid, nearest, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_same_bits(one.numpy(), other.numpy())


@pytest.mark.parametrize("scheme", ["W3A16-f16", "W3A16-g16-pow2", "W3A16-g16-bilevel", "W16A16", "Wovp4A16"])
def test_scales_in_few_bits_have_no_ranges_to_learn(scheme: str):
    assert not has_ranges(parse(scheme).weights)


@pytest.mark.parametrize("scheme", ["W3A16-g16", "W4A16-sym", "W2A16"])
def test_gradients_are_finite_differences_with_rounding_frozen(scheme: str):
    """What was rounded stays as far from what it was rounded from; what was clipped stays at the ends."""
    args, weight = parse(scheme).weights, torch.from_numpy(random(2, 32, seed=3))
    low, high = extremes(weight, args)
    shares = [torch.full_like(low, 0.8).requires_grad_(), torch.full_like(high, 0.7).requires_grad_()]
    direction = torch.from_numpy(random(2, 32, seed=4))
    scale, zero_point = grid_of(shares[0] * low, shares[1] * high, args)
    (fake.with_parameters(weight, args, scale, zero_point) * direction).sum().backward()
    frozen = Frozen(weight, args, low, high, [one.detach() for one in shares])
    for place, share in enumerate(shares):
        for at in np.ndindex(*share.shape):
            made = []
            for by in (1e-4, -1e-4):
                tried = [one.detach().double() for one in shares]
                tried[place][at] += by
                made.append(float((frozen.rounded(*tried) * direction).sum()))
            assert float(share.grad[at]) == pytest.approx((made[0] - made[1]) / 2e-4, rel=2e-3, abs=2e-3)


class Frozen:
    """Rounding as it was at `shares`, in float64."""

    def __init__(self, weight, args, low, high, shares):
        self.weight, self.args, self.low, self.high = weight.double(), args, low.double(), high.double()
        self.least = -args.format.qmax if args.symmetric else args.format.qmin
        scale, exact = self._grid(*shares)
        self.remainder = 0 if args.symmetric else exact.round() - exact
        ratios = self._spread(self.weight, scale)
        before = ratios.round() + self._wide(exact + self.remainder)
        self.codes = before.clamp(self.least, args.format.qmax)
        self.inside, self.rest = before == self.codes, ratios.round() - ratios

    def rounded(self, *shares):
        scale, exact = self._grid(*shares)
        zeros = self._wide(exact + self.remainder)
        units = torch.where(self.inside, self._spread(self.weight, scale) + self.rest, self.codes - zeros)
        return units * self._wide(scale)

    def _grid(self, of_low, of_high):
        low, high = of_low * self.low, of_high * self.high
        if self.args.symmetric:
            scale = torch.maximum(-low, high) / self.args.format.qmax
            return scale, torch.zeros_like(scale)
        scale = (high - low) / (self.args.format.qmax - self.args.format.qmin)
        return scale, -low / scale

    def _spread(self, weight, scale):
        return weight / self._wide(scale)

    def _wide(self, numbers):
        return numbers.repeat_interleave(self.weight.shape[1] // numbers.shape[1], 1)
