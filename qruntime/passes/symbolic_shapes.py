"""Shapes as far as the graph proves them: a dim is a number or a token, and equal tokens are equal sizes.

Exporters of dynamic models compute the shapes for Reshape and Expand with chains of Shape, Gather, Slice,
Unsqueeze and Concat; these are followed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ir import Node, Value
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.passes.einsum_equation import ANY, parsed
from qruntime.passes.rewriting import Skip

Dim = int | tuple[Value, int]
"""A size, or "the size of this value along this axis". In the contents of a shape −1 is what Reshape takes it for."""

_DEPTH = 24
_MAX_LENGTH = 16
"""No vector that is followed is empty or longer: so a graph made for it cannot keep us busy."""


def dims(value: Value | None, rank: int | None = None, depth: int = _DEPTH) -> tuple[Dim, ...] | None:
    """Shape of `value`; None when not even its rank, unless given, is known."""
    if value is None or depth == 0:
        return None
    if value.data is not None:
        return value.data.shape
    declared = None
    if value.type is not None and value.type.kind == "tensor" and value.type.shape is not None:
        declared = value.type.shape
        rank = len(declared)
    found = _made(value.producer, rank, depth) if value.producer is not None else None
    if found is None:
        found = None if rank is None else tuple((value, axis) for axis in range(rank))
    if found is not None and declared is not None and len(found) == len(declared):
        found = tuple(d if isinstance(d, int) and d >= 0 else f for d, f in zip(declared, found, strict=True))
    return found


def _made(node: Node, rank: int | None, depth: int) -> tuple[Dim, ...] | None:
    perm = node.attr("perm")
    if node.is_op("Transpose") and perm is not None:
        if sorted(perm) != list(range(len(perm))):
            return None
        source = dims(node.input(0), len(perm), depth - 1)
        return None if source is None or len(source) != len(perm) else tuple(source[axis] for axis in perm)
    if node.is_op("Reshape"):
        return _reshaped(node, depth)
    if node.is_op("Unsqueeze"):
        return _widened(node, rank, depth)
    if node.is_op("Tile"):
        return _tiled(node, depth)
    if node.is_op("Einsum"):
        return _contracted(node, depth)
    if node.is_op("MatMul"):
        return _multiplied(node, depth)
    if node.is_op("Add", "Sub", "Mul", "Div"):
        return _shifted(node, depth)
    return None


def _reshaped(node: Node, depth: int) -> tuple[Dim, ...] | None:
    wanted, output = contents(node.input(1), depth - 1), node.outputs[0]
    if wanted is None:
        return None
    if 0 in wanted:  # of a constant only: following what is computed and what is reshaped would double at every step
        target = node.input(1)
        if target is None or target.data is None or node.attr("allowzero", 0):
            return None
        kept = dims(node.input(0), None, depth - 1) or ()
        wanted = [kept[axis] if d == 0 and axis < len(kept) else -1 if d == 0 else d for axis, d in enumerate(wanted)]
    return tuple((output, axis) if d == -1 else d for axis, d in enumerate(wanted))


def _widened(node: Node, rank: int | None, depth: int) -> tuple[Dim, ...] | None:
    """Of an Unsqueeze along constant axes that count from the front."""
    given = node.attr("axes") or contents(node.input(1), 1) or []
    axes = [axis for axis in given if isinstance(axis, int) and axis >= 0]
    if not axes or len(set(axes)) != len(given):
        return None
    source = dims(node.input(0), None if rank is None else rank - len(axes), depth - 1)
    if source is None or max(axes) >= len(source) + len(axes):
        return None
    rest = iter(source)
    return tuple(1 if axis in axes else next(rest) for axis in range(len(source) + len(axes)))


def _tiled(node: Node, depth: int) -> tuple[Dim, ...] | None:
    """Of a Tile by a constant, in dimensions that are known or kept."""
    repeats = contents(node.input(1), 1)
    source = None if repeats is None else dims(node.input(0), len(repeats), depth - 1)
    if repeats is None or source is None or len(source) != len(repeats):
        return None
    made: list[Dim] = []
    for axis, (size, times) in enumerate(zip(source, repeats, strict=True)):
        known = isinstance(size, int) and isinstance(times, int) and size >= 0
        made.append(size if times == 1 else size * times if known else (node.outputs[0], axis))  # type: ignore[operator,arg-type]
    return tuple(made)


def _contracted(node: Node, depth: int) -> tuple[Dim, ...] | None:
    """Of an Einsum of one or two operands, without "...": equal labels are equal sizes."""
    equation = parsed(str(node.attr("equation", "")))
    if isinstance(equation, Skip) or ANY in equation[1] or not len(equation[0]) == len(node.inputs) <= 2:
        return None
    found: dict[str, Dim] = {}
    for value, labels in zip(node.inputs, equation[0], strict=True):
        # Half as far: two operands of two operands each are soon many.
        shape = dims(value, len(labels), depth // 2) or ()
        for label, size in zip(labels, shape, strict=False):
            if label not in found or isinstance(size, int):
                found[label] = size
    return tuple(found.get(label, (node.outputs[0], axis)) for axis, label in enumerate(equation[1]))


def _multiplied(node: Node, depth: int) -> tuple[Dim, ...] | None:
    """Of rows with a constant matrix."""
    weight = node.input(1)
    if weight is None or weight.data is None or weight.data.ndim != 2:
        return None
    rows = dims(node.input(0), None, depth - 1)
    return (*rows[:-1], weight.data.shape[1]) if rows else None


def _shifted(node: Node, depth: int) -> tuple[Dim, ...] | None:
    """Of arithmetic with a constant of no more dimensions."""
    a, b = node.input(0), node.input(1)
    if a is None or b is None or (a.data is None) == (b.data is None):
        return None
    x, data = (b, a.data) if b.data is None else (a, b.data)
    shape = dims(x, None, depth - 1)
    if shape is None or data is None or data.ndim > len(shape):
        return None
    wide = (*(1,) * (len(shape) - data.ndim), *data.shape)
    return tuple(s if n == 1 else n for s, n in zip(shape, wide, strict=True))


def rank(value: Value | None) -> int | None:
    """How many dimensions a value has, also through what keeps their number."""
    for _ in range(64):
        if value is None:
            return None
        if value.data is not None:
            return value.data.ndim
        if value.type is not None and value.type.shape is not None:
            return len(value.type.shape)
        node = value.producer
        if node is None:
            return None
        if node.is_op("Transpose") and node.attr("perm"):
            return len(node.attr("perm"))
        if node.is_op("Reshape"):
            shape = node.input(1)
            if shape is None:
                return None
            if shape.data is not None:
                return int(shape.data.size)
            joined = shape.producer
            if joined is not None and joined.is_op("Concat") and all(_is_one(v) for v in joined.inputs):
                return len(joined.inputs)
            return None
        if not node.is_op(*_KEEPING_RANK) and not node.is_op(*_KEEPING_RANK, domain=MICROSOFT):
            return None
        value = node.input(0)
    return None


_KEEPING_RANK = (
    "Cast", "Identity", "Softmax", "LayerNormalization", "Gelu", "BiasGelu", "FastGelu", "Relu", "Tanh", "Erf",
    "SkipLayerNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "Dropout",
)  # fmt: skip


def _is_one(value: Value | None) -> bool:
    """Whether a value is a vector of one number."""
    if value is None:
        return False
    if value.data is not None:
        return value.data.shape == (1,)
    node = value.producer
    if node is None or not node.is_op("Unsqueeze"):
        return False
    source = node.input(0)
    return source is not None and source.producer is not None and source.producer.is_op("Gather")


def contents(value: Value | None, depth: int = _DEPTH, *, partial: bool = False) -> list[Dim] | None:
    """Elements of an integer vector (of one element when `value` is a scalar) that is computed from shapes.

    With `partial` an element of a Concat that is computed otherwise is a token of its own.
    """
    if value is None or depth == 0:
        return None
    if value.data is not None:
        is_small = value.data.dtype.kind in "iu" and value.data.ndim < 2 and 1 <= value.data.size <= _MAX_LENGTH
        return [int(n) for n in value.data.reshape(-1)] if is_small else None
    node = value.producer
    if node is None or node.domain:
        return None
    if node.op_type == "Shape":
        shape = dims(node.input(0), None, depth - 1)
        return None if shape is None else list(shape)[slice(node.attr("start", 0), node.attr("end"))] or None
    if node.op_type in ("Unsqueeze", "Squeeze", "Cast", "Identity"):
        found = contents(node.input(0), depth - 1)
        return found if found is not None and len(found) == 1 else None
    if node.op_type == "Reshape":
        return contents(node.input(0), depth - 1) if _constant(node.input(1)) == -1 else None
    if node.op_type == "Concat":
        return _joined(node, depth, partial)
    if node.op_type == "Gather":
        index = _constant(node.input(1))
        if index is None:
            return None
        found = contents(node.input(0), depth - 1)
        if found is None:
            return _one_dim(node.input(0), index)
        return [found[index]] if -len(found) <= index < len(found) else None
    if node.op_type == "Slice":
        return _sliced(node, depth)
    if node.op_type == "Where":
        return _replaced(node, depth)
    return None


def _one_dim(shape: Value | None, axis: int) -> list[Dim] | None:
    """A dim of a tensor of unknown rank, counted from the front."""
    node = None if shape is None else shape.producer
    is_whole = node is not None and node.is_op("Shape") and not node.attributes
    source = node.input(0) if node is not None and is_whole else None
    return None if source is None or axis < 0 else [(source, axis)]


def _unknown(value: Value | None) -> list[Dim] | None:
    """A token for what an Unsqueeze makes a vector of one element."""
    node = None if value is None else value.producer
    return [(node.outputs[0], 0)] if node is not None and node.is_op("Unsqueeze") else None


def _joined(node: Node, depth: int, partial: bool) -> list[Dim] | None:
    whole: list[Dim] = []
    for value in node.inputs:
        part = contents(value, depth - 1)
        if part is None and partial:
            part = _unknown(value)
        if part is None or len(whole) + len(part) > _MAX_LENGTH:
            return None
        whole += part
    return whole


def _constant(value: Value | None) -> int | None:
    if value is None or value.data is None or value.data.size != 1 or value.data.dtype.kind not in "iu":
        return None
    return int(value.data.reshape(-1)[0])


def _sliced(node: Node, depth: int) -> list[Dim] | None:
    start, end = _constant(node.input(1)), _constant(node.input(2))
    for value, allowed in ((node.input(3), 0), (node.input(4), 1)):
        if value is not None and _constant(value) != allowed:
            return None
    if start is None or end is None:
        return None
    found = contents(node.input(0), depth - 1)
    return None if found is None else found[start:end] or None


def _replaced(node: Node, depth: int) -> list[Dim] | None:
    """Where(shape == −1, 1, shape), as torch's exporter writes the shape of an Expand."""
    test, ones, shape = node.inputs
    if test is None or test.producer is None or not test.producer.is_op("Equal") or shape not in test.producer.inputs:
        return None
    filled = None if ones is None else ones.producer
    if filled is None or not filled.is_op("ConstantOfShape") or not np.all(filled.attr("value", np.zeros(1)) == 1):
        return None
    found = contents(shape, depth - 1)
    return None if found is None else [1 if d == -1 else d for d in found]


def same(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two shapes are surely equal."""
    return len(a) == len(b) and all(x == y and x != -1 for x, y in zip(a, b, strict=True))
