"""Inputs that are made up: shapes where the model leaves them open, values that it can take.

What is guessed is told. Random values are the same every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from qruntime.display.text import printable
from qruntime.errors import InputError
from qruntime.ir import TypeInfo, Value
from qruntime.ir.dtypes import numpy_dtype

Feed = dict[str, Any]
"""Values by the names of inputs."""

MAX_ELEMENTS = 1 << 28

_NAMED_SIZES = (
    ("seq", 128), ("length", 128), ("time", 128), ("token", 128), ("height", 224), ("width", 224), ("sample", 16000),
)  # fmt: skip
"""Sizes of symbolic dimensions: (part of the dimension's name, size)."""

_SIZES = (128, 1, 32, 576, 16, 224, 16000)
"""For other dimensions, and for all of them once the first does not run, in the order in which they are tried."""

_SAMPLE_RATE = 16000


class Sizes:
    """Sizes of the open dimensions of one model: by name, and the batch for the first axis."""

    def __init__(self, given: dict[str, int], batch: int, size: int, *, by_name: bool = True, batch_inside: bool = False):
        self.named = dict(given)
        self.batch, self.size, self.by_name, self.batch_inside = batch, size, by_name, batch_inside
        self.guesses: list[str] = []
        self.any_open = False

    def with_given(self, given: dict[str, int]) -> Sizes:
        """The same choices for other sizes that are known."""
        return Sizes(given, self.batch, self.size, by_name=self.by_name, batch_inside=self.batch_inside)

    def shape(self, name: str, declared: TypeInfo) -> tuple[int, ...]:
        """A shape for the input `name`. Raises InputError where not even the rank is known."""
        if declared.shape is None:
            raise InputError(f"input {name!r} declares no shape; give one with --shape {name}=1,128")
        sizes = []
        for axis, dim in enumerate(declared.shape):
            if isinstance(dim, int) and dim >= 0:
                sizes.append(dim)
            elif isinstance(dim, str) and dim:
                if dim not in self.named:
                    self.named[dim] = self._size(dim.lower(), axis, len(declared.shape))
                    self.guesses.append(f"{printable(dim)}={self.named[dim]}")
                sizes.append(self.named[dim])
            else:
                sizes.append(self._size("", axis, len(declared.shape)))
                self.guesses.append(f"{printable(name)} axis {axis}={sizes[-1]}")
        return tuple(sizes)

    def _size(self, dim: str, axis: int, rank: int) -> int:
        self.any_open = True
        named = next((size for part, size in _NAMED_SIZES if part in dim), None)
        if "batch" in dim or (axis == 0 and named is None) or (self.batch_inside and not dim and 0 < axis < rank - 1):
            return self.batch
        return self.size if named is None or not self.by_name else named


def attempts(given: dict[str, int], batch: int) -> Iterator[Sizes]:
    """Sizes to try, one after the other."""
    for first in (batch, 1) if batch != 1 else (1,):
        for batch_inside in (False, True):
            for i, size in enumerate(_SIZES):
                yield Sizes(given, first, size, by_name=i == 0, batch_inside=batch_inside)


def is_mask(value: Value) -> bool:
    """Whether an input marks what is no padding, as far as its name tells."""
    return value.type is not None and value.type.dtype != 0 and numpy_dtype(value.type.dtype).kind in "biu" and "mask" in value.name.lower()


def filled(name: str, dtype: np.dtype, shape: tuple[int, ...], number: float) -> np.ndarray:
    """An array of one number. Raises InputError when that does not fit the type."""
    try:
        return np.full(shape, number, dtype)
    except (ValueError, OverflowError, TypeError) as error:
        raise InputError(f"--fill {name}={number}: does not fit {dtype}: {error}") from error


def values(value: Value, shape: tuple[int, ...], random: np.random.Generator, padded: bool, guesses: list[str]) -> np.ndarray:
    """Values for an input: standard normal; integers that look-ups can take; ones in masks, where `padded` with zeros at
    the end of all rows but the first."""
    assert value.type is not None
    dtype = numpy_dtype(value.type.dtype)
    name = printable(value.name)
    if dtype.kind == "O":
        raise InputError(f"input {value.name!r} holds strings, which cannot be made up; give it with --npz")
    if is_mask(value) or dtype.kind == "b":
        mask = np.ones(shape, dtype)
        if padded and is_mask(value) and len(shape) == 2 and shape[0] > 1:
            for row in range(1, shape[0]):
                mask[row, shape[1] - row * shape[1] // (2 * shape[0]) :] = 0
            guesses.append(f"{name} with padding")
        else:
            guesses.append(f"{name} all ones")
        return mask
    if dtype.kind in "iu":
        return _integers(value, dtype, shape, random, guesses)
    if dtype.kind == "c":
        return (random.standard_normal(shape) + 1j * random.standard_normal(shape)).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def _integers(value: Value, dtype: np.dtype, shape: tuple[int, ...], random: np.random.Generator, guesses: list[str]) -> np.ndarray:
    name = printable(value.name)
    if math.prod(shape) == 1:
        number = _compared_with(value)
        if number is None and ("sample_rate" in value.name.lower() or value.name.lower() == "sr"):
            number = _SAMPLE_RATE
        if number is not None and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
            guesses.append(f"{name}={number}")
            return np.full(shape, number, dtype)
    rows = _rows_indexed(value)
    guesses.append(f"{name} integers 0…{rows - 1}")
    return random.integers(0, min(rows, int(np.iinfo(dtype).max)), shape).astype(dtype)


def _compared_with(value: Value) -> int | None:
    """The number that an Equal holds against `value`, perhaps after a Cast: what the model asks for."""
    for node, _ in value.uses:
        if node.is_op("Cast", "Squeeze", "Reshape"):
            found = _compared_with(node.outputs[0])
            if found is not None:
                return found
        if node.is_op("Equal"):
            other = node.input(1) if node.input(0) is value else node.input(0)
            if other is not None and other.data is not None and other.data.size == 1:
                return int(other.data.reshape(-1)[0])
    return None


def _rows_indexed(value: Value) -> int:
    """How many rows the tables have that `value` looks up: the integers below it are safe. Else 2."""
    rows = []
    for node, index in value.uses:
        table = node.input(0)
        if node.is_op("Gather") and index == 1 and table is not None and table.data is not None and table.data.ndim:
            axis = node.attr("axis", 0)
            if -table.data.ndim <= axis < table.data.ndim:
                rows.append(table.data.shape[axis])
    return max(1, min(rows, default=2))
