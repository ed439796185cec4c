"""Arguments that several commands take."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from qruntime.quantization.torch_names.specification import EMBEDDINGS_HINT

Subparsers = Any  # argparse._SubParsersAction: the class has no public name


class Usage(Exception):
    """Arguments that do not fit together; the message says what to do."""


class Command(argparse.ArgumentParser):
    """A parser in which an option of several values leaves the positional arguments theirs, wherever they stand.

    argparse gives `convert --exclude head in.onnx out.onnx` three patterns and no files. What follows such an option
    last is given back as far as files are missing, and all files go before the options.
    """

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        return super().parse_known_args(None if args is None else self._positionals_first(list(args)), namespace)

    def _positionals_first(self, args: list[str]) -> list[str]:
        needed = sum(not action.option_strings for action in self._actions)
        free: list[int] = []  # places of positional arguments
        several: list[int] = []  # places that a positional argument may be given back from
        at, end = 0, args.index("--") if "--" in args else len(args)
        while at < end:
            nargs = self._nargs(args[at])
            at += 1
            if nargs is _POSITIONAL:
                free.append(at - 1)
            elif nargs is None:
                at += 1
            elif nargs == "+":
                start = at
                while at < end and not args[at].startswith("-"):
                    at += 1
                several += range(start + 1, at)
        missing = needed - len(free) - len(args[end + 1 :])
        free = sorted([*free, *several[-missing:]] if missing > 0 else free)
        rest = [arg for i, arg in enumerate(args[:end]) if i not in free]
        return [*(args[i] for i in free), *rest, *args[end:]]

    def _nargs(self, arg: str) -> int | str | None:
        """Arguments that follow `arg` where it is an option: a number, "+", or None for one."""
        if not arg.startswith("-") or arg == "-":
            return _POSITIONAL
        if "=" in arg:
            return 0
        named = {action.nargs for action in self._actions for option in action.option_strings if option.startswith(arg)}
        return named.pop() if len(named) == 1 else 0


_POSITIONAL = "positional"


def add_command(subparsers: Subparsers, name: str, help: str, example: str) -> argparse.ArgumentParser:
    return subparsers.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object with a field `schema`")


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=positive_int, metavar="N", help="most threads one run uses (default: what this process may)")


def add_inputs(parser: argparse.ArgumentParser, data: str = "") -> None:
    """`data`: another option that may give them."""
    without = f"--npz and {data}" if data else "--npz"
    group = parser.add_argument_group("inputs", f"Without {without} they are random (always the same), of the declared types.")
    group.add_argument(
        "--npz",
        metavar="FILE",
        help="read inputs by name from a NumPy .npz file, or from each in a folder; the others are made up",
    )
    group.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=DIMS",
        help="shape of an input (ids=1,128) or value of a symbolic dimension (batch=8); may be repeated",
    )
    group.add_argument(
        "--fill",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="fill an input with one number; may be repeated",
    )


def positive_int(text: str) -> int:
    value = int(text) if text.isascii() and text.isdecimal() else 0
    if not 1 <= value <= 1 << 20:
        raise argparse.ArgumentTypeError(f"needs a whole number of at least 1, got {text!r}")
    return value


def whole_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise argparse.ArgumentTypeError(f"needs a whole number of at least 0, got {text!r}")
    return int(text)


_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}


def byte_count(text: str) -> int:
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?) ?([kmgt]?)b?", text.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"needs a number of bytes, as 500MB or 4GB, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])


def non_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"needs a number of at least 0, got {text!r}")
    return value


_FLAGS = (
    (EMBEDDINGS_HINT, "--qconfig Embedding=quint8 quantizes embeddings too, --dtype quint8 them alone"),
    ("float_qparams_weight_only_qconfig (dtype='quint8'), or its 4-bit form (dtype='quint4x2')", "--qconfig NAME=quint8, or NAME=quint4x2"),
    ("per_channel has no meaning for dtype='float16'", "--per-channel has no meaning for --dtype float16"),
    ("faster_only=True", "--faster-only"),
    ("strict=True", "--strict"),
    ("give data=, a list of feeds {input name: array}", "give --data, an .npz file with the inputs of a run by name, or a folder of such"),
    ("overrides=", "--override"),
    ("name it: NextToken(ids=…)", "name it with --ids"),
    ("name it: NextToken(logits=…)", "name it with --logits"),
    ("targets=", "--targets "),
    ("mask=", "--mask "),
    ("in scheme=", "in --scheme"),
    ("exclude=", "--exclude"),
    ("only=", "--only"),
    ("qconfig_spec or mapping", "--kinds or --qconfig"),
    ("qconfig_spec", "--kinds or --qconfig"),
)
"""What messages say in the words of Python, and how the command line says it."""


def in_flags(text: str) -> str:
    """A message of `quantize_dynamic`, `quantize` or `finetune` for those who gave its arguments as flags."""
    for words, flags in _FLAGS:
        text = text.replace(words, flags)
    return text
