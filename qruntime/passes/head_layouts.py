"""How the heads of q, k and v lie in the tensors they come from: transposed, scaled, repeated, parts of a projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qruntime.ir import Node, Value
from qruntime.passes.attention_scores import scaling_of
from qruntime.passes.rewriting import Builder
from qruntime.passes.symbolic_shapes import Dim, contents, dims, same

Perm = tuple[int, ...]

LAYOUTS: dict[Perm, str] = {(0, 1, 2): "BHSD", (0, 1, 2, 3): "BHSD", (0, 2, 1, 3): "BSHD"}
TRANSPOSED_LAYOUTS: dict[Perm, str] = {
    (0, 2, 1): "BHSD",
    (0, 1, 3, 2): "BHSD",
    (0, 2, 3, 1): "BSHD",
    (0, 1, 2): "BHDS",
    (0, 1, 2, 3): "BHDS",
}
_SPLIT_HEADS: Perm = (2, 0, 3, 1, 4)
"""[B, S, N, H, D] to N tensors [B, H, S, D]."""


class Operand(NamedTuple):
    """`value` holds the heads in `layout`; what it was multiplied by on the way is in `scale` and `scales`."""

    value: Value
    layout: str
    part: int = 0
    scale: float = 1.0
    scales: tuple[tuple[str, Value], ...] = ()
    rank: int | None = None


def operand_of(value: Value | None, layouts: Mapping[Perm, str], *, may_scale: bool = True) -> Operand | None:
    """Go up from `value` through transposes and scaling as far as `layouts` can say what is there."""
    if value is None:
        return None
    identity = layouts[0, 1, 2, 3]
    rank = _rank(value)
    best = Operand(value, identity, rank=rank)
    perm: Perm | None = None
    scale = 1.0
    scales: tuple[tuple[str, Value], ...] = ()
    while value is not None and value.producer is not None:
        node = value.producer
        if may_scale and (scaled := scaling_of(node)) is not None and scaled[0] is not None:
            value, by = scaled
            if isinstance(by, float):
                scale *= by
            else:
                scales = (*scales, by)
        elif node.is_op("Transpose") and (step := perm_of(node)) is not None and (perm is None or len(step) == len(perm)):
            perm = step if perm is None else tuple(step[i] for i in perm)
            rank, value = len(perm), node.input(0)
        else:
            part = part_of_projection(value)
            if part is not None and (perm is None or len(perm) == 4):
                layout = LAYOUTS if identity == "BHSD" else TRANSPOSED_LAYOUTS
                # what the part is: [B, H, S, D] of [B, S, N, H, D]
                if layout.get(perm or (0, 1, 2, 3)) == "BHSD":
                    best = Operand(part[0], "BSHD", part[1], scale, scales, 4)
            break
        if value is None:
            break
        layout_here = identity if perm is None else layouts.get(perm)
        if layout_here is not None:
            best = Operand(value, layout_here, 0, scale, scales, rank)
    return best


def plainly_transposed(op: Builder, value: Value | None) -> Value | None:
    """What torch writes as Reshape(Transpose(Reshape(k, [−1, S, D]), 0 2 1), [B, H, D, S]), as one Transpose."""
    scale = None
    node = None if value is None else value.producer
    if node is not None and (scaled := scaling_of(node)) is not None:
        scale, value = node, scaled[0]
        node = None if value is None else value.producer
    if node is None or not node.is_op("Reshape") or node.input(0) is None:
        return value if scale is None else scale.outputs[0]
    original = value if scale is None else scale.outputs[0]
    transpose = node.input(0).producer  # type: ignore[union-attr]
    if transpose is None or not transpose.is_op("Transpose") or perm_of(transpose) != (0, 2, 1):
        return original
    merged, wanted = transpose.input(0), contents(node.input(1))
    rows = dims(merged, 3)
    if merged is None or wanted is None or rows is None or len(wanted) != 4 or not same(wanted[2:], (rows[2], rows[1])):
        return original
    source = merged
    if merged.producer is not None and merged.producer.is_op("Reshape") and merged.producer.input(0) is not None:
        before = merged.producer.input(0)
        shape = dims(before)
        if shape is not None and same(shape, (*wanted[:2], wanted[3], wanted[2])):
            source = before
    if source is merged:
        order = Value(f"{node.outputs[0].name}/order", None, np.array([0, 1, 3, 2]))
        source = op.standard("Reshape", merged, op.standard("Gather", node.input(1), order))
    transposed = op.Transpose(source, domain="", perm=(0, 1, 3, 2))
    if scale is None:
        return transposed
    inputs = [transposed if v is value else v for v in scale.inputs]
    return op.standard(scale.op_type, *inputs)


class Repeats(NamedTuple):
    """How many heads of q every head of k and v serves; or, where only a run knows, the shapes that those are expanded and merged to."""

    number: int = 1
    shapes: tuple[Value | None, ...] = ()
    """k expanded, k merged, v expanded, v merged."""
    allowzero: int = 0


def without_repeats(k: Operand, v: Operand) -> tuple[Operand, Operand, Repeats]:
    """Heads of k and v repeated for groups of heads of q are read as they are."""
    of_k, of_v = _repeated(k), _repeated(v)
    if of_k is None or of_v is None or of_k.allowzero != of_v.allowzero:
        return k, v, Repeats()
    if of_k.number is None or of_v.number is None:
        repeats = Repeats(1, (*of_k.shapes, *of_v.shapes), of_k.allowzero)
    elif of_k.number == of_v.number:
        repeats = Repeats(of_k.number)
    else:
        return k, v, Repeats()
    plain_k = operand_of(of_k.value, LAYOUTS, may_scale=False)
    plain_v = operand_of(of_v.value, LAYOUTS, may_scale=False)
    assert plain_k is not None
    assert plain_v is not None
    k = k._replace(value=plain_k.value, layout=plain_k.layout, part=plain_k.part)
    v = v._replace(value=plain_v.value, layout=plain_v.layout, part=plain_v.part)
    return k, v, repeats


class _Repeated(NamedTuple):
    """`value` [B, H, S, D] whose heads are repeated: how often, if that is certain, and the shapes that say it."""

    value: Value
    number: int | None
    shapes: tuple[Value | None, Value | None]
    allowzero: int


def _repeated(operand: Operand) -> _Repeated | None:
    """x [B, H, S, D] when the operand is Reshape(Expand(Unsqueeze(x, 2), [B, H, n, S, D]), [B, H · n, S, D]), or its Tile."""
    reshape = operand.value.producer
    if operand.layout != "BHSD" or reshape is None or not reshape.is_op("Reshape") or reshape.input(0) is None:
        return None
    expand = reshape.input(0).producer  # type: ignore[union-attr]
    if expand is None or not expand.is_op("Expand", "Tile") or expand.input(0) is None:
        return None
    unsqueeze = expand.input(0).producer  # type: ignore[union-attr]
    if unsqueeze is None or not unsqueeze.is_op("Unsqueeze") or axes_of(unsqueeze) != (2,):
        return None
    x = unsqueeze.input(0)
    if x is None or expand.input(1) is None or reshape.input(1) is None:
        return None
    shape, wide, final = dims(x, 4), contents(expand.input(1)), contents(reshape.input(1), partial=True)
    if expand.op_type == "Tile" and (wide is None or len(wide) != 5 or [*wide[:2], *wide[3:]] != [1, 1, 1, 1]):
        return None  # anything else is not what Expand does
    found = _Repeated(x, None, (expand.input(1), reshape.input(1)), reshape.attr("allowzero", 0))
    if shape is not None and wide is not None and final is not None:
        number = _proven_repeats(shape, wide, final)
        if number is not None:
            return found._replace(number=number)
        if all(isinstance(d, int) and d != -1 for d in (*shape, *wide, *final)):
            return None
    return found


def _proven_repeats(shape: Sequence[Dim], wide: Sequence[Dim], final: Sequence[Dim]) -> int | None:
    """How often heads [B, H, S, D] are repeated, where to expand [B, H, 1, S, D] and to reshape that surely does just this."""
    if len(shape) != 4 or len(wide) != 5 or len(final) != 4:
        return None
    repeats = wide[2]
    if not isinstance(repeats, int) or repeats < 1:
        return None
    kept = [wide[0], wide[1], wide[3], wide[4]]
    if not all(a in (b, 1) for a, b in zip(kept, shape, strict=True)):
        return None
    return repeats if same((shape[0], *shape[2:]), (final[0], *final[2:])) else None


def part_of_projection(value: Value) -> tuple[Value, int] | None:
    """(x [B, S, N, H, D], i) when `value` is the i-th [B, H, S, D] of its transpose."""
    node = value.producer
    if node is None or node.input(0) is None:
        return None
    source, index = node.input(0), None
    if node.is_op("Gather") and node.attr("axis", 0) == 0 and node.input(1) is not None:
        data = node.input(1).data  # type: ignore[union-attr]
        if data is not None and data.ndim == 0 and data >= 0:
            index = int(data)
    elif node.is_op("Squeeze") and axes_of(node) == (0,) and source is not None and source.producer is not None:
        split = source.producer
        if split.is_op("Split") and split.attr("axis", 0) == 0 and _splits_into_ones(split):
            index, source = split.outputs.index(source), split.input(0)
    if index is None or source is None or source.producer is None:
        return None
    transpose = source.producer
    if not transpose.is_op("Transpose") or perm_of(transpose) != _SPLIT_HEADS or transpose.input(0) is None:
        return None
    return transpose.input(0), index  # type: ignore[return-value]


def _splits_into_ones(split: Node) -> bool:
    sizes = split.attr("split")
    if sizes is None:
        given = split.input(1)
        sizes = None if given is None or given.data is None else given.data.tolist()
    return sizes is not None and all(size == 1 for size in sizes)


def _rank(value: Value) -> int | None:
    if value.type is not None and value.type.kind == "tensor" and value.type.shape is not None:
        return len(value.type.shape)
    node = value.producer
    if node is None:
        return None
    if node.is_op("Transpose") and (perm := perm_of(node)) is not None:
        return len(perm)
    if node.is_op("Reshape"):
        shape = node.input(1)
        if shape is not None and shape.data is not None:
            return int(shape.data.size)
    if part_of_projection(value) is not None:
        return 4
    return None


def perm_of(node: Node) -> Perm | None:
    perm = node.attr("perm")
    return None if perm is None else tuple(perm)


def axes_of(node: Node) -> Perm | None:
    axes = node.attr("axes")
    if axes is None:
        given = node.input(1)
        axes = None if given is None or given.data is None else given.data.reshape(-1).tolist()
    return None if axes is None else tuple(axes)
