"""Inputs for runs that only measure: read from a file, or made up in the declared types and shapes."""

from __future__ import annotations

import argparse
import math
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

import qruntime
from qruntime.cli import terminal
from qruntime.errors import InputError
from qruntime.ir import TypeInfo, Value
from qruntime.ir.dtypes import numpy_dtype, type_name
from qruntime.quantization.printing import printable

MAX_ELEMENTS = 1 << 28
SEED = 0

# Sizes of symbolic dimensions that nobody named: (part of the dimension's name, size).
_DIMENSION_GUESSES = (
    ("batch", 1),
    ("seq", 128),
    ("length", 128),
    ("time", 128),
    ("token", 128),
    ("height", 224),
    ("width", 224),
)


def make_inputs(model: qruntime.Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """A feed for `model` from the arguments of `add_inputs`; says on stderr what was guessed.

    Raises InputError for arguments that do not fit the model or inputs that cannot be made up.
    """
    shapes, dims = _read_shapes(arguments.shape, model)
    fills = _read_fills(arguments.fill, model)
    feed: dict[str, Any] = {}
    if arguments.npz:
        arrays = read_npz(arguments.npz)
        names = {value.name for value in model.graph.inputs}
        unknown = sorted(set(arrays) - names)
        if unknown:
            raise InputError(
                f"{arguments.npz!r} has an array {unknown[0]!r}, but the inputs are: {', '.join(sorted(names))}"
            )
        feed.update(arrays)
    for value in model.graph.inputs:
        known = feed[value.name].shape if value.name in feed else shapes.get(value.name, ())
        for dim, size in zip((value.type and value.type.shape) or (), known, strict=False):
            if isinstance(dim, str):
                dims.setdefault(dim, size)
    random = np.random.default_rng(SEED)
    guesses: list[str] = []
    for value in model.graph.inputs:
        if value.name in feed or (value in model.graph.input_defaults and value.name not in {*shapes, *fills}):
            continue
        if value.type is not None and value.type.kind == "optional":
            continue
        declared = _tensor_type(value)
        shape = shapes[value.name] if value.name in shapes else _shape(value.name, declared, dims, guesses)
        if math.prod(shape) > MAX_ELEMENTS:
            raise InputError(
                f"input {value.name!r} of shape {shape} is too large to make up; give smaller sizes with --shape"
            )
        if value.name in fills:
            feed[value.name] = _filled(value.name, declared, shape, fills[value.name])
        else:
            feed[value.name] = _made_up(value, declared, shape, random, guesses)
    if guesses:
        terminal.warn("guessed " + "; ".join(guesses) + ". Choose with --shape, --fill or --npz.")
    return feed


def read_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; pickled objects are refused. Raises InputError."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(f"{path!r} is a single array; save inputs by name with numpy.savez")
        with archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InputError(f"cannot read {path!r}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError, NotImplementedError) as error:
        raise InputError(f"{path!r} is not a NumPy .npz file of plain arrays: {error}") from error


def _read_shapes(texts: Sequence[str], model: qruntime.Model) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """(shapes by input, sizes by symbolic dimension)."""
    inputs = {tensor.name: tensor for tensor in model.inputs}
    symbols = {d for tensor in model.inputs for d in tensor.shape or () if isinstance(d, str)}
    shapes: dict[str, tuple[int, ...]] = {}
    dims: dict[str, int] = {}
    for text in texts:
        name, equals, numbers = text.rpartition("=")
        parts = [part.strip() for part in numbers.split(",") if part.strip()]
        if not equals or not name or not all(p.isascii() and p.isdecimal() and len(p) < 12 for p in parts):
            raise InputError(f"--shape {text!r}: needs NAME=DIMS with whole numbers, for example ids=1,128 or batch=8")
        sizes = tuple(map(int, parts))
        if name in inputs:
            shapes[name] = sizes
        elif name in symbols and len(sizes) == 1:
            dims[name] = sizes[0]
        else:
            known = ", ".join([*inputs, *sorted(symbols)])
            raise InputError(f"--shape {text!r}: no input or symbolic dimension is called {name!r}; there are: {known}")
    return shapes, dims


def _read_fills(texts: Sequence[str], model: qruntime.Model) -> dict[str, float]:
    inputs = {tensor.name for tensor in model.inputs}
    fills: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if name not in inputs:
            raise InputError(f"--fill {text!r}: no input is called {name!r}; there are: {', '.join(sorted(inputs))}")
        try:
            fills[name] = int(number)
        except ValueError:
            try:
                fills[name] = float(number)
            except ValueError:
                raise InputError(f"--fill {text!r}: {number!r} is not a number") from None
    return fills


def _tensor_type(value: Value) -> TypeInfo:
    if value.type is None or value.type.kind != "tensor" or value.type.dtype == 0:
        raise InputError(f"input {value.name!r} has type {value.type}, which cannot be made up; give it with --npz")
    return value.type


def _shape(name: str, declared: TypeInfo, dims: dict[str, int], guesses: list[str]) -> tuple[int, ...]:
    if declared.shape is None:
        raise InputError(f"input {name!r} declares no shape; give one with --shape {name}=1,128")
    sizes = []
    for axis, dim in enumerate(declared.shape):
        if isinstance(dim, int) and dim >= 0:
            sizes.append(dim)
        elif isinstance(dim, str) and dim:
            if dim not in dims:
                dims[dim] = next((size for part, size in _DIMENSION_GUESSES if part in dim.lower()), 1)
                guesses.append(f"{printable(dim)}={dims[dim]}")
            sizes.append(dims[dim])
        else:
            guesses.append(f"{printable(name)} axis {axis}=1")
            sizes.append(1)
    return tuple(sizes)


def _filled(name: str, declared: TypeInfo, shape: tuple[int, ...], number: float) -> np.ndarray:
    try:
        return np.full(shape, number, numpy_dtype(declared.dtype))
    except (ValueError, OverflowError, TypeError) as error:
        raise InputError(f"--fill {name}={number}: does not fit {type_name(declared.dtype)}: {error}") from error


def _made_up(
    value: Value, declared: TypeInfo, shape: tuple[int, ...], random: np.random.Generator, guesses: list[str]
) -> np.ndarray:
    dtype = numpy_dtype(declared.dtype)
    if dtype.kind == "O":
        raise InputError(f"input {value.name!r} holds strings, which cannot be made up; give it with --npz")
    if dtype.kind == "b" or (dtype.kind in "iu" and "mask" in value.name.lower()):
        guesses.append(f"{printable(value.name)} all ones")
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        rows = _rows_indexed(value)
        guesses.append(f"{printable(value.name)} integers 0…{rows - 1}")
        return random.integers(0, min(rows, int(np.iinfo(dtype).max)), shape).astype(dtype)
    if dtype.kind == "c":
        return (random.standard_normal(shape) + 1j * random.standard_normal(shape)).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


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
