"""What the commands write: results to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from qruntime.display.text import printable
from qruntime.quantization.json_values import json_value

SCHEMA = 1
"""Of the objects that --json prints: raised when a field changes its meaning or goes away."""


def result(lines: Iterable[str]) -> None:
    """Print the result of a command."""
    for line in lines:
        print(line)


def json_result(command: str, fields: dict[str, Any]) -> None:
    """Print the result as one JSON object. What JSON cannot say (NaN, infinity) becomes null."""
    print(json_text(command, fields))


def json_text(command: str, fields: dict[str, Any]) -> str:
    return json.dumps({"schema": SCHEMA, "command": command, **json_value(fields)}, indent=2, allow_nan=False)


def note(text: str) -> None:
    """Tell the user something that is not the result."""
    _to_stderr(f"{style('note:', '36', sys.stderr)} {text}")


def warn(text: str) -> None:
    _to_stderr(f"{style('warning:', '33', sys.stderr)} {text}")


def error(text: str) -> None:
    """One line, whatever the message holds."""
    message = " ".join(text.split())
    _to_stderr(f"qruntime: {style('error:', '31', sys.stderr)} {printable(message, limit=2000)}")


def _to_stderr(line: str) -> None:
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError):  # closed: nobody listens
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Show `text` on a terminal while the block runs, and wipe it afterwards; nothing where there is no text."""
    shown = bool(text) and is_shown()
    if shown:
        print(f"{text} …", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def is_shown() -> bool:
    """Whether somebody sees how far a command has come."""
    return is_terminal(sys.stderr)


def heading(text: str) -> str:
    return style(text, "1", sys.stdout)


def style(text: str, code: str, stream: TextIO | None) -> str:
    """`text` in an ANSI style where `stream` is a terminal that wants it."""
    if os.environ.get("NO_COLOR") or not is_terminal(stream):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def size(count: float) -> str:
    """Bytes as people read them: 4.4 MB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def duration(seconds: float) -> str:
    """Three significant digits in the unit that suits: 7.71 ms."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 1000:
            return f"{_three_digits(seconds * factor)} {unit}"
    return f"{_three_digits(seconds)} s"


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f}" if value >= 1 else f"{value:.3g}"


def decibels(value: float) -> str:
    return "exact" if value == math.inf else "?" if math.isnan(value) else f"{value:.1f} dB"
