"""Products of two variable tensors, floats or doubles, against wider numpy, on every rung."""

import itertools
from typing import Any

import numpy as np
import pytest

import qruntime  # noqa: F401 (puts a rung in force)
from qruntime import _kernels

pytestmark = pytest.mark.usefixtures("rung")

DTYPES = (np.float32, np.float64)


def matmul(a: np.ndarray, b: np.ndarray, *, transpose_b: bool = False, alpha: float = 1.0, threads: int = 1) -> np.ndarray | None:
    result = _kernels.call_node("matmul", [a, b], [int(transpose_b)], [alpha], num_threads=threads)
    return None if result is None else result[0]


def gemm(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray | None = None,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    alpha: float = 1.0,
    beta: float = 1.0,
    threads: int = 1,
) -> np.ndarray | None:
    arrays = [a, b] if c is None else [a, b, c]
    result = _kernels.call_node("gemm", arrays, [int(trans_a), int(trans_b)], [alpha, beta], num_threads=threads)
    return None if result is None else result[0]


def eps(x: np.ndarray) -> float:
    return float(np.finfo(x.dtype).eps)


def bound(a: np.ndarray, b: np.ndarray, k: int) -> float:
    return 4 * eps(a) * np.sqrt(max(1, k)) * np.abs(a).max(initial=0) * np.abs(b).max(initial=0)


def check(a: np.ndarray, b: np.ndarray, **options: Any) -> None:
    got = matmul(a, b, **options)
    reference = np.matmul(a.astype(np.longdouble), b.astype(np.longdouble))
    assert got.shape == reference.shape
    assert got.dtype == a.dtype
    np.testing.assert_allclose(got, reference, rtol=0, atol=bound(a, b, a.shape[-1]))
    if b.ndim > 1:
        swapped = np.ascontiguousarray(b.swapaxes(-1, -2))
        np.testing.assert_array_equal(matmul(a, swapped, transpose_b=True, **options), got)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> Any:
    return request.param


def random(rng: np.random.Generator, *shape: int, dtype: Any) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("m", [0, 1, 2, 4, 5, 7, 16, 19, 43])
@pytest.mark.parametrize("k", [0, 1, 9, 32, 500])
def test_matrices(m: int, k: int, dtype: Any) -> None:
    rng = np.random.default_rng(m + k)
    for n in (0, 1, 3, 8, 15, 16, 17, 33, 100):
        check(random(rng, m, k, dtype=dtype), random(rng, k, n, dtype=dtype))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((5,), (5,)),
        ((5,), (5, 3)),
        ((4, 5), (5,)),
        ((2, 4, 5), (5,)),
        ((5,), (2, 5, 3)),
        ((2, 4, 5), (5, 3)),
        ((4, 5), (2, 5, 3)),
        ((2, 1, 4, 5), (1, 3, 5, 6)),
        ((7, 1, 4, 5), (2, 5, 6)),
        ((2, 3, 2, 1, 1, 2, 4, 5), (1, 3, 1, 2, 1, 1, 5, 2)),
        ((0, 4, 5), (5, 3)),
        ((0, 4, 5), (1, 5, 3)),
        ((3, 4, 0), (3, 0, 2)),
        ((1, 0, 5), (3, 5, 2)),
        ((12, 16, 32), (12, 32, 16)),
        ((2, 3, 30, 40), (2, 3, 40, 30)),
    ],
)
def test_batches_and_ranks(a: tuple[int, ...], b: tuple[int, ...], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    check(random(rng, *a, dtype=dtype), random(rng, *b, dtype=dtype))
    check(random(rng, *a, dtype=dtype), random(rng, *b, dtype=dtype), threads=3)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 3000, 200), (3, 300, 1000), (6, 257, 700), (130, 1000, 90), (300, 64, 2000)])
def test_larger_matrices(m: int, k: int, n: int, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    a, b = random(rng, m, k, dtype=dtype), random(rng, k, n, dtype=dtype)
    check(a, b)
    for threads in (2, 3):
        np.testing.assert_array_equal(matmul(a, b, threads=threads), matmul(a, b))


@pytest.mark.parametrize(("k", "n"), [(64, 40), (700, 300)])
def test_rows_do_not_depend_on_their_neighbours(k: int, n: int, dtype: Any) -> None:
    rng = np.random.default_rng(2)
    a, b = random(rng, 3, 45, k, dtype=dtype), random(rng, k, n, dtype=dtype)
    together = matmul(a, b)
    for i, rows in itertools.product(range(3), (1, 2, 5, 20, 44)):
        np.testing.assert_array_equal(matmul(a[i, :rows], b), together[i, :rows])


def test_scale(dtype: Any) -> None:
    rng = np.random.default_rng(3)
    a, b = random(rng, 2, 7, 20, dtype=dtype), random(rng, 2, 20, 9, dtype=dtype)
    np.testing.assert_array_equal(matmul(a, b, alpha=0.3), matmul(a, b) * dtype(0.3))


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (5, 7, 9), (40, 33, 21), (2, 0, 3), (0, 3, 4)])
@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
def test_gemm(m: int, k: int, n: int, trans_a: bool, trans_b: bool, dtype: Any) -> None:
    rng = np.random.default_rng(4)
    a, b = random(rng, m, k, dtype=dtype), random(rng, k, n, dtype=dtype)
    arguments = np.ascontiguousarray(a.T) if trans_a else a, np.ascontiguousarray(b.T) if trans_b else b
    product = a.astype(np.longdouble) @ b
    for shape in (None, (), (1,), (n,), (1, n), (m, 1), (m, n), (1, 1)):
        c = None if shape is None else random(rng, *shape, dtype=dtype)
        for alpha, beta in ((1.0, 1.0), (0.5, -2.0), (2.0, 0.0)):
            got = gemm(*arguments, c, trans_a=trans_a, trans_b=trans_b, alpha=alpha, beta=beta)
            reference = alpha * product + (0 if c is None else beta * c.astype(np.longdouble))
            assert got.shape == (m, n)
            np.testing.assert_allclose(got, reference, rtol=0, atol=2 * bound(a, b, k) + 16 * eps(a))


def test_declines_what_does_not_fit() -> None:
    f = np.zeros
    assert matmul(f((2, 3), "f"), f((3, 4), "f")) is not None
    assert matmul(f((2, 3), "f"), f((4, 4), "f")) is None
    assert matmul(f((2, 3), "f"), f((3, 4), "d")) is None
    assert matmul(f((2, 3), "i"), f((3, 4), "i")) is None
    assert matmul(np.float32(1), f((3, 4), "f")) is None
    assert matmul(f((2, 2, 3), "f"), f((3, 3, 4), "f")) is None
    assert gemm(f((2, 3), "f"), f((3, 4), "f"), f((3,), "f")) is None
    assert gemm(f((2, 3), "f"), f((3, 4), "f"), f((4, 2), "f")) is None
    assert gemm(f((2, 3, 1), "f"), f((3, 4), "f")) is None
    assert gemm(f((2, 3), "f"), f((3, 4), "f"), trans_a=True) is None
