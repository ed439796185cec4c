"""Operators that work along axes: Reduce*, ArgMax, cumulative sums, TopK, Softmax, norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from qruntime.ir import Node
from qruntime.ops.checks import integers, normalize_axes, normalize_axis, scalar
from qruntime.ops.elementwise import is_float, narrow, widen
from qruntime.ops.registry import NativeCall, operator

Axes = tuple[int, ...]
Reduction = Callable[[np.ndarray, Axes], np.ndarray]
"""Reduces the axes given and keeps them with size 1."""


def _accurate(x: np.ndarray) -> np.ndarray:
    """Floats in float64: sums then differ from the exact ones by the last rounding only."""
    return x.astype(np.float64) if is_float(x.dtype) else x


def _sum(x: np.ndarray, axes: Axes) -> np.ndarray:
    dtype = np.float64 if is_float(x.dtype) else x.dtype
    if not is_float(x.dtype) or x.dtype.isbuiltin == 1:
        return np.add.reduce(x, axis=axes, dtype=dtype, keepdims=True)
    return np.add.reduce(x.astype(dtype), axis=axes, keepdims=True)


def _mean(x: np.ndarray, axes: Axes) -> np.ndarray:
    count = math.prod(x.shape[axis] for axis in axes)
    if is_float(x.dtype):
        return _sum(x, axes) / np.float64(count)
    total = np.add.reduce(x, axis=axes, dtype=np.uint64 if x.dtype.kind == "u" else np.int64, keepdims=True)
    return np.trunc(total / np.float64(count))


def _product(x: np.ndarray, axes: Axes) -> np.ndarray:
    return np.multiply.reduce(_accurate(x), axis=axes, dtype=None if is_float(x.dtype) else x.dtype, keepdims=True)


def _lowest(dtype: np.dtype) -> object:
    if dtype.kind == "b":
        return False
    return -np.inf if is_float(dtype) else np.iinfo(dtype).min


def _highest(dtype: np.dtype) -> object:
    if dtype.kind == "b":
        return True
    return np.inf if is_float(dtype) else np.iinfo(dtype).max


def _maximum(x: np.ndarray, axes: Axes) -> np.ndarray:
    return np.maximum.reduce(widen(x), axis=axes, keepdims=True, initial=_lowest(x.dtype))


def _minimum(x: np.ndarray, axes: Axes) -> np.ndarray:
    return np.minimum.reduce(widen(x), axis=axes, keepdims=True, initial=_highest(x.dtype))


def _l1(x: np.ndarray, axes: Axes) -> np.ndarray:
    return _sum(np.abs(x), axes)


def _sum_square(x: np.ndarray, axes: Axes) -> np.ndarray:
    return _sum(np.square(_accurate(x)), axes)


def _l2(x: np.ndarray, axes: Axes) -> np.ndarray:
    return np.sqrt(_sum(np.square(x.astype(np.float64)), axes))


def _log_sum(x: np.ndarray, axes: Axes) -> np.ndarray:
    return np.log(_sum(x.astype(np.float64), axes))


def _log_sum_exp(x: np.ndarray, axes: Axes) -> np.ndarray:
    x = x.astype(np.float64)
    largest = _maximum(x, axes)
    largest = np.where(np.isfinite(largest), largest, 0)
    return np.log(_sum(np.exp(x - largest), axes)) + largest


def _reduce(function: Reduction, x: np.ndarray, axes: Sequence[int] | np.ndarray | None, keepdims: int, noop: int) -> np.ndarray:
    """No axes: all of them, or with `noop` none (the elementwise part of the operator remains)."""
    chosen = normalize_axes(integers(axes, "axes"), x.ndim)
    if not chosen and not noop:
        chosen = tuple(range(x.ndim))
    with np.errstate(all="ignore"):
        reduced = np.asarray(function(x, chosen))
        if not keepdims:
            reduced = reduced.reshape([d for i, d in enumerate(x.shape) if i not in chosen])
        return narrow(reduced, x.dtype)


def _register_reduction(name: str, function: Reduction, axes_input_since: int) -> None:
    @operator(name, since=1)
    def with_attribute(x: np.ndarray, *, axes: Sequence[int] | None = None, keepdims: int = 1) -> np.ndarray:
        return _reduce(function, x, axes, keepdims, noop=0)

    @operator(name, since=axes_input_since, shape_inputs=(1,))
    def with_input(x: np.ndarray, axes: np.ndarray | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> np.ndarray:
        return _reduce(function, x, axes, keepdims, noop_with_empty_axes)


for _name, _function, _since in (
    ("ReduceL1", _l1, 18),
    ("ReduceL2", _l2, 18),
    ("ReduceLogSum", _log_sum, 18),
    ("ReduceLogSumExp", _log_sum_exp, 18),
    ("ReduceMax", _maximum, 18),
    ("ReduceMean", _mean, 18),
    ("ReduceMin", _minimum, 18),
    ("ReduceProd", _product, 18),
    ("ReduceSum", _sum, 13),
    ("ReduceSumSquare", _sum_square, 18),
):
    _register_reduction(_name, _function, _since)


def _arg(function: Callable[..., np.ndarray], x: np.ndarray, axis: int, keepdims: int, select_last_index: int) -> np.ndarray:
    axis = normalize_axis(axis, x.ndim)
    if x.shape[axis] == 0:
        raise ValueError(f"axis {axis} must not be empty, got shape {x.shape}")
    x = widen(x)
    found = np.asarray(function(np.flip(x, axis) if select_last_index else x, axis=axis), np.int64)
    if select_last_index:
        found = x.shape[axis] - 1 - found
    return np.expand_dims(found, axis) if keepdims else found


@operator("ArgMax", since=1)
def arg_max(x: np.ndarray, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> np.ndarray:
    """Index of the largest element; among equal ones the first, or the last with `select_last_index`."""
    return _arg(np.argmax, x, axis, keepdims, select_last_index)


@operator("ArgMin", since=1)
def arg_min(x: np.ndarray, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> np.ndarray:
    return _arg(np.argmin, x, axis, keepdims, select_last_index)


def _cumulate(ufunc: np.ufunc, x: np.ndarray, axis: np.ndarray, exclusive: int, reverse: int) -> np.ndarray:
    along = normalize_axis(int(scalar(axis, "axis")), x.ndim)
    wide = widen(x)
    if reverse:
        wide = np.flip(wide, along)
    with np.errstate(all="ignore"):
        y = ufunc.accumulate(wide, axis=along, dtype=wide.dtype)
    if exclusive and x.shape[along]:
        first = np.full_like(np.take(y, [0], along), ufunc.identity)
        y = np.concatenate([first, np.take(y, np.arange(x.shape[along] - 1), along)], along)
    return narrow(np.flip(y, along) if reverse else y, x.dtype)


@operator("CumSum", since=11)
def cum_sum(x: np.ndarray, axis: np.ndarray, *, exclusive: int = 0, reverse: int = 0) -> np.ndarray:
    return _cumulate(np.add, x, axis, exclusive, reverse)


@cum_sum.native
def _(node: Node) -> NativeCall:
    return NativeCall("cumsum", ints=[node.attr("exclusive", 0), node.attr("reverse", 0)])


@operator("CumProd", since=26)
def cum_prod(x: np.ndarray, axis: np.ndarray, *, exclusive: int = 0, reverse: int = 0) -> np.ndarray:
    return _cumulate(np.multiply, x, axis, exclusive, reverse)


def _top_k(x: np.ndarray, k: int, axis: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Among equal elements the lower index comes first; NaN counts as larger than any number."""
    axis = normalize_axis(axis, x.ndim)
    size = x.shape[axis]
    if not 0 <= k <= size:
        raise ValueError(f"k must lie in [0, {size}], the size of axis {axis}, got {k}")
    keys = np.moveaxis(widen(x), axis, -1)
    if largest:
        order = np.flip(size - 1 - np.argsort(np.flip(keys, -1), axis=-1, kind="stable"), -1)
    else:
        order = np.argsort(keys, axis=-1, kind="stable")
    indices = np.moveaxis(order[..., :k], -1, axis).astype(np.int64)
    return np.take_along_axis(x, indices, axis), indices


