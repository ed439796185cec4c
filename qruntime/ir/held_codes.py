"""Where the codes of stored constants are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qruntime.ir.narrow import NarrowArray

CodeArray = np.ndarray | NarrowArray


class HeldCodes:
    """An array of codes, or somebody who makes them again: a kernel that has them in its own layout.

    All tensors of the same codes have one of these, whatever their scales: it tells them from others, and they give up the
    array together. Threads may ask while another gives up.
    """

    __slots__ = ("_array", "_narrow", "nbytes", "shape", "source")

    def __init__(self, array: CodeArray):
        self.shape = array.shape
        self.nbytes = array.nbytes
        self.source: Callable[[], np.ndarray] | None = None
        """Who makes them again; None while nobody has to."""
        self._array: CodeArray | None = array
        self._narrow = array._replace(data=np.empty(0, np.uint8)) if isinstance(array, NarrowArray) else None

    def array(self) -> CodeArray:
        """The codes: the same in every bit, whoever made them."""
        array = self._array
        if array is not None:
            return array
        assert self.source is not None
        codes = self.source()
        return codes if self._narrow is None else self._narrow.holding(codes)

    @property
    def memory(self) -> np.ndarray | None:
        """The array that they lie in; None when it was given up."""
        array = self._array
        return array.data if isinstance(array, NarrowArray) else array

    def give_up(self, source: Callable[[], np.ndarray]) -> None:
        """Hold no array any more. `source` makes one of the same codes whenever it is asked, on any thread; of codes below a
        byte one in each byte."""
        self.source = source
        self._array = None
