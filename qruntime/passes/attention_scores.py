"""From the softmax of attention back to the product of q and k: what lies between is scaling and masks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qruntime.ir import Node, Value
from qruntime.passes.rewriting import Skip, scalar


class Scores(NamedTuple):
    """softmax's argument: the product of q and k, what it is multiplied by, and its mask."""

    product: Node
    scale: float
    scales: tuple[tuple[str, Value], ...]
    added: tuple[Value, ...]
    mask: Value | None
    is_inverted: bool
    fill: float


def softmax_before(root: Node) -> Skip | tuple[Node, bool]:
    """The softmax whose result `root` multiplies, and whether its NaNs are replaced by 0."""
    weights = root.input(0)
    node = None if weights is None else weights.producer
    if node is None:
        return Skip("")
    guarded = False
    if node.is_op("Where"):
        test, zero, weights = node.inputs
        is_nan = None if test is None else test.producer
        if is_nan is None or not is_nan.is_op("IsNaN") or is_nan.input(0) is not weights or scalar(zero) != 0:
            return Skip("")
        guarded = True
        if weights is None or weights.producer is None or not weights.producer.is_op("Softmax"):
            return Skip("")
        if not is_private(node.outputs[0], {root}) or not is_private(is_nan.outputs[0], {node}):
            return Skip("the weights are read elsewhere")
        if not is_private(weights, {node, is_nan}):
            return Skip("the weights are read elsewhere")
        return weights.producer, guarded
    if not node.is_op("Softmax"):
        return Skip("")
    if not is_private(node.outputs[0], {root}):
        return Skip("the weights are read elsewhere")
    return node, guarded


def scores_of(softmax: Node) -> Skip | Scores:
    value, reader = softmax.input(0), softmax
    mask, is_inverted, fill = None, False, -np.inf
    added: list[Value] = []
    node = None if value is None else value.producer
    if value is None or node is None:
        return Skip("")
    if node.is_op("Add"):
        while value is not None and node is not None and node.is_op("Add"):
            sides = [(node.input(0), node.input(1)), (node.input(1), node.input(0))]
            sides = [side for side in sides if _leads_to_product(side[0])]
            if len(sides) != 1 or sides[0][1] is None:
                return Skip("an Add has no product of q and k, or two of them")
            if not is_private(value, {reader}):
                return Skip("the scores are read elsewhere")
            reader = node
            value = sides[0][0]
            added.append(sides[0][1])
            node = None if value is None else value.producer
    elif node.is_op("Where"):
        test, yes, no = node.inputs
        if not is_private(value, {reader}):
            return Skip("the scores are read elsewhere")
        is_inverted = _leads_to_product(no)
        filler, value = (yes, no) if is_inverted else (no, yes)
        number = scalar(filler)
        if number is None or filler is None or filler.data is None or filler.data.ndim > 2:
            return Skip("the fill value is no constant number")
        reader, fill, mask = node, number, test
        mask, is_inverted = _without_negation(mask, is_inverted)
    factor, factors = 1.0, []
    while True:
        node = None if value is None else value.producer
        if value is None or node is None:
            return Skip("" if mask is None and not added else "there is no product of q and k")
        if not is_private(value, {reader}):
            return Skip("the scores are read elsewhere")
        if node.is_op("MatMul"):
            break
        scaled = scaling_of(node)
        if scaled is None:
            return Skip(f"{node.op_type} lies between the product of q and k and the softmax")
        value, by = scaled
        if isinstance(by, float):
            factor *= by
        else:
            factors.append(by)
        reader = node
    return Scores(node, factor, tuple(factors), tuple(added), mask, is_inverted, fill)


def _leads_to_product(value: Value | None) -> bool:
    """Whether scaling and masks are all that lies between `value` and a MatMul of two computed tensors."""
    while value is not None and value.producer is not None:
        node = value.producer
        if node.is_op("MatMul"):
            return all(v is not None and not v.is_constant for v in node.inputs)
        if node.is_op("Add"):
            sides = [v for v in node.inputs if v is not None and _reaches_product(v)]
            if len(sides) != 1:
                return False
            value = sides[0]
            continue
        scaled = scaling_of(node)
        if scaled is None:
            return False
        value = scaled[0]
    return False


def _reaches_product(value: Value) -> bool:
    """Whether scaling is all that lies between `value` and a MatMul of two computed tensors."""
    node = value.producer
    while node is not None and not node.is_op("MatMul"):
        scaled = scaling_of(node)
        node = None if scaled is None or scaled[0] is None else scaled[0].producer
    return node is not None and all(v is not None and not v.is_constant for v in node.inputs)


def _without_negation(mask: Value | None, is_inverted: bool) -> tuple[Value | None, bool]:
    """A mask is the better for it when its Not, and casts of what is boolean already, need not run."""
    if not is_inverted or mask is None:
        return mask, is_inverted
    node = mask.producer
    if node is not None and node.is_op("Cast") and node.input(0) is not None:
        node = node.input(0).producer  # type: ignore[union-attr]
    if node is not None and node.is_op("Not"):
        return node.input(0), False
    return mask, True


def is_last_axis(softmax: Node, rank: int) -> bool:
    axis = softmax.attr("axis", -1 if softmax.version >= 13 else 1)
    return axis in (-1, rank - 1)


def is_private(value: Value, readers: set[Node]) -> bool:
    return not value.output_of and all(user in readers for user, _ in value.uses)


def scaling_of(node: Node) -> tuple[Value | None, float | tuple[str, Value]] | None:
    """(x, what it is multiplied by) of a Mul or Div by one number."""
    if not node.is_op("Mul", "Div"):
        return None
    pairs = [(node.input(0), node.input(1))]
    if node.op_type == "Mul":
        pairs.append((node.input(1), node.input(0)))
    for x, by in pairs:
        number = scalar(by)
        if number is not None and by is not None and by.data is not None and by.data.ndim < 3:
            if node.op_type == "Mul":
                return x, number
            if number != 0:
                return x, 1 / number
    for x, by in pairs:
        if by is not None and not by.is_constant and is_one_number(by):
            return x, (node.op_type, by)
    return None


_ELEMENTWISE = ("Cast", "Sqrt", "Mul", "Div", "Add", "Sub", "Reciprocal", "Pow", "Identity", "Neg")


def is_one_number(value: Value | None, depth: int = 12) -> bool:
    """Whether `value`, computed from shapes, surely has one element and a rank of at most 1."""
    if value is None or depth == 0:
        return False
    if value.data is not None:
        return value.data.size == 1 and value.data.ndim < 2
    node = value.producer
    if node is None:
        return False
    if node.is_op(*_ELEMENTWISE):
        return all(is_one_number(v, depth - 1) for v in node.inputs)
    if node.is_op("Squeeze"):
        return is_one_number(node.input(0), depth - 1)
    source = node.input(0)
    if source is None or source.producer is None or not source.producer.is_op("Shape"):
        return False
    if node.is_op("Gather"):
        index = node.input(1)
        return index is not None and index.data is not None and index.data.size == 1 and index.data.ndim < 2
    if node.is_op("Slice") and len(node.inputs) >= 3:
        start, end = scalar(node.input(1)), scalar(node.input(2))
        return start is not None and end is not None and (end - start == 1 or (start == -1 and end > 1 << 30))
    return False
