"""Einstein summation as products of matrices."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from qruntime.ops.checks import same_dtype
from qruntime.ops.elementwise import narrow, widen
from qruntime.ops.products import matmul
from qruntime.ops.registry import operator

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Term(NamedTuple):
    """A tensor and the label of each of its dimensions: a letter, or "...i" for the i-th from the right of an ellipsis."""

    data: np.ndarray
    labels: tuple[str, ...]

    def arranged(self, *groups: list[str]) -> np.ndarray:
        """The tensor with one dimension for each group of labels."""
        sizes = dict(zip(self.labels, self.data.shape, strict=True))
        axes = [self.labels.index(label) for group in groups for label in group]
        return self.data.transpose(axes).reshape([math.prod(sizes[label] for label in group) for group in groups])


@operator("Einsum", since=12)
def einsum(*inputs: np.ndarray, equation: str) -> np.ndarray:
    """Einstein summation in the notation of numpy.einsum, letters, commas, "->" and "..." only.

    Operands are joined from left to right, whatever their sizes are: a better order for one batch would give other bits
    than that for another.
    """
    if not inputs:
        raise ValueError("at least one input is needed, got none")
    same_dtype(*inputs)
    with np.errstate(all="ignore"):
        terms, output = _parse(equation, list(map(widen, inputs)))
        joined = terms[0]
        for i, term in enumerate(terms[1:], 1):
            joined = _join(joined, term, {*output}.union(*(later.labels for later in terms[i + 1 :])))
        joined = _summed(joined, set(output))
        return narrow(joined.data.transpose([joined.labels.index(label) for label in output]), inputs[0].dtype)


def _parse(equation: str, inputs: list[np.ndarray]) -> tuple[list[Term], list[str]]:
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    subscripts = left.split(",")
    for part in (*subscripts, right):
        if set(part.replace("...", "", 1)) - _LETTERS:
            raise ValueError(f"equation may hold letters, commas, one '...' per operand and '->', got {equation!r}")
    if len(subscripts) != len(inputs):
        raise ValueError(f"equation {equation!r} is of {len(subscripts)} operands, got {len(inputs)}")
    labels = [_labels(part, x, equation) for part, x in zip(subscripts, inputs, strict=True)]
    flat = [label for group in labels for label in group]
    ellipsis = sorted({label for label in flat if label.startswith("...")}, key=lambda label: -int(label[3:]))
    if arrow:
        output = _expanded(right, ellipsis)
    else:
        output = [*ellipsis, *sorted(label for label in set(flat) if flat.count(label) == 1 and label in _LETTERS)]
    if len(set(output)) < len(output) or not set(output) <= set(flat):
        raise ValueError(f"every letter of the output must be in an operand and come once, got {equation!r}")
    return _broadcast(labels, inputs, equation), output


def _labels(part: str, x: np.ndarray, equation: str) -> list[str]:
    hidden = x.ndim - len(part.replace("...", "", 1))
    if hidden < 0 or (hidden and "..." not in part):
        raise ValueError(f"operand {part!r} of equation {equation!r} does not fit the shape {x.shape}")
    return _expanded(part, [f"...{i}" for i in reversed(range(hidden))])


def _expanded(part: str, ellipsis: list[str]) -> list[str]:
    before, dots, after = part.partition("...")
    return [*before, *(ellipsis if dots else ()), *after]


def _broadcast(labels: list[list[str]], inputs: list[np.ndarray], equation: str) -> list[Term]:
    """Operands without repeated labels, and without dimensions of 1 that stand for longer ones."""
    sizes: dict[str, int] = {}
    for group, x in zip(labels, inputs, strict=True):
        for label, size in zip(group, x.shape, strict=True):
            if sizes.setdefault(label, size) == 1:
                sizes[label] = size
            elif size not in (1, sizes[label]):
                raise ValueError(f"dimension {label!r} of equation {equation!r} is {sizes[label]} and {size}")
    terms = []
    for group, x in zip(labels, inputs, strict=True):
        kept = [i for i, label in enumerate(group) if x.shape[i] == sizes[label]]
        x = x.reshape([x.shape[i] for i in kept])
        terms.append(_diagonal(x, [group[i] for i in kept]))
    # A dimension that is 1 in one operand and not in another has gone from the first, and is in the second.
    return terms


def _diagonal(x: np.ndarray, labels: list[str]) -> Term:
    """Dimensions with one label become their diagonal."""
    for label in sorted(set(labels)):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            x = np.diagonal(x, axis1=first, axis2=second)
            labels = [*(other for i, other in enumerate(labels) if i not in (first, second)), label]
    return Term(x, tuple(labels))


def _summed(term: Term, kept: set[str]) -> Term:
    """The sum over all labels that are not kept, in their order."""
    gone = [label for label in term.labels if label not in kept]
    if not gone:
        return term
    rest = [label for label in term.labels if label in kept]
    sizes = [term.data.shape[term.labels.index(label)] for label in rest]
    rows = term.arranged(rest, gone)
    return Term(matmul(rows, np.ones(rows.shape[1], rows.dtype)).reshape(sizes), tuple(rest))


def _join(a: Term, b: Term, kept: set[str]) -> Term:
    """Product of two terms, summed over what they share and nothing else needs."""
    a, b = _summed(a, kept.union(b.labels)), _summed(b, kept.union(a.labels))
    sizes = dict(zip((*a.labels, *b.labels), (*a.data.shape, *b.data.shape), strict=True))
    shared = [label for label in a.labels if label in b.labels]
    batch, inner = [label for label in shared if label in kept], [label for label in shared if label not in kept]
    rows, columns = [label for label in a.labels if label not in shared], [label for label in b.labels if label not in shared]
    labels = (*batch, *rows, *columns)
    left, right = a.arranged(batch, rows, inner), b.arranged(batch, inner, columns)
    y = matmul(left, right) if inner else left * right
    return Term(y.reshape([sizes[label] for label in labels]), labels)
