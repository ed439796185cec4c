"""What the steps of a recipe found out, over all layers: a line for each fact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from statistics import median
from typing import Any

from qruntime.display.text import printable
from qruntime.quantization.report import Report

MOST_TEXTS = 4


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
        found = {**facts, **found}
    return found


def _said(values: Sequence[Any]) -> str:
    numbers = [float(value) for value in values if _is_number(value)]
    texts = Counter(printable(str(value), limit=200) for value in values if not _is_number(value))
    said = [f"{text} ×{count}" for text, count in texts.most_common(MOST_TEXTS)]
    if len(texts) > MOST_TEXTS:
        said.append(f"{sum(texts.values()) - sum(count for _, count in texts.most_common(MOST_TEXTS))} others")
    if numbers:
        low, high = min(numbers), max(numbers)
        spread = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}, median {median(numbers):.4g}"
        said.insert(0, f"{spread} ({len(numbers)} layer{'s' if len(numbers) > 1 else ''})")
    return "; ".join(said)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
