"""Speed of the int8 and float GEMM on one thread, rung by rung, and its share of what the machine can do.

    python benchmarks/kernels.py [--shapes 128x384x1536,1x768x768] [--float] [--json] [--chart roofline.png]

The least time of many repetitions. The share is of the peak that `peak.c` measures with products from registers
alone, or, for one row, of the bandwidth at which this core reads a buffer as large as the weights. Needs a C
compiler for the shares (without one they are left out) and matplotlib for the chart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import emit

from qruntime import _kernels

SHAPES = [
    (128, 384, 384), (128, 384, 1536), (128, 1536, 384), (128, 768, 768), (128, 768, 3072), (128, 3072, 768),
    (512, 1024, 4096), (16, 768, 768), (8, 768, 768), (4, 768, 768), (1, 384, 1536), (1, 768, 768), (1, 1024, 4096),
    (1, 4096, 4096),
]  # fmt: skip
COLUMNS = {"shape": "M×K×N", "isa": "rung", "gops": "GOPS", "gb_per_s": "weights, GB/s", "share": "share of peak"}


def measured_peaks() -> dict[str, float]:
    """What `peak.c` prints; empty when no compiler is there."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "peak")
        subprocess.run([compiler, "-O3", str(Path(__file__).with_name("peak.c")), "-o", program], check=True)
        return dict(json.loads(subprocess.run([program], check=True, capture_output=True, text=True).stdout))


def least_seconds(call: Callable[[], object], seconds: float) -> float:
    """The fastest of as many calls as fit in `seconds`, at least three."""
    best, end, count = float("inf"), time.perf_counter() + seconds, 0
    while count < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        count += 1
    return best


def one_node(name: str, a: np.ndarray, ints: tuple[int, ...], packed: object, threads: int) -> Callable[[], object]:
    """A plan of one native node with one constant input."""
    step = _kernels.Step(name, 1, kernel=name, ints=ints, packed=(packed,), inputs=[0])
    plan = _kernels.Executable(2, [(0, a)], [], [1], [step], set(), [], threads)
    return lambda: plan.run(())


def measure(shape: tuple[int, int, int], options: argparse.Namespace) -> float:
    """Seconds of one linear layer."""
    m, k, n = shape
    rng = np.random.default_rng(0)
    bias = np.zeros(n, np.float32)
    a = rng.standard_normal((m, k), dtype=np.float32)
    activation = _kernels.ACTIVATION[options.activation]
    if options.float:
        packed = _kernels.PackedF32(rng.standard_normal((k, n), dtype=np.float32), bias)
        return least_seconds(one_node("linear", a, (activation, 0), packed, options.threads), options.seconds)
    if options.weights == "uniform":
        w = rng.integers(-127, 128, (k, n), dtype=np.int8)
    else:
        w = np.clip(np.rint(rng.standard_normal((k, n)) * 36), -127, 127).astype(np.int8)
    packed = _kernels.PackedQ8(w, np.full(1, 1e-4, np.float32), None, bias)
    return least_seconds(one_node("linear", a, (activation, 0), packed, options.threads), options.seconds)


def share(peaks: dict[str, float], shape: tuple[int, int, int], isa: str, row: dict[str, Any], use_float: bool) -> float | None:
    """Of the bandwidth for one row, else of the products; None where the limit was not measured."""
    m, k, n = shape
    if m == 1:
        kilobytes = k * n * (4 if use_float else 1) / 1024
        reads = sorted((int(key.split()[1]), speed) for key, speed in peaks.items() if key.startswith("read"))
        limit = next((speed for size, speed in reads if size >= kilobytes), reads[-1][1] if reads else None)
        return row["gb_per_s"] / limit if limit else None
    # A rung without products of its own uses those of the one below.
    of_floats = {"avx512vnni": "avx512", "avx512bf16": "avx512", "amx": "avx512", "avx_vnni": "avx2"}
    below = of_floats if use_float else {"avx512": "avx_vnni", "avx512bf16": "avx512vnni"}
    limit = peaks.get(f"{'float' if use_float else 'int8'} {below.get(isa, isa)}")
    return row["gops"] / limit if limit else None


def draw(rows: list[dict[str, Any]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    isas, shapes = list(dict.fromkeys(r["isa"] for r in rows)), list(dict.fromkeys(r["shape"] for r in rows))
    figure, axes = plt.subplots(figsize=(10, 4))
    for i, isa in enumerate(isas):
        shares = {r["shape"]: r["share"] or 0 for r in rows if r["isa"] == isa}
        places = [x + i / (len(isas) + 1) for x in range(len(shapes))]
        axes.bar(places, [shares[shape] for shape in shapes], 1 / (len(isas) + 1), label=isa)
    axes.set_xticks([x + 0.4 for x in range(len(shapes))], shapes, rotation=45, ha="right")
    axes.set_ylabel("share of the measured peak")
    axes.set_ylim(0, 1.05)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = ",".join("x".join(map(str, shape)) for shape in SHAPES)
    parser.add_argument("--shapes", default=shapes, help="MxKxN, comma-separated")
    parser.add_argument("--float", action="store_true", help="the float GEMM")
    parser.add_argument("--activation", choices=_kernels.ACTIVATION, default="none")
    parser.add_argument("--weights", choices=["normal", "uniform"], default="normal")
    parser.add_argument("--isas", default=",".join(_kernels.available_isas()))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each measurement")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--chart", metavar="FILE", help="draw the shares")
    options = parser.parse_args()
    peaks = measured_peaks() if options.threads == 1 else {}
    rows = []
    for text in options.shapes.split(","):
        m, k, n = map(int, text.split("x"))
        for isa in options.isas.split(","):
            _kernels.set_isa(isa)
            seconds = measure((m, k, n), options)
            row: dict[str, Any] = {"shape": text.replace("x", "×"), "isa": isa, "gops": 2e-9 * m * k * n / seconds}
            row["gb_per_s"] = 1e-9 * k * n * (4 if options.float else 1) / seconds
            row["share"] = share(peaks, (m, k, n), isa, row, options.float)
            rows.append({**row, "threads": options.threads, "float": options.float, "activation": options.activation})
    if options.chart:
        draw(rows, options.chart)
    emit("kernels", rows, COLUMNS, options.json)


if __name__ == "__main__":
    main()
