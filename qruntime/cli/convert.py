"""`qruntime convert`: load, quantize, save, and say what was done."""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections import Counter
from typing import Any

import qruntime
from qruntime.cli import terminal
from qruntime.cli.arguments import Subparsers, add_command, add_inputs, add_json, add_threads, in_flags
from qruntime.cli.fidelity import add_comparison, cost_of, limits_of
from qruntime.cli.outputs import check_not_the_input, check_writable
from qruntime.display.summary import layer_table, reason_lines, skipped_lines, slower_lines, source_lines
from qruntime.display.text import printable
from qruntime.errors import QuantizationError
from qruntime.onnx_io.model_files import size_on_disk
from qruntime.quantization import (
    QConfig,
    default_dynamic_qconfig,
    engine_dynamic_qconfig,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    per_channel_dynamic_qconfig,
)
from qruntime.quantization.dynamic import ACTIVATIONS, ENGINES
from qruntime.quantization.patterns import mistaken, nothing_selected
from qruntime.quantization.report import QuantizedLayer, Report
from qruntime.quantization.selection import EMBEDDINGS, KINDS, layer_kind, pattern_name
from qruntime.quantization.torch_names.specification import DTYPES, default_kinds

WORST = 5
NOTHING_QUANTIZED = 1
"""Exit code when the output holds the model as it was."""

QCONFIGS: dict[str, QConfig | None] = {
    "qint8": engine_dynamic_qconfig,
    "per_tensor": default_dynamic_qconfig,
    "per_channel": per_channel_dynamic_qconfig,
    "float16": float16_dynamic_qconfig,
    "quint8": float_qparams_weight_only_qconfig,
    "quint4x2": float_qparams_weight_only_qconfig_4bit,
    "none": None,
}
"""What --qconfig gives to a pattern: what the call does without one, torch's presets by what they store, "none" to exclude."""


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "convert",
        "quantize a model: int8 weights now, int8 activations at every run",
        "qruntime convert model.onnx model.int8.onnx --per-channel --exclude lm_head layer.0\n"
        "  qruntime convert model.onnx model.int8.onnx --kinds Linear Conv Embedding --qconfig head=none",
    )
    parser.add_argument("input", help="the float ONNX model")
    parser.add_argument("output", help="where to write the int8 model; the input itself needs --force")
    parser.add_argument("--force", action="store_true", help="write over the input, whose float weights are lost then")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights: qint8 (default; quint8 for embeddings that --kinds names), float16 (computed in float32), or "
        "quint8 and quint4x2 for embeddings",
    )
    granularity = parser.add_mutually_exclusive_group()
    granularity.add_argument(
        "--per-channel",
        action="store_const",
        const=True,
        help="one weight scale per output channel (default: one per tensor where every channel can bear it)",
    )
    granularity.add_argument(
        "--per-tensor", dest="per_channel", action="store_const", const=False, help="one weight scale per tensor in any case"
    )
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        help="one activation scale per row, so that results do not depend on the batch (default), or one per tensor",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="qruntime",
        help="compute as another runtime does, to compare with it: fbgemm and qnnpack are torch's (default: %(default)s)",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        action="extend",
        metavar="KIND",
        help="quantize these instead of Linear, LSTM, GRU and RNN: kinds (Conv, Embedding), operators, names, module paths",
    )
    parser.add_argument(
        "--qconfig",
        nargs="+",
        action="extend",
        type=_qconfig,
        default=[],
        metavar="PATTERN=QCONFIG",
        help=f"give a kind, an operator, a name or a module path a QConfig of its own: {', '.join(QCONFIGS)}",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="PATTERN",
        help="quantize nothing but these: names, module paths from anywhere (layer.0), globs, operator types, kinds",
    )
    parser.add_argument("--exclude", nargs="+", action="extend", default=[], metavar="PATTERN", help="leave these as they are")
    parser.add_argument("--strict", action="store_true", help="fail when a layer cannot be quantized or a pattern selects nothing")
    parser.add_argument("--faster-only", action="store_true", help="leave layers float that are too small for int8 to be faster")
    parser.add_argument("--no-compare", action="store_true", help="do not run both models to say what quantizing costs in accuracy")
    add_comparison(parser)
    add_inputs(parser)
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def _qconfig(text: str) -> tuple[str, QConfig | None]:
    pattern, separator, name = text.rpartition("=")
    if not separator or name not in QCONFIGS:
        raise argparse.ArgumentTypeError(f"needs PATTERN=QCONFIG with one of {', '.join(QCONFIGS)}, got {text!r}")
    return pattern, QCONFIGS[name]


