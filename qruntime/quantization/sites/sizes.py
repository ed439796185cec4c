"""Sizes of dimensions that are known, or equal to others: what a run decides is a symbol."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Size(NamedTuple):
    """`number` times all of `symbols`, which are sorted. −1 in the contents of a shape is what Reshape takes it for."""

    number: int
    symbols: tuple[str, ...] = ()

    @property
    def is_known(self) -> bool:
        return not self.symbols


ONE = Size(1)
Sizes = tuple[Size, ...]


def product(sizes: Sequence[Size]) -> Size:
    number = math.prod(size.number for size in sizes)
    return Size(number, tuple(sorted(symbol for size in sizes for symbol in size.symbols)) if number else ())


def quotient(whole: Size, part: Size) -> Size | None:
    """whole / part, where that is a size for every value of the symbols."""
    left = Counter(whole.symbols)
    left.subtract(part.symbols)
    if part.number <= 0 or whole.number % part.number or any(count < 0 for count in left.values()):
        return None
    return Size(whole.number // part.number, tuple(sorted(left.elements())))


def groups(left: Sizes, right: Sizes) -> list[tuple[range, range]]:
    """Which axes of two shapes of one number of elements are the same part of an index, row after row; from the front.

    The first pair may hold what differs only because too little is known.
    """
    ends = [{product(shape[axis:]): axis for axis in range(len(shape), -1, -1)} for shape in (left, right)]
    cuts = [(axis, ends[1][size]) for size, axis in ends[0].items() if size in ends[1] and size.number]
    cuts = sorted({(0, 0), *cuts, (len(left), len(right))})
    kept = [cuts[0]]
    for cut in cuts[1:]:
        if cut[0] >= kept[-1][0] and cut[1] >= kept[-1][1]:
            kept.append(cut)
    return [(range(a, c), range(b, d)) for (a, b), (c, d) in itertools.pairwise(kept)]
