"""Scaled dot-product attention, as exporters decompose it.

    MatMul(q, kᵀ) → scale → mask → Softmax → MatMul(·, v)

becomes one node that reads q, k and v, and writes its result, where they lie: transposes around it go, and
the reshapes that split and merge heads stay, for they cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.rewriting import Builder, Skip, scalar, trace
from qruntime.passes.symbolic_shapes import Dim, contents, dims, same

Perm = tuple[int, ...]

_LAYOUTS: dict[Perm, str] = {(0, 1, 2): "BHSD", (0, 1, 2, 3): "BHSD", (0, 2, 1, 3): "BSHD"}
_TRANSPOSED_LAYOUTS: dict[Perm, str] = {
    (0, 2, 1): "BHSD",
    (0, 1, 3, 2): "BHSD",
    (0, 2, 3, 1): "BSHD",
    (0, 1, 2): "BHDS",
    (0, 1, 2, 3): "BHDS",
}
_SPLIT_HEADS: Perm = (2, 0, 3, 1, 4)
"""[B, S, N, H, D] to N tensors [B, H, S, D]."""


class _Operand(NamedTuple):
    """`value` holds the heads in `layout`; what it was multiplied by on the way is in `scale` and `scales`."""

    value: Value
    layout: str
    part: int = 0
    scale: float = 1.0
    scales: tuple[tuple[str, Value], ...] = ()
    rank: int | None = None


class _Scores(NamedTuple):
    """softmax's argument: the product of q and k, what it is multiplied by, and its mask."""

    product: Node
    scale: float
    scales: tuple[tuple[str, Value], ...]
    added: tuple[Value, ...]
    mask: Value | None
    is_inverted: bool
    fill: float


def fuse_attention(graph: Graph) -> None:
    """MatMul → scale → mask → Softmax → MatMul  →  Attention"""
    fused = 0
    for nested in graph.walk_graphs():
        masks: dict[tuple[Value, ...], Value] = {}
        for node in list(nested.nodes):
            if not node.is_op("MatMul") or node.graph is not nested:
                continue
            reason = _fuse(nested, node, masks)
            if reason is None:
                fused += 1
                trace(f"fuse_attention at {node.label}")
            elif reason:
                trace(f"fuse_attention declines at {node.label}: {reason}")
    if fused:
        remove_dead_nodes(graph)


def _fuse(graph: Graph, root: Node, masks: dict[tuple[Value, ...], Value]) -> Skip | None:
    """None when `root`, the product with v, was replaced; an empty Skip when there is no softmax before it."""
    found = _softmax(root)
    if isinstance(found, Skip):
        return found
    softmax, guarded = found
    scores = _scores(softmax)
    if isinstance(scores, Skip):
        return scores
    op = Builder(root)
    q = _operand(scores.product.input(0), _LAYOUTS)
    k = _operand(_plainly_transposed(op, scores.product.input(1)), _TRANSPOSED_LAYOUTS)
    v = _operand(root.input(1), _LAYOUTS, may_scale=False)
    if q is None or k is None or v is None:
        return Skip("an input is missing")
    ranks = {operand.rank for operand in (q, k, v) if operand.rank is not None}
    if not ranks:
        return Skip("the rank of q, k and v is not known")
    rank = max(ranks)
    if rank not in (3, 4):
        return Skip(f"q, k and v have rank {rank}, need 3 or 4")
    if not _is_last_axis(softmax, rank):
        return Skip(f"the softmax runs along axis {softmax.attr('axis')} of {rank}")

    q, k = (_unscaled(graph, operand, scores.product) for operand in (q, k))
    k, v, repeats = _without_repeats(k, v)
    mask = _mask(op, scores, masks)
    scale_tensor = _product(op, (*q.scales, *k.scales, *scores.scales))
    output = root.outputs[0]
    transpose = _transpose_after(output, _result_dims(output, q, v))
    inputs: list[Value | None] = [q.value, k.value, v.value, mask, scale_tensor]
    while inputs[-1] is None:
        inputs.pop()
    new = op.Attention(
        *inputs,
        scale=q.scale * k.scale * scores.scale,
        fill=scores.fill,
        q_layout=q.layout,
        k_layout=k.layout,
        v_layout=v.layout,
        out_layout="BHSD" if transpose is None else "BSHD",
        parts=(q.part, k.part, v.part),
        kv_repeats=repeats,
        nan_rows_to_zero=int(guarded),
    )
    if transpose is None:
        graph.insert_before(root, *op.nodes)
        graph.replace_uses(output, new)
        return None
    if any(user.is_op("Shape") for user, _ in output.uses):
        graph.replace_uses(output, op.Transpose(new, domain="", perm=(0, 2, 1, 3)))  # only shapes are read of it
    graph.insert_before(root, *op.nodes)
    graph.replace_uses(transpose.outputs[0], new)
    return None


