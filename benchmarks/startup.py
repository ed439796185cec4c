"""From a new process to the first answer, side by side with ONNX Runtime: import, load, first run, memory.

    python benchmarks/startup.py model.onnx --shape ids=1,16 --shape mask=1,16

Both quantize the float model dynamically to int8 beforehand, each with its own defaults, and then load the file that
they wrote, in a new process for every round, in turns. numpy is imported before. Needs onnxruntime.
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

import numpy as np

COLUMNS = {"model": "model", "what": "", "peer": "ONNX Runtime", "qruntime": "qruntime", "ratio": "ratio"}
WHAT = {
    "import_ms": "import, ms", "load_ms": "load, ms", "first_run_ms": "first run, ms", "ready_ms": "load and first run, ms",
    "memory_mb": "memory beside numpy, MB",
}  # fmt: skip


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def start(runtime: str, path: str, feed_path: str) -> dict[str, float]:
    """What one new process takes."""
    with np.load(feed_path) as arrays:
        feed = {name: arrays[name] for name in arrays.files}
    memory, began = resident_mb(), time.perf_counter()
    if runtime == "qruntime":
        import qruntime

        imported = time.perf_counter()
        run = qruntime.load(path, threads=1).run
        loaded = time.perf_counter()
        run(feed)
    else:
        import onnxruntime

        imported = time.perf_counter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        loaded = time.perf_counter()
        session.run(None, feed)
    ran = time.perf_counter()
    times = {"import": imported - began, "load": loaded - imported, "first_run": ran - loaded, "ready": ran - imported}
    return {**{f"{name}_ms": seconds * 1e3 for name, seconds in times.items()}, "memory_mb": resident_mb() - memory}


def quantize(runtime: str, model: str, path: str) -> None:
    if runtime == "qruntime":
        import qruntime

        qruntime.load(model).quantize_dynamic().save(path)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(model, path, weight_type=QuantType.QInt8)


def main() -> None:
    from report import emit

    import qruntime
    from qruntime.cli.arguments import add_inputs
    from qruntime.cli.inputs import make_inputs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a float ONNX model")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    add_inputs(parser)
    options = parser.parse_args()

    runtimes = ("onnxruntime", "qruntime")
    found: dict[str, list[dict[str, float]]] = {runtime: [] for runtime in runtimes}
    with tempfile.TemporaryDirectory() as folder:
        feed_path = os.path.join(folder, "feed.npz")
        np.savez(feed_path, **make_inputs(qruntime.load(options.model), options))
        paths = {runtime: os.path.join(folder, f"{runtime}.onnx") for runtime in runtimes}
        for runtime, path in paths.items():
            quantize(runtime, options.model, path)
        for round_number in range(options.rounds + 1):
            for runtime, path in paths.items():
                command = [sys.executable, __file__, "--worker", runtime, path, feed_path]
                answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                if round_number:  # the first writes byte code and fills the cache of files
                    found[runtime].append(json.loads(answer))
    rows = []
    for key, what in WHAT.items():
        peer, ours = (statistics.median(numbers[key] for numbers in found[runtime]) for runtime in runtimes)
        rows.append({"model": os.path.basename(options.model), "what": what, "peer": peer, "qruntime": ours, "ratio": peer / ours})
    emit("startup", rows, COLUMNS, options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:  # before anything else is imported or parsed: that would be counted
        print(json.dumps(start(*sys.argv[2:])))
    else:
        main()
