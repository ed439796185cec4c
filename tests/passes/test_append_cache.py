"""Concatenations of an input with what is new become appends, with the same result; other concatenations stay."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np
import pytest

from qruntime.ir import TypeInfo, clone
from qruntime.passes import pipeline
from qruntime.runtime.plan import Planner
from tests.passes.lowering import imported, lowered_ops, model, reasons
from tests.small_models import random

B, H, T, S, D = 2, 3, 6, 1, 4
LAYERS = 2
Nodes = list[tuple[str, list[str], list[str], dict[str, Any]]]
NUMBERS = {"first": np.array([0]), **{f"i{i}": np.array(i) for i in range(4)}, **{f"at{i}": np.array([i]) for i in range(4)}}


def per_layer() -> tuple[dict[str, np.ndarray], Nodes]:
    inputs = {"past": random(B, H, T, D), "new": random(B, H, S, D, seed=1)}
    return inputs, [("Concat", ["past", "new"], ["present"], {"axis": -2})]


def stacked(order: tuple[int, ...] = (0, 1), take: str = "Gather") -> tuple[dict[str, np.ndarray], Nodes]:
    """`order`: which of the past each item of the present follows."""
    inputs = {"past": random(LAYERS, B, H, T, D), **{f"new_{i}": random(B, H, S, D, seed=i) for i in range(LAYERS)}}
    nodes: Nodes = [("Split", ["past"], ["s0", "s1"], {"axis": 0, "num_outputs": 2})] if take == "Split" else []
    for i, source in enumerate(order):
        if take == "Gather":
            nodes.append(("Gather", ["past", f"i{source}"], [f"p_{i}"], {"axis": 0}))
        elif take == "Split":
            nodes.append(("Squeeze", [f"s{source}", "first"], [f"p_{i}"], {}))
        else:
            nodes += [
                ("Slice", ["past", f"at{source}", f"at{source + 1}", "first"], [f"c_{i}"], {}),
                ("Squeeze", [f"c_{i}", "first"], [f"p_{i}"], {}),
            ]
        nodes += [("Concat", [f"p_{i}", f"new_{i}"], [f"k_{i}"], {"axis": 2}), ("Unsqueeze", [f"k_{i}", "first"], [f"u_{i}"], {})]
    return inputs, [*nodes, ("Concat", ["u_0", "u_1"], ["present"], {"axis": 0})]


def graph_of(nodes: Nodes, inputs: dict[str, np.ndarray], outputs: list[str]) -> Any:
    """With the sizes of layers, which exporters write down."""
    loaded = model(nodes, inputs, outputs, NUMBERS, opset=18)
    for value in loaded.graph.inputs:
        if value.name == "past":
            value.type = TypeInfo("tensor", 1, (LAYERS, None, None, None, None) if inputs["past"].ndim == 5 else (None,) * 4)
    return loaded


def ops(nodes: Nodes, inputs: dict[str, np.ndarray], outputs: tuple[str, ...] = ("present",)) -> Counter[str]:
    return lowered_ops(graph_of(nodes, inputs, list(outputs)), inputs)


def test_a_cache_of_its_own():
    inputs, nodes = per_layer()
    assert ops(nodes, inputs) == {"AppendCache": 1}


@pytest.mark.parametrize("take", ["Gather", "Split", "Slice"])
def test_a_stack(take: str):
    inputs, nodes = stacked(take=take)
    assert ops(nodes, inputs) == {"AppendCache": LAYERS}


def test_items_that_change_places(capsys: pytest.CaptureFixture[str]):
    os.environ["QRUNTIME_TRACE"] = "passes"
    try:
        inputs, nodes = stacked((1, 0))
        found = ops(nodes, inputs)
        assert any("items change their places" in reason for reason in reasons(capsys))
    finally:
        del os.environ["QRUNTIME_TRACE"]
    assert found["ConcatInto"] == LAYERS
    assert "AppendCache" not in found


def test_a_past_of_more_layers():
    """The stack of two of its three layers is no longer that input with more tokens."""
    inputs, nodes = stacked()
    inputs["past"] = random(3, B, H, T, D)
    assert "AppendCache" not in lowered_ops(model(nodes, inputs, ["present"], NUMBERS, opset=18), inputs)


@pytest.mark.parametrize(
    "nodes",
    [
        [("Neg", ["new"], ["n"], {}), ("Concat", ["n", "past"], ["present"], {"axis": 2})],
        [("Neg", ["past"], ["n"], {}), ("Concat", ["n", "new"], ["present"], {"axis": 2})],
        [("Concat", ["past", "new"], ["c"], {"axis": 2}), ("Neg", ["c"], ["present"], {})],
        [("Concat", ["past", "new", "new"], ["present"], {"axis": 2})],
    ],
    ids=["before the past", "of no input", "of no output", "three pieces"],
)
def test_what_is_no_append(nodes: Nodes):
    assert "AppendCache" not in ops(nodes, per_layer()[0])


def test_readers_that_know_no_gaps_get_what_is_dense():
    inputs, nodes = per_layer()
    nodes += [("Neg", ["present"], ["a"], {}), ("ReduceSum", ["present"], ["b"], {}), ("Relu", ["past"], ["c"], {})]
    assert ops(nodes, inputs, ("present", "a", "b", "c")) == {"AppendCache": 1, "Dense": 2, "Neg": 1, "ReduceSum": 1, "Relu": 1}


def test_shapes_of_parts_are_read_of_the_whole():
    inputs, nodes = stacked()
    nodes += [("Shape", ["p_1"], ["s"], {"start": 1, "end": 3}), ("Cast", ["s"], ["y"], {"to": 1})]
    found = ops(nodes, inputs, ("present", "y"))
    assert found == {"AppendCache": LAYERS, "Shape": 1, "Cast": 1}


def test_a_cache_that_others_read_too_has_room():
    inputs, nodes = per_layer()
    graph = clone(graph_of([*nodes, ("Neg", ["past"], ["z"], {})], inputs, ["present", "z"]).graph)
    plan = Planner(pipeline.lowered(graph), num_threads=1).plan()
    first = plan.executable.run([inputs["past"], inputs["new"]])
    second = plan.executable.run([first[0], inputs["new"]])
    third = plan.executable.run([second[0], inputs["new"]])
    addresses = [made[0].__array_interface__["data"][0] for made in (first, second, third)]
    assert addresses[0] != addresses[1] == addresses[2]
    assert np.array_equal(third[1], -second[0])


def test_a_graph_that_no_pass_has_seen_is_untouched():
    inputs, nodes = per_layer()
    assert Counter(node.op_type for node in imported(nodes, inputs, ["present"]).nodes) == {"Concat": 1}
