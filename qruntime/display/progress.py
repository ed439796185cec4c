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
def shown(progress: bool | Progress, *, of_steps: bool = False) -> Iterator[Progress | None]:
    """What to call with (done, total, what): `progress` itself, something that prints to stderr for True, None for False.

    What is done are stages that are named; `of_steps`: the steps of one training, and what says how it goes.
    """
    if callable(progress):
        yield progress
    elif progress is False:
        yield None
    elif progress is not True:
        raise QuantizationError(f"progress must be True, False or a function of (done, total, what), got {progress!r}")
    elif sys.stderr.isatty() and _has_rich():
        with _bar(of_steps) as advance:
            yield advance
    else:
        yield lines(of_steps)


def lines(of_steps: bool = False) -> Progress:
    """Prints a line for the first and the last of each stage, and otherwise seldom."""
    said: dict[str, float] = {}

    def say(done: int, total: int, what: str) -> None:
        now, stage = time.monotonic(), "" if of_steps else what
        if done == total or now - said.get(stage, -SECONDS_APART) >= SECONDS_APART:
            said[stage] = now
            line = f"{done} of {total} steps: {what}" if of_steps else f"{what}: {done} of {total}"
            print(line, file=sys.stderr, flush=True)

    return say


def _has_rich() -> bool:
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def _bar(of_steps: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def advance(done: int, total: int, what: str) -> None:
            stage = "" if of_steps else what
            if stage not in tasks:
                tasks[stage] = bars.add_task(what, total=total)
            bars.update(tasks[stage], completed=done, total=total, description=what)

        yield advance
