"""Two builds of qruntime side by side on one model, in turns: did a change make it faster?

    git worktree add ../before main && (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/compare.py model.onnx --before ../before --after . --shape ids=1,128 --shape mask=1,128

A build is a folder that holds the package `qruntime`, compiled in place, or a Python interpreter that has it
installed. A ratio is the time before over the time after: above 1, the change is faster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile

import numpy as np
from report import emit
from turns import Contender, in_turns, ratio, threads_environment

import qruntime
from qruntime.cli.arguments import add_inputs
from qruntime.cli.inputs import make_inputs

COLUMNS = {
    "model": "model", "inputs": "inputs", "threads": "threads", "before_ms": "before, ms", "after_ms": "after, ms",
    "ratio": "ratio", "ratio_min": "least", "ratio_max": "greatest",
}  # fmt: skip


def contender(build: str, arguments: list[str], threads: int) -> Contender:
    worker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models.py")
    environment = threads_environment(threads)
    if os.path.isfile(build):
        return Contender([build, worker, *arguments], environment)
    if not os.path.isdir(os.path.join(build, "qruntime")):
        raise SystemExit(f"{build} is neither an interpreter nor a folder with the package qruntime")
    return Contender([sys.executable, worker, *arguments], {**environment, "PYTHONPATH": os.path.abspath(build)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a float ONNX model")
    parser.add_argument("--before", required=True, metavar="BUILD")
    parser.add_argument("--after", required=True, metavar="BUILD")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--float", action="store_true", help="do not quantize the model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn")
    parser.add_argument("--json", action="store_true")
    add_inputs(parser)
    options = parser.parse_args()
    feed = make_inputs(qruntime.load(options.model), options)
    inputs = ", ".join("×".join(map(str, np.shape(value))) or "scalar" for value in feed.values())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        feed_path = os.path.join(folder, "feed.npz")
        np.savez(feed_path, **feed)
        for threads in options.threads:
            arguments = [options.model, "--worker", "qruntime", feed_path, "--threads", str(threads)]
            arguments += ["--float"] * options.float
            builds = {"before": options.before, "after": options.after}
            contenders = {name: contender(build, arguments, threads) for name, build in builds.items()}
            times = in_turns(contenders, options.rounds, options.seconds)
            medians = {f"{name}_ms": statistics.median(found) * 1e3 for name, found in times.items()}
            what = {"model": os.path.basename(options.model), "inputs": inputs, "threads": threads}
            rows.append({**what, **medians, **ratio(times, "before", "after")})
    emit("compare", rows, COLUMNS, options.json)


if __name__ == "__main__":
    main()
