"""Latency of a model side by side with ONNX Runtime: each in a process of its own, in turns.

    python benchmarks/models.py model.onnx --shape ids=1,128 --shape mask=1,128 --threads 1 2
    python benchmarks/models.py model.onnx --float --json
    python benchmarks/models.py model.onnx --shape length=128 --vary batch=1,2,4,8 --chart batches.png

Without --float both quantize the float model dynamically to int8, each with its own defaults. A ratio is ONNX
Runtime's time over qruntime's in the same round: above 1, qruntime is faster. Needs onnxruntime, and matplotlib for the chart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from typing import Any

import numpy as np
from report import emit
from turns import Contender, in_turns, ratio, serve, threads_environment

import qruntime
from qruntime.cli.arguments import add_inputs
from qruntime.cli.inputs import make_inputs

COLUMNS = {
    "model": "model", "inputs": "inputs", "threads": "threads", "peer_ms": "ONNX Runtime, ms", "qruntime_ms": "qruntime, ms",
    "ratio": "ratio", "ratio_min": "least", "ratio_max": "greatest",
}  # fmt: skip


def runner(runtime: str, path: str, threads: int, use_float: bool) -> Any:
    """A callable over a feed."""
    if runtime == "qruntime":
        model = qruntime.load(path, threads=threads)
        return model.run if use_float else model.quantize_dynamic().run
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not use_float:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantized = os.path.join(tempfile.mkdtemp(), "int8.onnx")
        quantize_dynamic(path, quantized, weight_type=QuantType.QInt8)
        path = quantized
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def compare(path: str, feed_path: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: median times, and the spread of the ratio over the rounds."""
    contenders = {}
    for runtime in ("onnxruntime", "qruntime"):
        command = [sys.executable, __file__, path, "--worker", runtime, feed_path, "--threads", str(threads)]
        contenders[runtime] = Contender(command + ["--float"] * options.float, threads_environment(threads))
    times = in_turns(contenders, options.rounds, options.seconds)
    return {
        "threads": threads,
        "peer": "onnxruntime",
        "peer_ms": statistics.median(times["onnxruntime"]) * 1e3,
        "qruntime_ms": statistics.median(times["qruntime"]) * 1e3,
        **ratio(times, "onnxruntime", "qruntime"),
    }


def draw(rows: list[dict[str, Any]], dimension: str, path: str) -> None:
    """Latency against the size of `dimension`, a line for each runtime and number of threads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for threads in dict.fromkeys(row["threads"] for row in rows):
        chosen = [row for row in rows if row["threads"] == threads]
        sizes = [row[dimension] for row in chosen]
        for key, name, style in (("peer_ms", "ONNX Runtime", "--"), ("qruntime_ms", "qruntime", "-")):
            label = f"{name}, {threads} thread{'s' * (threads > 1)}"
            axes.plot(sizes, [row[key] for row in chosen], style, marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(dimension)
    axes.set_ylabel("latency, ms")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def sizes_to_vary(text: str | None) -> tuple[str, list[int]]:
    """("batch", [1, 2, 4]) of "batch=1,2,4"."""
    if text is None:
        return "", []
    name, _, sizes = text.partition("=")
    if not name or not all(size.isdigit() for size in sizes.split(",")):
        raise SystemExit(f"--vary needs a symbolic dimension and its sizes, such as batch=1,2,4; got {text!r}")
    return name, [int(size) for size in sizes.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a float ONNX model")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--float", action="store_true", help="compare the float models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--vary", metavar="DIMENSION=SIZES", help="measure with each size of a symbolic dimension")
    parser.add_argument("--chart", metavar="FILE", help="draw latency against what varies")
    parser.add_argument("--worker", nargs=2, metavar=("RUNTIME", "FEED"), help=argparse.SUPPRESS)
    add_inputs(parser)
    options = parser.parse_args()
    if options.worker:
        runtime, feed_path = options.worker
        with np.load(feed_path) as arrays:
            feed = {name: arrays[name] for name in arrays.files}
        run = runner(runtime, options.model, options.threads[0], options.float)
        serve(lambda: run(feed))
        return
    dimension, sizes = sizes_to_vary(options.vary)
    if options.chart and not sizes:
        parser.error("--chart needs --vary")
    model, shapes, rows = qruntime.load(options.model), list(options.shape), []
    for size in sizes or [None]:
        if size is not None:
            options.shape = [*shapes, f"{dimension}={size}"]
        feed = make_inputs(model, options)
        inputs = ", ".join("×".join(map(str, np.shape(value))) or "scalar" for value in feed.values())
        what = {"model": os.path.basename(options.model), "inputs": inputs, "float": options.float}
        if size is not None:
            what[dimension] = size
        with tempfile.TemporaryDirectory() as folder:
            feed_path = os.path.join(folder, "feed.npz")
            np.savez(feed_path, **feed)
            rows += [{**what, **compare(options.model, feed_path, threads, options)} for threads in options.threads]
    if options.chart:
        draw(rows, dimension, options.chart)
    emit("models", rows, COLUMNS, options.json)


if __name__ == "__main__":
    main()
