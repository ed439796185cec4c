"""Float linear layers against float64 numpy, on every rung."""

import itertools
import math

import numpy as np
import pytest

import qruntime  # noqa: F401 (puts a rung in force)
from qruntime import _kernels

pytestmark = pytest.mark.usefixtures("rung")

EPS = float(np.finfo(np.float32).eps)
NONE, RELU, GELU, GELU_TANH, SILU, SIGMOID, TANH = range(7)


def linear(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    *,
    activation: int = NONE,
    threads: int = 1,
    packed: object = None,
) -> np.ndarray | None:
    arrays = [x] if residual is None else [x, residual]
    packed = _kernels.PackedF32(w, b) if packed is None else packed
    result = _kernels.call_node("linear", arrays, [activation, 0], packed=[packed], num_threads=threads)
    return None if result is None else result[0]


def activate(activation: int, x: np.ndarray) -> np.ndarray:
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return {
        NONE: lambda: x,
        RELU: lambda: np.maximum(x, 0),
        GELU: lambda: 0.5 * x * (1 + erf(x / math.sqrt(2))),
        GELU_TANH: lambda: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        SILU: lambda: x / (1 + np.exp(-x)),
        SIGMOID: lambda: 1 / (1 + np.exp(-x)),
        TANH: lambda: np.tanh(x),
    }[activation]()


def bound(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> float:
    k = max(1, x.shape[-1])
    largest = np.abs(x).max(initial=0) * np.abs(w).max(initial=0)
    return 4 * EPS * np.sqrt(k) * largest + 2 * EPS * (0 if b is None else np.abs(b).max(initial=0)) + 1e-38


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


SMALL = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15]
WIDTHS = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 64, 65, 130]


@pytest.mark.parametrize("m", SMALL)
@pytest.mark.parametrize("k", [0, 1, 2, 7, 33])
def test_every_tile_shape(m: int, k: int) -> None:
    rng = np.random.default_rng(m * 100 + k)
    for n in WIDTHS:
        x, w, b = random(rng, m, k), random(rng, k, n), random(rng, n)
        got = linear(x, w, b)
        np.testing.assert_allclose(got, x.astype(np.float64) @ w + b, rtol=0, atol=bound(x, w, b))
        np.testing.assert_array_equal(linear(x, np.asfortranarray(w), b), got)


@pytest.mark.parametrize("k", [127, 128, 129, 383, 384, 385, 800, 2000])
@pytest.mark.parametrize("m", [1, 3, 12, 29])
def test_depths_around_the_blocks(m: int, k: int) -> None:
    rng = np.random.default_rng(k)
    x, w = random(rng, m, k), random(rng, k, 50)
    np.testing.assert_allclose(linear(x, w), x.astype(np.float64) @ w, rtol=0, atol=bound(x, w))


def test_many_rows() -> None:
    rng = np.random.default_rng(0)
    x, w, b = random(rng, 700, 400), random(rng, 400, 40), random(rng, 40)
    np.testing.assert_allclose(linear(x, w, b), x.astype(np.float64) @ w + b, rtol=0, atol=bound(x, w, b))


@pytest.mark.parametrize("fill", ["ones", "alternating", "integers", "tiny", "large"])
def test_adversarial_fills(fill: str) -> None:
    rng = np.random.default_rng(1)
    x, w = {
        "ones": lambda: (np.ones((9, 513), np.float32), np.ones((513, 33), np.float32)),
        "alternating": lambda: (np.tile(np.float32([1, -1]), (9, 300)), np.ones((600, 33), np.float32)),
        "integers": lambda: tuple(rng.integers(-8, 9, s).astype(np.float32) for s in ((9, 513), (513, 33))),
        "tiny": lambda: (random(rng, 9, 100) * np.float32(1e-30), random(rng, 100, 33)),
        "large": lambda: (random(rng, 9, 100) * np.float32(1e30), random(rng, 100, 33)),
    }[fill]()
    got, reference = linear(x, w), x.astype(np.float64) @ w
    if fill in ("ones", "alternating", "integers"):
        np.testing.assert_array_equal(got, reference)
    else:
        np.testing.assert_allclose(got, reference, rtol=0, atol=bound(x, w))


@pytest.mark.parametrize("activation", range(7))
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 19), (5, 16), (30, 70)])
def test_epilogue(activation: int, m: int, n: int) -> None:
    """The activation may add 4 ulp of its argument's size to the error of the sum; its slope is at most 1.13."""
    rng = np.random.default_rng(activation)
    x, w, b, residual = random(rng, m, 40), random(rng, 40, n), random(rng, n), random(rng, m, n)
    sums = x.astype(np.float64) @ w + b
    got = linear(x, w, b, residual, activation=activation)
    tolerance = 1.13 * bound(x, w, b) + 4 * EPS * np.abs(sums) + 2 * EPS * np.abs(residual) + 4 * EPS
    assert (np.abs(got - (activate(activation, sums) + residual)) <= tolerance).all()


@pytest.mark.parametrize("activation", range(7))
def test_activations_of_extreme_sums(activation: int) -> None:
    x = np.float32([[0.0], [-0.0], [1e-30], [-1e-30], [20], [-20], [100], [-100], [3e38], [-3e38], [np.inf], [np.nan]])
    y = linear(x, np.ones((1, 1), np.float32), activation=activation)[:, 0]
    with np.errstate(all="ignore"):
        reference = activate(activation, x[:-2, 0].astype(np.float64))
    reference = np.where(np.isnan(reference), 0, reference)
    np.testing.assert_allclose(y[:-2], reference, rtol=4 * EPS, atol=1e-7)
    assert y[-2] == (1.0 if activation in (SIGMOID, TANH) else np.inf)
    assert np.isnan(y[-1])


