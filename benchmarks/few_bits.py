"""Layers of few bits side by side with ONNX Runtime, both on the same MatMulNBits, call by call in turns within one process.

    python benchmarks/few_bits.py                         4096 inputs and outputs
    python benchmarks/few_bits.py --size 2048 --only 4 --rows 1 8 --json

A ratio is ONNX Runtime's least time over qruntime's: above 1, qruntime is faster. Weights and inputs are random, activations float
(accuracy level 0) or quantized to 8 bits (4). One thread. Needs onnxruntime.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from report import emit

import qruntime

COLUMNS = {
    "weights": "weights", "activations": "activations", "rows": "rows", "peer_ms": "ONNX Runtime, ms", "qruntime_ms": "qruntime, ms",
    "ratio": "ratio",
}  # fmt: skip

LAYERS = [(4, 32, 0), (4, 128, 0), (4, 32, 4), (4, 128, 4), (2, 32, 4), (8, 32, 4)]
"""Bits, weights of a group, accuracy level."""


def layer(size: int, bits: int, block: int, level: int) -> bytes:
    rng, blocks = np.random.default_rng(0), size // block
    codes = rng.integers(0, 256, (size, blocks, block * bits // 8), dtype=np.uint8)
    scales = rng.uniform(0.02, 0.04, size * blocks).astype(np.float32)
    attributes: dict[str, Any] = {"K": size, "N": size, "bits": bits, "block_size": block, "accuracy_level": level}
    graph = helper.make_graph(
        [helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", size])],
        [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def runners(model: bytes) -> list[Callable[[dict[str, np.ndarray]], object]]:
    """ONNX Runtime's, and ours."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [lambda feed: session.run(None, feed), qruntime.load(model, threads=1).run]


def least_seconds(runs: list[Callable[[dict[str, np.ndarray]], object]], feed: dict[str, np.ndarray], seconds: float) -> list[float]:
    best, end, count = [float("inf")] * len(runs), time.perf_counter() + seconds, 0
    while count < 5 or time.perf_counter() < end:
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run(feed)
            best[i] = min(best[i], time.perf_counter() - start)
        count += 1
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="inputs and outputs, a multiple of 128")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 128])
    parser.add_argument("--only", type=int, nargs="+", default=[2, 4, 8], metavar="BITS")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row of the table")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for bits, block, level in LAYERS:
        if bits not in options.only:
            continue
        runs = runners(layer(options.size, bits, block, level))
        for count in options.rows:
            feed = {"x": np.random.default_rng(count).standard_normal((count, options.size), dtype=np.float32)}
            peer, ours = least_seconds(runs, feed, options.seconds)
            what = {"weights": f"{bits} bits, groups of {block}", "activations": "8 bits" if level else "float", "rows": count}
            rows.append({**what, "peer_ms": peer * 1e3, "qruntime_ms": ours * 1e3, "ratio": peer / ours})
    emit("few_bits", rows, COLUMNS, options.json)


if __name__ == "__main__":
    main()