def _specification(arguments: argparse.Namespace) -> tuple[object, bool | None]:
    """qconfig_spec and per_channel of the call."""
    dtype, kinds = _dtype(arguments), default_kinds(_dtype(arguments)) if arguments.kinds is None else arguments.kinds
    embeddings = [kind for kind in kinds if pattern_name(kind) in ("Embedding", *KINDS["Embedding"]) and dtype not in EMBEDDINGS]
    if embeddings and arguments.dtype is not None:
        own = f"--qconfig {embeddings[0]}=quint8 (or quint4x2)"
        raise QuantizationError(f"--kinds {embeddings[0]}: embeddings have no form of --dtype {dtype}; write {own} instead")
    if not arguments.qconfig and not embeddings:
        return None if arguments.kinds is None else set(kinds), arguments.per_channel
    name = dtype
    if dtype == "qint8" and arguments.per_channel is not None:
        name = "per_channel" if arguments.per_channel else "per_tensor"
    spec = dict.fromkeys(kinds, QCONFIGS[name]) | dict.fromkeys(embeddings, QCONFIGS["quint8"])
    return spec | dict(arguments.qconfig), None


def _dtype(arguments: argparse.Namespace) -> str:
    return arguments.dtype or "qint8"


def run(arguments: argparse.Namespace) -> int:
    if not arguments.force:
        check_not_the_input(arguments.input, arguments.output)
    check_writable(arguments.output, replaces=True)
    start = time.perf_counter()
    with terminal.progress(f"Loading {arguments.input}"):
        original = qruntime.load(arguments.input, threads=arguments.threads)
        size_before = size_on_disk(arguments.input)
    loaded = time.perf_counter()
    spec, per_channel = _specification(arguments)
    with terminal.progress("Quantizing"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = original.quantize_dynamic(
            spec,  # type: ignore[arg-type]
            _dtype(arguments),
            per_channel=per_channel,
            engine=arguments.engine,
            faster_only=arguments.faster_only,
            activation=arguments.activation,
            only=arguments.only,
            exclude=arguments.exclude,
            strict=arguments.strict,
        )
    _check_patterns(arguments, model)
    for warning in caught:
        terminal.warn(printable(in_flags(str(warning.message)), limit=1000))
    quantized = time.perf_counter()
    with terminal.progress(f"Writing {arguments.output}"):
        model.save(arguments.output)
    saved = time.perf_counter()
    seconds = {"load": loaded - start, "quantize": quantized - loaded, "save": saved - quantized}
    seconds["total"] = saved - start
    sizes = (size_before, size_on_disk(arguments.output))
    cost = None if arguments.no_compare or not model.report.layers else cost_of(original, model, arguments)
    if arguments.json:
        terminal.json_result("convert", _fields(arguments, model, sizes, seconds) | {"comparison": cost and cost.fields})
    else:
        terminal.result(_lines(arguments, model, sizes, seconds) + (cost.lines if cost else []))
    if not model.report.layers:
        terminal.warn(f"no layer was quantized: {arguments.output} holds the model as it was; {_list_nodes(arguments)}")
        return NOTHING_QUANTIZED
    if cost and cost.failed:
        terminal.warn(f"outputs differ by more than {limits_of(arguments)}: try --per-channel, or --exclude for the layers that lost most")
    if os.path.realpath(arguments.input) != os.path.realpath(arguments.output):
        terminal.note(f"what it costs on your own inputs: qruntime compare {arguments.input} {arguments.output} --npz FOLDER")
    return 0


def _check_patterns(arguments: argparse.Namespace, model: qruntime.Model) -> None:
    """QuantizationError when what was to stay as it is, or alone to be quantized, is not there: a file would tell nobody."""
    nodes = list(model.graph.walk_nodes())
    exclusions = (pattern for pattern, qconfig in arguments.qconfig if qconfig is None)
    limits = {pattern_name(pattern) for pattern in (*(arguments.only or ()), *arguments.exclude, *exclusions)}
    unknown = [pattern for pattern in mistaken(model.report.idle, nodes) if pattern in limits]
    if unknown:
        raise QuantizationError(nothing_selected(unknown, [node for node in nodes if layer_kind(node)]))


def _list_nodes(arguments: argparse.Namespace) -> str:
    return f"list the nodes with: qruntime inspect --nodes {arguments.input}"


def _fields(arguments: argparse.Namespace, model: qruntime.Model, sizes: tuple[int, int], seconds: dict[str, float]) -> dict[str, Any]:
    report = model.report
    return {
        "input": arguments.input,
        "output": arguments.output,
        "dtype": _dtype(arguments),
        "per_channel": arguments.per_channel,
        "activation": _activation(arguments),
        "engine": arguments.engine,
        "file_bytes_before": sizes[0],
        "file_bytes_after": sizes[1],
        "weight_bytes_before": report.bytes_before,
        "weight_bytes_after": report.bytes_after,
        "layers": [layer._asdict() for layer in report.layers],
        "skipped": [layer._asdict() for layer in report.skipped],
        "kept": report.kept,
        "idle": report.idle,
        "slower": report.slower,
        "worst": [layer.name for layer in report.worst(WORST)],
        "seconds": seconds,
    }


def _lines(arguments: argparse.Namespace, model: qruntime.Model, sizes: tuple[int, int], seconds: dict[str, float]) -> list[str]:
    report = model.report
    kept = [layer for layer in report.layers if layer.name in report.kept]
    before, after = sizes
    times = ", ".join(f"{step} {terminal.duration(s)}" for step, s in seconds.items() if step != "total")
    lines = [
        terminal.heading(f"{printable(arguments.input)} → {printable(arguments.output)}"),
        f"  quantized  {_counted([layer for layer in report.layers if layer.name not in report.kept])}",
        *([f"  kept       {_counted(kept)}: quantized before, and left as stored"] if kept else []),
        f"  scheme     {_scheme(arguments, report)}",
        f"  weights    {terminal.size(report.bytes_before)} → {terminal.size(report.bytes_after)}",
        f"  file       {terminal.size(before)} → {terminal.size(after)} ({before / max(1, after):.2f}× smaller)",
        f"  time       {terminal.duration(seconds['total'])} ({times})",
    ]
    worst = report.worst(WORST)
    if worst:
        title = "The layers whose weights lost most" if len(report.layers) > len(worst) else "Layers, worst first"
        lines += ["", terminal.heading(f"{title}:"), *layer_table(worst)]
    said = (reason_lines, source_lines, skipped_lines, slower_lines)
    return lines + [in_flags(line) for part in said for line in part(report)]


def _counted(layers: list[QuantizedLayer]) -> str:
    return ", ".join(f"{kind} ×{n}" for kind, n in Counter(layer.kind for layer in layers).items()) or "none"


def _activation(arguments: argparse.Namespace) -> str:
    return arguments.activation or ("per_token" if arguments.engine == "qruntime" else "per_tensor")


def _scheme(arguments: argparse.Namespace, report: Report) -> str:
    """What the layers became, in words."""
    schemes = {layer.scheme for layer in report.layers}
    words = [text for scheme, text in _SCHEMES.items() if scheme in schemes]
    if schemes & {"per_tensor_affine", "per_channel_affine"}:
        words.append(f"activations uint8 {_activation(arguments).replace('_', ' ')}")
    engine = "" if arguments.engine == "qruntime" else f", as {arguments.engine} computes"
    return (", ".join(words) or "nothing is quantized") + engine


_SCHEMES = {
    "per_tensor_affine": "weights int8 per tensor",
    "per_channel_affine": "weights int8 per channel",
    "float16": "weights float16",
    "per_channel_affine_float_qparams": "embeddings uint8 or uint4 per row",
}
