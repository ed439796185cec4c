"""Ranks and last dimensions follow from the inputs, through as many layers as there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qruntime.passes.known_ranks import Known, known_ranks
from tests.passes.lowering import imported

W = 8
CONSTANTS = {"w": np.zeros((W, 4), np.float32), "square": np.zeros((W, W), np.float32), "vector": np.zeros(W, np.float32),
             "heads": np.array([0, 0, 2, 4]), "rest": np.array([0, 0, -1]), "table": np.zeros((9, 6), np.float32),
             "ids": np.array([[1, 2]])}  # fmt: skip


def known(nodes: list[tuple[str, list[str], list[str], dict[str, Any]]], rank: int = 3) -> Known | None:
    """Of y, where the input x [..] has no sizes."""
    graph = imported(nodes, {"x": np.zeros((1,) * rank, np.float32)}, ["y"], CONSTANTS, opset=23)
    graph.outputs[0].type = None
    return known_ranks(graph).get(graph.outputs[0])


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("MatMul", ["x", "w"], ["y"], {})], Known(3, 4)),
        ([("MatMul", ["x", "x"], ["y"], {})], None),
        ([("Add", ["x", "vector"], ["y"], {})], Known(3, W)),
        ([("Add", ["x", "x"], ["y"], {})], Known(3, None)),
        ([("Relu", ["x"], ["r"], {}), ("Mul", ["r", "vector"], ["y"], {})], Known(3, W)),
        ([("Reshape", ["x", "heads"], ["y"], {})], Known(4, 4)),
        ([("Reshape", ["x", "rest"], ["y"], {})], Known(3, None)),
        ([("Reshape", ["x", "heads"], ["h"], {}), ("Transpose", ["h"], ["y"], {"perm": [0, 2, 1, 3]})], Known(4, 4)),
        ([("Reshape", ["x", "heads"], ["h"], {}), ("Transpose", ["h"], ["y"], {"perm": [0, 1, 3, 2]})], Known(4, None)),
        ([("Gather", ["table", "ids"], ["y"], {})], Known(3, 6)),
        ([("Gather", ["table", "ids"], ["y"], {"axis": 1})], None),
        ([("NonZero", ["x"], ["y"], {})], None),
    ],
)
def test_one_or_two_nodes(nodes: list[tuple[str, list[str], list[str], dict[str, Any]]], expected: Known | None):
    assert known(nodes) == expected


def test_a_residual_stream_of_many_layers():
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = [("MatMul", ["x", "square"], ["h0"], {})]
    for i in range(200):
        nodes += [("MatMul", [f"h{i}", "square"], [f"m{i}"], {}), ("Add", [f"h{i}", f"m{i}"], [f"h{i + 1}"], {})]
    assert known([*nodes, ("Relu", ["h200"], ["y"], {})]) == Known(3, W)


def test_vectors_and_scalars():
    assert known([("MatMul", ["x", "w"], ["y"], {})], rank=1) is None
    assert known([("Mul", ["x", "vector"], ["y"], {})], rank=0) == Known(1, W)
