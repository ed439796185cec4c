"""Arguments that several commands take."""

from __future__ import annotations

import argparse
from typing import Any

Subparsers = Any  # argparse._SubParsersAction: the class has no public name


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
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="most threads one run uses (default: what this process may)"
    )


def add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "inputs", "Without --npz they are random (always the same), of the declared types."
    )
    group.add_argument(
        "--npz", metavar="FILE", help="read inputs by name from a NumPy .npz file; the others are made up"
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


def non_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"needs a number of at least 0, got {text!r}")
    return value