def _result_dims(output: Value, q: _Operand, v: _Operand) -> tuple[Dim, ...]:
    """[B, H, Sq, Dv] of the result."""
    of_q, of_v = dims(q.value, 4), dims(v.value, 4)
    length: Dim = (output, 2)
    size: Dim = (output, 3)
    if of_q is not None and of_v is not None and len(of_q) >= 4 and len(of_v) >= 4:
        length, size = of_q[1 if q.layout == "BSHD" else 2], of_v[-1]
    return (output, 0), (output, 1), length, size


def _transpose_after(output: Value, shape: tuple[Dim, ...]) -> Node | None:
    """The Transpose to [B, S, H, D] that alone reads the result; a reshape to the same shape may stand between."""
    node = _only_reader(output)
    if node is not None and node.is_op("Reshape") and node.input(0) is output:
        wanted = contents(node.input(1))
        if wanted is None or len(wanted) != 4 or wanted.count(-1) > 1:
            return None
        if not all(a in (b, -1) for a, b in zip(wanted, shape, strict=True)):
            return None
        node = _only_reader(node.outputs[0])
    is_found = node is not None and node.is_op("Transpose") and _perm(node) == (0, 2, 1, 3)
    return node if is_found else None


def _only_reader(value: Value) -> Node | None:
    """The one node that reads the data of `value`; others may read its shape."""
    readers = {user for user, _ in value.uses if not user.is_op("Shape")}
    return readers.pop() if len(readers) == 1 and not value.output_of else None


def _mask(op: Builder, scores: _Scores, masks: dict[tuple[Value, ...], Value]) -> Value | None:
    """The one mask that the node takes; layers share what has to be computed for it."""
    if scores.mask is not None:
        if not scores.is_inverted:
            return scores.mask
        key: tuple[Value, ...] = (scores.mask,)
        if key not in masks:
            masks[key] = _standard(op, "Not", scores.mask)
        return masks[key]
    if not scores.added:
        return None
    total = scores.added[0]
    for other in scores.added[1:]:
        key = (total, other)
        if key not in masks:
            masks[key] = _standard(op, "Add", total, other)
        total = masks[key]
    return total


def _standard(op: Builder, op_type: str, *inputs: Value | None) -> Value:
    return getattr(op, op_type)(*inputs, domain="")


def _product(op: Builder, factors: tuple[tuple[str, Value], ...]) -> Value | None:
    """The product of scalars that are known at run time only; "Div" ones divide."""
    total: Value | None = None
    for kind, value in factors:
        if kind == "Div":
            total = _standard(op, "Reciprocal", value) if total is None else _standard(op, "Div", total, value)
        else:
            total = value if total is None else _standard(op, "Mul", total, value)
    return total


def _softmax(root: Node) -> Skip | tuple[Node, bool]:
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
        if not _is_private(node.outputs[0], {root}) or not _is_private(is_nan.outputs[0], {node}):
            return Skip("the weights are read elsewhere")
        if not _is_private(weights, {node, is_nan}):
            return Skip("the weights are read elsewhere")
        return weights.producer, guarded
    if not node.is_op("Softmax"):
        return Skip("")
    if not _is_private(node.outputs[0], {root}):
        return Skip("the weights are read elsewhere")
    return node, guarded


def _is_private(value: Value, readers: set[Node]) -> bool:
    return not value.output_of and all(user in readers for user, _ in value.uses)


def _is_last_axis(softmax: Node, rank: int) -> bool:
    axis = softmax.attr("axis", -1 if softmax.version >= 13 else 1)
    return axis in (-1, rank - 1)