@pytest.mark.parametrize("activation", [NONE, GELU])
@pytest.mark.parametrize(("m", "k", "n"), [(37, 400, 50), (9, 64, 33), (200, 300, 129)])
def test_rows_do_not_depend_on_their_neighbours_nor_on_threads(activation: int, m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(2)
    x, w, b = random(rng, m, k), random(rng, k, n), random(rng, n)
    packed = _kernels.PackedF32(w, b)
    together = linear(x, w, packed=packed, activation=activation)
    for threads in (2, 3):
        np.testing.assert_array_equal(linear(x, w, packed=packed, activation=activation, threads=threads), together)
    for rows in (1, 2, 3, 4, 5, 8):
        for i in range(0, m - rows, 7):
            np.testing.assert_array_equal(linear(x[i : i + rows], w, packed=packed, activation=activation), together[i : i + rows])


def test_zero_padded_depth_changes_no_bit() -> None:
    rng = np.random.default_rng(3)
    x, w = random(rng, 11, 100), random(rng, 100, 20)
    for more in (1, 28, 300, 900):
        padded = linear(np.pad(x, ((0, 0), (0, more))), np.pad(w, ((0, more), (0, 0))))
        np.testing.assert_array_equal(padded, linear(x, w))


def test_fused_steps_give_the_bits_of_separate_ones() -> None:
    rng = np.random.default_rng(4)
    x, w, b, residual = random(rng, 10, 90), random(rng, 90, 30), random(rng, 30), random(rng, 10, 30)
    np.testing.assert_array_equal(linear(x, w, b, residual, activation=RELU), np.maximum(linear(x, w) + b, 0) + residual)


def test_not_finite_values_stay_in_their_row_and_column() -> None:
    rng = np.random.default_rng(5)
    x, w = random(rng, 9, 20), random(rng, 20, 40)
    plain = linear(x, w)
    x[2, 3], x[5, 7], w[4, 33] = np.nan, np.inf, np.nan
    y = linear(x, w)
    assert np.isnan(y[2]).all()
    assert not np.isfinite(y[5]).any()
    assert np.isnan(y[:, 33]).all()
    keep = np.ix_([i for i in range(9) if i not in (2, 5)], [j for j in range(40) if j != 33])
    np.testing.assert_array_equal(y[keep], plain[keep])


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (1, 2, 3, 4, 5), (0, 5), (2, 0, 5)])
def test_ranks(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    x, w = random(rng, *shape), random(rng, 5, 7)
    got = linear(x, w)
    assert got.shape == (*shape[:-1], 7)
    np.testing.assert_array_equal(got.reshape(-1, 7), linear(x.reshape(-1, 5), w))


def test_weights_of_any_strides() -> None:
    rng = np.random.default_rng(7)
    big = random(rng, 80, 90)
    x = random(rng, 6, 20)
    for w in (big[:20, :33], big[10:50:2, 5:71:2], big[:33, :20].T, big[20:0:-1, ::-1], big[:66:2, :20].T):
        np.testing.assert_array_equal(linear(x, w), linear(x, np.ascontiguousarray(w)))


def test_packed_weights_outlive_their_rung() -> None:
    rng = np.random.default_rng(8)
    x, w = random(rng, 6, 20), random(rng, 20, 33)
    packed = _kernels.PackedF32(w)
    before = linear(x, w, packed=packed)
    for other in _kernels.available_isas():
        _kernels.set_isa(other)
        np.testing.assert_array_equal(linear(x, w, packed=packed), before)


def test_declines_what_does_not_fit() -> None:
    x, w = np.zeros((3, 5), "f"), np.zeros((5, 7), "f")
    assert linear(x, w) is not None
    assert linear(x[:, :4], w) is None
    assert linear(np.float32(1), w) is None
    assert linear(x.astype(np.float64), w) is None
    assert linear(x, w, None, np.zeros((3, 6), "f")) is None
    assert linear(x, w, None, np.zeros((1, 3, 7), "f")) is None
    assert linear(x, w, activation=7 + len(_kernels.UNARY)) is None
    assert linear(x, w, activation=-1) is None


@pytest.mark.parametrize("threads", [1, 3])
def test_random_sizes(threads: int) -> None:
    rng = np.random.default_rng(9)
    for m, k, n in itertools.islice(zip(*[iter(rng.integers(0, 70, 300))] * 3, strict=True), 60):
        x, w = random(rng, m, k), random(rng, k, n)
        np.testing.assert_allclose(linear(x, w, threads=threads), x.astype(np.float64) @ w, rtol=0, atol=bound(x, w))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_unpacked_is_what_was_packed(rung: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    for k, n in ((1, 1), (5, 3), (64, 32), (63, 101), (0, 4), (4, 0)):
        for w in (rng.standard_normal((k, n)).astype(dtype), rng.standard_normal((n, k)).astype(dtype).T):
            for bias in (None, rng.standard_normal(n).astype(np.float32)):
                weight, found = _kernels.PackedF32(w, bias).unpacked()
                assert weight.dtype == np.float32
                np.testing.assert_array_equal(weight, w)
                assert (found is None) == (bias is None)
                if bias is not None:
                    np.testing.assert_array_equal(found, bias)
