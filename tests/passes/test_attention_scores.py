"""From a softmax back to the product of q and k: what may lie between is followed, all else gives its reason."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.ir import Graph, Node, TypeInfo, Value, constant
from qruntime.passes.attention_scores import (
    Scores,
    is_last_axis,
    is_one_number,
    is_private,
    scaling_of,
    scores_of,
    softmax_before,
)
from qruntime.passes.rewriting import Skip, as_attribute

Q, K, V, MASK, TEST = (Value(name, TypeInfo("tensor", 1, (None,) * 4)) for name in ("q", "k", "v", "mask", "test"))
HALF, ZERO, LOWEST = (constant(name, np.float32(value)) for name, value in (("half", 0.5), ("zero", 0), ("lowest", -np.inf)))


@pytest.fixture(autouse=True)
def unread():
    """The values above are read anew by every test."""
    yield
    for value in (Q, K, V, MASK, TEST, HALF, ZERO, LOWEST):
        value.uses.clear()
        value.output_of.clear()


def make(op, *inputs, version=17, **attributes):
    output = Value(op)
    Node(op, inputs, [output], {name: as_attribute(value) for name, value in attributes.items()}, version=version)
    return output


def found(scores):
    return scores_of(make("Softmax", scores).producer)


def product():
    return make("MatMul", Q, K)


def test_the_product_alone():
    s = product()
    assert found(s) == Scores(s.producer, 1.0, (), (), None, False, -np.inf)


def test_scales_multiply():
    by = make("Sqrt", make("Gather", make("Shape", Q), constant("last", np.int64(3))))
    s = make("Div", make("Mul", make("Div", product(), HALF), constant("three", np.float32([3]))), by)
    scores = found(s)
    assert scores.scale == 6.0
    assert scores.scales == (("Div", by),)


def test_added_masks():
    other = Value("other")
    scores = found(make("Add", MASK, make("Add", make("Mul", product(), HALF), other)))
    assert (scores.added, scores.scale, scores.mask) == ((MASK, other), 0.5, None)


@pytest.mark.parametrize("inverted", [False, True])
def test_a_mask_that_chooses(inverted):
    s = product()
    scores = found(make("Where", TEST, LOWEST, s) if inverted else make("Where", TEST, s, LOWEST))
    assert (scores.mask, scores.is_inverted, scores.fill) == (TEST, inverted, -np.inf)


@pytest.mark.parametrize("cast", [False, True])
def test_a_negation_is_undone(cast):
    negated = make("Not", TEST)
    scores = found(make("Where", make("Cast", negated, to=9) if cast else negated, LOWEST, product()))
    assert (scores.mask, scores.is_inverted) == (TEST, False)


DECLINED = {
    "an Add has no product of q and k, or two of them": [
        lambda: make("Add", product(), product()), lambda: make("Add", make("Relu", product()), MASK),
    ],
    "the fill value is no constant number": [
        lambda: make("Where", TEST, product(), MASK),
        lambda: make("Where", TEST, product(), constant("fill", np.zeros((1, 1, 1), np.float32))),
    ],
    "Relu lies between the product of q and k and the softmax": [lambda: make("Relu", product())],
    "there is no product of q and k": [lambda: make("Where", TEST, MASK, LOWEST)],
    "": [lambda: MASK, lambda: make("Mul", MASK, HALF)],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "scores"), [(reason, scores) for reason, made in DECLINED.items() for scores in made])
def test_what_is_no_attention_says_why(reason, scores):
    declined = found(scores())
    assert isinstance(declined, Skip)
    assert declined == reason


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: make("Mul", s, HALF), lambda s: make("Add", s, MASK), lambda s: make("Where", TEST, s, LOWEST)]
)
def test_scores_that_others_read_are_left(wrap):
    s = product()
    argument = wrap(s)
    make("Neg", argument)
    assert found(argument) == "the scores are read elsewhere"
    if argument is not s:
        s = product()
        argument = wrap(s)
        Graph(outputs=[s])
        assert found(argument) == "the scores are read elsewhere"


def test_the_softmax_of_a_product():
    weights = make("Softmax", MASK)
    root = make("MatMul", weights, V).producer
    assert softmax_before(root) == (weights.producer, False)
    Graph(outputs=[weights])
    assert softmax_before(root) == "the weights are read elsewhere"


def guarded(weights, test=None, zero=ZERO):
    return make("MatMul", make("Where", test or make("IsNaN", weights), zero, weights), V).producer


def test_a_softmax_whose_nans_are_zero():
    weights = make("Softmax", MASK)
    assert softmax_before(guarded(weights)) == (weights.producer, True)
    make("Neg", weights)
    assert softmax_before(guarded(weights)) == "the weights are read elsewhere"


def test_no_softmax_before_a_product():
    weights = make("Softmax", MASK)
    for root in (
        make("MatMul", MASK, V), make("MatMul", make("Relu", MASK), V), Node("MatMul", [None, V], [Value("y")]),
    ):  # fmt: skip
        assert softmax_before(root if isinstance(root, Node) else root.producer) == ""
    for root in (
        guarded(weights, test=TEST), guarded(weights, zero=HALF), guarded(weights, test=make("IsNaN", MASK)), guarded(make("Relu", MASK)),
    ):  # fmt: skip
        assert softmax_before(root) == ""


@pytest.mark.parametrize(
    ("version", "axis", "last"), [(13, None, True), (13, 3, True), (13, 1, False), (12, None, False), (12, 3, True), (12, -1, True)]
)
def test_the_axis_of_a_softmax(version, axis, last):
    softmax = make("Softmax", MASK, version=version, **({} if axis is None else {"axis": axis})).producer
    assert is_last_axis(softmax, 4) is last


def test_privacy():
    x = make("Relu", Q)
    reader = make("Neg", x).producer
    assert is_private(x, {reader})
    other = make("Abs", x).producer
    assert not is_private(x, {reader})
    assert is_private(x, {reader, other})
    Graph(outputs=[x])
    assert not is_private(x, {reader, other})


def test_scaling():
    quarter = constant("quarter", np.float32([[4.0]]))
    assert scaling_of(make("Mul", Q, HALF).producer) == (Q, 0.5)
    assert scaling_of(make("Mul", HALF, Q).producer) == (Q, 0.5)
    assert scaling_of(make("Div", Q, quarter).producer) == (Q, 0.25)
    for none in (
        make("Div", HALF, Q), make("Div", Q, ZERO), make("Add", Q, HALF), make("Mul", Q, MASK),
        make("Mul", Q, constant("wide", np.ones((1, 1, 1), np.float32))), make("Mul", Q, constant("many", np.ones(4, np.float32))),
    ):  # fmt: skip
        assert scaling_of(none.producer) is None


def test_one_number_from_shapes():
    shape = make("Shape", Q)
    one = make("Gather", shape, constant("i", np.int64([2])))
    last = make("Slice", shape, constant("a", np.int64([-1])), constant("b", np.int64([2**62])))
    third = make("Slice", shape, constant("a", np.int64([2])), constant("b", np.int64([3])))
    assert all(map(is_one_number, (one, last, third, make("Sqrt", make("Cast", one, to=1)), make("Mul", one, HALF), make("Squeeze", last))))
    two = make("Slice", shape, constant("a", np.int64([1])), constant("b", np.int64([3])))
    several = make("Gather", shape, constant("i", np.int64([1, 2])))
    assert not any(map(is_one_number, (None, Q, shape, two, several, make("Gather", Q, constant("i", np.int64(0))), make("Sqrt", Q))))
    deep = one
    for _ in range(12):
        deep = make("Sqrt", deep)
    assert not is_one_number(deep)
