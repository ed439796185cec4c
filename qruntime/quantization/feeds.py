"""Data that models are calibrated on: feeds {input name: array}, given as users have them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.errors import CalibrationError, InputError
from qruntime.ir import Graph
from qruntime.runtime.npz import npz_files, read_npz
from qruntime.runtime.segments import fed_values

Feed = Mapping[str, Any]
Data = Feed | Iterable[Feed] | Callable[[], Iterable[Feed]] | str | os.PathLike[str]


def feeds_of(data: Data, what: str = "data") -> Iterator[Feed]:
    """The feeds of `data`: one feed, an iterable of them or a function that returns one, an .npz file, a folder of such.

    Raises CalibrationError, with the place in `what`, for what is none and for data without a feed.
    """
    count = 0
    for feed in _iterated(data):
        if not isinstance(feed, Mapping):
            raise CalibrationError(f"{what}[{count}] must be a mapping {{input name: array}}, got {type(feed).__name__}")
        count += 1
        yield feed
    if not count:
        raise CalibrationError(f"{what} holds no feed; give a list of {{input name: array}}, or a folder of .npz files")


def read_feeds(graph: Graph, data: Data, what: str = "data") -> list[dict[str, Any]]:
    """All feeds as arrays by name: what `graph` reads, as it takes it, then all else that they hold, labels.

    Raises CalibrationError, with the place, for inputs that do not fit.
    """
    names, read = {value.name for value in graph.inputs}, []
    for number, feed in enumerate(feeds_of(data, what)):
        try:
            given = fed_values(graph, {name: array for name, array in feed.items() if name in names})
        except InputError as error:
            raise CalibrationError(f"{what}[{number}]: {error}") from error
        labels = {name: np.asarray(array) for name, array in feed.items() if name not in names}
        read.append({value.name: one for value, one in given.items()} | labels)
    return read


def _iterated(data: Any) -> Iterable[Any]:
    if isinstance(data, Mapping):
        return [data]
    if isinstance(data, (str, os.PathLike)):
        return _from_files(data)
    if callable(data):
        data = data()
    if not isinstance(data, Iterable):
        raise CalibrationError(f"data must be feeds, a function that returns them, or a path, got {type(data).__name__}")
    return data if isinstance(data, Sequence) else map(_copied, data)


def _copied(feed: Any) -> Any:
    """What passes by is copied: loaders that spare memory fill the same arrays again."""
    if not isinstance(feed, Mapping):
        return feed
    return {name: array.copy() if isinstance(array, np.ndarray) else array for name, array in feed.items()}


def _from_files(path: str | os.PathLike[str]) -> Iterator[dict[str, np.ndarray]]:
    try:
        for file in npz_files(path):
            yield read_npz(file)
    except InputError as error:
        raise CalibrationError(f"data: {error}") from error
