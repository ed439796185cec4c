"""What float64 and float16 cost: single operators against themselves in float32, in turns within one process.

Prints the time in float32 and the ratios of the others to it, minima over the rounds. float64 moves twice the bytes and has
half the lanes: 2 is its floor, and more where functions need polynomials of twice the degree.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from report import emit

import qruntime

TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}
COLUMNS = {"operator": "operator", "input": "input", "float32": "float32, ms", "float64": "float64", "float16": "float16"}
HIDDEN = 128


class Case(NamedTuple):
    op: str
    shape: tuple[int, ...]
    weights: tuple[np.ndarray, ...] = ()
    attributes: Mapping[str, Any] = MappingProxyType({})
    outputs: int = 1


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape)


def recurrent(op: str, steps: int, batch: int, **attributes: int) -> Case:
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * HIDDEN
    weights = tuple(0.1 * normal(1, *shape) for shape in ((rows, HIDDEN), (rows, HIDDEN), (2 * rows,)))
    return Case(op, (steps, batch, HIDDEN), weights, {"hidden_size": HIDDEN, **attributes}, 3 if op == "LSTM" else 2)


AXES = {"rows": np.array([1]), "columns": np.array([0])}
ROWS = (256, 768)
CASES = [
    *(Case(op, (64, 3072)) for op in ("Relu", "Erf", "Gelu", "Sigmoid", "Tanh", "Exp")),
    Case("Add", (64, 3072), (normal(3072),)), Case("Mul", (64, 3072), (normal(64, 3072),)),
    *(Case(f"Reduce{op}", ROWS, (AXES["rows"],)) for op in ("Sum", "Mean", "Max", "L2")),
    Case("ReduceSum", ROWS, (AXES["columns"],), {"keepdims": 0}),
    Case("ReduceSum", (1024, 768), (AXES["rows"],)), Case("Softmax", ROWS), Case("LayerNormalization", ROWS, (normal(768), normal(768))),
    Case("BatchNormalization", (4, 64, 28, 28), (normal(64), normal(64), normal(64), np.abs(normal(64)))),
    Case("Transpose", (128, 12, 64), (), {"perm": (1, 0, 2)}), Case("Transpose", (12, 128, 64), (), {"perm": (0, 2, 1)}),
    Case("MatMul", (128, 768), (normal(768, 768),)),
    *(recurrent("LSTM", steps, batch) for steps, batch in ((1, 1), (35, 1), (35, 8))),
    recurrent("GRU", 35, 1), recurrent("GRU", 35, 8, linear_before_reset=1), recurrent("RNN", 35, 8),
]  # fmt: skip


def load(case: Case, kind: str, threads: int) -> qruntime.Model:
    names = [f"w{i}" for i in range(len(case.weights))]
    outputs = [f"y{i}" for i in range(case.outputs)]
    arrays = [w.astype(kind) if w.dtype == np.float64 else w for w in case.weights]
    graph = helper.make_graph(
        [helper.make_node(case.op, ["x", *names], outputs, **case.attributes)],
        "one",
        [helper.make_tensor_value_info("x", TYPES[kind], case.shape)],
        [helper.make_tensor_value_info(name, TYPES[kind], None) for name in outputs],
        [numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return qruntime.load(model.SerializeToString(), threads=threads)


def shortest(run: Callable[[], Any], seconds: float) -> float:
    end, least = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - start)
    return least


def measure(case: Case, threads: int, seconds: float, rounds: int) -> dict[str, Any]:
    runs: dict[str, Callable[[], Any]] = {}
    for kind in TYPES:
        model, feed = load(case, kind, threads), {"x": normal(*case.shape).astype(kind)}
        model.run(feed)
        runs[kind] = lambda model=model, feed=feed: model.run(feed)
    least = dict.fromkeys(TYPES, float("inf"))
    for _ in range(rounds):
        for kind, run in runs.items():
            least[kind] = min(least[kind], shortest(run, seconds))
    details = ", ".join(f"{name} {value}" for name, value in case.attributes.items() if name != "hidden_size")
    what = "×".join(map(str, case.shape)) + (f", {details}" if details else "")
    row: dict[str, Any] = {"operator": case.op, "input": what, "threads": threads, "float32": 1e3 * least["float32"]}
    return row | {kind: least[kind] / least["float32"] for kind in ("float64", "float16")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", help="only these, comma-separated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = options.operators.split(",") if options.operators else [case.op for case in CASES]
    rows = [measure(case, options.threads, options.seconds, options.rounds) for case in CASES if case.op in chosen]
    emit("element_types", rows, COLUMNS, options.json)


if __name__ == "__main__":
    main()