def _scores(softmax: Node) -> Skip | _Scores:
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
            if not _is_private(value, {reader}):
                return Skip("the scores are read elsewhere")
            reader = node
            value = sides[0][0]
            added.append(sides[0][1])
            node = None if value is None else value.producer
    elif node.is_op("Where"):
        test, yes, no = node.inputs
        if not _is_private(value, {reader}):
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
        if not _is_private(value, {reader}):
            return Skip("the scores are read elsewhere")
        if node.is_op("MatMul"):
            break
        scaled = _scaled(node)
        if scaled is None:
            return Skip(f"{node.op_type} lies between the product of q and k and the softmax")
        value, by = scaled
        if isinstance(by, float):
            factor *= by
        else:
            factors.append(by)
        reader = node
    return _Scores(node, factor, tuple(factors), tuple(added), mask, is_inverted, fill)


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
        scaled = _scaled(node)
        if scaled is None:
            return False
        value = scaled[0]
    return False


def _reaches_product(value: Value) -> bool:
    """Whether scaling is all that lies between `value` and a MatMul of two computed tensors."""
    node = value.producer
    while node is not None and not node.is_op("MatMul"):
        scaled = _scaled(node)
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


def _scaled(node: Node) -> tuple[Value | None, float | tuple[str, Value]] | None:
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


def _perm(node: Node) -> Perm | None:
    perm = node.attr("perm")
    return None if perm is None else tuple(perm)


def _operand(value: Value | None, layouts: Mapping[Perm, str], *, may_scale: bool = True) -> _Operand | None:
    """Go up from `value` through transposes and scaling as far as `layouts` can say what is there."""
    if value is None:
        return None
    identity = layouts[0, 1, 2, 3]
    rank = _rank(value)
    best = _Operand(value, identity, rank=rank)
    perm: Perm | None = None
    scale = 1.0
    scales: tuple[tuple[str, Value], ...] = ()
    while value is not None and value.producer is not None:
        node = value.producer
        if may_scale and (scaled := _scaled(node)) is not None and scaled[0] is not None:
            value, by = scaled
            if isinstance(by, float):
                scale *= by
            else:
                scales = (*scales, by)
        elif node.is_op("Transpose") and (step := _perm(node)) is not None and (perm is None or len(step) == len(perm)):
            perm = step if perm is None else tuple(step[i] for i in perm)
            rank, value = len(perm), node.input(0)
        else:
            part = _part(value)
            if part is not None and (perm is None or len(perm) == 4):
                layout = _LAYOUTS if identity == "BHSD" else _TRANSPOSED_LAYOUTS
                # what the part is: [B, H, S, D] of [B, S, N, H, D]
                if layout.get(perm or (0, 1, 2, 3)) == "BHSD":
                    best = _Operand(part[0], "BSHD", part[1], scale, scales, 4)
            break
        if value is None:
            break
        layout_here = identity if perm is None else layouts.get(perm)
        if layout_here is not None:
            best = _Operand(value, layout_here, 0, scale, scales, rank)
    return best


def _plainly_transposed(op: Builder, value: Value | None) -> Value | None:
    """What torch writes as Reshape(Transpose(Reshape(k, [−1, S, D]), 0 2 1), [B, H, D, S]), as one Transpose."""
    scale = None
    node = None if value is None else value.producer
    if node is not None and (scaled := _scaled(node)) is not None:
        scale, value = node, scaled[0]
        node = None if value is None else value.producer
    if node is None or not node.is_op("Reshape") or node.input(0) is None:
        return value if scale is None else scale.outputs[0]
    original = value if scale is None else scale.outputs[0]
    transpose = node.input(0).producer  # type: ignore[union-attr]
    if transpose is None or not transpose.is_op("Transpose") or _perm(transpose) != (0, 2, 1):
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
        source = _standard(op, "Reshape", merged, _standard(op, "Gather", node.input(1), order))
    transposed = op.Transpose(source, domain="", perm=(0, 1, 3, 2))
    if scale is None:
        return transposed
    inputs = [transposed if v is value else v for v in scale.inputs]
    return _standard(op, scale.op_type, *inputs)


def _without_repeats(k: _Operand, v: _Operand) -> tuple[_Operand, _Operand, int]:
    """Heads of k and v repeated for groups of heads of q are read as they are."""
    found = [_repeated(operand) for operand in (k, v)]
    if found[0] is None or found[1] is None or found[0][1] != found[1][1]:
        return k, v, 1
    plain_k = _operand(found[0][0], _LAYOUTS, may_scale=False)
    plain_v = _operand(found[1][0], _LAYOUTS, may_scale=False)
    assert plain_k is not None
    assert plain_v is not None
    k = k._replace(value=plain_k.value, layout=plain_k.layout, part=plain_k.part)
    v = v._replace(value=plain_v.value, layout=plain_v.layout, part=plain_v.part)
    return k, v, found[0][1]


