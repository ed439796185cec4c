"""Checks that definitions share: axes, indices, sizes, dtypes. All raise ValueError."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence

import numpy as np

MAX_ELEMENTS = 2**40
"""No definition starts to build a tensor with more elements than this."""


def normalize_axis(axis: int, rank: int, name: str = "axis") -> int:
    """`axis` counted from the front."""
    axis = int(axis)
    if not -rank <= axis < rank:
        raise ValueError(f"{name} must lie in [{-rank}, {rank - 1}] for rank {rank}, got {axis}")
    return axis % rank


def normalize_axes(axes: Iterable[int], rank: int, name: str = "axes") -> tuple[int, ...]:
    """Axes counted from the front, in the order given, each at most once."""
    found = tuple(normalize_axis(axis, rank, name) for axis in axes)
    if len(set(found)) != len(found):
        raise ValueError(f"{name} names an axis twice: {list(axes)} for rank {rank}")
    return found


def integers(values: np.ndarray | Sequence[int] | None, name: str) -> list[int]:
    """Python integers of a rank-0 or rank-1 integer tensor (or attribute); [] for None."""
    if values is None:
        return []
    if isinstance(values, np.ndarray):
        if values.ndim > 1 or values.dtype.kind not in "iu":
            raise ValueError(f"{name} must be a rank-1 integer tensor, got {values.dtype} of shape {values.shape}")
        return values.reshape(-1).tolist()
    return [operator.index(v) for v in values]


def scalar(value: np.ndarray, name: str) -> np.ndarray:
    """`value`, a tensor with exactly one element, as a rank-0 array."""
    value = np.asarray(value)
    if value.size != 1:
        raise ValueError(f"{name} must hold exactly one element, got shape {value.shape}")
    return value.reshape(())


def limit_shape(shape: Iterable[int], name: str = "the output") -> tuple[int, ...]:
    """`shape` as a tuple, when it is not negative anywhere and small enough to be built."""
    shape = tuple(int(d) for d in shape)
    if any(d < 0 for d in shape):
        raise ValueError(f"{name} needs dimensions that are not negative, got {shape}")
    if math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"{name} would have shape {shape}, more than {MAX_ELEMENTS} elements")
    return shape


def require_rank(name: str, x: np.ndarray, low: int, high: int | None = None) -> None:
    """The rank of `x` lies in [low, high]; `high` defaults to `low`, -1 is unbounded."""
    high = low if high is None else high
    if x.ndim < low or (high >= 0 and x.ndim > high):
        needed = f"{low}" if high == low else f"{low} or more" if high < 0 else f"{low} to {high}"
        raise ValueError(f"{name} must have rank {needed}, got shape {x.shape}")


def require_shape(name: str, x: np.ndarray | None, shape: Sequence[int]) -> None:
    """`x` is absent or has exactly this shape."""
    if x is not None and x.shape != tuple(shape):
        raise ValueError(f"{name} must have the shape {tuple(shape)}, got {x.shape}")


def wrap_indices(indices: np.ndarray, size: int, name: str = "indices") -> np.ndarray:
    """Indices into an axis of `size` elements, negative ones counted from the end."""
    if indices.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {indices.dtype}")
    if indices.size == 0:
        return indices.astype(np.int64)
    low, high = int(indices.min()), int(indices.max())
    if low < -size or high >= size:
        raise ValueError(f"{name} must lie in [{-size}, {size - 1}], got values from {low} to {high}")
    indices = indices.astype(np.int64, copy=False)
    return np.where(indices < 0, indices + size, indices) if low < 0 else indices


def same_dtype(*arrays: np.ndarray) -> None:
    """ONNX never converts types by itself: all of `arrays` must have one element type."""
    first = arrays[0].dtype
    for array in arrays[1:]:
        if array.dtype != first:
            names = ", ".join(str(a.dtype) for a in arrays)
            raise ValueError(f"inputs must have one element type, got {names}; insert a Cast")
