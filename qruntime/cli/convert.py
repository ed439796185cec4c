"""`qruntime convert`: load, quantize, save, and say what was done."""

from __future__ import annotations

import argparse

import qruntime
from qruntime.cli import terminal
from qruntime.cli.arguments import Subparsers, add_command, add_inputs, add_json, add_threads
from qruntime.cli.conversion import add_files, add_selection, check_patterns, conclude, convert_file, fields, lines
from qruntime.cli.fidelity import add_comparison, cost_of
from qruntime.errors import QuantizationError
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
from qruntime.quantization.report import Report
from qruntime.quantization.selection import EMBEDDINGS, KINDS, pattern_name
from qruntime.quantization.torch_names.specification import DTYPES, default_kinds

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
    add_files(parser, "int8")
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
    add_selection(parser)
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
    done = convert_file(arguments, lambda original: _quantized(arguments, original))
    report = done.model.report
    cost = None if arguments.no_compare or not report.layers else cost_of(done.original, done.model, arguments)
    if arguments.json:
        asked = {
            "dtype": _dtype(arguments),
            "per_channel": arguments.per_channel,
            "activation": _activation(arguments),
            "engine": arguments.engine,
        }
        terminal.json_result("convert", fields(arguments, done, asked, cost))
    else:
        terminal.result(lines(arguments, done, {"scheme": _scheme(arguments, report)}, cost))
    return conclude(arguments, done, cost, "--per-channel")


def _quantized(arguments: argparse.Namespace, original: qruntime.Model) -> qruntime.Model:
    spec, per_channel = _specification(arguments)
    with terminal.progress("Quantizing"):
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
    excluded = (pattern for pattern, qconfig in arguments.qconfig if qconfig is None)
    check_patterns(model, model.report.idle, (*(arguments.only or ()), *arguments.exclude, *excluded))
    return model


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
