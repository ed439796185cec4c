"""Operators that pick or place elements by index or by condition."""

from __future__ import annotations

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node
from qruntime.ops.checks import limit_shape, normalize_axis, same_dtype, scalar, wrap_indices
from qruntime.ops.elementwise import is_float
from qruntime.ops.registry import NativeCall, operator

_REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


@operator("Gather", since=1)
def gather(x: np.ndarray, indices: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Slices of `x` along `axis`, in the shape of `indices`."""
    axis = normalize_axis(axis, x.ndim)
    limit_shape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])
    return np.asarray(np.take(x, wrap_indices(indices, x.shape[axis]), axis))


@gather.native
def _(node: Node) -> NativeCall:
    return NativeCall("gather", ints=[node.attr("axis", 0)], unaligned=[0])


def _along_axis(x: np.ndarray, indices: np.ndarray, axis: int) -> tuple[np.ndarray, ...]:
    """Index arrays that visit `indices` at their own coordinates except along `axis`."""
    axis = normalize_axis(axis, x.ndim)
    if indices.ndim != x.ndim or any(i > d for a, (i, d) in enumerate(zip(indices.shape, x.shape, strict=True)) if a != axis):
        raise ValueError(f"indices of shape {indices.shape} do not fit data of shape {x.shape} along axis {axis}")
    grid = list(np.ogrid[tuple(slice(d) for d in indices.shape)])
    grid[axis] = wrap_indices(indices, x.shape[axis])
    return tuple(grid)


@operator("GatherElements", since=11)
def gather_elements(x: np.ndarray, indices: np.ndarray, *, axis: int = 0) -> np.ndarray:
    return x[_along_axis(x, indices, axis)]


@gather_elements.native
def _(node: Node) -> NativeCall:
    return NativeCall("gather_elements", ints=[node.attr("axis", 0)])


def _scatter(x: np.ndarray, where: tuple[np.ndarray, ...], updates: np.ndarray, reduction: str) -> np.ndarray:
    same_dtype(x, updates)
    y = x.copy()
    if reduction == "none":
        y[where] = updates
    elif reduction in _REDUCTIONS:
        with np.errstate(all="ignore"):
            _REDUCTIONS[reduction].at(y, where, updates)
    else:
        raise ValueError(f"reduction must be none, add, mul, max or min, got {reduction!r}")
    return y


def _scatter_elements(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, axis: int, reduction: str) -> np.ndarray:
    if indices.shape != updates.shape:
        raise ValueError(f"indices and updates must have one shape, got {indices.shape} and {updates.shape}")
    return _scatter(x, _along_axis(x, indices, axis), updates, reduction)


@operator("ScatterElements", since=11)
def scatter_elements(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, *, axis: int = 0, reduction: str = "none") -> np.ndarray:
    """A copy of `x` with `updates` at `indices`; of equal indices the last wins without `reduction`."""
    return _scatter_elements(x, indices, updates, axis, reduction)


@scatter_elements.native
def _(node: Node) -> NativeCall | None:
    return NativeCall("scatter_elements", ints=[node.attr("axis", 0), _kernels.SCATTER_REDUCTION[node.attr("reduction", "none")]])


@operator("Scatter", since=9)
def scatter(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, *, axis: int = 0) -> np.ndarray:
    return _scatter_elements(x, indices, updates, axis, "none")


@scatter.native
def _(node: Node) -> NativeCall:
    return NativeCall("scatter_elements", ints=[node.attr("axis", 0), 0])


def _leading(x: np.ndarray, indices: np.ndarray, batch_dims: int) -> tuple[np.ndarray, ...]:
    """Index arrays from the last dimension of `indices`, after `batch_dims` shared dimensions."""
    if indices.ndim < 1 or indices.shape[-1] < 1 or batch_dims + indices.shape[-1] > x.ndim:
        raise ValueError(
            f"the last dimension of indices, {indices.shape}, must hold 1 to {x.ndim - batch_dims} coordinates "
            f"for data of shape {x.shape} with batch_dims {batch_dims}"
        )
    batch = np.ogrid[tuple(slice(d) for d in x.shape[:batch_dims])] if batch_dims else []
    rest = (1,) * (indices.ndim - 1 - batch_dims)
    coordinates = [wrap_indices(indices[..., i], x.shape[batch_dims + i]) for i in range(indices.shape[-1])]
    return (*(b.reshape(b.shape + rest) for b in batch), *coordinates)


@operator("GatherND", since=11)
def gather_nd(x: np.ndarray, indices: np.ndarray, *, batch_dims: int = 0) -> np.ndarray:
    """Slices of `x` at the coordinate tuples in the last dimension of `indices`."""
    if not 0 <= batch_dims < min(x.ndim, indices.ndim) or x.shape[:batch_dims] != indices.shape[:batch_dims]:
        raise ValueError(f"data {x.shape} and indices {indices.shape} do not share {batch_dims} batch dimensions")
    where = _leading(x, indices, batch_dims)
    limit_shape(indices.shape[:-1] + x.shape[len(where) :])
    return np.asarray(x[where])


@gather_nd.native
def _(node: Node) -> NativeCall:
    return NativeCall("gather_nd", ints=[node.attr("batch_dims", 0)])


@operator("ScatterND", since=11)
def scatter_nd(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, *, reduction: str = "none") -> np.ndarray:
    where = _leading(x, indices, 0)
    needed = indices.shape[:-1] + x.shape[len(where) :]
    if updates.shape != needed:
        raise ValueError(f"updates must have shape {needed}, got {updates.shape}")
    return _scatter(x, where, updates, reduction)


@scatter_nd.native
def _(node: Node) -> NativeCall | None:
    return NativeCall("scatter_nd", ints=[_kernels.SCATTER_REDUCTION[node.attr("reduction", "none")]])


@operator("TensorScatter", since=24)
def tensor_scatter(
    cache: np.ndarray,
    update: np.ndarray,
    write_indices: np.ndarray | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> np.ndarray:
    """`update` written into a copy of `cache` along `axis`, from write_indices[b] on in batch b."""
    same_dtype(cache, update)
    axis = normalize_axis(axis, cache.ndim)
    if axis == 0 or mode not in ("linear", "circular"):
        raise ValueError(f"axis must not be 0 and mode must be linear or circular, got {axis} and {mode!r}")
    size, length = cache.shape[axis], update.shape[axis] if update.ndim == cache.ndim else -1
    if (
        update.ndim != cache.ndim
        or cache.shape[:axis] != update.shape[:axis]
        or length > size
        or (cache.shape[axis + 1 :] != update.shape[axis + 1 :])
    ):
        raise ValueError(f"update of shape {update.shape} does not fit a cache of shape {cache.shape} at axis {axis}")
    batch = cache.shape[0]
    starts = np.zeros(batch, np.int64) if write_indices is None else write_indices
    if starts.shape != (batch,):
        raise ValueError(f"write_indices must have shape ({batch},), got {starts.shape}")
    positions = starts[:, None] + np.arange(length)
    if mode == "circular" and size:
        positions %= size
    positions = positions.astype(np.int64)
    if positions.size and (positions.min() < 0 or positions.max() >= size):
        raise ValueError(f"write_indices {starts.tolist()} with {length} elements do not fit in {size}")
    y = cache.copy()
    rows = np.moveaxis(y, axis, 1)
    rows[np.arange(batch)[:, None], positions] = np.moveaxis(update, axis, 1)
    return y


@operator("ReverseSequence", since=10)
def reverse_sequence(x: np.ndarray, sequence_lens: np.ndarray, *, batch_axis: int = 1, time_axis: int = 0) -> np.ndarray:
    """The first sequence_lens[b] steps of sequence b reversed, the rest as it was."""
    if x.ndim < 2 or {batch_axis, time_axis} != {0, 1}:
        raise ValueError(f"rank 2 or more and the axes 0 and 1 are needed, got {x.shape}, time {time_axis}, batch {batch_axis}")
    rows = x if batch_axis == 0 else x.swapaxes(0, 1)
    batch, steps = rows.shape[:2]
    if sequence_lens.shape != (batch,) or np.any((sequence_lens < 0) | (sequence_lens > steps)):
        raise ValueError(f"{batch} lengths from 0 to {steps} are needed, got {sequence_lens.tolist()}")
    time = np.arange(steps)[None, :]
    lengths = sequence_lens.astype(np.int64)[:, None]
    source = np.where(time < lengths, lengths - 1 - time, time)
    y = rows[np.arange(batch)[:, None], source]
    return y if batch_axis == 0 else y.swapaxes(0, 1)


def _one_hot(indices: np.ndarray, depth: np.ndarray, values: np.ndarray, axis: int, negative: bool) -> np.ndarray:
    count = int(scalar(depth, "depth"))
    if values.shape != (2,):
        raise ValueError(f"values must be [off, on], got shape {values.shape}")
    axis = normalize_axis(axis, indices.ndim + 1)
    limit_shape([*indices.shape[:axis], count, *indices.shape[axis:]])
    positions = np.expand_dims(indices, axis).astype(np.float64 if is_float(indices.dtype) else np.int64)
    if negative:
        positions = np.where(positions < 0, positions + count, positions)
    classes = np.arange(count).reshape(-1, *(1,) * (indices.ndim - axis))
    return np.where(positions == classes, values[1], values[0]).astype(values.dtype, copy=False)


@operator("OneHot", since=11, shape_inputs=(1,))
def one_hot(indices: np.ndarray, depth: np.ndarray, values: np.ndarray, *, axis: int = -1) -> np.ndarray:
    """`values` = [off, on]; indices outside of [−depth, depth) are off everywhere."""
    return _one_hot(indices, depth, values, axis, negative=True)


@one_hot.native
def _(node: Node) -> NativeCall:
    return NativeCall("one_hot", ints=[node.attr("axis", -1), 1])


@operator("OneHot", since=9, shape_inputs=(1,))
def one_hot_9(indices: np.ndarray, depth: np.ndarray, values: np.ndarray, *, axis: int = -1) -> np.ndarray:
    return _one_hot(indices, depth, values, axis, negative=False)


@one_hot_9.native
def _(node: Node) -> NativeCall:
    return NativeCall("one_hot", ints=[node.attr("axis", -1), 0])


@operator("Compress", since=9, shape_inputs=None)
def compress(x: np.ndarray, condition: np.ndarray, *, axis: int | None = None) -> np.ndarray:
    """The slices whose condition holds; a short condition is false beyond its end."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis = normalize_axis(axis, x.ndim)
    if condition.ndim != 1:
        raise ValueError(f"condition must have rank 1, got shape {condition.shape}")
    chosen = np.flatnonzero(condition)
    if chosen.size and chosen[-1] >= x.shape[axis]:
        raise ValueError(f"condition is true at {chosen[-1]}, beyond axis {axis} of shape {x.shape}")
    return np.take(x, chosen, axis)


@operator("NonZero", since=9, shape_inputs=None)
def non_zero(x: np.ndarray) -> np.ndarray:
    """One column of coordinates per element that is not zero; a scalar has no coordinates."""
    if x.ndim == 0:
        return np.zeros((0, int(bool(x))), np.int64)
    return np.array(np.nonzero(x), np.int64).reshape(x.ndim, -1)


@operator("Unique", since=11, shape_inputs=None)
def unique(x: np.ndarray, *, axis: int | None = None, sorted: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unique elements (or slices along `axis`), first positions, positions in the result, counts."""
    if axis is None:
        x, axis = x.reshape(-1), 0
        values, first, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
    else:
        axis = normalize_axis(axis, x.ndim)
        values, first, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        first, counts, inverse = first[order], counts[order], rank[inverse]
        values = np.take(x, first, axis)
    return values, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)
