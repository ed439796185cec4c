"""Definitions against independent formulations, on shapes and values that hypothesis chooses."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qruntime.ops  # noqa: F401
from qruntime.ops.registry import find

shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5)
shapes_with_zero = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


def call(op_type: str, *inputs: Any, version: int = 28, **attributes: Any) -> Any:
    spec = find("", op_type, version)
    assert spec is not None
    return spec(*inputs, **attributes)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


def reference_slice(size: int, start: int, end: int, step: int) -> list[int]:
    """Positions by the words of the standard: add the size to negatives, clamp, walk."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        start, end = min(max(start, 0), size), min(max(end, 0), size)
    else:
        start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    positions = []
    while (start < end) if step > 0 else (start > end):
        positions.append(start)
        start += step
    return positions


bounds = st.one_of(st.integers(-7, 7), st.sampled_from([-(2**63), 2**63 - 1, -(2**31), 2**31 - 1]))


@given(shapes, st.data())
def test_slice(shape: tuple[int, ...], data: st.DataObject) -> None:
    x = numbered(shape)
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1))
    triples = [(data.draw(bounds), data.draw(bounds), data.draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))) for _ in axes]
    expected = x
    for axis, (start, end, step) in zip(axes, triples, strict=True):
        expected = np.take(expected, np.array(reference_slice(shape[axis], start, end, step), int), axis)
    signed = [axis - data.draw(st.sampled_from([0, len(shape)])) for axis in axes]
    starts, ends, steps = (ints(*column) for column in zip(*triples, strict=True))
    np.testing.assert_array_equal(call("Slice", x, starts, ends, ints(*signed), steps), expected)


def reference_pad(x: np.ndarray, pads: list[int], mode: str, value: float) -> np.ndarray:
    rank = x.ndim
    target = [d + pads[i] + pads[rank + i] for i, d in enumerate(x.shape)]
    y = np.empty(target, x.dtype)
    for position in np.ndindex(*target):
        source = []
        for i, p in enumerate(position):
            p, size = p - pads[i], x.shape[i]
            if mode == "edge":
                p = min(max(p, 0), size - 1)
            elif mode == "wrap":
                while p < 0:
                    p += size
                while p >= size:
                    p -= size
            elif mode == "reflect":
                while size > 1 and not 0 <= p < size:
                    p = -p if p < 0 else 2 * (size - 1) - p
                p = p if size > 1 else 0
            source.append(p)
        inside = all(0 <= p < size for p, size in zip(source, x.shape, strict=True))
        y[position] = x[tuple(source)] if inside else value
    return y