def _repeated(operand: _Operand) -> tuple[Value, int] | None:
    """(x [B, H, S, D], n) when the operand is Reshape(Expand(Unsqueeze(x, 2), [B, H, n, S, D]), [B, H · n, S, D])."""
    reshape = operand.value.producer
    if operand.layout != "BHSD" or reshape is None or not reshape.is_op("Reshape") or reshape.input(0) is None:
        return None
    expand = reshape.input(0).producer  # type: ignore[union-attr]
    if expand is None or not expand.is_op("Expand") or expand.input(0) is None:
        return None
    unsqueeze = expand.input(0).producer  # type: ignore[union-attr]
    if unsqueeze is None or not unsqueeze.is_op("Unsqueeze") or _axes(unsqueeze) != (2,):
        return None
    x = unsqueeze.input(0)
    shape, wide, final = dims(x, 4), contents(expand.input(1)), contents(reshape.input(1), partial=True)
    if x is None or shape is None or wide is None or final is None:
        return None
    if len(shape) != 4 or len(wide) != 5 or len(final) != 4:
        return None
    repeats = wide[2]
    if not isinstance(repeats, int) or repeats < 1:
        return None
    kept = [wide[0], wide[1], wide[3], wide[4]]
    if not all(a in (b, 1) for a, b in zip(kept, shape, strict=True)):
        return None
    if not same((shape[0], *shape[2:]), (final[0], *final[2:])):
        return None
    return x, repeats


def _part(value: Value) -> tuple[Value, int] | None:
    """(x [B, S, N, H, D], i) when `value` is the i-th [B, H, S, D] of its transpose."""
    node = value.producer
    if node is None or node.input(0) is None:
        return None
    source, index = node.input(0), None
    if node.is_op("Gather") and node.attr("axis", 0) == 0 and node.input(1) is not None:
        data = node.input(1).data  # type: ignore[union-attr]
        if data is not None and data.ndim == 0 and data >= 0:
            index = int(data)
    elif node.is_op("Squeeze") and _axes(node) == (0,) and source is not None and source.producer is not None:
        split = source.producer
        if split.is_op("Split") and split.attr("axis", 0) == 0 and _splits_into_ones(split):
            index, source = split.outputs.index(source), split.input(0)
    if index is None or source is None or source.producer is None:
        return None
    transpose = source.producer
    if not transpose.is_op("Transpose") or _perm(transpose) != _SPLIT_HEADS or transpose.input(0) is None:
        return None
    return transpose.input(0), index  # type: ignore[return-value]


def _axes(node: Node) -> Perm | None:
    axes = node.attr("axes")
    if axes is None:
        given = node.input(1)
        axes = None if given is None or given.data is None else given.data.reshape(-1).tolist()
    return None if axes is None else tuple(axes)


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
    if node.is_op("Transpose") and (perm := _perm(node)) is not None:
        return len(perm)
    if node.is_op("Reshape"):
        shape = node.input(1)
        if shape is not None and shape.data is not None:
            return int(shape.data.size)
    if _part(value) is not None:
        return 4
    return None


def _unscaled(graph: Graph, operand: _Operand, product: Node) -> _Operand:
    """Move a scaling that stands before the reshape that splits the heads into the operand's scale."""
    reshape = operand.value.producer
    if reshape is None or not reshape.is_op("Reshape") or not _leads_only_to(graph, reshape, product):
        return operand
    inner = reshape.input(0)
    if inner is None or inner.producer is None or not _is_private(inner, {reshape}):
        return operand
    scaled = _scaled(inner.producer)
    if scaled is None or scaled[0] is None:
        return operand
    reshape.set_input(0, scaled[0])
    by = scaled[1]
    if isinstance(by, float):
        return operand._replace(scale=operand.scale * by)
    return operand._replace(scales=(*operand.scales, by))


def _leads_only_to(graph: Graph, node: Node, product: Node) -> bool:
    """Whether nothing but `product` reads, directly or further on, what `node` makes."""
    while node is not product:
        if node.graph is not graph or len(node.outputs) != 1 or node.outputs[0].output_of:
            return False
        readers = {user for user, _ in node.outputs[0].uses}
        if len(readers) != 1:
            return False
        node = readers.pop()
    return True
