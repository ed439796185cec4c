"""What was used last, and no more of it than a limit."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A mapping that forgets the entry unused for longest when it has more than `limit`.

    Any thread may read at any time; those who add take turns by a lock of theirs.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        value = self._entries.get(key)
        with contextlib.suppress(KeyError):  # not there, or forgotten by another thread meanwhile
            self._entries.move_to_end(key)
        return value

    def add(self, key: K, value: V) -> V:
        self._entries[key] = value
        while len(self._entries) > self.limit:
            self._entries.popitem(last=False)
        return value

    def __len__(self) -> int:
        return len(self._entries)
