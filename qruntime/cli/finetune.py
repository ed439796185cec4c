"""`qruntime finetune`: what a quantized model learns beside its codes, into a small file."""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import qruntime
from qruntime.cli import terminal
from qruntime.cli.arguments import (
    Subparsers,
    Usage,
    add_command,
    add_json,
    add_threads,
    in_flags,
    non_negative,
    positive_int,
    whole_number,
)
from qruntime.cli.inputs import with_files
from qruntime.cli.outputs import check_not_the_input, check_writable
from qruntime.display.facts import counted_texts
from qruntime.display.text import printable
from qruntime.errors import CalibrationError, counted
from qruntime.quantization.tuning.engine import check_engine

if TYPE_CHECKING:
    from qruntime.quantization.finetuning import Method


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "finetune",
        "teach a quantized model a task beside its codes, which stay bit for bit: by PEQA or QLoRA, into a small file; needs torch",
        "qruntime finetune model.int4.onnx --method peqa --data train/ --adapter task.npz --epochs 3\n"
        "  qruntime finetune model.onnx --base model.nf4.onnx --method qlora --rank 8 --data train/ --adapter task.npz",
    )
    parser.add_argument("input", help="the ONNX model, quantized; a float one is quantized first, see --base")
    parser.add_argument("--method", required=True, type=str.lower, choices=["peqa", "qlora"])
    parser.add_argument("--adapter", required=True, metavar="FILE", help="the .npz file to write what was learned to")
    parser.add_argument("--base", metavar="FILE", help="where to write the quantized form of a float model, to which the adapter belongs")
    parser.add_argument("--output", metavar="FILE", help="write the model with the adapter in it as well")
    parser.add_argument("--start", metavar="FILE", help="an adapter to go on from, with its layers and its rank")
    parser.add_argument("--scheme", help="of the codes of a float model (default: W3A16 for peqa, Wnf4A16-g64-double for qlora)")
    parser.add_argument(
        "--targets", nargs="+", action="extend", metavar="PATTERN", help="train these layers alone: names, module paths, globs, kinds"
    )
    parser.add_argument("--rank", type=positive_int, metavar="N", help="of the branches of qlora (default: 16)")
    parser.add_argument("--alpha", type=non_negative, metavar="X", help="of the branches of qlora (default: 16)")
    group = parser.add_argument_group("data")
    group.add_argument("--data", required=True, metavar="PATH", help="an .npz file with the inputs of a run by name, or a folder of such")
    group.add_argument("--validation", metavar="PATH", help="likewise: what did best on these stays")
    group.add_argument("--loss", choices=["next_token"], default="next_token", help="what is made less (default: %(default)s)")
    group.add_argument("--ids", metavar="NAME", help="the input that holds tokens (default: it is found)")
    group.add_argument("--logits", metavar="NAME", help="the output that holds logits (default: it is found)")
    group.add_argument("--mask", metavar="NAME", help="what is 0 at tokens that do not count (default: attention_mask where there is one)")
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=positive_int, default=1, metavar="N", help="passes over the data (default: %(default)s)")
    group.add_argument("--steps", type=positive_int, metavar="N", help="as many steps, whatever --epochs says")
    group.add_argument("--batch", type=positive_int, default=1, metavar="N", help="files in a step (default: %(default)s)")
    group.add_argument("--lr", type=non_negative, metavar="X", help="the rate of the first step (default: that of the method)")
    group.add_argument(
        "--seed", type=whole_number, default=0, metavar="N", help="of the order and of first branches (default: %(default)s)"
    )
    group.add_argument("--checkpoint", metavar="FILE", help="where a run that was stopped goes on; written ten times in a pass")
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from qruntime.quantization.finetuning import has_codes

    method = _method(arguments)
    _check_files(arguments)
    start = time.perf_counter()
    with terminal.progress(f"Loading {arguments.input}"):
        model = qruntime.load(arguments.input, threads=arguments.threads)
    is_float = not has_codes(model.graph)
    _check_base(arguments, is_float)
    check_engine("finetune")
    if is_float:
        with terminal.progress("Quantizing"):
            model = model.quantize(scheme=arguments.scheme or method.scheme)
    if arguments.start is not None:
        model.load_adapter(arguments.start)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tuned = _tuned(arguments, method, model)
    for warning in caught:
        terminal.warn(printable(in_flags(str(warning.message)), limit=1000))
    if is_float:
        if model.adapter is not None:
            model.unload_adapter()
        model.save(arguments.base)
    tuned.save_adapter(arguments.adapter)
    if arguments.output is not None:
        tuned.save(arguments.output)
    told = _fields(arguments, tuned, time.perf_counter() - start)
    if arguments.json:
        terminal.json_result("finetune", told)
    else:
        terminal.result(_lines(arguments, tuned, told))
    return 0


