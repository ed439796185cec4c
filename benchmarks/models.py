"""Latency of a model side by side with ONNX Runtime: each in a process of its own, in turns.

    python benchmarks/models.py model.onnx --shape ids=1,128 --shape mask=1,128 --threads 1 2
    python benchmarks/models.py model.onnx --float --json

Without --float both quantize the float model dynamically to int8, each with its own defaults. A ratio is ONNX
Runtime's time over qruntime's in the same round: above 1, qruntime is faster. Needs onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

import qruntime
from qruntime.cli.arguments import add_inputs
from qruntime.cli.bench import machine
from qruntime.cli.inputs import make_inputs

RUNTIMES = ("onnxruntime", "qruntime")


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


def serve(runtime: str, path: str, feed_path: str, threads: int, use_float: bool) -> None:
    """Answer each line of stdin, a number of seconds, with the median time of runs that long."""
    with np.load(feed_path) as arrays:
        feed = {name: arrays[name] for name in arrays.files}
    run = runner(runtime, path, threads, use_float)
    for _ in range(3):
        run(feed)
    print("ready", flush=True)
    for line in sys.stdin:
        times, end = [], time.perf_counter() + float(line)
        while len(times) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            run(feed)
            times.append(time.perf_counter() - start)
        print(statistics.median(times), flush=True)


def compare(path: str, feed_path: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Median times and the spread of the ratio over the rounds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "QRUNTIME_NUM_THREADS": str(threads)}
    workers = []
    for runtime in RUNTIMES:
        command = [sys.executable, __file__, path, "--worker", runtime, feed_path, "--threads", str(threads)]
        command += ["--float"] if options.float else []
        workers.append(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
            )
        )
    rounds = []
    try:
        for runtime, worker in zip(RUNTIMES, workers, strict=True):
            if not any(line.strip() == "ready" for line in iter(worker.stdout.readline, "")):  # type: ignore[union-attr]
                raise SystemExit(f"{runtime} could not run {path}")
        for _ in range(options.rounds):
            pair = []
            for worker in workers:
                assert worker.stdin is not None and worker.stdout is not None
                worker.stdin.write(f"{options.seconds}\n")
                worker.stdin.flush()
                pair.append(float(worker.stdout.readline()))
            rounds.append(pair)
    finally:
        for worker in workers:
            worker.communicate()
    ratios = [peer / ours for peer, ours in rounds]
    return {
        "threads": threads,
        "onnxruntime_seconds": statistics.median(peer for peer, _ in rounds),
        "qruntime_seconds": statistics.median(ours for _, ours in rounds),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a float ONNX model")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--float", action="store_true", help="compare the float models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=2, metavar=("RUNTIME", "FEED"), help=argparse.SUPPRESS)
    add_inputs(parser)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker[0], options.model, options.worker[1], options.threads[0], options.float)
        return
    feed = make_inputs(qruntime.load(options.model), options)
    with tempfile.TemporaryDirectory() as folder:
        feed_path = os.path.join(folder, "feed.npz")
        np.savez(feed_path, **feed)
        rows = [compare(options.model, feed_path, threads, options) for threads in options.threads]
    shapes = {name: list(np.shape(value)) for name, value in feed.items()}
    if options.json:
        what = {"schema": 1, "model": options.model, "inputs": shapes, "float": options.float}
        print(json.dumps({**what, "machine": machine(), "results": rows}, indent=1))
        return
    print("| model | inputs | threads | ONNX Runtime, ms | qruntime, ms | ratio |\n|---|---|---|---|---|---|")
    for row in rows:
        times = f"{row['onnxruntime_seconds'] * 1e3:.3f} | {row['qruntime_seconds'] * 1e3:.3f}"
        spread = f"{row['ratio']:.2f} ({row['ratio_min']:.2f}–{row['ratio_max']:.2f})"
        inputs = ", ".join("×".join(map(str, shape)) or "scalar" for shape in shapes.values())
        print(f"| {os.path.basename(options.model)} | {inputs} | {row['threads']} | {times} | {spread} |")


if __name__ == "__main__":
    main()
