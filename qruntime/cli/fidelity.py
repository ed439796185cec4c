"""The verdict on a model: whether its outputs are those of another, on inputs that were given or made up."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import qruntime
from qruntime.cli import terminal
from qruntime.cli.arguments import non_negative
from qruntime.cli.code_caches import comparable_outputs, keeps_codes, with_empty_caches
from qruntime.cli.difference import Difference, difference
from qruntime.cli.inputs import make_feeds
from qruntime.cli.made_up import Feed, is_mask
from qruntime.display.text import printable, table
from qruntime.errors import InputError, QRuntimeError

SNR = 20.0
"""Least signal-to-noise ratio of a floating-point output, in decibels: errors of a tenth of the signal's magnitude."""

AGREEMENT = 0.99
"""Least share of equal elements of an output of integers, truth values or strings."""

FEEDS, BATCH, SECONDS = 4, 4, 10.0
"""Feeds that are made up, their batch, and when no further one is run."""

NO_MASK = "none"


class Limits(NamedTuple):
    """What an output must keep to; None where nothing is asked."""

    snr: float | None = SNR
    tolerance: float | None = None
    rtol: float | None = None
    atol: float | None = None

    def __str__(self) -> str:
        names = {"SNR ≥": self.snr, "relative error ≤": self.tolerance, "rtol ≤": self.rtol, "atol ≤": self.atol}
        said = [f"{name} {limit:g}{' dB' if limit is self.snr else ''}" for name, limit in names.items() if limit is not None]
        return ", ".join(said)


class Judged(NamedTuple):
    """One output with its differences over all runs, and whether it passed."""

    output: str
    difference: Difference
    passed: bool


class Verdict(NamedTuple):
    outputs: tuple[Judged, ...]
    runs: int
    mask: str | None
    """The input whose zeros mark what was not compared."""
    caches: tuple[str, ...] = ()
    """Outputs of the candidate that were not compared, as they hold codes of keys and values."""

    @property
    def passed(self) -> bool:
        return all(one.passed for one in self.outputs)


def add_comparison(parser: argparse.ArgumentParser, also: str = "") -> None:
    """--mask, which may `also` be for something else, and the limits."""
    group = parser.add_argument_group("how much difference passes")
    group.add_argument(
        "--snr",
        type=non_negative,
        metavar="DB",
        help=f"least signal-to-noise ratio of an output, in decibels (default: {SNR:g}, unless another limit is given)",
    )
    group.add_argument("--tolerance", type=non_negative, help="largest |a − b| over largest |a| of an output")
    group.add_argument("--rtol", type=non_negative, help="each element: |a − b| ≤ atol + rtol · |a|")
    group.add_argument("--atol", type=non_negative, help="see --rtol; each is 0 when only the other is given")
    group.add_argument(
        "--mask",
        metavar="NAME",
        help="input that is 0 where there is padding: there, outputs of its shape are not compared (default: the one "
        f"called mask, if there is one; {NO_MASK} to compare all){also}",
    )


def limits_of(arguments: argparse.Namespace) -> Limits:
    given = (arguments.snr, arguments.tolerance, arguments.rtol, arguments.atol)
    return Limits() if all(limit is None for limit in given) else Limits(*given)


