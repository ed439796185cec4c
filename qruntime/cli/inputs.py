"""Inputs of commands that run models: read from files, or made up in the declared types and shapes."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence

import numpy as np

import qruntime
from qruntime.cli import made_up, terminal
from qruntime.cli.made_up import Feed, Sizes
from qruntime.errors import InputError, QRuntimeError
from qruntime.ir import Value
from qruntime.ir.dtypes import numpy_dtype
from qruntime.runtime.npz import npz_files, read_npz

SEED = 0


def make_feeds(
    model: qruntime.Model,
    arguments: argparse.Namespace,
    *,
    batch: int = 1,
    count: int = 1,
    padded: bool = False,
    tell: Callable[[str], None] = terminal.warn,
) -> list[Feed]:
    """Feeds for `model` from the arguments of `add_inputs`; calls `tell` with what was guessed.

    One for each file of --npz, else `count`, of which the first is known to run: `batch` is the size of open first axes,
    other open axes get the first size with which the model runs. `padded` puts padding into masks.

    Raises InputError for arguments that do not fit the model or inputs that cannot be made up.
    """
    given = _Given(model, arguments)
    files = npz_files(arguments.npz) if arguments.npz else []
    if files:
        feeds = [given.complete(read_npz(path), path, batch, padded, seed) for seed, path in enumerate(files)]
    else:
        feeds = [given.complete({}, None, batch, padded, seed) for seed in range(count)]
    if given.guesses:
        tell("guessed " + "; ".join(dict.fromkeys(given.guesses)) + ". Choose with --shape, --fill or --npz.")
    return feeds


class _Given:
    """What the arguments say of the inputs of a model, and what is made up for the rest."""

    def __init__(self, model: qruntime.Model, arguments: argparse.Namespace):
        self.model = model
        self.shapes, self.dims = _read_shapes(arguments.shape, model)
        self.fills = _read_fills(arguments.fill, model)
        self.guesses: list[str] = []
        self._runs: Sizes | None = None  # with which the model is known to run

    def complete(self, read: dict[str, np.ndarray], path: str | None, batch: int, padded: bool, seed: int) -> Feed:
        """`read` and values made up for the inputs that it lacks."""
        overridable = list(self.model._declared.input_defaults)
        names = {value.name for value in (*self.model.graph.inputs, *overridable)}
        unknown = sorted(set(read) - names)
        if unknown:
            raise InputError(f"{path!r} has an array {unknown[0]!r}, but the inputs are: {', '.join(sorted(names))}")
        dims = dict(self.dims)
        given = {*read, *self.shapes, *self.fills}
        inputs = [*self.model.graph.inputs, *(value for value in overridable if value.name in given)]
        for value in inputs:
            known = read[value.name].shape if value.name in read else self.shapes.get(value.name, ())
            for dim, size in zip((value.type and value.type.shape) or (), known, strict=False):
                if isinstance(dim, str):
                    dims.setdefault(dim, size)
        missing = [value for value in inputs if value.name not in read and (value.type is None or value.type.kind != "optional")]
        if not missing:
            return read
        if self._runs is not None:
            return self._made(read, missing, self._runs.with_given(dims), padded, seed)
        first: tuple[Feed, list[str]] | None = None
        for sizes in made_up.attempts(dims, batch):
            feed = self._made(read, missing, sizes, padded, seed)
            if first is None:
                first = feed, sizes.guesses
            if not sizes.any_open or self._does_run(feed):
                self._runs = sizes
                self.guesses += sizes.guesses
                return feed
        assert first is not None
        self.guesses += first[1]
        return first[0]  # whoever runs it is told what does not fit

    def _made(self, read: dict[str, np.ndarray], missing: list[Value], sizes: Sizes, padded: bool, seed: int) -> Feed:
        random = np.random.default_rng([SEED, seed] if seed else SEED)
        feed: Feed = dict(read)
        for value in missing:
            if value.type is None or value.type.kind != "tensor" or value.type.dtype == 0:
                raise InputError(f"input {value.name!r} has type {value.type}, which cannot be made up; give it with --npz")
            shape = self.shapes[value.name] if value.name in self.shapes else sizes.shape(value.name, value.type)
            if math.prod(shape) > made_up.MAX_ELEMENTS:
                raise InputError(f"input {value.name!r} of shape {shape} is too large to make up; give smaller sizes with --shape")
            if value.name in self.fills:
                feed[value.name] = made_up.filled(value.name, numpy_dtype(value.type.dtype), shape, self.fills[value.name])
            else:
                feed[value.name] = made_up.values(value, shape, random, padded, sizes.guesses)
        return feed

    def _does_run(self, feed: Feed) -> bool:
        try:
            self.model.run(feed)
        except QRuntimeError:
            return False
        return True


def with_files(text: str, name: str, path: str | None) -> str:
    """A message about the feeds of `name`, an argument that was given as --`name`, with files for their numbers."""
    try:
        files = [] if path is None else npz_files(path)
    except InputError:
        files = []
    named = re.sub(rf"\b{name}\[(\d+)\]", lambda found: repr(files[int(found[1])]) if int(found[1]) < len(files) else found[0], text)
    return re.sub(rf"^{name}\b", f"--{name}", named)


def _read_shapes(texts: Sequence[str], model: qruntime.Model) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """(shapes by input, sizes by symbolic dimension)."""
    inputs = {tensor.name: tensor for tensor in (*model.inputs, *model.overridable)}
    symbols = {d for tensor in inputs.values() for d in tensor.shape or () if isinstance(d, str)}
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
    inputs = {tensor.name for tensor in (*model.inputs, *model.overridable)}
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
