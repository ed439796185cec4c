"""Which share of a run no kernel of ours computed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import qruntime
from qruntime.cli import terminal
from qruntime.cli.inputs import make_feeds
from qruntime.display.text import printable
from qruntime.errors import QRuntimeError
from qruntime.runtime.profile import Profile

REPEAT = 3

WIDEST = 200
"""Characters of what the names in a model make of a line."""


class RunShare(NamedTuple):
    """A profiled run on `shapes`, or why there was none."""

    profile: Profile | None
    shapes: dict[str, list[int]]
    guesses: tuple[str, ...] = ()
    reason: str = ""

    def fields(self) -> dict[str, Any]:
        if self.profile is None:
            return {"seconds": None, "reason": self.reason}
        slow = [
            {"operator": op, "ran_as": source, "nodes": count, "share": share} for op, source, count, share in self.profile.without_kernel()
        ]
        return {
            "seconds": self.profile.seconds,
            "inputs": self.shapes,
            "guessed": list(self.guesses),
            "shares": self.profile.shares(),
            "without_kernel": slow,
        }

    def lines(self) -> Iterator[str]:
        if self.profile is None:
            yield f"time: not measured, {printable(self.reason, WIDEST)}"
            return
        fed = ", ".join(f"{printable(name)}[{', '.join(map(str, shape))}]" for name, shape in self.shapes.items()) or "no inputs"
        shares = ", ".join(f"{share:.1%} {source}" for source, share in self.profile.shares().items())
        yield f"time: {terminal.duration(self.profile.seconds)} on {printable(fed, WIDEST)}: {shares or 'no nodes'}"
        slow = [(op, source, count, share) for op, source, count, share in self.profile.without_kernel() if share >= 0.001]
        if slow:
            yield "  not native: " + ", ".join(f"{printable(op)} ×{count} {share:.1%} ({source})" for op, source, count, share in slow)
        if self.guesses:
            yield f"  guessed {printable('; '.join(self.guesses), WIDEST)}. Choose with --shape, --fill or --npz."


def run_share(model: qruntime.Model, arguments: argparse.Namespace) -> RunShare:
    """Profile a run of `model` on inputs read or made up as `arguments` say, unless it cannot be run."""
    told: list[str] = []
    try:
        feed = make_feeds(model, arguments, tell=told.append)[0]
        model.run(feed)
        profile = model.profile(feed, repeat=REPEAT)
    except QRuntimeError as error:
        if arguments.npz or arguments.shape or arguments.fill:
            raise  # about what somebody asked for
        return RunShare(None, {}, reason=str(error))
    guesses = tuple(text.removeprefix("guessed ").partition(". Choose with")[0] for text in told)
    return RunShare(profile, {name: list(np.shape(value)) for name, value in feed.items()}, guesses)
