"""Sequences (Python lists) and optionals (the value, or None)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qruntime.ops.checks import integers, normalize_axis, same_dtype, scalar
from qruntime.ops.layout import concatenate, split_at
from qruntime.ops.registry import operator


def _position(position: np.ndarray, low: int, high: int) -> int:
    index = int(scalar(position, "position"))
    if not low <= index <= high:
        raise ValueError(f"position must lie in [{low}, {high}], got {index}")
    return index


@operator("SequenceConstruct", since=11)
def sequence_construct(*inputs: np.ndarray) -> list[np.ndarray]:
    same_dtype(*inputs)
    return list(inputs)


@operator("SequenceEmpty", since=11)
def sequence_empty(*, dtype: int = 1) -> list[np.ndarray]:
    return []


@operator("SequenceAt", since=11, shape_inputs=None)
def sequence_at(sequence: list[Any], position: np.ndarray) -> Any:
    return sequence[_position(position, -len(sequence), len(sequence) - 1)]


@operator("SequenceInsert", since=11, shape_inputs=None)
def sequence_insert(sequence: list[Any], tensor: np.ndarray, position: np.ndarray | None = None) -> list[Any]:
    """A new sequence with `tensor` before `position`, or at the end."""
    at = len(sequence) if position is None else _position(position, -len(sequence), len(sequence))
    if sequence:
        same_dtype(sequence[0], tensor)
    longer = sequence.copy()
    longer.insert(at, tensor)
    return longer


@operator("SequenceErase", since=11, shape_inputs=None)
def sequence_erase(sequence: list[Any], position: np.ndarray | None = None) -> list[Any]:
    """A new sequence without the element at `position`, or without the last."""
    if not sequence:
        raise ValueError("the sequence is empty, nothing can be erased")
    at = -1 if position is None else _position(position, -len(sequence), len(sequence) - 1)
    at %= len(sequence)
    return [*sequence[:at], *sequence[at + 1 :]]


@operator("SequenceLength", since=11)
def sequence_length(sequence: list[Any]) -> np.ndarray:
    return np.array(len(sequence), np.int64)


@operator("SequenceMap", since=17, shape_inputs=None)
def sequence_map(sequence: list[Any], *others: Any, body: Callable[..., Any], num_outputs: int = 1) -> list[Any] | tuple[list[Any], ...]:
    """`body` on every element; other sequences go along, tensors are the same for all."""
    for other in others:
        if isinstance(other, list) and len(other) != len(sequence):
            raise ValueError(f"sequences must be as long as the first, {len(sequence)}, got {len(other)}")
    columns: list[list[Any]] = [[] for _ in range(num_outputs)]
    for i, element in enumerate(sequence):
        results = body(element, *(other[i] if isinstance(other, list) else other for other in others))
        results = results if isinstance(results, (tuple, list)) else (results,)
        for column, result in zip(columns, results, strict=True):
            column.append(result)
    return columns[0] if num_outputs == 1 else tuple(columns)


@operator("ConcatFromSequence", since=11, shape_inputs=None)
def concat_from_sequence(sequence: list[np.ndarray], *, axis: int, new_axis: int = 0) -> np.ndarray:
    """Join along `axis`, or stack along a new one."""
    if not sequence:
        raise ValueError("the sequence is empty, there is nothing to join")
    if new_axis:
        axis = normalize_axis(axis, sequence[0].ndim + 1)
        sequence = [np.expand_dims(x, axis) if x.ndim >= axis else x for x in sequence]
    return concatenate(sequence, axis)


@operator("SplitToSequence", since=11, shape_inputs=(1,))
def split_to_sequence(x: np.ndarray, split: np.ndarray | None = None, *, axis: int = 0, keepdims: int = 1) -> list[np.ndarray]:
    """Pieces of size `split` (a scalar, the last may be smaller) or of the sizes `split`.

    Without `split` the pieces have size 1, and lose the axis if `keepdims` is 0.
    """
    axis = normalize_axis(axis, x.ndim)
    total = x.shape[axis]
    if split is None:
        pieces = split_at(x, [1] * total, axis)
        return list(pieces) if keepdims else [np.asarray(np.squeeze(piece, axis)) for piece in pieces]
    if split.ndim:
        return list(split_at(x, integers(split, "split"), axis))
    chunk = int(split)
    if chunk < 1:
        raise ValueError(f"split must be positive, got {chunk}")
    return list(split_at(x, [min(chunk, total - start) for start in range(0, total, chunk)], axis))


@operator("Optional", since=15)
def optional(value: Any = None, *, type: Any = None) -> Any:
    """`value`, or an empty optional of the type given."""
    return value


@operator("OptionalHasElement", since=15)
def optional_has_element(value: Any = None) -> np.ndarray:
    return np.array(value is not None)


@operator("OptionalGetElement", since=15, shape_inputs=None)
def optional_get_element(value: Any) -> Any:
    if value is None:
        raise ValueError("the optional is empty, it has no element to get")
    return value
