"""Fake quantization: the bits of the codes forward, the rules of the straight-through estimator backward."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.ops.linear import quantize_rows
from qruntime.ops.rounded_activations import round_to_codes, round_to_float8
from qruntime.quantization import grid
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.scheme import QArgs, parse
from tests.small_models import assert_same_bits, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

from qruntime.quantization.tuning import fake_quantization as fake  # noqa: E402

SCHEMES = [
    *(f"W{bits}A16{rest}" for bits in range(2, 9) for rest in ("", "-g16", "-sym", "-asym-tensor", "-g32-sym")),
    "Wnf4A16-g64", "Wfp4A16-g32", "Wfp8A16", "Wfp4A16-tensor", "W3A16-g16-f16", "W4A16-g16-pow2", "W3A16-g16-bilevel", "Wnf4A16-g64-double",
    "W8A16-g16-asym", "W2A16-g16-double-sym",
]  # fmt: skip


def args_of(scheme: str) -> QArgs:
    args = parse(scheme).weights
    assert args is not None
    return args


def awkward(rows: int = 24, columns: int = 72) -> np.ndarray:
    """A weight with zeros, a row of one sign, a huge number, exact halves of steps, and a width that groups do not divide."""
    weight = random(rows, columns)
    weight[0], weight[1], weight[2, 3] = 0, np.abs(weight[1]), 1e6
    weight[3] = np.arange(columns) / 2
    weight[4, :16] = 0
    return weight


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_is_what_rounding_to_nearest_stores(scheme: str):
    args, weight = args_of(scheme), awkward()
    expected = RTN().solve(weight, args).rounded.stored.decoded()
    given = torch.from_numpy(weight.copy()).requires_grad_()
    made = fake.nearest(given, args)
    assert_same_bits(made.detach().numpy(), expected)
    (made * 3).sum().backward()
    assert torch.equal(given.grad, torch.full_like(given, 3))  # ranges cover all numbers: M = 1


@pytest.mark.parametrize("scheme", ["W4A16", "W3A16-g16", "W8A16", "Wnf4A16-g64", "W4A16-sym"])
def test_so_it_is_with_other_scales_and_zero_points(scheme: str):
    args, weight = args_of(scheme), awkward()
    scale, zero_point = grid.parameters(weight, args)
    scale = scale * random(*scale.shape, seed=1) ** 2 + np.float32(1e-3)
    expected = grid.nearest_for(weight, args, scale, zero_point).stored.decoded()
    parts = [None if part is None else torch.from_numpy(part.astype(np.float32)) for part in (scale, zero_point)]
    assert_same_bits(fake.with_parameters(torch.from_numpy(weight), args, *parts).numpy(), expected)


def test_the_gradient_of_a_weight_stops_where_it_is_clipped():
    args = args_of("W4A16")
    weight = torch.tensor([[-9.0, -1.2, 0.4, 3.4, 40.0]], requires_grad=True)
    scale, zero_point = torch.tensor([[0.5]], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
    (fake.with_parameters(weight, args, scale, zero_point) * upstream).sum().backward()
    inside = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]])
    assert torch.equal(weight.grad, inside * upstream)
    ratios = weight.detach() / 0.5
    units = (ratios.round() + 3).clamp(0, 15) - 3
    assert torch.equal(scale.grad, ((units - inside * ratios) * upstream).sum().reshape(1, 1))
    assert torch.equal(zero_point.grad, (-0.5 * (1 - inside) * upstream).sum().reshape(1, 1))


@pytest.mark.parametrize("scheme", ["W4A16", "W3A16-g16", "W4A16-sym", "W4A16-tensor"])
def test_gradients_of_scales_are_those_of_the_smoothed_function(scheme: str):
    """With the rounding held, x̂ is linear in s where it is clipped, and x plus what rounding added, that times s, elsewhere."""
    args, weight = args_of(scheme), torch.from_numpy(random(6, 48))
    scale, zero_point = fake.parameters(weight, args)
    scale = (scale * 0.7).requires_grad_()
    upstream = torch.from_numpy(random(6, 48, seed=2))
    made = fake.with_parameters(weight, args, scale, zero_point)
    (made * upstream).sum().backward()

    size = args.granularity.size or 48
    whole = scale.detach().expand(6, -1).repeat_interleave(size, 1)[:, :48].double()
    units, ratios = made.detach().double() / whole, weight.double() / whole
    bottom, top = units.min(), units.max()
    inside = (ratios >= bottom - 0.5) & (ratios <= top + 0.5) & ((units - ratios).abs() < 0.51)
    slopes = torch.where(inside, units - ratios, units) * upstream
    groups = slopes.unflatten(1, (-1, size)).sum(-1)
    expected = groups if scale.shape[0] > 1 else groups.sum(0, keepdim=True)
    assert torch.allclose(scale.grad.double(), expected.reshape(scale.shape), rtol=1e-4, atol=1e-4)
    assert not inside.all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_rows_are_what_the_kernels_make_of_them(bits: int):
    rows = np.concatenate([awkward(), np.zeros((1, 72), np.float32), random(3, 72, seed=4) * np.float32(1e-39)])
    codes, scale, zero_point = quantize_rows(rows, bits)
    expected = (codes.astype(np.float32) - zero_point.astype(np.float32)) * scale
    given = torch.from_numpy(rows.reshape(2, 14, 72)).requires_grad_()
    made = fake.rounded_rows(given, bits)
    assert_same_bits(made.detach().numpy().reshape(28, 72), expected)
    made.sum().backward()
    assert torch.equal(given.grad, torch.ones_like(given))
    codes, scale, zero_point = quantize_rows(rows.reshape(1, -1), bits)
    whole = fake.rounded_tensor(torch.from_numpy(rows), bits)
    assert_same_bits(whole.numpy().reshape(1, -1), (codes.astype(np.float32) - zero_point.astype(np.float32)) * scale)


def test_rows_of_small_floats_are_what_the_kernels_make_of_them():
    rows = awkward()
    assert_same_bits(fake.rounded_to_float8(torch.from_numpy(rows)).numpy(), round_to_float8(rows))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_static_activations_are_what_files_make_of_them(bits: int):
    form = parse(f"W8A{bits}-static").inputs.format  # type: ignore[union-attr]
    seen = fake.MovingRange(form, momentum=0.5)
    x, other = random(4, 6), random(4, 6, seed=1) * np.float32(4)
    with pytest.raises(ValueError, match="before a batch was seen"):
        seen.rounded(torch.from_numpy(x))
    seen.see(torch.from_numpy(x))
    seen.see(torch.from_numpy(other))
    assert seen.low == pytest.approx((x.min() + other.min()) / 2)
    assert seen.high == pytest.approx((x.max() + other.max()) / 2)
    scale = np.float32((seen.high - seen.low) / form.qmax)
    zero_point = np.uint8(np.rint(-np.float32(seen.low).astype(np.float64) / np.float64(scale)))
    given = torch.from_numpy(other).requires_grad_()
    made = seen.rounded(given)
    assert_same_bits(made.detach().numpy(), round_to_codes(other, scale, zero_point, most=form.qmax))
    made.sum().backward()
    clipped = (np.rint(other / scale) + zero_point > form.qmax) | (np.rint(other / scale) + zero_point < 0)
    assert clipped.any()
    assert (given.grad.numpy() == ~clipped).all()
    assert seen.high < other.max()


def test_rounding_has_the_gradient_of_the_identity():
    x = torch.tensor([0.5, 1.5, -0.5, 2.4], requires_grad=True)
    y = fake.straight_through_round(x)
    assert y.tolist() == [0, 2, 0, 2]
    (y * torch.arange(4)).sum().backward()
    assert x.grad.tolist() == [0, 1, 2, 3]


def test_formats_without_a_gradient_say_so():
    weight = torch.from_numpy(random(4, 32))
    with pytest.raises(ValueError, match="ovp4 weights have no gradient"):
        fake.nearest(weight, args_of("Wovp4A16"))
