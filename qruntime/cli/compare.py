"""`qruntime compare`: how far the outputs of two models lie apart on the same inputs."""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

import qruntime
from qruntime.cli import terminal
from qruntime.cli.arguments import Subparsers, add_command, add_inputs, add_json, add_threads, non_negative
from qruntime.cli.inputs import make_inputs
from qruntime.errors import InputError
from qruntime.quantization.printing import printable, table

TOLERANCE = 0.1


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "compare",
        "run two models on the same inputs and compare their outputs; exit code 1 when they lie too far apart",
        "qruntime compare model.onnx model.int8.onnx --shape ids=1,128 --tolerance 0.05",
    )
    parser.add_argument("reference", help="the ONNX model to compare with")
    parser.add_argument("candidate", help="the ONNX model in question")
    group = parser.add_argument_group("how much difference passes")
    group.add_argument(
        "--tolerance",
        type=non_negative,
        help=f"largest |a − b| over largest |a| of an output (default: {TOLERANCE}, unless --rtol or --atol is given)",
    )
    group.add_argument("--rtol", type=non_negative, help="each element: |a − b| ≤ atol + rtol · |a|")
    group.add_argument("--atol", type=non_negative, help="see --rtol; each is 0 when only the other is given")
    add_inputs(parser)
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.tolerance is None and arguments.rtol is None and arguments.atol is None:
        arguments.tolerance = TOLERANCE
    with terminal.progress("Loading"):
        reference = qruntime.load(arguments.reference, threads=arguments.threads)
        candidate = qruntime.load(arguments.candidate, threads=arguments.threads)
    pairs = _paired_outputs(reference, candidate)
    feed = make_inputs(reference, arguments)
    with terminal.progress("Running"):
        expected = reference.run(feed)
        got = candidate.run(_renamed(feed, reference, candidate))
    results = [{"output": a, **difference(expected[a], got[b])} for a, b in pairs]
    for one in results:
        one["passed"] = _passes(one, expected[one["output"]], got[dict(pairs)[one["output"]]], arguments)
    passed = all(one["passed"] for one in results)
    if arguments.json:
        limits = {"tolerance": arguments.tolerance, "rtol": arguments.rtol, "atol": arguments.atol}
        files = {"reference": arguments.reference, "candidate": arguments.candidate}
        terminal.json_result("compare", {**files, **limits, "passed": passed, "outputs": results})
    else:
        terminal.result(_lines(arguments, results, passed))
    if not passed:
        terminal.note(
            f"list the layers with the noisiest weights: qruntime inspect {arguments.candidate}; "
            "then convert with --per-channel, or leave some as float with --exclude"
        )
    return 0 if passed else 1


def _paired_outputs(a: qruntime.Model, b: qruntime.Model) -> list[tuple[str, str]]:
    """Outputs by name; by position when the names differ and the counts do not."""
    names_a, names_b = [t.name for t in a.outputs], [t.name for t in b.outputs]
    if set(names_a) == set(names_b):
        return [(name, name) for name in names_a]
    if len(names_a) != len(names_b):
        raise InputError(f"the models have different outputs: {', '.join(names_a)} and {', '.join(names_b)}")
    return list(zip(names_a, names_b, strict=True))


def _renamed(feed: dict[str, Any], a: qruntime.Model, b: qruntime.Model) -> dict[str, Any]:
    """The feed of `a` as `b` calls it: by name, or by position when the names differ and the counts do not."""
    names_a, names_b = [t.name for t in a.inputs], [t.name for t in b.inputs]
    if set(feed) <= set(names_b):
        return feed
    if len(names_a) != len(names_b):
        raise InputError(f"the models have different inputs: {', '.join(names_a)} and {', '.join(names_b)}")
    names = dict(zip(names_a, names_b, strict=True))
    return {names[name]: value for name, value in feed.items()}


