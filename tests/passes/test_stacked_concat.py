"""Concatenations that are stacked afterwards write into the stack, with the same result; other stacks stay."""

import numpy as np
import pytest

import qruntime
from qruntime.ops.registry import find
from tests.passes.lowering import lowered_ops, model

B, H, S, D, PAST = 2, 3, 4, 5, 6
LAYERS = 3


def rng(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


def cache(past=PAST, new=S, layers=LAYERS):
    """Inputs past_i and new_i, nodes that join them (k_i) and put a leading dimension before them (u_i)."""
    inputs, nodes = {}, []
    for i in range(layers):
        inputs |= {f"past_{i}": rng(B, H, past, D, seed=i), f"new_{i}": rng(B, H, new, D, seed=10 + i)}
        nodes.append(("Concat", [f"past_{i}", f"new_{i}"], [f"k_{i}"], {"axis": 2}))
        nodes.append(("Unsqueeze", [f"k_{i}", "first"], [f"u_{i}"], {}))
    return inputs, nodes


def stack(inputs, output):
    return ("Concat", inputs, [output], {"axis": 0})


FIRST = {"first": ints(0)}


@pytest.mark.parametrize(("past", "new"), [(PAST, S), (0, S), (PAST, 0), (0, 0), (127, 1)])
def test_stack(past, new):
    inputs, nodes = cache(past, new)
    loaded = model([*nodes, stack(["u_0", "u_1", "u_2"], "y")], inputs, ["y"], FIRST)
    assert lowered_ops(loaded, inputs) == {"ConcatInto": LAYERS}


def test_stack_of_stacks_in_another_order():
    inputs, nodes = cache(layers=4)
    nodes += [
        stack(["u_2", "u_0"], "a"), stack(["u_3", "u_1"], "b"),
        ("Unsqueeze", ["b", "first"], ["b1"], {}), ("Unsqueeze", ["a", "first"], ["a1"], {}), stack(["b1", "a1"], "y"),
    ]  # fmt: skip
    assert lowered_ops(model(nodes, inputs, ["y"], FIRST), inputs) == {"ConcatInto": 4}


def test_items_are_read_and_given_out():
    inputs, nodes = cache()
    nodes += [("Neg", ["k_1"], ["z"], {}), stack(["u_0", "u_1", "u_2"], "y")]
    assert lowered_ops(model(nodes, inputs, ["y", "z", "k_0"], FIRST), inputs) == {"ConcatInto": LAYERS, "Neg": 1}


def test_parts_of_one_projection_are_read_where_they_lie():
    inputs = {f"qkv_{i}": rng(B, S, 3, H, D, seed=i) for i in range(2)} | {f"past_{i}": rng(B, H, PAST, D) for i in range(2)}
    nodes = []
    for i in range(2):
        nodes += [
            ("Transpose", [f"qkv_{i}"], [f"t_{i}"], {"perm": [2, 0, 3, 1, 4]}),
            ("Gather", [f"t_{i}", "which"], [f"new_{i}"], {"axis": 0}),
            ("Concat", [f"past_{i}", f"new_{i}"], [f"k_{i}"], {"axis": -2}),
            ("Unsqueeze", [f"k_{i}", "first"], [f"u_{i}"], {}),
        ]
    loaded = model([*nodes, stack(["u_0", "u_1"], "y")], inputs, ["y"], {**FIRST, "which": np.array(2)})
    assert lowered_ops(loaded, inputs) == {"ConcatInto": 2}


def test_what_is_no_concatenation_stays():
    inputs, nodes = cache()
    nodes += [("Neg", ["k_1"], ["n"], {}), ("Unsqueeze", ["n", "first"], ["m"], {}), stack(["u_0", "m", "u_2"], "y")]
    assert "ConcatInto" not in lowered_ops(model(nodes, inputs, ["y"], FIRST), inputs)


def test_an_item_that_comes_twice_stays():
    inputs, nodes = cache()
    loaded = model([*nodes, stack(["u_0", "u_1", "u_0"], "y")], inputs, ["y"], FIRST)
    assert "ConcatInto" not in lowered_ops(loaded, inputs)


def test_stacks_of_different_sizes_stay():
    inputs, nodes = cache()
    nodes += [
        stack(["u_0", "u_1"], "a"), stack(["u_2"], "b"),
        ("Concat", ["a", "b"], ["y"], {"axis": 0}),
    ]  # fmt: skip
    assert lowered_ops(model(nodes, inputs, ["y"], FIRST), inputs)["Concat"] > 0


def test_results_of_two_runs_are_apart():
    inputs, nodes = cache()
    loaded = model([*nodes, stack(["u_0", "u_1", "u_2"], "y")], inputs, ["y"], FIRST)
    first = loaded.run(inputs)["y"]
    kept = first.copy()
    second = loaded.run({name: x + 1 for name, x in inputs.items()})["y"]
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(second, kept + 1)


def test_items_that_differ_in_shape_are_an_error():
    inputs, nodes = cache()
    loaded = model([*nodes, stack(["u_0", "u_1", "u_2"], "y")], inputs, ["y"], FIRST)
    inputs["past_2"] = rng(B, H, PAST + 1, D)
    with pytest.raises(qruntime.QRuntimeError, match="item 2 of a stack"):
        loaded.run(inputs)


def test_the_definition_leaves_its_stack_alone():
    concat_into = find("qruntime", "ConcatInto", 1)
    given = rng(2, B, D)
    before = given.copy()
    whole, item = concat_into(given, rng(1, D), rng(1, D, seed=1), axis=0, index=1, counts=(2,), parts=(-1, -1))
    np.testing.assert_array_equal(given, before)
    np.testing.assert_array_equal(whole[0], given[0])
    np.testing.assert_array_equal(whole[1], item)
