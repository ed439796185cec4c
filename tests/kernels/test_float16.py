"""Kernels of float16 on every rung: the bits are those of the same kernel on the same numbers in float32, rounded once."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime import _kernels as kernels
from tests.small_models import assert_same_bits

Array = np.ndarray
EVERY = np.arange(65536, dtype=np.uint16).view(np.float16)
WIDTHS = [*range(1, 11), 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 2047, 2049, 5000]


def halves(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float16)


def call(kernel: str, inputs: list[Array | None], outputs: int = 1, threads: int = 1, **options: list) -> list[Array]:
    made = kernels.call_node(kernel, inputs, num_outputs=outputs, num_threads=threads, **options)
    assert made is not None, "the kernel declined"
    return made


def rounded(kernel: str, inputs: list[Array | None], outputs: int = 1, **options: list) -> list[Array]:
    wide = [x.astype(np.float32) if x is not None and x.dtype == np.float16 else x for x in inputs]
    with np.errstate(over="ignore"):
        return [y.astype(np.float16) for y in call(kernel, wide, outputs, **options)]


@pytest.mark.parametrize("name", sorted(kernels.UNARY))
def test_elementwise_of_every_number(rung: str, name: str) -> None:
    options = {"ints": [kernels.UNARY[name]], "floats": [0.75, 1.25]}
    want = rounded("unary", [EVERY], **options)[0]
    got = call("unary", [EVERY], **options)[0]
    is_nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), is_nan)
    assert_same_bits(got[~is_nan], want[~is_nan])
    for n in WIDTHS:
        part = call("unary", [EVERY[15000 : 15000 + n]], **options)[0]
        assert_same_bits(part, got[15000 : 15000 + n])


@pytest.mark.parametrize("name", sorted(kernels.REDUCE))
def test_reductions(rung: str, name: str) -> None:
    for n in WIDTHS:
        x = 1 + halves(3, n) / 16 if name == "prod" else halves(3, n)
        for kept in (x, x.T.copy()):
            for axes in ([0], [1], [0, 1]):
                options = {"ints": [kernels.REDUCE[name], 0, 0, *axes]}
                got = call("reduce", [kept], threads=2, **options)[0]
                assert_same_bits(got, rounded("reduce", [kept], **options)[0])


@pytest.mark.parametrize("name", sorted(kernels.REDUCE))
def test_reductions_of_nan_and_of_what_float16_cannot_hold(rung: str, name: str) -> None:
    x = np.full((40, 70), 300, np.float16)
    x[3, 50], x[7, 0] = np.nan, np.inf
    for axis in (0, 1):
        options = {"ints": [kernels.REDUCE[name], 1, 0, axis]}
        np.testing.assert_array_equal(call("reduce", [x], **options)[0], rounded("reduce", [x], **options)[0])


def test_reductions_in_stages(rung: str) -> None:
    x = halves(4, 5, 6, 7)
    for name in ("sum", "mean", "l2", "max"):
        for axes in ([0, 2], [1, 3], [0, 1, 3], [2], []):
            options = {"ints": [kernels.REDUCE[name], 1, int(not axes), *axes]}
            assert_same_bits(call("reduce", [x], **options)[0], rounded("reduce", [x], **options)[0])


@pytest.mark.parametrize("kernel", ["softmax", "log_softmax"])
def test_softmax(rung: str, kernel: str) -> None:
    for n in WIDTHS:  # the longest goes by slices of rows
        x = 4 * halves(7, n)
        got = call(kernel, [x], ints=[1], threads=3)[0]
        assert_same_bits(got, rounded(kernel, [x], ints=[1])[0])
        assert_same_bits(call(kernel, [x[2:3]], ints=[-1])[0], got[2:3])
    assert_same_bits(call(kernel, [halves(20, 50)], ints=[0])[0], rounded(kernel, [halves(20, 50)], ints=[0])[0])


@pytest.mark.parametrize("kernel", ["layer_norm", "rms_norm"])
def test_norms(rung: str, kernel: str) -> None:
    for n in WIDTHS:
        x, residual, scale, bias = halves(9, n), halves(9, n, seed=1), halves(n, seed=2), halves(n, seed=3)
        for inputs in ([x], [x, scale], [x, scale, bias], [x, None, bias, residual], [x, scale, bias, residual]):
            for outputs in (1, 2):
                options = {"ints": [1], "floats": [1e-5]}
                got = call(kernel, inputs, outputs, threads=2, **options)
                for y, want in zip(got, rounded(kernel, inputs, outputs, **options), strict=True):
                    assert_same_bits(y, want)
        alone = [None if a is None else a[4:5] if a.ndim == 2 else a for a in inputs]
        assert_same_bits(call(kernel, alone, ints=[1], floats=[1e-5])[0], got[0][4:5])


def test_batch_norm(rung: str) -> None:
    for shape in ((2, 5, 7, 9), (3, 40), (1, 3, 5000), (2, 3, 0)):
        by = [halves(shape[1], seed=seed) for seed in range(3)] + [np.abs(halves(shape[1], seed=4))]
        inputs = [halves(*shape, seed=5), *by]
        got = call("batch_norm", inputs, floats=[1e-3], threads=2)[0]
        assert_same_bits(got, rounded("batch_norm", inputs, floats=[1e-3])[0])
    assert kernels.call_node("batch_norm", [inputs[0], by[0].astype(np.float32), *by[1:]], floats=[1e-3]) is None