def difference(expected: Any, got: Any) -> dict[str, Any]:
    """Measures of how far `got` lies from `expected`.

    `max_abs_error`; `relative_error`, which is that over the largest |expected|; `snr_db`, power of expected over
    power of the difference; `cosine`. Elements where both are NaN or the same infinity agree; where only one is,
    they are counted in `nonfinite_mismatches` and left out. `mismatch` says why outputs cannot be compared.
    """
    none: dict[str, Any] = {
        "max_abs_error": math.nan,
        "relative_error": math.nan,
        "snr_db": math.nan,
        "cosine": math.nan,
    }
    none |= {"identical": False, "nonfinite_mismatches": 0, "mismatch": None}
    if not isinstance(expected, np.ndarray) or not isinstance(got, np.ndarray):
        same = _same(expected, got)
        return {**none, "identical": same, "mismatch": None if same else "not tensors, and not equal"}
    if expected.shape != got.shape:
        return {**none, "mismatch": f"shapes {list(expected.shape)} and {list(got.shape)}"}
    if expected.dtype != got.dtype:
        return {**none, "mismatch": f"types {expected.dtype} and {got.dtype}"}
    if expected.dtype == object:
        same = bool((expected == got).all())
        return {**none, "identical": same, "mismatch": None if same else "different strings"}
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(wide).ravel(), got.astype(wide).ravel()
    agree = (expected == got).ravel() | (np.isnan(a) & np.isnan(b))
    comparable = np.isfinite(a) & np.isfinite(b)
    odd = int(np.count_nonzero(~agree & ~comparable))
    a, b = a[comparable], b[comparable]
    with np.errstate(over="ignore"):
        worst = float(np.abs(a - b).max(initial=0.0))
    largest = float(np.abs(a).max(initial=0.0))
    # Scaled so that squares neither overflow nor vanish.
    unit = max(largest, float(np.abs(b).max(initial=0.0))) or 1.0
    a, b = a / unit, b / unit
    noise, power_a, power_b = (float(np.vdot(x, x).real) for x in (a - b, a, b))
    return {
        "max_abs_error": worst,
        "relative_error": worst / largest if largest else math.inf if worst else 0.0,
        "snr_db": math.inf if noise == 0 else 10 * math.log10(power_a / noise) if power_a else -math.inf,
        "cosine": 1.0 if noise == 0 else _cosine(float(np.vdot(a, b).real), power_a, power_b),
        "identical": bool(agree.all()),
        "nonfinite_mismatches": odd,
        "mismatch": None,
    }


def _cosine(dot: float, power_a: float, power_b: float) -> float:
    return dot / math.sqrt(power_a * power_b) if power_a and power_b else 0.0


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def _passes(one: dict[str, Any], expected: Any, got: Any, arguments: argparse.Namespace) -> bool:
    if one["mismatch"] is not None or one["nonfinite_mismatches"]:
        return False
    if one["identical"]:
        return True
    if arguments.tolerance is not None and not one["relative_error"] <= arguments.tolerance:
        return False
    if arguments.rtol is None and arguments.atol is None:
        return True
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(wide), got.astype(wide)
    return bool(np.allclose(b, a, arguments.rtol or 0.0, arguments.atol or 0.0, equal_nan=True))


def _lines(arguments: argparse.Namespace, results: list[dict[str, Any]], passed: bool) -> list[str]:
    rows = [("output", "max abs error", "relative error", "SNR", "cosine", "verdict")]
    for one in results:
        verdict = "identical" if one["identical"] else "passed" if one["passed"] else "FAILED"
        if one["nonfinite_mismatches"]:
            verdict += f": {one['nonfinite_mismatches']} NaN or infinite on one side only"
        if one["mismatch"]:
            rows.append((one["output"], "-", "-", "-", "-", f"{verdict}: {one['mismatch']}"))
            continue
        errors = (f"{one['max_abs_error']:.3g}", f"{one['relative_error']:.3g}")
        rows.append((one["output"], *errors, terminal.decibels(one["snr_db"]), f"{one['cosine']:.6f}", verdict))
    limits = {"relative error": arguments.tolerance, "rtol": arguments.rtol, "atol": arguments.atol}
    allowed = ", ".join(f"{name} ≤ {limit:g}" for name, limit in limits.items() if limit is not None)
    return [
        terminal.heading(f"{printable(arguments.reference)} against {printable(arguments.candidate)}"),
        "",
        *table(rows, left=(0, 5)),
        "",
        f"{'Passed' if passed else 'FAILED'} ({allowed}).",
    ]
