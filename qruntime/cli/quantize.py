"""`qruntime quantize`: a method of a paper, from file to file."""

from __future__ import annotations

import argparse
import os
from typing import Any

import qruntime
from qruntime.cli import terminal
from qruntime.cli.arguments import (
    Subparsers,
    Usage,
    add_command,
    add_inputs,
    add_json,
    add_threads,
    byte_count,
    whole_number,
)
from qruntime.cli.conversion import Converted, add_files, add_selection, check_patterns, conclude, convert_file, fields, lines
from qruntime.cli.fidelity import NO_MASK, SECONDS, Cost, add_comparison, cost_of
from qruntime.cli.inputs import with_files
from qruntime.cli.methods import ListMethods, composed, methods
from qruntime.cli.outputs import check_writable, write_text
from qruntime.errors import CalibrationError, QuantizationError
from qruntime.quantization.recipe import Recipe
from qruntime.quantization.request import Request
from qruntime.quantization.scheme import parse
from qruntime.quantization.selection import layer_kind


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "quantize",
        "quantize a model by the method of a paper: weights of 2 to 8 bits, with calibration data where the method needs them",
        "qruntime quantize model.onnx model.int4.onnx --method gptq --scheme W4A16-g128 --data calibration/\n"
        "  qruntime quantize model.onnx model.w8a8.onnx --method smoothquant,gptq --scheme W8A8 --data calibration/ --mask mask\n"
        "  qruntime quantize model.onnx model.int4.onnx --scheme W4A8-g32 --override head=W8A8 embeddings=none\n"
        "  qruntime quantize --list",
    )
    add_files(parser, "quantized")
    parser.add_argument("--list", action=ListMethods, help="list the methods with their schemes and steps, and exit")
    parser.add_argument(
        "--method",
        type=methods,
        action="append",
        default=[],
        metavar="NAME",
        help="a name that --list shows, whatever its case; several, with commas or repeated, are taken in this order; a step with "
        "arguments is written SmoothQuant(alpha=0.8) (default: round to nearest)",
    )
    parser.add_argument(
        "--scheme",
        type=_scheme,
        help="what the numbers look like: W4A16-g128, W8A8, Wnf4A16-g64, W8A8-static, … (default: that of the method)",
    )
    parser.add_argument(
        "--override",
        nargs="+",
        action="extend",
        type=_override,
        default=[],
        metavar="PATTERN=SCHEME",
        help="another scheme for a kind, an operator, a name or a module path, or =none to leave it float",
    )
    add_selection(parser)
    group = parser.add_argument_group("calibration")
    group.add_argument("--data", metavar="PATH", help="an .npz file with the inputs of one run by name, or a folder of such")
    group.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of methods that draw numbers (default: %(default)s)")
    group.add_argument(
        "--calibration-bytes",
        type=byte_count,
        metavar="SIZE",
        help="most memory for tensors that wait, as 500MB or 4GB; what is more lies in a temporary file (default: a quarter of "
        "what is free)",
    )
    parser.add_argument("--no-compare", action="store_true", help="do not run both models to say what quantizing costs in accuracy")
    add_comparison(parser, "; where it is given, padding in --data does not count either")
    add_inputs(parser, "--data")
    add_threads(parser)
    add_json(parser)
    parser.add_argument("--report", metavar="FILE", help="write what --json prints to a file as well")
    parser.set_defaults(run=run)


def _scheme(text: str) -> str:
    try:
        parse(text)
    except QuantizationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _override(text: str) -> tuple[str, str | None]:
    pattern, separator, scheme = text.rpartition("=")
    if not separator or not pattern:
        raise argparse.ArgumentTypeError(f"needs PATTERN=SCHEME or PATTERN=none, got {text!r}")
    return pattern, None if scheme.lower() == "none" else _scheme(scheme)


def run(arguments: argparse.Namespace) -> int:
    recipe = composed([part for given in arguments.method for part in given])
    _check_report(arguments)
    done = convert_file(arguments, lambda original: _quantized(arguments, recipe, original))
    cost = None if arguments.no_compare or not done.is_quantized else _cost(arguments, done)
    told = fields(arguments, done, _asked(arguments, recipe), cost)
    if arguments.json:
        terminal.json_result("quantize", told)
    else:
        terminal.result(lines(arguments, done, {"method": recipe.name, "scheme": _scheme_of(arguments, recipe)}, cost))
    if arguments.report is not None:
        write_text(arguments.report, terminal.json_text("quantize", told))
    return conclude(arguments, done, cost, "more bits, smaller groups (-g32) or a method that takes --data")


def _check_report(arguments: argparse.Namespace) -> None:
    if arguments.report is None:
        return
    check_writable(arguments.report, replaces=True)
    if os.path.realpath(arguments.report) in map(os.path.realpath, (arguments.input, arguments.output)):
        raise Usage(f"--report {arguments.report!r} is a model of this call; give the report a file of its own")


def _quantized(arguments: argparse.Namespace, recipe: Recipe, original: qruntime.Model) -> qruntime.Model:
    _check_patterns(arguments, recipe, original)
    tells = bool(arguments.data) or recipe.training is not None
    try:
        with terminal.progress("" if tells else "Quantizing"):
            return original.quantize(
                recipe,
                scheme=arguments.scheme,
                data=arguments.data,
                overrides=dict(arguments.override),
                only=arguments.only,
                exclude=arguments.exclude,
                mask=None if arguments.mask == NO_MASK else arguments.mask,
                calibration_bytes=arguments.calibration_bytes,
                seed=arguments.seed,
                progress=tells and terminal.is_shown(),
                strict=arguments.strict,
            )
    except CalibrationError as error:
        raise CalibrationError(with_files(str(error), "data", arguments.data)) from error


def _check_patterns(arguments: argparse.Namespace, recipe: Recipe, original: qruntime.Model) -> None:
    """Before any work: a wrong name should not cost a calibration."""
    request = Request(_scheme_of(arguments, recipe), dict(arguments.override), arguments.only, arguments.exclude)
    nodes = list(original.graph.walk_nodes())
    excluded = (pattern for pattern, scheme in arguments.override if scheme is None)
    limits = (*(arguments.only or ()), *arguments.exclude, *excluded)
    check_patterns(original, request.idle([node for node in nodes if layer_kind(node)], nodes), limits)


def _cost(arguments: argparse.Namespace, done: Converted) -> Cost:
    """On inputs of --npz, else on as many of the calibration data as a few seconds allow."""
    if arguments.npz is not None or arguments.data is None:
        return cost_of(done.original, done.model, arguments)
    arguments.npz = arguments.data
    return cost_of(done.original, done.model, arguments, seconds=SECONDS)


def _asked(arguments: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    return {
        "method": recipe.name,
        "steps": [str(step) for step in recipe.steps],
        "scheme": _scheme_of(arguments, recipe),
        "overrides": dict(arguments.override),
        "data": arguments.data,
        "seed": arguments.seed,
    }


def _scheme_of(arguments: argparse.Namespace, recipe: Recipe) -> str:
    return arguments.scheme or recipe.scheme
