"""Small layers in float32 and in int8, in turns within one process: where int8 is not faster, and what the rule says there.

    python benchmarks/small_layers.py                    QRUNTIME_ISA=avx2 for another rung
    python benchmarks/small_layers.py --only LSTM GRU --json

A ratio is the time of float over that of int8: above 1, int8 is faster. "keeps float" is what
quantize_dynamic(faster_only=True) does, whose rule in qruntime/quantization/small_layers.py comes from this table.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from report import emit

import qruntime

COLUMNS = {
    "layer": "layer", "input": "input", "float_us": "float, µs", "int8_us": "int8, µs", "ratio": "ratio", "keeps_float": "keeps float",
}  # fmt: skip
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

LINEAR = [
    (2, 2), (8, 8), (16, 16), (32, 32), (48, 48), (64, 64), (128, 128), (8, 64), (16, 64), (32, 64), (64, 8), (64, 16), (64, 32),
    (256, 4), (256, 16), (256, 32), (256, 48), (768, 2), (768, 16), (768, 32), (16, 256), (32, 256), (48, 256),
]  # fmt: skip
ROWS = (1, 8, 128)
RECURRENT = [(4, 4), (8, 8), (1, 32), (32, 32), (40, 40), (1, 50), (48, 48), (1, 64), (64, 64), (1, 128), (128, 128)]
SEQUENCES = ((25, 1), (25, 8))
CONV = [
    (3, 32, 3, 32), (1, 32, 3, 28), (8, 8, 3, 16), (16, 16, 3, 32), (32, 32, 3, 32), (48, 48, 3, 28), (64, 64, 3, 28), (64, 64, 1, 28),
    (128, 128, 1, 14), (256, 64, 1, 28), (64, 256, 1, 28), (64, 16, 3, 28), (64, 32, 3, 28), (128, 32, 3, 28), (16, 64, 3, 28),
]  # fmt: skip


def load(op: str, shape: tuple[int, ...], weights: list[np.ndarray], **attributes: Any) -> qruntime.Model:
    names = [f"w{i}" for i in range(len(weights))]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], name="layer", **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, name) for name, w in zip(names, weights, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return qruntime.load(model.SerializeToString(), threads=1)


def cases(rng: np.random.Generator) -> Iterator[tuple[str, str, str, qruntime.Model, np.ndarray]]:
    """Kind, what the layer and its input are called, the float model and an input."""

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.25)

    for k, n in LINEAR:
        for rows in ROWS:
            yield "Linear", f"Linear {k}→{n}", f"{rows}", load("Gemm", (rows, k), [normal(k, n), normal(n)]), normal(rows, k)
    for op, gates in GATES.items():
        for k, n in RECURRENT:
            weights = [normal(1, gates * n, k), normal(1, gates * n, n), normal(1, 2 * gates * n)]
            for steps, batch in SEQUENCES:
                model = load(op, (steps, batch, k), weights, hidden_size=n)
                yield op, f"{op} {k}→{n}", f"{steps}×{batch}", model, normal(steps, batch, k)
    for c, m, kernel, size in CONV:
        shape, pad = (1, c, size, size), kernel // 2
        model = load("Conv", shape, [normal(m, c, kernel, kernel), normal(m)], pads=[pad] * 4)
        yield "Conv", f"Conv {c}→{m}, {kernel}×{kernel}", f"{size}×{size}", model, normal(*shape)


def least_seconds(calls: list[Callable[[], object]], rounds: int, seconds: float) -> list[float]:
    """The least time of each, over `rounds` in which they take turns."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds + 1):  # the first is to warm up
        for i, call in enumerate(calls):
            count = max(1, int(seconds / best[i])) if best[i] < float("inf") else 3
            start = time.perf_counter()
            for _ in range(count):
                call()
            best[i] = min(best[i], (time.perf_counter() - start) / count)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=["Linear", *GATES, "Conv"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.002, help="for each turn")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for kind, layer, given, model, x in cases(np.random.default_rng(0)):
        if options.only and kind not in options.only:
            continue
        quantized, kept = model.quantize_dynamic({kind}), model.quantize_dynamic({kind}, faster_only=True)
        calls = [functools.partial(made.run, {"x": x}) for made in (model, quantized)]
        as_float, as_int8 = least_seconds(calls, options.rounds, options.seconds)
        row = {"layer": layer, "input": given, "float_us": as_float * 1e6, "int8_us": as_int8 * 1e6, "ratio": as_float / as_int8}
        rows.append({**row, "keeps_float": "" if kept.report.layers else "yes"})
    emit("small_layers", rows, COLUMNS, options.json)


if __name__ == "__main__":
    main()
