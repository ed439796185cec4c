"""Where the codes of stored constants are."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from qruntime.ir.narrow import NarrowArray

if TYPE_CHECKING:
    from qruntime.ir.graph import Graph

CodeArray = np.ndarray | NarrowArray

_sharing = threading.Lock()


class HeldCodes:
    """An array of codes, or somebody who makes them again: a kernel that has them in its own layout.

    All tensors of the same codes have one of these, whatever their scales: it tells them from others, and they give up the
    array together. Threads may ask while another gives up. Values and nodes of a graph refer to each other, so that what they
    hold outlives the last user of the graph; therefore kernels are held by those who run it, each by a `ShareOfCodes`.
    """

    __slots__ = ("__weakref__", "_array", "_narrow", "_share", "nbytes", "shape")

    def __init__(self, array: CodeArray):
        self.shape = array.shape
        self.nbytes = array.nbytes
        self._array: CodeArray | None = array
        self._narrow = array._replace(data=np.empty(0, np.uint8)) if isinstance(array, NarrowArray) else None
        self._share: weakref.ref[ShareOfCodes] | None = None

    def array(self) -> CodeArray:
        """The codes: the same in every bit, whoever made them. Raises ReferenceError when those who held them are gone."""
        array = self._array
        if array is not None:
            return array
        source = self.source
        if source is None:
            raise ReferenceError("the codes went with the model that held them packed; keep the model while its graph is read")
        codes = source()
        return codes if self._narrow is None else self._narrow.holding(codes)

    @property
    def memory(self) -> np.ndarray | None:
        """The array that they lie in; None when it was given up."""
        array = self._array
        return array.data if isinstance(array, NarrowArray) else array

    @property
    def source(self) -> Callable[[], np.ndarray] | None:
        """Who makes them again; None while nobody has to."""
        share = None if self._share is None else self._share()
        return None if share is None else share.source

    def share(self) -> ShareOfCodes:
        """What somebody holds who reads these codes as long as he lives; the same for all at a time."""
        with _sharing:
            share = None if self._share is None else self._share()
            if share is None:
                share = ShareOfCodes()
                self._share = weakref.ref(share)
            return share

    def give_up(self, source: Callable[[], np.ndarray]) -> None:
        """Hold no array any more; somebody has to hold a share. `source` makes one of the same codes whenever it is asked,
        on any thread; of codes below a byte one in each byte."""
        share = self.share()
        share.source = source
        self._array = None


class ShareOfCodes:
    """Held by everyone who reads some codes, so that what makes them again lives as long as one of these does."""

    __slots__ = ("__weakref__", "source")

    def __init__(self) -> None:
        self.source: Callable[[], np.ndarray] | None = None


def shares_of(graph: Graph) -> list[ShareOfCodes]:
    """Of all codes that are read in a graph."""
    return [codes.share() for codes in {value.stored.held: None for value in graph.stored_constants() if value.stored is not None}]
