"""Casts to the type that a value has already go; those that change it, or might, stay."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from qruntime.passes.casts import remove_casts
from tests.passes.lowering import BOOL, FLOAT, INT64, after, imported

X = {"x": np.linspace(-2, 2, 8, dtype=np.float32)}


def cast(source, result, to):
    return ("Cast", [source], [result], {"to": to})


def ops(nodes, outputs=("y",), inputs=X, constants=None):
    return after(remove_casts, imported(nodes, inputs, outputs, constants), inputs, rtol=0, atol=0)


def test_of_an_input_and_of_what_a_node_makes():
    nodes = [
        cast("x", "a", FLOAT),
        ("Exp", ["a"], ["b"], {}),
        cast("b", "c", FLOAT),
        ("Neg", ["c"], ["y"], {}),
    ]
    assert ops(nodes) == {"Exp": 1, "Neg": 1}


def test_of_what_a_cast_makes():
    nodes = [
        cast("x", "a", INT64),
        cast("a", "b", INT64),
        cast("b", "c", FLOAT),
        ("Neg", ["c"], ["y"], {}),
    ]
    assert ops(nodes) == {"Cast": 2, "Neg": 1}


def test_of_comparisons_and_shapes():
    nodes = [
        ("Greater", ["x", "zero"], ["g"], {}), cast("g", "b", BOOL), ("Where", ["b", "x", "zero"], ["w"], {}),
        ("Shape", ["x"], ["s"], {}), cast("s", "t", INT64), ("Reshape", ["w", "t"], ["y"], {}),
    ]  # fmt: skip
    assert ops(nodes, constants={"zero": np.float32(0)})["Cast"] == 0


def test_a_change_of_type_stays():
    assert ops([cast("x", "a", 10), cast("a", "b", FLOAT), ("Neg", ["b"], ["y"], {})])["Cast"] == 2


def test_what_a_graph_gives_out_stays():
    assert ops([cast("x", "y", FLOAT)]) == {"Cast": 1}


def test_an_unknown_type_stays():
    nodes = [
        ("SequenceConstruct", ["x"], ["s"], {}),
        ("SequenceAt", ["s", "first"], ["a"], {}),
        cast("a", "b", FLOAT),
        ("Neg", ["b"], ["y"], {}),
    ]
    assert ops(nodes, constants={"first": np.int64(0)})["Cast"] == 1


@pytest.mark.parametrize(("to", "left"), [(FLOAT, 0), (INT64, 1)])
def test_in_a_branch(to, left):
    """The type of what a branch captures is known outside."""
    made = helper.make_tensor_value_info("t", FLOAT, None)
    nodes = [
        helper.make_node("Cast", ["e"], ["c"], to=to),
        helper.make_node("Cast", ["c"], ["f"], to=FLOAT),
        helper.make_node("Neg", ["f"], ["t"]),
    ]
    branch = helper.make_graph(nodes, "b", [], [made])
    other = helper.make_graph([helper.make_node("Identity", ["e"], ["t"])], "o", [], [made])
    inputs = X | {"flag": np.array(True)}
    found = ops(
        [("Exp", ["x"], ["e"], {}), ("If", ["flag"], ["y"], {"then_branch": branch, "else_branch": other})],
        inputs=inputs,
    )
    assert found["Cast"] == 2 * left