def _method(arguments: argparse.Namespace) -> Method:
    from qruntime.quantization.finetuning import method_of
    from qruntime.quantization.methods.qlora import QLoRA

    given = {name: getattr(arguments, name) for name in ("rank", "alpha") if getattr(arguments, name) is not None}
    made: Any = method_of(arguments.method)
    if given and not isinstance(made, QLoRA):
        raise Usage(f"--{next(iter(given))} is for --method qlora")
    return replace(made, targets=arguments.targets, **given)


def _check_files(arguments: argparse.Namespace) -> None:
    written = {
        name: getattr(arguments, name) for name in ("adapter", "base", "output", "checkpoint") if getattr(arguments, name) is not None
    }
    for path in written.values():
        check_not_the_input(arguments.input, path)
        check_writable(path, replaces=True)
    if len({os.path.realpath(path) for path in written.values()}) < len(written):
        raise Usage(f"{' and '.join(f'--{name}' for name in written)} need files of their own")


def _check_base(arguments: argparse.Namespace, is_float: bool) -> None:
    if is_float and arguments.base is None:
        raise Usage(
            f"{arguments.input!r} is float, and an adapter belongs to codes: name a file for its quantized form with --base, "
            "or quantize it first with: qruntime quantize"
        )
    if not is_float and (arguments.base is not None or arguments.scheme is not None):
        raise Usage(f"{arguments.input!r} is quantized already, and its codes stay: leave --base and --scheme out")


def _tuned(arguments: argparse.Namespace, method: Method, model: qruntime.Model) -> qruntime.Model:
    from qruntime.quantization.tuning.next_token import NextToken

    try:
        return model.finetune(
            method,
            arguments.data,
            loss=NextToken(arguments.ids, arguments.logits, arguments.mask),
            validation=arguments.validation,
            epochs=arguments.epochs,
            steps=arguments.steps,
            lr=arguments.lr,
            batch=arguments.batch,
            seed=arguments.seed,
            checkpoint=arguments.checkpoint,
            progress=terminal.is_shown(),
        )
    except CalibrationError as error:
        text = with_files(str(error), "data", arguments.data)
        raise CalibrationError(with_files(text, "validation", arguments.validation)) from error


def _fields(arguments: argparse.Namespace, tuned: qruntime.Model, seconds: float) -> dict[str, Any]:
    adapter = tuned.adapter
    assert adapter is not None
    return {
        "input": arguments.input,
        "adapter": arguments.adapter,
        "base": arguments.base,
        "output": arguments.output,
        "method": adapter.method,
        "settings": dict(adapter.settings),
        "parameters": adapter.parameters,
        "adapter_bytes": os.path.getsize(arguments.adapter),
        "layers": list(adapter.layers),
        "untouched": dict(adapter.untouched),
        "losses": list(adapter.losses),
        "seed": arguments.seed,
        "seconds": seconds,
    }


def _lines(arguments: argparse.Namespace, tuned: qruntime.Model, told: Mapping[str, Any]) -> list[str]:
    losses, untouched = told["losses"], told["untouched"]
    head = {
        "method": told["method"],
        "trained": f"{told['parameters']:,} parameters in {counted(len(told['layers']), 'layer')}",
        "loss": f"{losses[0]:.4g} → {losses[-1]:.4g} in {counted(len(losses), 'step')}",
        "adapter": f"{terminal.size(told['adapter_bytes'])}",
        "time": terminal.duration(told["seconds"]),
    }
    said = [terminal.heading(f"{printable(arguments.input)} → {printable(arguments.adapter)}")]
    said += [f"  {title:<9}  {text}" for title, text in head.items()]
    if untouched:
        said += ["", f"{counted(len(untouched), 'layer')} not trained: {printable(counted_texts(list(untouched.values())), limit=1000)}"]
    return said
