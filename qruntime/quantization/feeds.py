"""Data that models are calibrated on: feeds {input name: array}, given as users have them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qruntime.errors import QuantizationError

Feed = Mapping[str, Any]
Data = Feed | Iterable[Feed] | Callable[[], Iterable[Feed]] | str | os.PathLike[str]


def feeds_of(data: Data) -> Iterator[Feed]:
    """The feeds of `data`: one feed, an iterable of them or a function that returns one, an .npz file, a folder of such.

    Raises QuantizationError, with the place, for what is none and for data without a feed.
    """
    count = 0
    for feed in _iterated(data):
        if not isinstance(feed, Mapping):
            raise QuantizationError(f"data[{count}] must be a mapping {{input name: array}}, got {type(feed).__name__}")
        count += 1
        yield feed
    if not count:
        raise QuantizationError("data holds no feed; give a list of {input name: array}, or a folder of .npz files")


def _iterated(data: Any) -> Iterable[Any]:
    if isinstance(data, Mapping):
        return [data]
    if isinstance(data, (str, os.PathLike)):
        return _from_files(Path(data))
    if callable(data):
        data = data()
    if not isinstance(data, Iterable):
        raise QuantizationError(f"data must be feeds, a function that returns them, or a path, got {type(data).__name__}")
    return data


def _from_files(path: Path) -> Iterator[dict[str, np.ndarray]]:
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as held:
                yield {name: held[name] for name in held.files}
        except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
            raise QuantizationError(f"data {str(file)!r} is no .npz file of plain arrays: {error}") from error
