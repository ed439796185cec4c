"""The `qruntime` command: its subcommands, and what becomes of errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

import qruntime
from qruntime.cli import bench, compare, convert, finetune, inspect, quantize, terminal
from qruntime.cli.arguments import Command, Usage, in_flags
from qruntime.errors import (
    CalibrationError,
    InputError,
    InvalidModel,
    KernelUnavailable,
    PackageMissing,
    QRuntimeError,
    QuantizationError,
    RunError,
    SaveError,
    SettingError,
    UnsupportedModel,
    UnsupportedOp,
)

OK, DIFFERENT, USAGE, BAD_MODEL, UNSUPPORTED, FAILED = range(6)
INTERRUPTED, BROKEN_PIPE = 130, 141  # as shells report SIGINT and SIGPIPE

COMMANDS = (convert, quantize, finetune, inspect, bench, compare)

EPILOG = """\
exit codes: 0 done, 1 the comparison failed or no layer was quantized, 2 wrong usage, 3 not a valid or readable model,
4 the model needs something unsupported, 5 running or writing failed, 130 interrupted

environment: QRUNTIME_ISA caps the instruction set, QRUNTIME_NUM_THREADS sets the threads,
QRUNTIME_DEBUG=1 shows Python tracebacks, NO_COLOR=1 switches colours off

examples:
  qruntime convert model.onnx model.int8.onnx
  qruntime quantize model.onnx model.int4.onnx --method gptq --data calibration/
  qruntime finetune model.int4.onnx --method peqa --data train/ --adapter task.npz
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without ×
    try:
        code = _run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get("QRUNTIME_DEBUG") == "1":
            raise
        code, message = explain(error)
        terminal.error(message)
        if isinstance(error, OSError):
            _discard_output()
        return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = make_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else USAGE
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


def _discard_output() -> None:
    """What is left in the buffer of stdout must not fail again when Python flushes it on its way out."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qruntime",
        description="Quantize, inspect, time and compare ONNX models on this CPU.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"qruntime {qruntime.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Command)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def explain(error: Exception) -> tuple[int, str]:
    """Exit code, and the message with what to do next."""
    text = str(error).rstrip(". ") or type(error).__name__
    if isinstance(error, InvalidModel):
        return BAD_MODEL, f"{text}. Check the file, or export the model again."
    if isinstance(error, UnsupportedOp):
        return UNSUPPORTED, f"{text}."
    if isinstance(error, UnsupportedModel):
        return UNSUPPORTED, f"{text}. Export the model without it, or report it with the model."
    if isinstance(error, (KernelUnavailable, PackageMissing, SettingError, Usage)):
        return USAGE, f"{text}."
    if isinstance(error, CalibrationError):
        return USAGE, f"{in_flags(text)}. See the inputs with: qruntime inspect MODEL"
    if isinstance(error, QuantizationError):
        return USAGE, f"{in_flags(text)}. See the names of the layers with: qruntime inspect --nodes MODEL"
    if isinstance(error, InputError):
        return USAGE, f"{text}. See the inputs with: qruntime inspect MODEL; feed your own with --npz FILE."
    if isinstance(error, RunError):
        return FAILED, f"{text}. Feed other inputs with --shape, --fill or --npz."
    if isinstance(error, SaveError):
        return FAILED, f"{text}. Choose another output path, or make room and run it again."
    if isinstance(error, QRuntimeError):
        return FAILED, f"{text}. For the place in the code, set QRUNTIME_DEBUG=1 and run it again."
    if isinstance(error, OSError) and error.filename is not None:
        return (
            BAD_MODEL,
            f"cannot read {error.filename!r}: {error.strerror or text}. Check the path and its permissions.",
        )
    if isinstance(error, OSError):
        return FAILED, f"{text}. Check where the output goes."
    if isinstance(error, MemoryError):
        return (
            FAILED,
            f"out of memory{f' ({text})' if str(error) else ''}. Use smaller shapes (--shape) or fewer threads.",
        )
    return (
        FAILED,
        f"unexpected {type(error).__name__}: {text}. Run it again with QRUNTIME_DEBUG=1 and report the traceback.",
    )
