"""What the steps of a recipe found out, over all layers: a line for each fact."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Real
from statistics import median
from typing import Any

from qruntime.display.text import printable
from qruntime.quantization.report import Report

MOST_TEXTS = 4
_NUMBER = re.compile(r"((?<![\w.])\d[\d.]*(?:e[+-]\d+)?(?!\w))")
"""One that stands for itself: not that of int4 or g128."""


def fact_lines(report: Report) -> list[str]:
    """Numbers as the least, the median and the greatest, texts by how often they came; each fact counts once for a layer."""
    facts: dict[str, list[Any]] = {}
    for layer in report.layers:
        for name, value in _of(layer.facts).items():
            facts.setdefault(name, []).append(value)
    return ["", "What the steps found:", *(f"  {printable(name)}: {_said(values)}" for name, values in facts.items())] if facts else []


def _of(matrices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several matrices of a layer the first that knows."""
    found: dict[str, Any] = {}
    for facts in matrices:
        found |= {name: value for name, value in facts.items() if name not in found}
    return found


def _said(values: Sequence[Any]) -> str:
    numbers = [float(value) for value in values if _is_number(value)]
    texts = counted_texts([str(value) for value in values if not _is_number(value)])
    if not numbers:
        return texts
    low, high = min(numbers), max(numbers)
    spread = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}, median {median(numbers):.4g}"
    said = f"{spread} ({len(numbers)} layer{'s' if len(numbers) > 1 else ''})"
    return f"{said}; {texts}" if texts else said


def counted_texts(texts: Sequence[str]) -> str:
    """How often each came, the most frequent first; those that differ in numbers alone count together, with … for these."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for text in texts:
        alike.setdefault(tuple(_NUMBER.split(text)[::2]), []).append(text)
    groups = sorted(alike.values(), key=len, reverse=True)
    said = [f"{printable(_common(group), limit=200)} ×{len(group)}" for group in groups[:MOST_TEXTS]]
    return "; ".join([*said, *([f"{sum(map(len, groups[MOST_TEXTS:]))} others"] if len(groups) > MOST_TEXTS else [])])


def _common(texts: Sequence[str]) -> str:
    """The numbers that are the same in all texts, … for the others."""
    parts = zip(*(_NUMBER.split(text) for text in dict.fromkeys(texts)), strict=True)
    return "".join(part[0] if len(set(part)) == 1 else "…" for part in parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
