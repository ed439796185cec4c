"""Nodes that pick or place by index: bit for bit what their definitions make."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.native_call import check, check_agreement, run_native
from tests.kernels.test_layout import INDEX, filled, ints, tensors


def draw_indices(data: st.DataObject, dims: tuple[int, ...], size: int, dtype: type) -> np.ndarray:
    """Indices in [-size, size); none where there is nothing to point at."""
    if not size:
        dims = (*dims[:-1], 0) if dims else (0,)
    seed = data.draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(-size, max(size, 1), dims).astype(dtype)


@given(st.data(), tensors(1, 4), st.lists(st.integers(0, 4), max_size=3), INDEX)
def test_gather(data: st.DataObject, x: np.ndarray, dims: list[int], dtype: type) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    check("Gather", [x, draw_indices(data, tuple(dims), x.shape[axis], dtype)], axis=axis)


@pytest.mark.parametrize("threads", [1, 3])
def test_gather_bytes_of_several_rows(threads: int) -> None:
    rng = np.random.default_rng(0)
    for rows, size, count in ((1, 9, 5), (3, 9, 12), (4, 1, 7), (9, 70, 1), (23, 576, 640), (700, 600, 500)):
        x = rng.integers(0, 256, (rows, size)).astype(np.uint8)
        check("Gather", [x, rng.integers(-size, size, count).astype(np.int32)], axis=-1, num_threads=threads)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gather_large(threads: int) -> None:
    table = filled((1000, 384))
    indices = np.random.default_rng(0).integers(-1000, 1000, (7, 128))
    check("Gather", [table, indices], num_threads=threads)
    check("Gather", [filled((3, 5000, 8)), indices.astype(np.int32)], axis=1, num_threads=threads)
    check("Gather", [filled((30, 5000)), indices], axis=1, num_threads=threads)
    check("Gather", [filled((3, 5000, 8)), np.array(-1)], num_threads=threads)
    check("Gather", [filled((3, 5000, 8)), ints(2)], num_threads=threads)


def test_gather_refuses() -> None:
    x = filled((3, 4))
    for bad in (3, -4, 2**62, -(2**63)):
        assert run_native("Gather", [x, np.array(bad)]) is None
    assert run_native("Gather", [x, np.array(0)], axis=2) is None
    assert run_native("Gather", [x, np.array(0.0)]) is None
    assert run_native("Gather", [filled(()), np.array(0)]) is None
    assert run_native("Gather", [filled((0, 4)), ints(0)]) is None
    assert run_native("Gather", [x]) is None
    assert run_native("Gather", [filled((1,) * 6), filled((1,) * 4, np.int64)]) is None


@given(st.data(), tensors(1, 4), INDEX)
def test_gather_and_scatter_elements(data: st.DataObject, x: np.ndarray, dtype: type) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    dims = [data.draw(st.integers(0, d)) for d in x.shape]
    dims[axis] = data.draw(st.integers(0, 7))
    indices = draw_indices(data, tuple(dims), x.shape[axis], dtype)
    if indices.ndim == x.ndim and all(i <= d for a, (i, d) in enumerate(zip(indices.shape, x.shape, strict=True)) if a != axis % x.ndim):
        check("GatherElements", [x, indices], axis=axis)
        updates = np.array(np.flip(filled(indices.shape, x.dtype)), order="C")
        check("ScatterElements", [x, indices, updates], axis=axis)
        check("Scatter", [x, indices, updates], axis=axis, version=9)


def test_elements_refuse() -> None:
    x = filled((2, 3))
    for indices in (ints(0), np.full((2, 3), 3), np.full((2, 3), -4), np.zeros((3, 3), np.int64), np.zeros((2, 3))):
        assert run_native("GatherElements", [x, indices], axis=1) is None
        assert run_native("ScatterElements", [x, indices, filled(indices.shape)], axis=1) is None
    zeros = np.zeros((2, 3), np.int64)
    assert run_native("ScatterElements", [x, zeros, filled((2, 2))], axis=1) is None
    assert run_native("ScatterElements", [x, zeros, filled((2, 3), np.float64)], axis=1) is None
    assert run_native("ScatterElements", [x.astype(np.float16), zeros, x.astype(np.float16)], axis=1, reduction="add") is None


@settings(max_examples=200)
@given(st.data(), tensors(1, 4), st.lists(st.integers(0, 3), max_size=2), INDEX)
def test_gather_and_scatter_nd(data: st.DataObject, x: np.ndarray, dims: list[int], dtype: type) -> None:
    batch = data.draw(st.integers(0, x.ndim - 1))
    for batch_dims in {0, batch}:
        width = data.draw(st.integers(1, x.ndim - batch_dims))
        sizes = x.shape[batch_dims : batch_dims + width]
        lead = (*x.shape[:batch_dims], *dims)
        if not all(sizes):
            lead = (*lead[:batch_dims], 0)
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        indices = np.stack([rng.integers(-s, max(s, 1), lead) for s in sizes], -1).astype(dtype)
        if indices.ndim + x.ndim - batch_dims - width - 1 > 8:
            continue
        check("GatherND", [x, indices], batch_dims=batch_dims)
        if batch_dims == 0:
            updates = np.flip(filled((*lead, *x.shape[width:]), x.dtype))
            check("ScatterND", [x, indices, np.array(updates, order="C")])


def test_nd_refuses() -> None:
    x = filled((2, 3))
    for indices in (ints(2), ints(-3), ints(0, 3), ints(0, 0, 0), np.zeros((1, 0), np.int64), np.array(0)):
        assert run_native("GatherND", [x, indices]) is None
        assert run_native("ScatterND", [x, indices, x]) is None
    assert run_native("GatherND", [x, np.zeros((3, 1), np.int64)], batch_dims=1) is None
    assert run_native("GatherND", [x, np.zeros((2, 1), np.int64)], batch_dims=2) is None
    assert run_native("ScatterND", [x, ints(0), filled((2,))]) is None


def test_scatter_large_in_place_or_not() -> None:
    x = filled((64, 1000))
    check("ScatterND", [x, np.arange(0, 64, 3).reshape(-1, 1), filled((22, 1000))])


@given(st.data(), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 5), INDEX, st.sampled_from([9, 11]))
def test_one_hot(data: st.DataObject, dims: list[int], depth: int, dtype: type, version: int) -> None:
    indices = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).integers(-8, 8, dims).astype(dtype)
    axis = data.draw(st.integers(-len(dims) - 1, len(dims)))
    values = data.draw(st.sampled_from([np.array([0, 1], np.float32), np.array([7, -2], np.int64), np.array([False, True])]))
    check("OneHot", [indices, np.array(depth), values], axis=axis, version=version)
    check("OneHot", [indices, np.array([depth], np.int32), values], axis=axis, version=version)


def test_one_hot_refuses() -> None:
    values = np.array([0, 1], np.float32)
    assert run_native("OneHot", [ints(0), np.array(-1), values]) is None
    assert run_native("OneHot", [ints(0), np.array(2**62), values]) is None
    assert run_native("OneHot", [ints(0), np.array(3), values[:1]]) is None
    check_agreement("OneHot", [ints(0), np.array(3), values], axis=2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_scatter_with_a_reduction(dtype: type, reduction: str) -> None:
    """Equal indices one after the other, as the definition has it; NaN and integers that wrap."""
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        if np.dtype(dtype).kind == "i":
            return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype)
        x = rng.standard_normal(shape).astype(dtype)
        x[rng.random(shape) < 0.05] = np.nan
        return x

    for axis in (0, 1):
        inputs = [numbers(9, 7), rng.integers(-7, 7, (9, 7)), numbers(9, 7)]
        check("ScatterElements", inputs, axis=axis, reduction=reduction)
    check("ScatterND", [numbers(5, 6, 3), rng.integers(-5, 5, (20, 2)), numbers(20, 3)], reduction=reduction)
    check("ScatterND", [numbers(5, 6), rng.integers(-5, 5, (20, 2)), numbers(20)], reduction=reduction)
    check("ScatterND", [numbers(5, 6), rng.integers(-5, 5, (0, 2)), numbers(0)], reduction=reduction)
