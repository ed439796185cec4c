"""How far a long call has come: a bar where `rich` is installed and stderr a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qruntime.errors import QuantizationError

Progress = Callable[[int, int, str], None]

SECONDS_APART = 5.0


@contextmanager
def shown(progress: bool | Progress) -> Iterator[Progress | None]:
    """What to call with (done, total, what): `progress` itself, something that prints to stderr for True, None for False."""
    if callable(progress):
        yield progress
    elif progress is False:
        yield None
    elif progress is not True:
        raise QuantizationError(f"progress must be True, False or a function of (done, total, what), got {progress!r}")
    elif sys.stderr.isatty() and _has_rich():
        with _bar() as advance:
            yield advance
    else:
        yield lines()


def lines() -> Progress:
    """Prints a line for the first and the last of each stage, and otherwise seldom."""
    said: dict[str, float] = {}

    def say(done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if done == total or now - said.get(what, -SECONDS_APART) >= SECONDS_APART:
            said[what] = now
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return say


def _has_rich() -> bool:
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def advance(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield advance
