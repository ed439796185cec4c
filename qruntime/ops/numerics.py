"""Precision and size rules that several operator families share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MAX_ELEMENTS = 2**31 - 1
"""Most elements that a definition allocates for one array whose size attributes or data decide."""


def working_dtype(dtype: np.dtype) -> np.dtype:
    """float32 for the floating types narrower than it, else `dtype` itself."""
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype


def checked_shape(op: str, what: str, shape: Sequence[int]) -> tuple[int, ...]:
    """`shape` as a tuple; ValueError when it has a negative dimension or too many elements."""
    shape = tuple(int(dim) for dim in shape)
    if any(dim < 0 for dim in shape):
        raise ValueError(f"{op}: {what} would have the shape {shape}, with a negative dimension")
    if math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"{op}: {what} of shape {shape} exceeds the limit of {MAX_ELEMENTS} elements")
    return shape


def require_rank(op: str, what: str, x: np.ndarray, low: int, high: int | None = None) -> None:
    """ValueError unless the rank of `x` lies in [low, high]; `high` defaults to `low`, -1 is unbounded."""
    high = low if high is None else high
    if x.ndim < low or (high >= 0 and x.ndim > high):
        needed = f"{low}" if high == low else f"{low} or more" if high < 0 else f"{low} to {high}"
        raise ValueError(f"{op}: {what} must have rank {needed}, got shape {x.shape}")


def require_shape(op: str, what: str, x: np.ndarray | None, shape: Sequence[int]) -> None:
    """ValueError unless `x` is absent or has exactly this shape."""
    if x is not None and x.shape != tuple(shape):
        raise ValueError(f"{op}: {what} must have the shape {tuple(shape)}, got {x.shape}")


def normalized_axis(op: str, axis: int, rank: int) -> int:
    """`axis` counted from the front; ValueError when it is outside [-rank, rank)."""
    if not -rank <= axis < rank:
        raise ValueError(f"{op}: axis {axis} is outside [{-rank}, {rank - 1}]")
    return axis % rank
