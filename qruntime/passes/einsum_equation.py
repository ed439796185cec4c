"""The equation of an Einsum, read."""

from __future__ import annotations

import string
from collections import Counter

from qruntime.passes.rewriting import Skip

ANY = "..."
"""The dimensions that an equation does not name, as one label."""

Labels = tuple[str, ...]


def parsed(equation: str) -> tuple[list[Labels], Labels] | Skip:
    """Labels of the terms and of the result; Skip for what is no equation, or drops the dimensions of "..."."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = []
    for term in left.split(","):
        labels = _labels(term)
        if labels is None:
            return Skip(f"{term!r} in {equation!r} is no term")
        terms.append(labels)
    counts = Counter(label for labels in terms for label in labels)
    if arrow:
        output = _labels(right)
    else:
        output = (*([ANY] if ANY in counts else []), *sorted(label for label, n in counts.items() if n == 1 and label != ANY))
    if output is None or len(set(output)) < len(output) or not counts.keys() >= set(output):
        return Skip(f"the result of {equation!r} names a label twice, or one that no term has")
    if ANY in counts and ANY not in output:
        return Skip(f"the result of {equation!r} lacks '...'")
    return terms, output


def _labels(term: str) -> Labels | None:
    before, dots, after = term.partition(ANY)
    if set(before + after) - set(string.ascii_letters):
        return None
    return (*before, *([ANY] if dots else []), *after)
