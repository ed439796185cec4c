"""What every benchmark writes: one JSON schema, and the Markdown table of it.

    {"schema": 1, "benchmark": "models", "machine": {…}, "versions": {…}, "rows": [{…}, …]}

Rows are flat. Seconds are of one run; a ratio is a peer's time over ours, above 1 when ours is shorter.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

from qruntime.cli.bench import machine

SCHEMA = 1
LIBRARIES = ("numpy", "onnx", "onnxruntime", "torch", "openvino")


def document(benchmark: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"schema": SCHEMA, "benchmark": benchmark, "machine": machine(), "versions": versions, "rows": list(rows)}


def markdown(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A table with a column for each (key of a row → heading)."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def emit(benchmark: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], as_json: bool) -> None:
    """Print the document as JSON, or its rows as a table below a line that names the machine."""
    found = document(benchmark, rows)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    facts = found["machine"]
    print(f"{facts['cpu']}, {facts['isa']}, {facts['threads_available']} CPUs, qruntime {facts['qruntime']}\n")
    print(markdown(rows, columns))
