"""Products of definitions: exact where they are of integers, the same bits for a row alone, and no more threads than allowed."""

from __future__ import annotations

import itertools
import os
import sys

import numpy as np
import pytest
from onnx import TensorProto

from qruntime.ops.einsum import einsum
from qruntime.ops.products import exact_matmul, matmul
from tests.small_models import one_node

DTYPES = (np.float16, np.float32, np.float64)


def normal(*shape: int, dtype: type = np.float64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("a", "b"),
    [((5, 70), (70, 9)), ((3, 2, 5, 8), (2, 8, 6)), ((70,), (70, 3)), ((4, 70), (70,)), ((70,), (70,)), ((0, 3), (3, 2)), ((2, 0), (0, 3))],
)
def test_matmul_is_that_of_numpy(dtype: type, a: tuple[int, ...], b: tuple[int, ...]):
    x, y = normal(*a, dtype=dtype), normal(*b, dtype=dtype, seed=1)
    exact = np.matmul(x.astype(np.longdouble), y.astype(np.longdouble))
    got = matmul(x, y)
    assert got.dtype == dtype
    assert got.shape == exact.shape
    # Sums of at most 70 terms, and one rounding to the element type.
    working = np.finfo(np.promote_types(dtype, np.float32)).eps
    size = np.matmul(np.abs(x).astype(np.longdouble), np.abs(y).astype(np.longdouble))
    assert np.all(np.abs(got - exact) <= 70 * working * size + np.finfo(dtype).eps * np.abs(exact))


def test_operands_of_any_strides_and_of_more_dimensions_than_kernels_have():
    a = np.rint(4 * normal(2, 1, 1, 3, 1, 1, 1, 4, 5, dtype=np.float32))
    for shape in ((2, 1, 1, 1, 1, 1, 1, 5, 6), (3, 1, 1, 1, 5, 6), (5,)):
        b = np.rint(4 * normal(*shape, dtype=np.float32, seed=1))
        np.testing.assert_array_equal(matmul(a, b), np.matmul(a, b))  # of small integers: exact
    x, y = normal(20, 30), normal(30, 40)
    spread = np.zeros((60, 80))
    spread[::2, ::2] = y
    wanted = matmul(x, y)
    for other in (np.asfortranarray(y), y[:, ::-1].copy()[:, ::-1], spread[::2, ::2]):
        np.testing.assert_array_equal(matmul(x, other), wanted)
        np.testing.assert_array_equal(matmul(np.asfortranarray(x), other), wanted)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="mismatch"):
        matmul(normal(2, 3), normal(4, 5))
    with pytest.raises(ValueError, match=r"\(2, 256\) and \(300, 5\)"):
        exact_matmul(normal(2, 256, dtype=np.float32), normal(300, 5, dtype=np.float32))


@pytest.mark.parametrize("k", [1, 255, 256, 257, 70_000])
def test_products_of_codes_are_exact(k: int):
    rng = np.random.default_rng(k)
    for low, high in ((-255, 256), (255, 256), (-255, -254)):
        a, b = rng.integers(low, high, (3, k)), rng.integers(-255, -254, (k, 2))
        got = exact_matmul(a.astype(np.float32), b.astype(np.float32))
        np.testing.assert_array_equal(got, (a @ b).astype(np.int32))


EQUATIONS = [
    ("bk,kn->bn", (3, 4), (4, 5)), ("bik,bkj->bij", (2, 3, 4), (2, 4, 5)), ("ii->i", (3, 3)), ("ii", (3, 3)), ("ba", (2, 3)),
    ("...ij,...jk->...ik", (2, 3, 4, 5), (5, 6)), ("i,j->ij", (3,), (4,)), ("i,i", (3,), (3,)), ("ij->", (3, 4)), (",ij->ij", (), (2, 3)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 5)), ("bhwij,bhwj->bhwi", (1, 2, 3, 4, 5), (1, 2, 3, 5)), ("...,...", (2, 3), (2, 3)),
    ("abc,cd,def->abef", (2, 3, 4), (4, 5), (5, 6, 7)), ("i...,i...->i...", (2, 3, 4), (2, 3, 4)), ("ij,kj->i", (2, 3), (4, 3)),
    ("iij,jk->ik", (3, 3, 4), (4, 2)), ("b n h, n -> b h", (2, 3, 4), (3,)), ("ij,ij->ij", (1, 3), (2, 3)),
    ("...a,a...->...", (2, 3), (3, 2)), ("bq,bk->bqk", (2, 0), (2, 3)), ("iji->j", (3, 2, 3)), ("...k,nk->...n", (2, 3, 4, 5), (6, 5)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
@pytest.mark.parametrize(("equation", "shapes"), [(e, s) for e, *s in EQUATIONS], ids=[e for e, *_ in EQUATIONS])
def test_einsum_is_that_of_numpy(equation: str, shapes: list[tuple[int, ...]], dtype: type):
    inputs = [np.asarray(np.rint(4 * normal(*shape, seed=i)), dtype) for i, shape in enumerate(shapes)]
    got = einsum(*inputs, equation=equation)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.einsum(equation, *inputs))  # of small integers: exact in every type


@pytest.mark.parametrize(
    ("equation", "shapes", "what"),
    [("ij,jk->ik", [(2, 3), (4, 5)], "3 and 4"), ("ij->ik", [(2, 3)], "output"), ("ij->ii", [(2, 3)], "output"), ("i->i", [(2, 3)], "fit"),
     ("ij,j", [(2, 3)], "2 operands"), ("i1->i", [(2, 3)], "letters"), ("......i", [(2, 3)], "letters"), ("ijk", [(2, 3)], "fit")],
)  # fmt: skip
def test_equations_that_do_not_fit_are_explained(equation: str, shapes: list[tuple[int, ...]], what: str):
    with pytest.raises(ValueError, match=what):
        einsum(*(normal(*shape) for shape in shapes), equation=equation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone(dtype: type):
    w = normal(300, 40, dtype=dtype)
    for product in (lambda x: matmul(x, w), lambda x: matmul(x, np.asfortranarray(w)), lambda x: einsum(x, w, equation="bk,kn->bn")):
        x = normal(50, 300, dtype=dtype, seed=1)
        together = product(x)
        for first, rows in itertools.product((0, 7), (1, 2, 3, 5, 20)):
            np.testing.assert_array_equal(product(x[first : first + rows]), together[first : first + rows])


def _seconds_by_thread() -> dict[str, float]:
    times = {}
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/schedstat") as file:
            times[thread] = int(file.read().split()[0]) / 1e9
    return times


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_definitions_keep_the_limit_of_threads(dtype: type):
    """An Einsum, which only a definition computes, and a product of codes."""
    if dtype is np.int32:
        x, w = np.full((256, 512), 3, np.uint8), np.full((512, 512), 5, np.int8)
        model = one_node("MatMulInteger", [("x", TensorProto.UINT8, None)], [("y", TensorProto.INT32, None)], {"w": w}, threads=1)
    else:
        x, w = normal(256, 512), normal(512, 512)
        io = TensorProto.DOUBLE
        model = one_node("Einsum", [("x", io, None)], [("y", io, None)], {"w": w}, threads=1, equation="ij,jk->ik")
    model.run({"x": x})
    before = _seconds_by_thread()
    for _ in range(4):
        model.run({"x": x})
    spent = sorted((s - before.get(t, 0) for t, s in _seconds_by_thread().items()), reverse=True)
    assert sum(spent[1:]) <= 0.1 * spent[0], f"seconds of threads: {spent[:4]}"