@operator("TopK", since=11, shape_inputs=(1,))
def top_k(x: np.ndarray, k: np.ndarray, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Values and their indices, always sorted."""
    return _top_k(x, int(scalar(k, "k")), axis, largest)


@top_k.native
def _top_k_call(node: Node) -> NativeCall:
    return NativeCall("top_k", ints=[node.attr("axis", -1), node.attr("largest", 1)])


@operator("TopK", since=10, shape_inputs=(1,))
def top_k_10(x: np.ndarray, k: np.ndarray, *, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    return _top_k(x, int(scalar(k, "k")), axis, largest=1)


top_k_10.native(_top_k_call)


@operator("TopK", since=1)
def top_k_1(x: np.ndarray, *, k: int, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    return _top_k(x, k, axis, largest=1)


@top_k_1.native
def _(node: Node) -> NativeCall:
    return NativeCall("top_k", ints=[node.attr("axis", -1), 1, node.attr("k")])


def softmax_value(x: np.ndarray, axis: int) -> np.ndarray:
    shifted = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def _log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    shifted = x - x.max(axis=axis, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def _hardmax(x: np.ndarray, axis: int) -> np.ndarray:
    y = np.zeros_like(x)
    if x.size:
        np.put_along_axis(y, np.expand_dims(np.argmax(x, axis=axis), axis), x.dtype.type(1), axis)
    return y


def _register_softmax(name: str, function: Callable[[np.ndarray, int], np.ndarray]) -> None:
    @operator(name, since=13)
    def along_axis(x: np.ndarray, *, axis: int = -1) -> np.ndarray:
        wide = np.atleast_1d(widen(x))
        with np.errstate(all="ignore"):
            return narrow(function(wide, normalize_axis(axis, wide.ndim)).reshape(x.shape), x.dtype)

    @operator(name, since=1)
    def coerced_to_2d(x: np.ndarray, *, axis: int = 1) -> np.ndarray:
        """All dimensions from `axis` on are one."""
        axis = axis if axis == x.ndim else normalize_axis(axis, x.ndim)
        rows = math.prod(x.shape[:axis])
        flat = widen(x).reshape(rows, math.prod(x.shape[axis:]))
        with np.errstate(all="ignore"):
            return narrow(function(flat, 1).reshape(x.shape), x.dtype)


_register_softmax("Softmax", softmax_value)
_register_softmax("LogSoftmax", _log_softmax)
_register_softmax("Hardmax", _hardmax)


@operator("LpNormalization", since=1)
def lp_normalization(x: np.ndarray, *, axis: int = -1, p: int = 2) -> np.ndarray:
    """x / ‖x‖; a zero vector stays zero."""
    axis = normalize_axis(axis, x.ndim)
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}")
    norm = (_l1 if p == 1 else _l2)(x, (axis,))
    with np.errstate(all="ignore"):
        return narrow(np.where(norm == 0, 0, x.astype(np.float64) / norm), x.dtype)
