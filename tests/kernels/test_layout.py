"""Nodes that move elements: bit for bit what their definitions make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qruntime import _kernels
from tests.kernels.native_call import check, check_agreement, run_native, same_bits

DTYPES = [np.uint8, np.float16, np.float32, np.int64, np.bool_, np.float64]
DIMS = st.lists(st.integers(0, 5), max_size=5)
INDEX = st.sampled_from([np.int32, np.int64])
ANY_INT = st.one_of(st.integers(-12, 12), st.sampled_from([-(2**63), 2**63 - 1, -(2**31), 2**31, 2**62]))


def filled(dims: Any, dtype: Any = np.float32) -> np.ndarray:
    """Every element different where the type allows it; a NaN among floats."""
    size = int(np.prod(dims, dtype=np.int64))
    x = (np.arange(size) % 251).astype(dtype) if np.dtype(dtype).itemsize < 4 else np.arange(size).astype(dtype)
    if np.dtype(dtype).kind == "f" and size > 2:
        x[1] = np.nan
    return x.reshape(dims)


def ints(*values: int, dtype: Any = np.int64) -> np.ndarray:
    return np.array(values, dtype)


@st.composite
def tensors(draw: st.DrawFn, min_rank: int = 0, max_rank: int = 5, max_dim: int = 5) -> np.ndarray:
    dims = draw(st.lists(st.integers(0, max_dim), min_size=min_rank, max_size=max_rank))
    return filled(dims, draw(st.sampled_from(DTYPES)))


@given(tensors(), st.lists(st.integers(-2, 6), max_size=5), st.integers(0, 1))
def test_reshape_agrees(x: np.ndarray, shape: list[int], allowzero: int) -> None:
    check_agreement("Reshape", [x, ints(*shape)], allowzero=allowzero)
    check_agreement("Reshape", [x], version=1, shape=tuple(shape))


def test_reshape_serves() -> None:
    x = filled((2, 3, 4))
    check("Reshape", [x, ints(0, -1)])
    check("Reshape", [x, ints(4, 6, dtype=np.int32)])
    check("Reshape", [x], version=1, shape=(-1, 8))
    check("Reshape", [filled(()), ints()])
    check("Reshape", [filled((0, 3)), ints(0, 7)], allowzero=1)
    assert run_native("Reshape", [x, ints(2**62, 4)]) is None
    assert run_native("Reshape", [filled((0,)), ints(0, 2**62, 2**62)], allowzero=1) is None
    assert run_native("Reshape", [x]) is None


@given(tensors(), st.integers(-6, 6))
def test_flatten(x: np.ndarray, axis: int) -> None:
    (check if abs(axis) <= x.ndim else check_agreement)("Flatten", [x], axis=axis)


@given(tensors(max_dim=2), st.none() | st.lists(st.integers(-6, 5), max_size=4))
def test_squeeze_agrees(x: np.ndarray, axes: list[int] | None) -> None:
    check_agreement("Squeeze", [x] if axes is None else [x, ints(*axes)])
    check_agreement("Squeeze", [x], version=11, **({} if axes is None else {"axes": tuple(axes)}))


@given(tensors(max_rank=4), st.lists(st.integers(-7, 7), max_size=4))
def test_unsqueeze_agrees(x: np.ndarray, axes: list[int]) -> None:
    check_agreement("Unsqueeze", [x, ints(*axes)])
    check_agreement("Unsqueeze", [x], version=11, axes=tuple(axes))


def test_squeeze_and_unsqueeze_serve() -> None:
    x = filled((1, 3, 1))
    check("Squeeze", [x])
    check("Squeeze", [x, ints(-1)])
    check("Squeeze", [x], version=1, axes=(0, 2))
    check("Unsqueeze", [x, ints(0, -1)])
    check("Unsqueeze", [filled(()), ints(0, dtype=np.int32)])
    check("Unsqueeze", [x], version=1, axes=(1,))
    check("Identity", [x])
    assert run_native("Unsqueeze", [filled((1,) * 7), ints(0, 1)]) is None


@given(st.data(), tensors())
def test_transpose(data: st.DataObject, x: np.ndarray) -> None:
    check("Transpose", [x])
    if x.ndim:
        check("Transpose", [x], perm=data.draw(st.permutations(range(x.ndim))))
    check_agreement("Transpose", [x], perm=data.draw(st.lists(st.integers(-1, x.ndim), max_size=5)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(31, 33), (32, 32), (64, 3), (3, 65), (4, 4), (1, 37), (35, 1), (100, 7), (1024, 41)])
def test_transpose_tiles(dims: tuple[int, int], dtype: type) -> None:
    check("Transpose", [filled(dims, dtype)])
    check("Transpose", [filled((3, *dims), dtype)], perm=(0, 2, 1))
    check("Transpose", [filled((2, *dims, 4), dtype)], perm=(0, 2, 1, 3))
    check("Transpose", [filled((2, *dims, 5), dtype)], perm=(0, 2, 3, 1))
    for few in (2, 3, 4):
        check("Transpose", [filled((2, few, *dims), dtype)], perm=(0, 2, 3, 1))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("perm", [(0, 2, 1, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3), (2, 3, 0, 1)])
def test_transpose_in_parallel(perm: tuple[int, ...], threads: int) -> None:
    check("Transpose", [filled((3, 130, 12, 64))], perm=perm, num_threads=threads)
    check("Transpose", [filled((1030, 257))], num_threads=threads)


@given(st.data(), tensors(1, 4), st.integers(1, 4))
def test_concat(data: st.DataObject, x: np.ndarray, count: int) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    pieces = []
    for _ in range(count):
        dims = list(x.shape)
        dims[axis] = data.draw(st.integers(0, 9))
        pieces.append(filled(dims, x.dtype))
    check("Concat", pieces, axis=axis)


def test_concat_refuses() -> None:
    a, b = filled((2, 3)), filled((3, 3))
    assert run_native("Concat", [a, b], axis=1) is None
    assert run_native("Concat", [a, b.astype(np.float64)], axis=0) is None
    assert run_native("Concat", [a, b], axis=2) is None
    assert run_native("Concat", [a, filled((2, 3, 1))], axis=0) is None
    assert run_native("Concat", [a, None], axis=0) is None
    assert run_native("Concat", [filled(()), filled(())], axis=0) is None


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 64])
def test_concat_and_split_in_parallel(width: int, threads: int) -> None:
    a, b = filled((70000 // width * 3, width)), filled((70000 // width * 3, 2 * width))
    (y,) = check("Concat", [a, b], axis=1, num_threads=threads)
    parts = check("Split", [y, ints(width, 2 * width)], axis=1, num_outputs=2, num_threads=threads)
    same_bits(parts[0], a)
    same_bits(parts[1], b)


@given(st.data(), tensors(1, 4, 9), st.integers(1, 4), st.sampled_from([2, 13, 18]))
def test_split(data: st.DataObject, x: np.ndarray, count: int, version: int) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    check_agreement("Split", [x], axis=axis, num_outputs=count, version=version)
    cuts = sorted(data.draw(st.lists(st.integers(0, x.shape[axis]), min_size=count - 1, max_size=count - 1)))
    sizes = np.diff([0, *cuts, x.shape[axis]]).tolist()
    if version == 2:
        check("Split", [x], axis=axis, num_outputs=count, version=2, split=sizes)
    else:
        check("Split", [x, ints(*sizes)], axis=axis, num_outputs=count, version=version)
    sizes[0] += data.draw(st.sampled_from([-1, 1, -(2**63), 2**62]))
    if version != 2:
        check_agreement("Split", [x, ints(*sizes)], axis=axis, num_outputs=count, version=version)


def test_split_into_large_pieces() -> None:
    x = filled((6, 4096))
    check("Split", [x], axis=0, num_outputs=3)
    check("Split", [x], axis=0, num_outputs=4)
    check("Split", [filled((7,))], axis=0, num_outputs=4)


@settings(max_examples=300)
@given(st.data(), tensors(0, 4, 7), INDEX)
def test_slice(data: st.DataObject, x: np.ndarray, dtype: type) -> None:
    count = data.draw(st.integers(0, x.ndim))
    axes = data.draw(st.permutations(range(x.ndim)))[:count]
    axes = [a - x.ndim if data.draw(st.booleans()) else a for a in axes]
    bound = ANY_INT.filter(lambda v: abs(v) < 2**31) if dtype is np.int32 else ANY_INT.filter(lambda v: abs(v) < 2**63)
    starts, ends = (data.draw(st.lists(bound, min_size=count, max_size=count)) for _ in range(2))
    steps = data.draw(st.lists(bound.filter(bool), min_size=count, max_size=count))
    given_ints = [np.array(v, dtype) for v in (starts, ends, axes, steps)]
    check("Slice", [x, *given_ints])
    check("Slice", [x, *given_ints[:3]])
    check("Slice", [x, *given_ints[:2]])
    check("Slice", [x, given_ints[0], given_ints[1], None, given_ints[3]])
    check("Slice", [x], version=1, starts=starts, ends=ends, axes=axes)
    check("Slice", [x], version=1, starts=starts, ends=ends)


def test_slice_large_and_bad() -> None:
    x = filled((3, 70, 64))
    check("Slice", [x, ints(1), ints(2)])
    check("Slice", [x, ints(0, 10), ints(1, 70), ints(0, 1)])
    check("Slice", [x, ints(-1), ints(-(2**63)), ints(0), ints(-1)])
    check("Slice", [filled((300, 1000)), ints(0), ints(300), ints(1), ints(1)], num_threads=3)
    for bad in ([ints(0), ints(1), ints(3)], [ints(0), ints(1), ints(0), ints(0)], [ints(0, 1), ints(1)],
                [ints(0, 0), ints(1, 1), ints(0, -3)], [ints(0)]):  # fmt: skip
        assert run_native("Slice", [x, *bad]) is None
    assert run_native("Slice", [x, ints(0), ints(1), ints(0), ints(-(2**63))]) is None


@given(st.data(), tensors(0, 4))
def test_expand(data: st.DataObject, x: np.ndarray) -> None:
    x = x[tuple(slice(0, 1) if data.draw(st.booleans()) else slice(None) for _ in range(x.ndim))]
    wanted = [1 if data.draw(st.booleans()) else d if d != 1 else data.draw(st.integers(0, 4)) for d in x.shape]
    wanted = data.draw(st.lists(st.integers(0, 4), max_size=2)) + wanted
    check("Expand", [x, ints(*wanted)])
    check_agreement("Expand", [x, ints(*data.draw(st.lists(st.integers(-1, 4), max_size=5)))])


def test_expand_refuses() -> None:
    assert run_native("Expand", [filled((1,)), ints(2**62)]) is None
    assert run_native("Expand", [filled((1,)), ints(2**62, 2**62)]) is None
    assert run_native("Expand", [filled((2,)), ints(3)]) is None


@given(st.data(), tensors(0, 4, 4))
def test_tile(data: st.DataObject, x: np.ndarray) -> None:
    check("Tile", [x, ints(*(data.draw(st.integers(0, 4)) for _ in x.shape))])


def test_tile_refuses() -> None:
    for repeats in ((2**62,), (-1,), (1, 1)):
        assert run_native("Tile", [filled((5,)), ints(*repeats)]) is None
    assert run_native("Tile", [filled((0,)), ints(-1)]) is None


@settings(max_examples=300)
@given(st.data(), tensors(0, 4, 5), st.sampled_from(["constant", "reflect", "edge", "wrap"]))
def test_pad(data: st.DataObject, x: np.ndarray, mode: str) -> None:
    pads = [data.draw(st.integers(-2, 7)) for _ in range(2 * x.ndim)]
    check_agreement("Pad", [x, ints(*pads), np.array(1).astype(x.dtype)], mode=mode)
    count = data.draw(st.integers(0, x.ndim))
    axes = data.draw(st.permutations(range(x.ndim)))[:count]
    check_agreement("Pad", [x, ints(*pads[: 2 * count]), None, ints(*axes)], mode=mode)
    if x.dtype == np.float32:
        check_agreement("Pad", [x], version=2, pads=pads, value=-0.5, mode=mode)


def test_pad_serves() -> None:
    x = filled((2, 3, 4))
    for mode in ("constant", "reflect", "edge", "wrap"):
        check("Pad", [x, ints(0, 1, -1, 1, 2, 3)], mode=mode)
        check("Pad", [x, ints(9, 9), None, ints(-1)], mode=mode)
        check("Pad", [x], version=2, pads=(0, 0, 1, 0, 0, 1), mode=mode)
        check("Pad", [x, ints(0, 0, 0, 0, 0, 0)], mode=mode)
    check("Pad", [x, ints(0, 0, 2, 0, 0, 2), np.array([np.nan], np.float32)])
    check("Pad", [filled((0, 2)), ints(1, 1, 1, 1)])
    check("Pad", [filled(()), ints()])
    for bad in (ints(1, 1), ints(-2, 0, 0, -1, 0, 0), ints(2**62, 0, 0, 2**62, 0, 0), ints(2**39, 2**39, 0, 0, 0, 0)):
        assert run_native("Pad", [x, bad]) is None
    assert run_native("Pad", [x, ints(0, 0, 0, 0, 0, 1), np.array(1.0)]) is None
    assert run_native("Pad", [filled((0,)), ints(1, 1)], mode="edge") is None


@given(tensors(2, 4, 6), st.integers(-8, 8), st.integers(0, 1))
def test_trilu(x: np.ndarray, diagonal: int, upper: int) -> None:
    check("Trilu", [x, np.array(diagonal)], upper=upper)
    check("Trilu", [x], upper=upper)


def test_trilu_extremes() -> None:
    for diagonal in (-(2**63), 2**63 - 1):
        for upper in (0, 1):
            check("Trilu", [filled((3, 4)), np.array(diagonal)], upper=upper)
    assert run_native("Trilu", [filled((3,))]) is None


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(1, 3), st.sampled_from(["DCR", "CRD"]))
def test_depth_and_space(dims: list[int], block: int, mode: str) -> None:
    n, c, h, w = dims
    check("DepthToSpace", [filled((n, c * block**2, h, w))], blocksize=block, mode=mode)
    check("SpaceToDepth", [filled((n, c, h * block, w * block))], blocksize=block, mode=mode)
    check_agreement("DepthToSpace", [filled(dims)], blocksize=block, mode=mode)
    check_agreement("SpaceToDepth", [filled(dims)], blocksize=block, mode=mode)


def test_depth_and_space_refuse() -> None:
    for op in ("DepthToSpace", "SpaceToDepth"):
        for block in (0, -1, 2**40):
            assert run_native(op, [filled((1, 4, 4, 4))], blocksize=block) is None
        assert run_native(op, [filled((4, 4, 4))], blocksize=2) is None


def test_views_never_see_each_other_change() -> None:
    """A split of a buffer gives views; a scatter that may take its dying input must not reach the others."""
    x = filled((4, 40, 64, 2), np.int64)
    index, ones = ints(0).reshape(1, 1), np.full((1, 2, 64, 40), -1)
    steps = [
        _kernels.Step("transpose", 3, kernel="transpose", ints=[0, 3, 2, 1], inputs=[0]),
        _kernels.Step("split", 4, 2, "split", ints=[0, 0], inputs=[3], dying=1, released=[3]),
        _kernels.Step("identity", 6, kernel="identity", inputs=[4]),
        _kernels.Step("scatter_nd", 7, kernel="scatter_nd", inputs=[4, 1, 2], dying=1, released=[4]),
    ]
    plan = _kernels.Executable(8, [(0, x), (1, index), (2, ones)], [], [5, 6, 7], steps, set(), [], 1)
    y = x.transpose(0, 3, 2, 1)
    scattered = y[:2].copy()
    scattered[0] = -1
    for _ in range(3):
        results = plan.run(())
        for result, expected in zip(results, (y[2:], y[:2], scattered), strict=True):
            same_bits(result, expected)
        for result in results:
            result[:] = 7


def test_attributes_of_odd_types_are_left_to_the_definition() -> None:
    for odd in ("x", 1.5, (1, 2), 2**63, np.zeros(2)):
        with pytest.raises((TypeError, OverflowError)):
            run_native("Concat", [filled((2,))], axis=odd)
    with pytest.raises(TypeError):
        run_native("Unsqueeze", [filled((2,))], version=1)
