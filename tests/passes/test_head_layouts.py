"""Heads are found where they lie, through transposes, scales, repeats and parts of a projection, as far as that is sure."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qruntime.ir import Node, TypeInfo, Value, constant
from qruntime.passes.head_layouts import (
    LAYOUTS,
    TRANSPOSED_LAYOUTS,
    Operand,
    Repeats,
    axes_of,
    operand_of,
    part_of_projection,
    perm_of,
    plainly_transposed,
    without_repeats,
)
from qruntime.passes.rewriting import Builder, as_attribute


def value(name="x", rank=4, sizes=None):
    return Value(name, TypeInfo("tensor", 1, tuple(sizes) if sizes else (None,) * rank))


def ints(*numbers):
    return constant("ints", np.array(numbers, np.int64))


def make(op, *inputs, outputs=1, **attributes):
    made = [Value(f"{op}{i}") for i in range(outputs)]
    Node(op, inputs, made, {name: as_attribute(v) for name, v in attributes.items()}, version=17)
    return made[0] if outputs == 1 else made


def transposed(x, *perm):
    return make("Transpose", x, perm=perm)


@pytest.mark.parametrize(("layouts", "letters"), [(LAYOUTS, "BHSD"), (TRANSPOSED_LAYOUTS, "BHDS")])
def test_a_layout_is_what_a_transpose_makes_of_it(layouts, letters):
    """Axis i of what the product reads is axis perm[i] of what lies there."""
    for perm in (p for p in layouts if len(p) == 4):
        x = value()
        operand = operand_of(transposed(x, *perm), layouts)
        assert operand == Operand(x, layouts[perm], rank=4)
        assert "".join(operand.layout[axis] for axis in perm) == letters


def test_transposes_compose():
    x = value()
    twice = transposed(transposed(x, 0, 2, 1, 3), 0, 1, 3, 2)
    assert operand_of(twice, TRANSPOSED_LAYOUTS) == Operand(x, "BSHD", rank=4)
    assert operand_of(transposed(transposed(x, 0, 2, 1, 3), 0, 2, 1, 3), LAYOUTS) == Operand(x, "BHSD", rank=4)


def test_what_no_layout_says_is_taken_as_it_is():
    for perm in itertools.permutations(range(4)):
        if perm not in LAYOUTS:
            given = transposed(value(), *perm)
            assert operand_of(given, LAYOUTS) == Operand(given, "BHSD", rank=4)
    assert operand_of(None, LAYOUTS) is None
    unordered = make("Transpose", value())
    assert operand_of(unordered, LAYOUTS).value is unordered


def test_scales_join_what_they_are_on_the_way_of():
    x, half = value(), constant("half", np.float32(0.5))
    one = make("Sqrt", make("Gather", make("Shape", x), ints(3)))
    scaled = make("Mul", transposed(make("Div", make("Mul", x, half), one), 0, 2, 1, 3), half)
    assert operand_of(scaled, LAYOUTS) == Operand(x, "BSHD", 0, 0.25, (("Div", one),), 4)
    assert operand_of(scaled, LAYOUTS, may_scale=False) == Operand(scaled, "BHSD", rank=None)


def projection(part=1, how="Gather"):
    x = value("x", 5)
    split = transposed(x, 2, 0, 3, 1, 4)
    if how == "Gather":
        return x, make("Gather", split, constant("i", np.int64(part)), axis=0)
    parts = make("Split", split, ints(1, 1, 1), outputs=3, axis=0)
    return x, make("Squeeze", parts[part], ints(0))


@pytest.mark.parametrize("how", ["Gather", "Split"])
@pytest.mark.parametrize("part", [0, 2])
def test_parts_of_one_projection(part, how):
    x, head = projection(part, how)
    assert part_of_projection(head) == (x, part)
    assert operand_of(head, LAYOUTS) == Operand(x, "BSHD", part, rank=4)
    assert operand_of(transposed(head, 0, 1, 3, 2), TRANSPOSED_LAYOUTS) == Operand(x, "BSHD", part, rank=4)


def test_other_parts_are_none():
    x = value("x", 5)
    split = transposed(x, 2, 0, 3, 1, 4)
    uneven = make("Split", split, ints(1, 2), outputs=2, axis=0)
    for given in (
        x,
        make("Gather", split, constant("i", np.int64(-1)), axis=0),
        make("Gather", split, ints(1), axis=0),
        make("Gather", split, value("computed", 0), axis=0),
        make("Gather", split, constant("i", np.int64(1)), axis=1),
        make("Gather", transposed(x, 2, 0, 1, 3, 4), constant("i", np.int64(1)), axis=0),
        make("Gather", x, constant("i", np.int64(1)), axis=0),
        make("Squeeze", uneven[0], ints(0)),
        make("Squeeze", make("Split", split, ints(1, 1, 1), outputs=3, axis=1)[0], ints(0)),
        make("Squeeze", make("Split", split, ints(1, 1, 1), outputs=3, axis=0)[0], ints(1)),
        make("Squeeze", make("Split", split, outputs=3, axis=0)[0], ints(0)),
    ):
        assert part_of_projection(given) is None


def reshaped_keys(wanted=(2, 3, 5, 4), perm=(0, 2, 1), scale=None):
    """k [2, 3, 4, 5] whose last two dimensions change places by way of [6, 4, 5]."""
    k = value("k", sizes=(2, 3, 4, 5))
    merged = make("Reshape", k, ints(-1, 4, 5))
    made = make("Reshape", transposed(merged, *perm), ints(*wanted))
    return k, make("Mul", made, scale) if scale is not None else made


@pytest.mark.parametrize("scale", [None, constant("half", np.float32(0.5))])
def test_a_transpose_by_reshapes(scale):
    k, made = reshaped_keys(scale=scale)
    plain = plainly_transposed(Builder(made.producer), made)
    transpose = (plain if scale is None else plain.producer.input(0)).producer
    assert transpose.is_op("Transpose")
    assert perm_of(transpose) == (0, 1, 3, 2)
    assert transpose.input(0) is k
    assert scale is None or plain.producer.is_op("Mul")


@pytest.mark.parametrize("changed", [{"wanted": (2, 3, 4, 5)}, {"perm": (1, 0, 2)}, {"wanted": (6, 5, 4)}, {"wanted": (2, 3, 2, 10)}])
def test_reshapes_that_are_no_transpose(changed):
    _, made = reshaped_keys(**changed)
    assert plainly_transposed(Builder(made.producer), made) is made
    assert plainly_transposed(Builder(made.producer), None) is None


def repeated(x, n, wide=None, final=None, axes=(2,)):
    b, h, s, d = x.type.shape
    expanded = make("Expand", make("Unsqueeze", x, ints(*axes)), ints(*(wide or (b, h, n, s, d))))
    return make("Reshape", expanded, ints(*(final or (b, h * n, s, d))))


def operand(x):
    return Operand(x, "BHSD", rank=4)


def test_repeated_heads_are_read_as_they_are():
    k, v = (value(name, sizes=(2, 3, 5, 4)) for name in "kv")
    found = without_repeats(operand(repeated(k, 4)), operand(repeated(v, 4)))
    assert found == (operand(k), operand(v), Repeats(4))


def test_repeated_heads_that_lie_otherwise():
    k, v = (value(name, sizes=(2, 5, 3, 4)) for name in "kv")
    turned = [transposed(x, 0, 2, 1, 3) for x in (k, v)]
    for x in turned:
        x.type = TypeInfo("tensor", 1, (2, 3, 5, 4))
    found = without_repeats(*(operand(repeated(x, 2)) for x in turned))
    assert [o.value for o in found[:2]] == [k, v]
    assert [o.layout for o in found[:2]] == ["BSHD", "BSHD"]
    assert found[2] == Repeats(2)


@pytest.mark.parametrize(
    "changed",
    [
        {"axes": (1,)}, {"final": (2, 12, 4, 5)}, {"wide": (2, 3, 0, 5, 4)}, {"wide": (7, 3, 4, 5, 4)}, {"final": (2, 3, 4, 5, 4)},
        {"wide": (3, 4, 5, 4)},
    ],
)  # fmt: skip
def test_other_repeats_stay(changed):
    k, v = (value(name, sizes=(2, 3, 5, 4)) for name in "kv")
    given = operand(repeated(k, 4, **changed)), operand(repeated(v, 4, **changed))
    assert without_repeats(*given) == (*given, Repeats())


def test_repeats_that_differ_stay():
    k, v = (value(name, sizes=(2, 3, 5, 4)) for name in "kv")
    for given in ((repeated(k, 4), repeated(v, 2)), (repeated(k, 4), v), (k, repeated(v, 4))):
        operands = operand(given[0]), operand(given[1])
        assert without_repeats(*operands) == (*operands, Repeats())


def test_axes_and_orders():
    x = value()
    assert axes_of(make("Unsqueeze", x, axes=(1, 2)).producer) == (1, 2)
    assert axes_of(make("Unsqueeze", x, ints(3)).producer) == (3,)
    assert axes_of(make("Unsqueeze", x, value("computed", 1)).producer) is None
    assert axes_of(make("Squeeze", x).producer) is None
    assert perm_of(transposed(x, 1, 0).producer) == (1, 0)
    assert perm_of(make("Transpose", x).producer) is None
