"""Products of tensors by our own GEMM."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from qruntime import _kernels
from tests.small_models import assert_same_bits, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

from qruntime.quantization.tuning import gemm  # noqa: E402
from qruntime.quantization.tuning.engine import torch_threads  # noqa: E402
from qruntime.quantization.tuning.gemm import multiplied  # noqa: E402

SHAPES = [
    ((5, 7), (7, 3)), ((1, 1), (1, 1)), ((64, 33), (33, 130)), ((2, 5, 7), (7, 3)), ((2, 3, 5, 7), (7, 3)), ((2, 5, 7), (2, 7, 3)),
    ((2, 1, 5, 7), (3, 7, 2)), ((5, 7), (2, 3, 7, 2)), ((1, 4, 6, 5), (1, 4, 5, 6)), ((0, 7), (7, 3)), ((5, 0), (0, 3)),
    ((2, 5, 7), (7, 0)),
]  # fmt: skip


def leaves(a: Any, b: Any, is_turned: tuple[bool, bool] = (False, False)) -> list[Any]:
    """Of float64 twins too, so that what is compared has hardly any error of its own."""
    arrays = random(*a, seed=1), random(*b, seed=2)
    made = []
    for array, turned in zip(arrays, is_turned, strict=True):
        one = torch.from_numpy(np.ascontiguousarray(array.swapaxes(-1, -2)) if turned else array)
        made.append((one.mT if turned else one).detach().requires_grad_())
    return [*made, *(one.detach().double().requires_grad_() for one in made)]


def assert_close(made: Any, wanted: Any, magnitude: Any, terms: int) -> None:
    """Sums of so many products, whose absolute values add up to `magnitude`."""
    assert made.dtype == torch.float32
    assert made.shape == wanted.shape
    assert bool(((made.double() - wanted).abs() <= (terms + 1) * np.finfo(np.float32).eps * magnitude).all())


@pytest.mark.parametrize("is_turned", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
def test_values_and_gradients_are_those_of_torch(a: Any, b: Any, is_turned: tuple[bool, bool]):
    left, right, *wide = leaves(a, b, is_turned)
    made, wanted, magnitude = multiplied(left, right), wide[0] @ wide[1], wide[0].abs() @ wide[1].abs()
    assert made.grad_fn.name() == "ProductBackward"
    assert_close(made.detach(), wanted.detach(), magnitude.detach(), a[-1])
    slope = torch.from_numpy(random(*made.shape, seed=3))
    ours = torch.autograd.grad(made, (left, right), slope)
    torchs = torch.autograd.grad(wanted, wide, slope.double())
    magnitudes = torch.autograd.grad(magnitude, wide, slope.double().abs())
    for one, other, most in zip(ours, torchs, magnitudes, strict=True):
        assert_close(one, other, most.abs(), made.numel() * a[-1] // max(1, one.numel()))


def test_gradients_have_gradients():
    left, right, wide_left, wide_right = leaves((2, 5, 7), (7, 3))

    def second(x: Any, y: Any) -> Any:
        gradients = torch.autograd.grad((x @ y if x.dtype == torch.float64 else multiplied(x, y)).pow(3).sum(), (x, y), create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in gradients), (x, y))

    for one, other in zip(second(left, right), second(wide_left, wide_right), strict=True):
        assert float((one.double() - other).abs().max()) <= 1e-5 * float(other.abs().max())


def test_gradients_that_nobody_wants_are_not_made(monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []
    monkeypatch.setattr(gemm, "_kernels", Counted(made))
    x, w = torch.from_numpy(random(4, 8)), torch.from_numpy(random(8, 3)).requires_grad_()
    multiplied(x, w).sum().backward()
    assert len(made) == 2


class Counted:
    """The kernels, and in `threads` on how many each product was to run."""

    def __init__(self, threads: list[int]):
        self.threads = threads

    def matmul(self, a: Any, b: Any, transpose_b: bool, threads: int) -> Any:
        self.threads.append(threads)
        return _kernels.matmul(a, b, transpose_b, threads)


def test_as_many_threads_as_torch_may_use_whoever_multiplies(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    monkeypatch.setattr(gemm, "_kernels", Counted(seen))
    x, y = torch.from_numpy(random(4, 8)), torch.from_numpy(random(8, 3))
    for count in (1, 3):
        with torch_threads(count):
            multiplied(x, y)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(multiplied, x, y).result()
    assert seen == [1, 1, 3, 3]


def test_a_row_has_its_bits_whatever_the_others_and_the_threads():
    x, y = torch.from_numpy(random(600, 70)), torch.from_numpy(random(70, 130, seed=1))
    with torch_threads(1):
        alone = multiplied(x, y).numpy()
        assert_same_bits(multiplied(x[17:18], y).numpy(), alone[17:18])
    with torch_threads(3):
        assert_same_bits(multiplied(x, y).numpy(), alone)


@pytest.mark.parametrize(("a", "b"), [((7,), (7, 3)), ((5, 7), (7,)), ((7,), (7,)), ((1,) * 8 + (2, 3), (3, 2))], ids=str)
def test_what_is_no_pair_of_matrices_torch_multiplies(a: Any, b: Any):
    x, y = torch.from_numpy(random(*a)).requires_grad_(), torch.from_numpy(random(*b, seed=1))
    made = multiplied(x, y)
    assert made.grad_fn.name() != "ProductBackward"
    assert torch.equal(made, x @ y)


def test_other_types_torch_multiplies():
    for kind in (torch.float64, torch.bfloat16, torch.int32):
        x, y = torch.ones(2, 3).to(kind), torch.ones(3, 2).to(kind)
        assert multiplied(x, y).dtype == kind


@pytest.mark.parametrize(("a", "b"), [((5, 7), (6, 3)), ((2, 5, 7), (3, 7, 2))], ids=str)
def test_shapes_that_do_not_fit_are_named(a: Any, b: Any):
    with pytest.raises(RuntimeError, match=r"5x7 and 6x3|size of tensor"):
        multiplied(torch.from_numpy(random(*a)), torch.from_numpy(random(*b)))
