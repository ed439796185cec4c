"""`qruntime convert`: load, quantize, save, and say what was done."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import qruntime
from qruntime.cli import terminal
from qruntime.cli.arguments import Subparsers, add_command, add_json, add_threads
from qruntime.quantization.dynamic import ACTIVATIONS
from qruntime.quantization.printing import layer_table, printable, skipped_lines
from qruntime.quantization.selection import matches

WORST = 5


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "convert",
        "quantize a model: int8 weights now, int8 activations at every run",
        "qruntime convert model.onnx model.int8.onnx --per-channel --exclude lm_head",
    )
    parser.add_argument("input", help="the float ONNX model")
    parser.add_argument("output", help="where to write the int8 model; may be the input")
    parser.add_argument(
        "--per-channel", action="store_true", help="one weight scale per output channel instead of one per tensor"
    )
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        default="per_token",
        help="one activation scale per row, so that results do not depend on the batch (default), or one per tensor",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="PATTERN",
        help="quantize nothing but these: names, globs ('*/attention/*'), operator types (LSTM), kinds (Linear)",
    )
    parser.add_argument(
        "--exclude", nargs="+", action="extend", default=[], metavar="PATTERN", help="leave these as they are"
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail when a layer cannot be quantized or a pattern selects nothing"
    )
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    with terminal.progress(f"Loading {arguments.input}"):
        model = qruntime.load(arguments.input, threads=arguments.threads)
        size_before = size_on_disk(arguments.input, model)
    loaded = time.perf_counter()
    for pattern in (*(arguments.only or ()), *arguments.exclude):
        if not any(matches(node, pattern) for node in model.graph.walk_nodes()):
            terminal.warn(f"nothing is called {printable(pattern)!r}; {_list_nodes(arguments)}")
    with terminal.progress("Quantizing"):
        model.quantize_dynamic(
            inplace=True,
            per_channel=arguments.per_channel,
            activation=arguments.activation,
            only=arguments.only,
            exclude=arguments.exclude,
            strict=arguments.strict,
        )
    quantized = time.perf_counter()
    with terminal.progress(f"Writing {arguments.output}"):
        model.save(arguments.output)
    saved = time.perf_counter()
    seconds = {"load": loaded - start, "quantize": quantized - loaded, "save": saved - quantized}
    seconds["total"] = saved - start
    sizes = (size_before, size_on_disk(arguments.output, model))
    if arguments.json:
        terminal.json_result("convert", _fields(arguments, model, sizes, seconds))
    else:
        terminal.result(_lines(arguments, model, sizes, seconds))
    if not model.report.layers:
        terminal.warn(f"no layer was quantized; {_list_nodes(arguments)}")
    elif os.path.realpath(arguments.input) != os.path.realpath(arguments.output):
        terminal.note(f"see what it costs in accuracy: qruntime compare {arguments.input} {arguments.output}")
    return 0


def _list_nodes(arguments: argparse.Namespace) -> str:
    return f"list the nodes with: qruntime inspect --nodes {arguments.input}"


def size_on_disk(path: str, model: qruntime.Model) -> int:
    """Bytes of the model file and of the weights that it keeps elsewhere."""
    size = os.path.getsize(path)
    weights = sum(value.data.nbytes for value in model.graph.constants() if value.data is not None)
    return size if weights <= size else size + weights


def _fields(
    arguments: argparse.Namespace, model: qruntime.Model, sizes: tuple[int, int], seconds: dict[str, float]
) -> dict[str, Any]:
    report = model.report
    return {
        "input": arguments.input,
        "output": arguments.output,
        "per_channel": arguments.per_channel,
        "activation": arguments.activation,
        "file_bytes_before": sizes[0],
        "file_bytes_after": sizes[1],
        "weight_bytes_before": report.bytes_before,
        "weight_bytes_after": report.bytes_after,
        "layers": [layer._asdict() for layer in report.layers],
        "skipped": [layer._asdict() for layer in report.skipped],
        "worst": [layer.name for layer in report.worst(WORST)],
        "seconds": seconds,
    }


def _lines(
    arguments: argparse.Namespace, model: qruntime.Model, sizes: tuple[int, int], seconds: dict[str, float]
) -> list[str]:
    report = model.report
    kinds = {layer.kind: sum(other.kind == layer.kind for other in report.layers) for layer in report.layers}
    counted = ", ".join(f"{kind} ×{n}" for kind, n in kinds.items()) or "none"
    weights = "per channel" if arguments.per_channel else "per tensor"
    before, after = sizes
    times = ", ".join(f"{step} {terminal.duration(s)}" for step, s in seconds.items() if step != "total")
    lines = [
        terminal.heading(f"{printable(arguments.input)} → {printable(arguments.output)}"),
        f"  quantized  {counted}",
        f"  scheme     weights int8 {weights}, activations uint8 {arguments.activation.replace('_', ' ')}",
        f"  weights    {terminal.size(report.bytes_before)} → {terminal.size(report.bytes_after)}",
        f"  file       {terminal.size(before)} → {terminal.size(after)} ({before / max(1, after):.2f}× smaller)",
        f"  time       {terminal.duration(seconds['total'])} ({times})",
    ]
    worst = report.worst(WORST)
    if worst:
        title = "The layers whose weights lost most" if len(report.layers) > len(worst) else "Layers, worst first"
        lines += ["", terminal.heading(f"{title}:"), *layer_table(worst)]
    return lines + skipped_lines(report)
