"""What does nothing goes, and what only seems to stays. Folding has a file of its own: test_folding.py."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from qruntime.passes.cleanup import (
    FOLDING_CAP,
    fold_all_constants,
    fold_constants,
    merge_duplicates,
    remove_dead_nodes,
    remove_identities,
)
from tests.passes.lowering import FLOAT, after, imported, reasons

X = {"x": np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)}
FLAG = {"flag": np.array(True)}


def ops(one_pass, nodes, outputs=("y",), inputs=X, constants=None, opset=17):
    return after(one_pass, imported(nodes, inputs, outputs, constants, opset), inputs, rtol=0, atol=0)


def branch(*nodes, result="t"):
    made = [helper.make_node(op, ins, outs) for op, ins, outs in nodes]
    return helper.make_graph(made, "b", [], [helper.make_tensor_value_info(result, FLOAT, None)])


def choice(then, other):
    return ("If", ["flag"], ["y"], {"then_branch": then, "else_branch": other})


IDENTITIES = {
    "Identity": ("Identity", ["e"], ["i"], {}),
    "Dropout": ("Dropout", ["e"], ["i"], {}),
    "Dropout that does not train": ("Dropout", ["e", "", "false"], ["i"], {}),
    "Concat of one": ("Concat", ["e"], ["i"], {"axis": 0}),
    "Sum of one": ("Sum", ["e"], ["i"], {}),
    "Mean of one": ("Mean", ["e"], ["i"], {}),
}


@pytest.mark.parametrize("node", IDENTITIES.values(), ids=list(IDENTITIES))
def test_what_hands_its_input_on_goes(node):
    nodes = [("Exp", ["x"], ["e"], {}), node, ("Neg", ["i"], ["y"], {})]
    assert ops(remove_identities, nodes, constants={"false": np.array(False)}) == {"Exp": 1, "Neg": 1}


def test_identities_that_do_something_stay():
    mask = [("Dropout", ["x"], ["d", "mask"], {}), ("Where", ["mask", "d", "x"], ["y"], {})]
    assert ops(remove_identities, mask)["Dropout"] == 1
    assert ops(remove_identities, [("Max", ["x", "x"], ["y"], {})]) == {"Max": 1}
    fed = X | {"training": np.array(False)}
    trained = [("Dropout", ["x", "", "training"], ["d"], {}), ("Neg", ["d"], ["y"], {})]
    assert ops(remove_identities, trained, inputs=fed)["Dropout"] == 1


def test_an_output_must_be_made():
    assert ops(remove_identities, [("Identity", ["x"], ["y"], {})]) == {"Identity": 1}
    assert ops(remove_identities, [("Exp", ["x"], ["e"], {}), ("Identity", ["e"], ["y"], {})]) == {"Exp": 1}
    then, other = branch(("Identity", ["e"], ["t"])), branch(("Neg", ["e"], ["t"]))
    found = ops(remove_identities, [("Exp", ["x"], ["e"], {}), choice(then, other)], inputs=X | FLAG)
    assert found["Identity"] == 1  # what a branch gives out is made in the branch


def test_dead_nodes_go_inside_out():
    """A branch that does not need what it captures is the last reader of it."""
    then = branch(("Exp", ["e"], ["unread"]), ("Neg", ["x"], ["t"]))
    nodes = [("Sqrt", ["x"], ["s"], {}), ("Exp", ["s"], ["e"], {}), choice(then, branch(("Abs", ["x"], ["t"])))]
    assert ops(remove_dead_nodes, nodes, inputs=X | FLAG) == {"Neg": 1, "Abs": 1, "If": 1}


def test_a_node_of_which_one_output_is_read_stays():
    assert ops(remove_dead_nodes, [("Split", ["x"], ["a", "b", "c"], {"axis": 1}), ("Neg", ["b"], ["y"], {})]) == {"Split": 1, "Neg": 1}


def test_duplicates_share_one_result():
    nodes = [("Exp", ["x"], [name], {}) for name in "ab"] + [("Neg", ["a"], ["c"], {}), ("Neg", ["b"], ["d"], {})]
    nodes.append(("Add", ["c", "d"], ["y"], {}))
    assert ops(merge_duplicates, nodes) == {"Exp": 1, "Neg": 1, "Add": 1}


def test_equal_constants_are_one():
    nodes = [("Add", ["x", "a"], ["p"], {}), ("Add", ["x", "b"], ["q"], {}), ("Mul", ["p", "q"], ["y"], {})]
    one = np.float32([1, 2, 3])
    assert ops(merge_duplicates, nodes, constants={"a": one, "b": one.copy()}) == {"Add": 1, "Mul": 1}
    for other in (np.float32([1, 2, 4]), one.astype(np.float64), one.reshape(1, 3), np.float32([1, 2, -3])):
        graph = imported(nodes, X, ["y"], {"a": one, "b": other})
        merge_duplicates(graph)
        assert [n.op_type for n in graph.nodes].count("Add") == 2
    zeros = {"a": np.float32([0.0]), "b": np.float32([-0.0])}
    quotients = [("Div", ["x", "a"], ["p"], {}), ("Div", ["x", "b"], ["q"], {}), ("Add", ["p", "q"], ["y"], {})]
    graph = imported(quotients, X, ["y"], zeros)
    merge_duplicates(graph)
    assert [n.op_type for n in graph.nodes].count("Div") == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("Softmax", {"axis": 0}), ("Softmax", {"axis": 1})),
        (("RandomNormalLike", {}), ("RandomNormalLike", {})),
        (("LeakyRelu", {"alpha": 0.0}), ("LeakyRelu", {"alpha": -0.0})),
    ],
)
def test_what_is_not_the_same_stays(first, second):
    nodes = [(first[0], ["x"], ["a"], first[1]), (second[0], ["x"], ["b"], second[1]), ("Sub", ["a", "b"], ["y"], {})]
    graph = imported(nodes, X, ["y"])
    merge_duplicates(graph)
    assert [n.op_type for n in graph.nodes].count(first[0]) == 2


def test_duplicates_that_are_outputs_stay():
    assert ops(merge_duplicates, [("Exp", ["x"], ["y"], {}), ("Exp", ["x"], ["z"], {})], ("y", "z")) == {"Exp": 2}


def test_duplicates_in_two_branches_stay():
    then, other = branch(("Exp", ["x"], ["t"])), branch(("Exp", ["x"], ["t"]))
    assert ops(merge_duplicates, [choice(then, other)], inputs=X | FLAG) == {"Exp": 2, "If": 1}


@pytest.mark.parametrize("fold", [fold_constants, fold_all_constants])
def test_nodes_of_constants_are_computed(fold):
    nodes = [("Neg", ["c"], ["n"], {}), ("Transpose", ["n"], ["t"], {}), ("Add", ["x", "t"], ["y"], {})]
    assert ops(fold, nodes, constants={"c": np.float32([[1, 2], [3, 4], [5, 6]])}) == {"Add": 1}


@pytest.mark.parametrize("fold", [fold_constants, fold_all_constants])
@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (("RandomNormalLike", ["c"], ["n"], {}), {"c": np.float32([1, 2, 3])}),
        (("Neg", ["x"], ["n"], {}), {}),
        (("Gather", ["c", "far"], ["n"], {"axis": 0}), {"c": np.float32([1, 2]), "far": np.int64(9)}),
        (("Expand", ["c", "size"], ["n"], {}), {"c": np.float32([1]), "size": np.int64([FOLDING_CAP])}),
        (("Tile", ["c", "size"], ["n"], {}), {"c": np.float32([1]), "size": np.int64([FOLDING_CAP])}),
        (("ConstantOfShape", ["size"], ["n"], {}), {"size": np.int64([1 << 40])}),
        (("Range", ["c", "limit", "step"], ["n"], {}), {"c": np.float32(0), "limit": np.float32(1e12), "step": np.float32(1)}),
        (("Range", ["c", "limit", "step"], ["n"], {}), {"c": np.float32(0), "limit": np.float32(1), "step": np.float32(0)}),
    ],
    ids=["random", "no constant", "a failure", "Expand", "Tile", "ConstantOfShape", "Range", "no step"],
)
def test_what_cannot_or_should_not_be_computed_stays(fold, node, constants, capsys, monkeypatch):
    monkeypatch.setenv("QRUNTIME_TRACE", "passes")
    graph = imported([node, ("Add", ["x", "n"], ["y"], {})], X, ["y"], constants)
    fold(graph)
    graph.check()
    assert [n.op_type for n in graph.nodes] == [node[0], "Add"]
    said = reasons(capsys)
    assert bool(said) == (node[0] not in ("RandomNormalLike", "Neg"))
    assert all(f"{node[0]} 'n'" in reason for reason in said)


def test_sequences_and_strings_are_no_folded_constants():
    nodes = [("SequenceConstruct", ["c"], ["s"], {}), ("SequenceAt", ["s", "first"], ["n"], {}), ("Add", ["x", "n"], ["y"], {})]
    assert ops(fold_all_constants, nodes, constants={"c": np.float32([1, 2, 3]), "first": np.int64(0)})["SequenceConstruct"] == 1
    text = [("Cast", ["c"], ["s"], {"to": TensorProto.STRING}), ("Cast", ["s"], ["n"], {"to": FLOAT}), ("Add", ["x", "n"], ["y"], {})]
    assert ops(fold_all_constants, text, constants={"c": np.float32([1, 2, 3])}) == {"Add": 1}
