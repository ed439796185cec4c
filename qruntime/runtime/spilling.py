"""Arrays that wait in a temporary file, mapped into memory, where there are too many to hold."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

_ALIGNMENT = 64


class Spilling:
    """Takes arrays as they come; those beyond `most_bytes` in memory go to a file. `taken` gives all of them back.

        spilling = Spilling(most_bytes)
        for batch in batches:
            spilling.take(batch)                    # {key: array}: may be written, and is then let go
        batches = list(spilling.taken())            # the same, read-only views of the file among them

    The file has no name: it goes with the last view, whatever ends the process.
    """

    def __init__(self, most_bytes: int | None):
        self.most_bytes = most_bytes
        self.bytes = 0
        self._file: IO[bytes] | None = None
        self._batches: list[dict[Any, Any]] = []

    def take(self, batch: Mapping[Any, Any]) -> None:
        self._batches.append({key: self._placed(value) for key, value in batch.items()})

    def taken(self) -> Iterator[dict[Any, Any]]:
        mapped = None
        if self._file is not None:
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file.close()
        for batch in self._batches:
            yield {key: value.view(mapped) if isinstance(value, _Written) else value for key, value in batch.items()}

    def _placed(self, value: Any) -> Any:
        if self.most_bytes is None or not isinstance(value, np.ndarray) or value.dtype.hasobject or _is_mapped(value):
            return value
        if self.bytes + value.nbytes <= self.most_bytes or not value.nbytes:
            self.bytes += value.nbytes
            return value
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="qruntime-")  # noqa: SIM115
        at = self._file.tell()
        self._file.write(b"\0" * (-at % _ALIGNMENT))
        written = _Written(self._file.tell(), value.dtype, value.shape)
        np.ascontiguousarray(value).tofile(self._file)
        return written


class _Written:
    def __init__(self, offset: int, dtype: np.dtype, shape: tuple[int, ...]):
        self.offset, self.dtype, self.shape = offset, dtype, shape

    def view(self, mapped: mmap.mmap | None) -> np.ndarray:
        assert mapped is not None
        count = int(np.prod(self.shape, dtype=np.int64))
        return np.frombuffer(mapped, self.dtype, count, self.offset).reshape(self.shape)


def _is_mapped(value: np.ndarray) -> bool:
    base: Any = value
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, (mmap.mmap, memoryview))
