"""Scaled dot-product attention, as exporters decompose it.

    MatMul(q, kᵀ) → scale → mask → Softmax → MatMul(·, v)

becomes one node that reads q, k and v, and writes its result, where they lie: transposes around it go, and
the reshapes that split and merge heads stay, for they cost nothing.
"""

from __future__ import annotations

from qruntime.ir import Graph, Node, Value
from qruntime.passes.attention_scores import Scores, is_last_axis, is_private, scaling_of, scores_of, softmax_before
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.element_types import narrow_results
from qruntime.passes.head_layouts import (
    LAYOUTS,
    TRANSPOSED_LAYOUTS,
    Operand,
    operand_of,
    perm_of,
    plainly_transposed,
    without_repeats,
)
from qruntime.passes.rewriting import Builder, Skip, scalar, trace
from qruntime.passes.symbolic_shapes import Dim, contents, dims


def fuse_attention(graph: Graph) -> None:
    """MatMul → scale → mask → Softmax → MatMul  →  Attention"""
    fused = 0
    is_narrow = narrow_results(graph)
    for nested in graph.walk_graphs():
        masks: dict[tuple[Value, ...], Value] = {}
        for node in list(nested.nodes):
            if not node.is_op("MatMul") or node.graph is not nested:
                continue
            if is_narrow(node.outputs[0]):
                trace(f"fuse_attention declines at {node.label}: scores and weights are rounded")
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
    found = softmax_before(root)
    if isinstance(found, Skip):
        return found
    softmax, guarded = found
    scores = scores_of(softmax)
    if isinstance(scores, Skip):
        return scores
    op = Builder(root)
    q = operand_of(scores.product.input(0), LAYOUTS)
    k = operand_of(plainly_transposed(op, scores.product.input(1)), TRANSPOSED_LAYOUTS)
    v = operand_of(root.input(1), LAYOUTS, may_scale=False)
    if q is None or k is None or v is None:
        return Skip("an input is missing")
    ranks = {operand.rank for operand in (q, k, v) if operand.rank is not None}
    if not ranks:
        return Skip("the rank of q, k and v is not known")
    rank = max(ranks)
    if rank not in (3, 4):
        return Skip(f"q, k and v have rank {rank}, need 3 or 4")
    if not is_last_axis(softmax, rank):
        return Skip(f"the softmax runs along axis {softmax.attr('axis')} of {rank}")

    q, k = (_unscaled(graph, operand, scores.product) for operand in (q, k))
    k, v, repeats = without_repeats(k, v)
    mask, fill, fill_adds = _mask(op, scores, masks)
    scale_tensor = _product(op, (*q.scales, *k.scales, *scores.scales))
    output = root.outputs[0]
    transpose = transpose_after(output, result_dims(output, q, v))
    inputs: list[Value | None] = [q.value, k.value, v.value, mask, scale_tensor, *repeats.shapes]
    while inputs[-1] is None:
        inputs.pop()
    new = op.Attention(
        *inputs,
        scale=q.scale * k.scale * scores.scale,
        fill=fill,
        fill_adds=int(fill_adds),
        q_layout=q.layout,
        k_layout=k.layout,
        v_layout=v.layout,
        out_layout="BHSD" if transpose is None else "BSHD",
        parts=(q.part, k.part, v.part),
        kv_repeats=repeats.number,
        allowzero=repeats.allowzero,
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


def result_dims(output: Value, q: Operand, v: Operand) -> tuple[Dim, ...]:
    """[B, H, Sq, Dv] of the result."""
    of_q, of_v = dims(q.value, 4), dims(v.value, 4)
    length: Dim = (output, 2)
    size: Dim = (output, 3)
    if of_q is not None and of_v is not None and len(of_q) >= 4 and len(of_v) >= 4:
        length, size = of_q[1 if q.layout == "BSHD" else 2], of_v[-1]
    return (output, 0), (output, 1), length, size


def transpose_after(output: Value, shape: tuple[Dim, ...]) -> Node | None:
    """The Transpose to [B, S, H, D] that alone reads the result; a reshape to the same shape may stand between."""
    node = _only_reader(output)
    if node is not None and node.is_op("Reshape") and node.input(0) is output:
        wanted = contents(node.input(1))
        if wanted is None or len(wanted) != 4 or wanted.count(-1) > 1:
            return None
        if not all(a in (b, -1) for a, b in zip(wanted, shape, strict=True)):
            return None
        node = _only_reader(node.outputs[0])
    is_found = node is not None and node.is_op("Transpose") and perm_of(node) == (0, 2, 1, 3)
    return node if is_found else None


def _only_reader(value: Value) -> Node | None:
    """The one node that reads the data of `value`; others may read its shape."""
    readers = {user for user, _ in value.uses if not user.is_op("Shape")}
    return readers.pop() if len(readers) == 1 and not value.output_of else None


def _mask(op: Builder, scores: Scores, masks: dict[tuple[Value, ...], Value]) -> tuple[Value | None, float, bool]:
    """The one mask that the node takes, what a false in it means, and whether that is added to the score.

    Layers share what has to be computed for it.
    """
    mask, is_inverted, fill, fill_adds = scores.mask, scores.is_inverted, scores.fill, False
    if mask is None and len(scores.added) == 1 and (chosen := _chosen(scores.added[0])) is not None:
        mask, is_inverted, fill = chosen
        fill_adds = True
    if mask is not None:
        if is_inverted:
            key: tuple[Value, ...] = (mask,)
            if key not in masks:
                masks[key] = op.standard("Not", mask)
            mask = masks[key]
        return mask, fill, fill_adds
    if not scores.added:
        return None, fill, False
    total = scores.added[0]
    for other in scores.added[1:]:
        key = (total, other)
        if key not in masks:
            masks[key] = op.standard("Add", total, other)
        total = masks[key]
    return total, fill, False


def _chosen(value: Value) -> tuple[Value, bool, float] | None:
    """(test, False, fill) of Where(test, 0, fill), (test, True, fill) of Where(test, fill, 0)."""
    node = value.producer
    if node is None or not node.is_op("Where") or node.input(0) is None:
        return None
    numbers = [scalar(v) if v is not None and v.data is not None and v.data.ndim == 0 else None for v in node.inputs[1:]]
    if None in numbers or 0 not in numbers:
        return None
    is_inverted = numbers[1] == 0
    return node.input(0), is_inverted, numbers[0] if is_inverted else numbers[1]  # type: ignore[return-value]


def _product(op: Builder, factors: tuple[tuple[str, Value], ...]) -> Value | None:
    """The product of scalars that are known at run time only; "Div" ones divide."""
    total: Value | None = None
    for kind, value in factors:
        if kind == "Div":
            total = op.standard("Reciprocal", value) if total is None else op.standard("Div", total, value)
        else:
            total = value if total is None else op.standard("Mul", total, value)
    return total


def _unscaled(graph: Graph, operand: Operand, product: Node) -> Operand:
    """Move a scaling that stands before the reshape that splits the heads into the operand's scale."""
    reshape = operand.value.producer
    if reshape is None or not reshape.is_op("Reshape") or not _leads_only_to(graph, reshape, product):
        return operand
    inner = reshape.input(0)
    if inner is None or inner.producer is None or not is_private(inner, {reshape}):
        return operand
    scaled = scaling_of(inner.producer)
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
