"""Files as memory, read page by page as they are needed."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import numpy as np


class MappedFile(mmap.mmap):
    """A read-only mapping of a whole file: a page that is dropped comes back with the same bytes."""

    def drop_pages(self, start: int, stop: int) -> None:
        """Give back the memory of the whole pages in the range of bytes, on systems that can be told."""
        first, last = -(-start // mmap.PAGESIZE), stop // mmap.PAGESIZE
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            self.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)


def map_descriptor(descriptor: int) -> memoryview:
    """View of the file open as `descriptor`, which may be closed afterwards."""
    return memoryview(MappedFile(descriptor, 0, access=mmap.ACCESS_READ))


def drop_pages(tensors: Iterable[np.ndarray]) -> None:
    """Give back the memory of tensors that lie in a mapped file, which is read again by whoever reads them later."""
    ranges: dict[MappedFile, list[tuple[int, int]]] = {}
    for tensor in tensors:
        if tensor.nbytes < mmap.PAGESIZE:
            continue
        tensor = _whole(tensor)
        file = _file_of(tensor)
        if file is not None:
            start = _address(tensor)
            ranges.setdefault(file, []).append((start, start + tensor.nbytes))
    for file, found in ranges.items():
        base = _address(np.frombuffer(file, np.uint8))
        for start, stop in _joined(sorted(found)):
            file.drop_pages(start - base, stop - base)


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in ascending order, as one where less than a page lies between: each call interrupts all CPUs."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and start - joined[-1][1] < mmap.PAGESIZE:
            start, last = joined.pop()
            stop = max(stop, last)
        joined.append((start, stop))
    return joined


def is_mapped(tensor: np.ndarray) -> bool:
    """Whether the elements lie in a mapped file."""
    return _file_of(_whole(tensor)) is not None


def owns_memory(tensor: np.ndarray) -> bool:
    """Whether the elements lie in memory of numpy's own, which goes with the last array that reads it."""
    return _whole(tensor).base is None


def _whole(tensor: np.ndarray) -> np.ndarray:
    while isinstance(tensor.base, np.ndarray):
        tensor = tensor.base
    return tensor


def _file_of(tensor: np.ndarray) -> MappedFile | None:
    file = tensor.base.obj if isinstance(tensor.base, memoryview) else None
    return file if isinstance(file, MappedFile) else None


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
