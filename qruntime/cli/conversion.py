"""From a file to a file of fewer bits, and what is said of it: what `convert` and `quantize` share."""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import qruntime
from qruntime.cli import terminal
from qruntime.cli.arguments import in_flags
from qruntime.cli.fidelity import Cost, limits_of
from qruntime.cli.outputs import check_not_the_input, check_writable
from qruntime.display.facts import fact_lines
from qruntime.display.summary import (
    cache_lines,
    layer_table,
    outlying_lines,
    reason_lines,
    skipped_lines,
    slower_lines,
    source_lines,
)
from qruntime.display.text import printable
from qruntime.errors import QuantizationError
from qruntime.onnx_io.model_files import size_on_disk
from qruntime.quantization.patterns import mistaken, nothing_selected
from qruntime.quantization.report import QuantizedLayer
from qruntime.quantization.selection import layer_kind, pattern_name

WORST = 5
NOTHING_QUANTIZED = 1
"""Exit code when the output holds the model as it was."""


def add_files(parser: argparse.ArgumentParser, kind: str) -> None:
    """`kind` of the model that is written."""
    parser.add_argument("input", help="the float ONNX model")
    parser.add_argument("output", help=f"where to write the {kind} model; the input itself needs --force")
    parser.add_argument("--force", action="store_true", help="write over the input, whose float weights are lost then")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """--only, --exclude, --strict."""
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="PATTERN",
        help="quantize nothing but these: names, module paths from anywhere (layer.0), globs, operator types, kinds",
    )
    parser.add_argument("--exclude", nargs="+", action="extend", default=[], metavar="PATTERN", help="leave these as they are")
    parser.add_argument("--strict", action="store_true", help="fail when a layer cannot be quantized or a pattern selects nothing")


class Converted(NamedTuple):
    """What was read, and what was written."""

    original: qruntime.Model
    model: qruntime.Model
    bytes_before: int
    """Of the files."""
    bytes_after: int
    seconds: Mapping[str, float]

    @property
    def is_quantized(self) -> bool:
        return bool(self.model.report.layers or self.model.report.caches)


def convert_file(arguments: argparse.Namespace, quantize: Callable[[qruntime.Model], qruntime.Model]) -> Converted:
    """Load, quantize, save."""
    if not arguments.force:
        check_not_the_input(arguments.input, arguments.output)
    check_writable(arguments.output, replaces=True)
    start = time.perf_counter()
    with terminal.progress(f"Loading {arguments.input}"):
        original = qruntime.load(arguments.input, threads=arguments.threads)
        size_before = size_on_disk(arguments.input)
    loaded = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = quantize(original)
    for warning in caught:
        terminal.warn(printable(in_flags(str(warning.message)), limit=1000))
    quantized = time.perf_counter()
    with terminal.progress(f"Writing {arguments.output}"):
        model.save(arguments.output)
    saved = time.perf_counter()
    seconds = {"load": loaded - start, "quantize": quantized - loaded, "save": saved - quantized, "total": saved - start}
    return Converted(original, model, size_before, size_on_disk(arguments.output), seconds)


def check_patterns(model: qruntime.Model, idle: Sequence[str], limits: Iterable[object]) -> None:
    """QuantizationError when one of `limits`, what is to stay as it is or alone to be quantized, is not there: a file would tell
    nobody. `idle` are the patterns that select nothing."""
    nodes = list(model.graph.walk_nodes())
    limiting = {pattern_name(pattern) for pattern in limits}
    unknown = [pattern for pattern in mistaken(idle, nodes) if pattern in limiting]
    if unknown:
        raise QuantizationError(nothing_selected(unknown, [node for node in nodes if layer_kind(node)]))


def fields(arguments: argparse.Namespace, done: Converted, asked: Mapping[str, Any], cost: Cost | None) -> dict[str, Any]:
    """For --json. `asked` says how it was to be quantized."""
    return {
        "input": arguments.input,
        "output": arguments.output,
        **asked,
        "file_bytes_before": done.bytes_before,
        "file_bytes_after": done.bytes_after,
        **done.model.report.to_dict(),
        "worst": [layer.name for layer in done.model.report.worst(WORST)],
        "seconds": dict(done.seconds),
        "comparison": cost and cost.fields,
    }


def lines(arguments: argparse.Namespace, done: Converted, asked: Mapping[str, str], cost: Cost | None) -> list[str]:
    """For people. `asked` holds lines of the head by their titles."""
    report = done.model.report
    kept = [layer for layer in report.layers if layer.name in report.kept]
    times = ", ".join(f"{step} {terminal.duration(s)}" for step, s in done.seconds.items() if step != "total")
    before, after = done.bytes_before, done.bytes_after
    head = {
        "quantized": _counted([layer for layer in report.layers if layer.name not in report.kept]),
        **({"kept": f"{_counted(kept)}: quantized before, and left as stored"} if kept else {}),
        **asked,
        "weights": f"{terminal.size(report.bytes_before)} → {terminal.size(report.bytes_after)}",
        "file": f"{terminal.size(before)} → {terminal.size(after)} ({_ratio(before, after)})",
        "time": f"{terminal.duration(done.seconds['total'])} ({times})",
    }
    said = [terminal.heading(f"{printable(arguments.input)} → {printable(arguments.output)}")]
    said += [f"  {title:<9}  {text}" for title, text in head.items()]
    worst = report.worst(WORST)
    if worst:
        title = "The layers whose weights lost most" if len(report.layers) > len(worst) else "Layers, worst first"
        said += ["", terminal.heading(f"{title}:"), *layer_table(worst)]
    parts = (cache_lines, fact_lines, outlying_lines, reason_lines, source_lines, skipped_lines, slower_lines)
    for part in parts:
        found = [in_flags(line) for line in part(report)]
        said += ["", *found] if found and found[0] else found
    return said + (cost.lines if cost else [])


def _ratio(before: int, after: int) -> str:
    larger, smaller = max(before, after), max(1, min(before, after))
    return f"{larger / smaller:.2f}× {'larger' if after > before else 'smaller'}"


def _counted(layers: list[QuantizedLayer]) -> str:
    return ", ".join(f"{kind} ×{n}" for kind, n in Counter(layer.kind for layer in layers).items()) or "none"


def conclude(arguments: argparse.Namespace, done: Converted, cost: Cost | None, remedy: str) -> int:
    """The exit code, after what is to be done next was said; `remedy` is what helps where outputs differ too much."""
    if not done.is_quantized:
        listing = f"list the nodes with: qruntime inspect --nodes {arguments.input}"
        terminal.warn(f"no layer was quantized: {arguments.output} holds the model as it was; {listing}")
        return NOTHING_QUANTIZED
    if cost and cost.failed:
        terminal.warn(f"outputs differ by more than {limits_of(arguments)}: try {remedy}, or --exclude for the layers that lost most")
    if os.path.realpath(arguments.input) != os.path.realpath(arguments.output):
        terminal.note(f"what it costs on your own inputs: qruntime compare {arguments.input} {arguments.output} --npz FOLDER")
    return 0