def judge(
    reference: qruntime.Model,
    candidate: qruntime.Model,
    arguments: argparse.Namespace,
    tell: Callable[[str], None] = terminal.warn,
    seconds: float | None = None,
) -> Verdict:
    """Run both on the same feeds and compare every output. `tell` is called with what was guessed of the feeds. After so many
    `seconds` no further feed is run; None: after `SECONDS` of feeds that are made up, and never of others.

    Raises InputError when the models' inputs or outputs do not correspond, or no feed can be made.
    """
    pairs, caches = _paired_outputs(reference, candidate)
    mask = _mask_name(reference, arguments.mask)
    padded = arguments.mask != NO_MASK
    feeds = make_feeds(reference, arguments, batch=BATCH, count=FEEDS, padded=padded, tell=tell)
    limits = limits_of(arguments)
    sums = {name: Difference() for name, _ in pairs}
    close = dict.fromkeys(sums, True)
    most = seconds or (math.inf if arguments.npz else SECONDS)
    start = time.perf_counter()
    runs = 0
    for feed in feeds:
        if runs and time.perf_counter() - start > most:
            break
        expected, got = reference.run(feed), candidate.run(_renamed(feed, reference, candidate))
        where = None if mask is None or mask not in feed else np.asarray(feed[mask]) != 0
        for name, other in pairs:
            sums[name] += difference(expected[name], got[other], runs, where)
            close[name] &= _is_close(expected[name], got[other], limits)
        runs += 1
    judged = tuple(Judged(name, sums[name], _passes(sums[name], close[name], limits)) for name, _ in pairs)
    return Verdict(judged, runs, mask, tuple(caches))


def _mask_name(model: qruntime.Model, given: str | None) -> str | None:
    if given == NO_MASK:
        return None
    names = [value.name for value in model.graph.inputs]
    if given is not None:
        if given not in names:
            raise InputError(f"--mask {given!r}: no input is called so; there are: {', '.join(names)}")
        return given
    found = [value.name for value in model.graph.inputs if is_mask(value)]
    return found[0] if len(found) == 1 else None


def _passes(found: Difference, is_close: bool, limits: Limits) -> bool:
    if found.mismatch is not None or found.nonfinite:
        return False
    if found.identical:
        return True
    if not found.is_float:
        return found.agreement >= AGREEMENT if limits.snr is not None else is_close
    if limits.snr is not None and not found.snr_db >= limits.snr:
        return False
    if limits.tolerance is not None and not found.relative_error <= limits.tolerance:
        return False
    return is_close


def _is_close(expected: Any, got: Any, limits: Limits) -> bool:
    if limits.rtol is None and limits.atol is None:
        return True
    if not isinstance(expected, np.ndarray) or not isinstance(got, np.ndarray) or expected.shape != got.shape:
        return False
    if expected.dtype == object:
        return bool((expected == got).all())
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(wide), got.astype(wide)
    return bool(np.allclose(b, a, limits.rtol or 0.0, limits.atol or 0.0, equal_nan=True))


def _paired_outputs(a: qruntime.Model, b: qruntime.Model) -> tuple[list[tuple[str, str]], list[str]]:
    """Outputs by name, by position when the names differ and the counts do not; and those of `b` that are caches of codes."""
    if keeps_codes(a, b):
        names, caches = comparable_outputs(a, b)
        return [(name, name) for name in names], caches
    names_a, names_b = [t.name for t in a.outputs], [t.name for t in b.outputs]
    if set(names_a) == set(names_b):
        return [(name, name) for name in names_a], []
    if len(names_a) != len(names_b):
        raise InputError(f"the models have different outputs: {', '.join(names_a)} and {', '.join(names_b)}")
    return list(zip(names_a, names_b, strict=True)), []


def _renamed(feed: Feed, a: qruntime.Model, b: qruntime.Model) -> Feed:
    """The feed of `a` as `b` takes it: by name, or by position when the names differ and the counts do not."""
    if keeps_codes(a, b):
        return with_empty_caches(feed, a, b)
    names_a, names_b = [t.name for t in a.inputs], [t.name for t in b.inputs]
    if set(feed) <= set(names_b):
        return feed
    if len(names_a) != len(names_b):
        raise InputError(f"the models have different inputs: {', '.join(names_a)} and {', '.join(names_b)}")
    names = dict(zip(names_a, names_b, strict=True))
    return {names[name]: value for name, value in feed.items()}


def verdict_lines(verdict: Verdict, arguments: argparse.Namespace) -> list[str]:
    """A table of the outputs, what they were compared on, and the verdict."""
    rows = [("output", "SNR", "cosine", "max abs error", "relative error", "verdict")]
    for judged in verdict.outputs:
        snr, cosine, error, relative = _measures(judged.difference)
        rows.append((judged.output, snr, cosine, error, relative, _words(judged)))
    return [*table(rows, left=(0, 5)), *_worst_lines(verdict), "", *_what_was_compared(verdict, arguments)]


