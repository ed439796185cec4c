"""`qruntime bench`: how long a run takes on this machine."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import qruntime
from qruntime import _kernels
from qruntime.cli import terminal
from qruntime.cli.arguments import Subparsers, add_command, add_inputs, add_json, non_negative, positive_int
from qruntime.cli.inputs import make_feeds
from qruntime.cli.outputs import check_writable
from qruntime.display.text import printable, table
from qruntime.errors import SaveError
from qruntime.runtime.profile import Profile

MIN_RUNS = 5
MAX_RUNS = 1_000_000


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "bench",
        "time a model: median, 90th and 99th percentile of the latency of one run, and runs per second",
        "qruntime bench model.onnx --int8 --shape batch=1 --shape sequence=128 --threads 1 2",
    )
    parser.add_argument("model", help="an ONNX model, float or quantized")
    parser.add_argument("--int8", action="store_true", help="quantize the model first, with the defaults of `convert`")
    parser.add_argument(
        "--seconds",
        type=non_negative,
        default=3.0,
        help=f"measure for this long, and at least {MIN_RUNS} runs (default: 3)",
    )
    parser.add_argument("--warmup", type=non_negative, default=0.5, metavar="SECONDS", help="run for this long before (default: 0.5)")
    parser.add_argument("--threads", type=positive_int, nargs="+", metavar="N", help="thread counts to measure, one after the other")
    parser.add_argument("--profile", action="store_true", help="show where the time goes, operator by operator")
    parser.add_argument(
        "--trace", metavar="FILE", help="write the times of all nodes for chrome://tracing or Perfetto, of the last thread count"
    )
    add_inputs(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.trace:
        check_writable(arguments.trace, replaces=False)
    counts = arguments.threads or [_kernels.default_threads()]
    feed: dict[str, Any] | None = None
    results: list[dict[str, Any]] = []
    profiles: list[Profile] = []
    for threads in counts:
        with terminal.progress(f"Loading {arguments.model}"):
            model = qruntime.load(arguments.model, threads=threads)
            if arguments.int8:
                model.quantize_dynamic(inplace=True)
        if feed is None:
            if arguments.int8 and not model.report.layers:
                terminal.warn("--int8 quantized no layer of this model")
            feed = make_feeds(model, arguments)[0]
        with terminal.progress(f"Measuring with {threads} thread{'s' if threads > 1 else ''}"):
            results.append({"threads": threads, **measure(model, feed, arguments.seconds, arguments.warmup)})
            if arguments.profile or arguments.trace:
                profiles.append(model.profile(feed))
    assert feed is not None
    if arguments.trace:
        try:
            with open(arguments.trace, "w", encoding="utf-8") as file:
                file.write(profiles[-1].to_chrome_trace())
        except OSError as error:
            raise SaveError(f"cannot write {arguments.trace!r}: {error.strerror or error}") from error
    shapes = {name: list(np.shape(value)) for name, value in feed.items()}
    if arguments.json:
        what = {"model": arguments.model, "int8": arguments.int8, "inputs": shapes}
        if arguments.profile:
            for result, profile in zip(results, profiles, strict=True):
                result["profile"] = json.loads(profile.to_json())
        terminal.json_result("bench", {**what, "machine": machine(), "results": results})
    else:
        lines = _lines(arguments, shapes, results)
        for result, profile in zip(results, profiles if arguments.profile else [], strict=False):
            lines += ["", f"threads {result['threads']}", *str(profile).splitlines()]
        terminal.result(lines)
    return 0


def measure(model: qruntime.Model, feed: dict[str, Any], seconds: float, warmup: float) -> dict[str, Any]:
    """Statistics of runs one after the other."""
    _repeat(lambda: model.run(feed), warmup, at_least=1)
    times = _repeat(lambda: model.run(feed), seconds, at_least=MIN_RUNS)
    p50, p90, p99 = (float(p) for p in np.percentile(times, (50, 90, 99)))
    return {
        "runs": len(times),
        "seconds": {"median": p50, "p90": p90, "p99": p99, "min": min(times), "mean": sum(times) / len(times)},
        "runs_per_second": len(times) / max(sum(times), 1e-9),
    }


def _repeat(call: Callable[[], object], seconds: float, at_least: int) -> list[float]:
    times: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds
    while len(times) < at_least or (clock() < end and len(times) < MAX_RUNS):
        start = clock()
        call()
        times.append(clock() - start)
    return times


def machine() -> dict[str, Any]:
    """Facts without which a time means nothing."""
    return {
        "cpu": _cpu_name(),
        "isa": qruntime.isa(),
        "threads_available": _kernels.default_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "qruntime": qruntime.__version__,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"


def _lines(arguments: argparse.Namespace, shapes: dict[str, list[int]], results: list[dict[str, Any]]) -> list[str]:
    facts = machine()
    fed = ", ".join(f"{printable(name)}[{', '.join(map(str, shape))}]" for name, shape in shapes.items()) or "none"
    rows: list[tuple[str, ...]] = [("threads", "median", "p90", "p99", "min", "runs", "runs/s")]
    for r in results:
        times = (terminal.duration(r["seconds"][name]) for name in ("median", "p90", "p99", "min"))
        rows.append((str(r["threads"]), *times, str(r["runs"]), f"{r['runs_per_second']:,.1f}"))
    return [
        terminal.heading(f"{printable(arguments.model)}{' (quantized to int8)' if arguments.int8 else ''}"),
        f"  inputs   {fed}",
        f"  machine  {facts['cpu']}, {facts['isa']}, {facts['threads_available']} threads available",
        f"  with     qruntime {facts['qruntime']}, numpy {facts['numpy']}, Python {facts['python']}, {facts['system']}",
        "",
        *table(rows, left=()),
    ]
