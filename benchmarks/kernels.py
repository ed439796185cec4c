"""Speed of single kernels on one thread, rung by rung: the least time of many repetitions.

    python benchmarks/kernels.py [--shapes 128x384x1536,1x768x768] [--seconds 0.3]
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from qruntime import _kernels

SHAPES = [
    (128, 384, 384), (128, 384, 1536), (128, 1536, 384), (128, 768, 768), (128, 768, 3072), (128, 3072, 768),
    (16, 768, 768), (8, 768, 768), (4, 768, 768), (1, 384, 1536), (1, 768, 768), (1, 1024, 4096), (1, 4096, 4096),
]  # fmt: skip
ACTIVATIONS = ["none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"]


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
    step = (name, ints, (), (packed,), [0], [0], 1, 1, 0, [], None, name)
    plan = _kernels.Executable(2, [(0, a)], [], [1], [step], set(), [], threads)
    return lambda: plan.run(())


def gemm_q8(shape: tuple[int, int, int], weights: str, activation: int, threads: int, seconds: float) -> float:
    """Billions of integer operations a second, two for each multiply-add."""
    m, k, n = shape
    rng = np.random.default_rng(0)
    if weights == "uniform":
        w = rng.integers(-127, 128, (k, n), dtype=np.int8)
    else:
        w = np.clip(np.rint(rng.standard_normal((k, n)) * 36), -127, 127).astype(np.int8)
    packed = _kernels.PackedQ8(w, np.full(1, 1e-4, np.float32), None, np.zeros(n, np.float32))
    a = rng.standard_normal((m, k), dtype=np.float32)
    return 2e-9 * m * k * n / least_seconds(one_node("linear_q8", a, (activation, 0), packed, threads), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shapes = ",".join("x".join(map(str, shape)) for shape in SHAPES)
    parser.add_argument("--shapes", default=shapes, help="MxKxN, comma-separated")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="none")
    parser.add_argument("--weights", choices=["normal", "uniform"], default="normal")
    parser.add_argument("--isas", default=",".join(_kernels.available_isas()))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each measurement")
    options = parser.parse_args()
    isas = options.isas.split(",")
    print("int8 GEMM, GOPS".ljust(20), *(name.rjust(12) for name in isas))
    for text in options.shapes.split(","):
        m, k, n = map(int, text.split("x"))
        row = []
        for name in isas:
            _kernels.set_isa(name)
            activation = ACTIVATIONS.index(options.activation)
            row.append(gemm_q8((m, k, n), options.weights, activation, options.threads, options.seconds))
        print(text.ljust(20), *(f"{gops:12.1f}" for gops in row))


if __name__ == "__main__":
    main()
