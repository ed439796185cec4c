"""Layers of few bits with numbers apart from their codes: what the stored tensor decodes to, on every rung."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qruntime import _kernels
from qruntime.ir import StoredTensor
from qruntime.ir.outliers import Outliers
from qruntime.ops.low_bit_weights import fits_kernels, fits_quantized_activations, pack_nbits, unpack_nbits
from qruntime.quantization.grid import nearest
from qruntime.quantization.scheme import parse
from tests.small_models import random

pytestmark = pytest.mark.usefixtures("rung")

EPS = float(np.finfo(np.float32).eps)
RELU = 1
SCHEMES = ["W3A16-g16-bilevel", "W4A16-g32", "W2A16-g16-sym", "W8A16", "Wnf4A16-g32", "Wfp4A16-g16-double"]


def weight(scheme: str, k: int, n: int, share: float = 0.02, seed: int = 0) -> StoredTensor:
    """[K, N] with a share of numbers that are ten times as large as the others."""
    args = parse(scheme).weights
    assert args is not None
    mask = np.random.default_rng(seed).random((n, k)) < share
    return replace(
        nearest(random(n, k, seed=seed), args).stored, outliers=Outliers.where(mask, 10 * random(n, k, seed=seed + 1))
    ).transposed()


def product(packed: Any, x: np.ndarray, *more: np.ndarray, activation: int = 0, threads: int = 1) -> np.ndarray:
    got = _kernels.call_node("linear", [x, *more], [activation, 0], packed=[packed], num_threads=threads)
    assert got is not None
    return np.asarray(got[0])


def bound(stored: StoredTensor, x: np.ndarray) -> np.ndarray:
    """Of gemm_nbits.h and nbits_outliers.h, and more: values and zero points are no more than 16 times what codes stand for."""
    codes = np.abs(replace(stored, outliers=None).decoded())
    largest = np.abs(stored.decoded()) + 16 * codes.max(axis=1, keepdims=True)
    return EPS * (3 * stored.shape[0] + 4) * (np.abs(x).astype(np.float64) @ largest) + 1e-30


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_are_those_of_what_is_stored(scheme: str) -> None:
    for k, n in [(64, 33), (75, 16), (1, 3), (600, 50)]:
        stored, x = weight(scheme, k, n, share=0.3 if k == 1 else 0.02), random(33, k, seed=5)
        assert stored.outliers is not None
        packed = pack_nbits(stored, None)
        assert packed is not None
        got = product(packed, x)
        assert (np.abs(got - x.astype(np.float64) @ stored.decoded()) <= bound(stored, x)).all()
        for m in (1, 2, 3, 4, 5, 8, 9, 17):
            np.testing.assert_array_equal(product(packed, x[:m]), got[:m])
        for i in range(33):
            np.testing.assert_array_equal(product(packed, x[i : i + 1]), got[i : i + 1])
        np.testing.assert_array_equal(unpack_nbits(packed, stored.format), stored.unpacked())


def test_whole_numbers_are_exact() -> None:
    """Whatever the order of the additions: the same on every rung."""
    rng = np.random.default_rng(0)
    codes, values = rng.integers(0, 16, (20, 96), dtype=np.uint8), rng.integers(-50, 50, (20, 96)).astype(np.float32)
    mask = rng.random((20, 96)) < 0.1
    starts = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    outliers = starts, np.nonzero(mask)[1].astype(np.uint16), values[mask]
    packed = _kernels.PackedNBits(codes, np.full((20, 3), 2, np.float32), bits=4, group=32, outliers=outliers)
    x = rng.integers(-8, 9, (30, 96)).astype(np.float32)
    decoded = np.where(mask, values, (codes.astype(np.float32) - 8) * 2)
    np.testing.assert_array_equal(product(packed, x), x @ decoded.T)
    np.testing.assert_array_equal(product(packed, x[:1]), x[:1] @ decoded.T)


@pytest.mark.parametrize("m", [1, 3, 9, 300])
def test_threads_change_nothing(m: int) -> None:
    stored, x = weight("W3A16-g16-bilevel", 576, 500), random(m, 576, seed=5)
    packed = pack_nbits(stored, None)
    one = product(packed, x)
    for threads in (2, 3):
        np.testing.assert_array_equal(product(packed, x, threads=threads), one)
    np.testing.assert_array_equal(product(packed, x[-1:]), one[-1:])


@pytest.mark.parametrize("m", [1, 20])
def test_bias_activation_and_residual_come_after_them(m: int) -> None:
    stored, x, residual, bias = weight("W4A16-g32", 96, 70), random(m, 96), random(m, 70), random(70)
    plain = product(pack_nbits(stored, None), x)
    got = product(pack_nbits(stored, bias), x, residual, activation=RELU)
    np.testing.assert_allclose(got, np.maximum(plain + bias, 0) + residual, rtol=0, atol=4 * EPS * np.abs(plain).max())
    np.testing.assert_array_equal(got, np.maximum(product(pack_nbits(stored, bias), x), 0) + residual)


def test_rows_that_are_not_finite_stay_alone() -> None:
    stored, x = weight("W3A16-g16-bilevel", 96, 70, share=0.1), random(20, 96)
    packed = pack_nbits(stored, None)
    clean = product(packed, x)
    x[7, 3] = np.nan
    got = product(packed, x)
    assert np.isnan(got[7]).all()
    np.testing.assert_array_equal(np.delete(got, 7, 0), np.delete(clean, 7, 0))


def test_memory_is_that_of_the_bits() -> None:
    """Six bytes for each, and eight for each column."""
    stored = weight("W3A16-g16-bilevel", 1024, 512, share=0.01)
    assert stored.outliers is not None
    with_them, without = (pack_nbits(one, None) for one in (stored, replace(stored, outliers=None)))
    assert with_them is not None
    assert without is not None
    assert with_them.nbytes - without.nbytes <= 6 * stored.outliers.count + 8 * 513 + 8192


def test_layers_that_differ_in_them_are_packed_apart() -> None:
    one, other = weight("W4A16-g32", 64, 40, seed=0), weight("W4A16-g32", 64, 40, seed=7)
    shared = replace(other, held=one.held, scale=one.scale, zero_point=one.zero_point)
    sources = [pack_nbits(stored, None).source()[1] for stored in (one, replace(one), shared, replace(one, outliers=None))]  # type: ignore[union-attr]
    assert sources[0] == sources[1]
    assert len({hash(source) for source in sources}) == 3


def test_what_no_kernel_takes_is_declined() -> None:
    stored = weight("W4A16-g32", 64, 40)
    assert fits_kernels(stored)
    assert not fits_quantized_activations(stored)
    assert pack_nbits(stored, None, "per_token") is None
    long = weight("W4A16-g32", (1 << 16) + 1, 2, share=1e-4)
    assert not fits_kernels(long)
    longest = weight("W4A16-g32", 1 << 16, 2, share=1e-4)
    packed = pack_nbits(longest, None)
    assert packed is not None
    assert longest.outliers is not None
    _, last = longest.outliers.indices(longest.shape)
    x = np.zeros((1, 1 << 16), np.float32)
    x[0, 65535] = 1
    np.testing.assert_allclose(product(packed, x)[0], longest.decoded()[65535], atol=1e-5)
    assert last.size


def test_hostile_arguments() -> None:
    codes, scale = np.zeros((4, 32), np.uint8), np.ones((4, 2), np.float32)
    places, values = np.array([3, 9, 0], np.uint16), np.ones(3, np.float32)

    def pack(starts: Any, inputs: Any = places, numbers: Any = values, **more: Any) -> Any:
        return _kernels.PackedNBits(codes, scale, bits=4, group=16, outliers=(np.array(starts), inputs, numbers), **more)

    assert pack([0, 2, 2, 3, 3]).nbytes > 0
    for bad in [
        lambda: pack([0, 2, 2, 3]),
        lambda: pack([0, 2, 2, 2, 2]),
        lambda: pack([1, 2, 2, 3, 3]),
        lambda: pack([0, 3, 2, 3, 3]),
        lambda: pack([0, 3, 3, 3, 3]),
        lambda: pack([0, 2, 2, 3, 3], places.astype(np.int64)),
        lambda: pack([0, 2, 2, 3, 3], places, values[:2]),
        lambda: pack([0, 2, 2, 3, 3], np.array([3, 32, 0], np.uint16)),
        lambda: pack([0, 2, 2, 3, 3], np.array([3, 3, 0], np.uint16)),
        lambda: pack([0, 2, 2, 3, 3], activations="per_token"),
    ]:
        with pytest.raises(ValueError, match="outliers"):
            bad()