@given(shapes, st.sampled_from(["constant", "edge", "reflect", "wrap"]), st.data())
@settings(deadline=None)
def test_pad(shape: tuple[int, ...], mode: str, data: st.DataObject) -> None:
    x = numbered(shape)
    before = [data.draw(st.integers(-(d // 2), 4)) for d in shape]
    after = [data.draw(st.integers(-(d - d // 2), 4)) for d in shape]
    expected = reference_pad(x, before + after, mode, 7.0)
    actual = call("Pad", x, ints(*before, *after), np.array(7, np.float32), None, mode=mode)
    np.testing.assert_array_equal(actual, expected)


@given(shapes, st.sampled_from(["none", "add", "mul", "max", "min"]), st.data())
def test_scatter_nd(shape: tuple[int, ...], reduction: str, data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, len(shape)))
    rows = data.draw(
        st.lists(
            st.tuples(*(st.integers(-d, d - 1) for d in shape[:depth])),
            max_size=6,
            unique_by=(lambda r: tuple(i % d for i, d in zip(r, shape, strict=False))) if reduction == "none" else None,
        )
    )
    x = numbered(shape)
    updates = data.draw(hnp.arrays(np.float32, (len(rows), *shape[depth:]), elements=st.integers(-9, 9)))
    combine = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}.get(reduction, lambda old, new: new)
    expected = x.copy()
    for row, update in zip(rows, updates, strict=True):
        expected[row] = combine(expected[row], update)
    indices = np.array(rows, np.int64).reshape(len(rows), depth)
    kept = x.copy()
    np.testing.assert_array_equal(call("ScatterND", x, indices, updates, reduction=reduction), expected)
    np.testing.assert_array_equal(x, kept)


@given(shapes, st.data())
def test_gather_elements_and_scatter_elements(shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    picked = tuple(data.draw(st.integers(1, d)) for d in shape)
    indices = data.draw(hnp.arrays(np.int64, picked, elements=st.integers(-shape[axis], shape[axis] - 1)))
    x = numbered(shape)
    gathered = np.empty(picked, np.float32)
    total = x.copy()
    for position in np.ndindex(*picked):
        source = list(position)
        source[axis] = int(indices[position])
        gathered[position] = x[tuple(source)]
        total[tuple(source)] += 1
    np.testing.assert_array_equal(call("GatherElements", x, indices, axis=axis), gathered)
    added = call("ScatterElements", x, indices, np.ones(picked, np.float32), axis=axis - len(shape), reduction="add")
    np.testing.assert_array_equal(added, total)


@given(shapes_with_zero, st.data())
def test_split_then_concat_is_the_identity(shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x, size = numbered(shape), shape[axis]
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=3)))
    sizes = [b - a for a, b in itertools.pairwise([0, *cuts, size])]
    pieces = call("Split", x, ints(*sizes), axis=axis, num_outputs=len(sizes))
    assert [p.shape[axis] for p in pieces] == sizes
    np.testing.assert_array_equal(call("Concat", *pieces, axis=axis), x)


@given(st.integers(0, 20), st.integers(1, 8))
def test_split_by_number_of_outputs(size: int, count: int) -> None:
    """Equal pieces of ceil(size / count), then what is left."""
    pieces = call("Split", np.arange(size), None, num_outputs=count)
    chunk = math.ceil(size / count)
    assert [p.tolist() for p in pieces] == [list(range(size))[i * chunk : (i + 1) * chunk] for i in range(count)]


@given(shapes_with_zero, st.booleans(), st.booleans(), st.data())
def test_cum_sum(shape: tuple[int, ...], exclusive: bool, reverse: bool, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(-50, 50)))
    expected = np.zeros_like(x)
    for position in np.ndindex(*shape):
        window = list(position)
        p = position[axis]
        window[axis] = slice(p + exclusive, None) if reverse else slice(None, p + 1 - exclusive)
        expected[position] = x[tuple(window)].sum()
    actual = call("CumSum", x, np.array(axis), exclusive=int(exclusive), reverse=int(reverse))
    assert actual.dtype == np.int32
    np.testing.assert_array_equal(actual, expected)


@given(st.lists(st.integers(-4, 4), max_size=8), st.booleans(), st.data())
def test_top_k(values: list[int], largest: bool, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    order = sorted(range(len(values)), key=lambda i: (-values[i] if largest else values[i], i))[:k]
    for dtype in (np.int8, np.float32):
        top, indices = call("TopK", np.array(values, dtype), ints(k), largest=int(largest))
        assert (top.dtype, indices.dtype) == (dtype, np.int64)
        assert indices.tolist() == order
        assert top.tolist() == [values[i] for i in order]


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1).filter(bool))
def test_integer_division_and_remainders(a: int, b: int) -> None:
    x, y = np.array(a, np.int32), np.array(b, np.int32)
    quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    wrapped = (quotient + 2**31) % 2**32 - 2**31
    assert call("Div", x, y).item() == wrapped
    assert call("Mod", x, y).item() == a - math.floor(a / b) * b if abs(a) < 2**26 else True
    assert call("Mod", x, y, fmod=1).item() == a - quotient * b


@given(st.integers(-128, 127), st.integers(-128, 127), st.sampled_from(["LEFT", "RIGHT"]))
def test_bit_shift_of_signed_bytes(x: int, amount: int, direction: str) -> None:
    if 0 <= amount < 8:
        expected = x >> amount if direction == "RIGHT" else ((x << amount) + 128) % 256 - 128
    else:
        expected = -1 if direction == "RIGHT" and x < 0 else 0
    assert call("BitShift", np.array(x, np.int8), np.array(amount, np.int8), direction=direction).item() == expected


@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(-5, 5).filter(bool))
def test_range(start: int, limit: int, delta: int) -> None:
    for dtype in (np.int64, np.int16, np.float32):
        y = call("Range", np.array(start, dtype), np.array(limit, dtype), np.array(delta, dtype))
        assert y.dtype == dtype
        assert y.tolist() == list(range(start, limit, delta))


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)), st.integers(0, 2))
def test_elementwise_results_have_the_input_type_and_shape(x: np.ndarray, which: int) -> None:
    import ml_dtypes

    with np.errstate(over="ignore"):
        x = x.astype([np.float32, np.float16, ml_dtypes.bfloat16][which])
    for op_type in ("Abs", "Relu", "Sigmoid", "Tanh", "Erf", "Gelu", "Softplus", "Mish", "Elu", "Round", "Celu"):
        y = call(op_type, x)
        assert isinstance(y, np.ndarray)
        assert (y.dtype, y.shape) == (x.dtype, x.shape), op_type
    for op_type in ("Add", "Div", "Pow", "Max", "Mean", "Where"):
        inputs = (np.array(True), x, x) if op_type == "Where" else (x, x)
        y = call(op_type, *inputs)
        assert (y.dtype, y.shape) == (x.dtype, x.shape), op_type
    assert call("IsNaN", x).dtype == bool
