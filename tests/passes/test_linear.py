"""What follows a linear layer joins it."""

import numpy as np

from tests.passes.lowering import lowered_ops, model

X = {"x": np.random.default_rng(3).standard_normal((2, 3, 8)).astype(np.float32)}
CONSTANTS = {
    "w": np.random.default_rng(4).standard_normal((8, 6)).astype(np.float32), "b": np.arange(6, dtype=np.float32),
    "rows": np.array([-1, 8]), "shape": np.array([2, 3, 6]),
}  # fmt: skip
GEMM = [
    ("Reshape", ["x", "rows"], ["r"], {}),
    ("Gemm", ["r", "w", "b"], ["g"], {}),
    ("Reshape", ["g", "shape"], ["s"], {}),
]


def test_an_activation_behind_a_reshape():
    loaded = model([*GEMM, ("Relu", ["s"], ["y"], {})], X, ["y"], CONSTANTS)
    assert lowered_ops(loaded, X) == {"Reshape": 2, "Linear": 1}


def test_an_activation_beside_which_others_read_stays():
    loaded = model([*GEMM, ("Relu", ["s"], ["y"], {}), ("Neg", ["s"], ["z"], {})], X, ["y", "z"], CONSTANTS)
    assert lowered_ops(loaded, X) == {"Reshape": 2, "Linear": 1, "Relu": 1, "Neg": 1}


def test_a_second_activation_stays():
    loaded = model([*GEMM, ("Relu", ["s"], ["t"], {}), ("Sigmoid", ["t"], ["y"], {})], X, ["y"], CONSTANTS)
    assert lowered_ops(loaded, X) == {"Reshape": 2, "Linear": 1, "Sigmoid": 1}