def _measures(found: Difference) -> Sequence[str]:
    if found.mismatch:
        return ("-",) * 4
    if not found.is_float:
        return f"{found.agreement:.2%} equal", "-", f"{found.max_abs_error:.3g}", "-"
    cosine = "-" if found.cosine is None else f"{found.cosine:.6f}"
    return terminal.decibels(found.snr_db), cosine, f"{found.max_abs_error:.3g}", f"{found.relative_error:.3g}"


def _words(judged: Judged) -> str:
    found = judged.difference
    words = "identical" if found.identical and not found.nonfinite else "passed" if judged.passed else "FAILED"
    if found.nonfinite:
        words += f": {found.nonfinite} NaN or infinite on one side only"
    return f"{words}: {found.mismatch}" if found.mismatch else words


def _worst_lines(verdict: Verdict) -> list[str]:
    lines = []
    for judged in verdict.outputs:
        worst = judged.difference.worst
        if worst is not None:
            run = f" of run {worst.run + 1}" if verdict.runs > 1 else ""
            place = f"{printable(judged.output)}[{', '.join(map(str, worst.element))}]{run}"
            lines.append(f"largest difference: {place}, {worst.expected:.6g} became {worst.got:.6g}")
    return ["", *lines] if lines else []


def _what_was_compared(verdict: Verdict, arguments: argparse.Namespace) -> list[str]:
    runs = "1 run" if verdict.runs == 1 else f"{verdict.runs} runs"
    inputs = f"inputs from {printable(arguments.npz)}" if arguments.npz else "inputs that are made up; real ones, with --npz, tell more"
    masked = f"; not where {printable(verdict.mask)} is 0" if verdict.mask else ""
    caches = [f"Not compared, as they hold codes: {', '.join(map(printable, verdict.caches))}."] if verdict.caches else []
    return [f"Compared over {runs} on {inputs}{masked}.", *caches, f"{'Passed' if verdict.passed else 'FAILED'} ({limits_of(arguments)})."]


def verdict_fields(verdict: Verdict, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same for --json."""
    outputs = []
    for name, found, passed in verdict.outputs:
        measured = found.mismatch is None and found.elements > 0
        worst = None if found.worst is None else found.worst._asdict()
        outputs.append({
            "output": name, "passed": passed, "identical": found.identical, "agreement": found.agreement,
            "max_abs_error": found.max_abs_error if measured else None,
            "relative_error": found.relative_error if measured else None,
            "snr_db": found.snr_db if measured else None, "cosine": found.cosine if measured else None,
            "nonfinite_mismatches": found.nonfinite, "mismatch": found.mismatch, "worst": worst,
        })  # fmt: skip
    limits = limits_of(arguments)
    return {
        **limits._asdict(),
        "passed": verdict.passed,
        "runs": verdict.runs,
        "mask": verdict.mask,
        "not_compared": list(verdict.caches),
        "outputs": outputs,
    }


class Cost(NamedTuple):
    """What quantizing did to the outputs, as it is printed."""

    lines: list[str]
    fields: dict[str, Any]
    failed: bool


def cost_of(original: qruntime.Model, model: qruntime.Model, arguments: argparse.Namespace, seconds: float | None = None) -> Cost:
    """Compare the quantized model with the original; where no input for it can be made up, say so."""
    title, guessed = ["", terminal.heading("What it costs:")], list[str]()
    try:
        with terminal.progress("Comparing"):
            verdict = judge(original, model, arguments, guessed.append, seconds)
    except QRuntimeError as error:
        return Cost([*title, f"not measured: {printable(str(error), 300)}"], {"error": str(error)}, False)
    fields = verdict_fields(verdict, arguments)
    return Cost([*title, *verdict_lines(verdict, arguments), *map(printable, guessed)], fields, not verdict.passed)
