"""ONNX's own Attention, in the terms of the kernel.

    Attention(q, k, v, mask, past_k, past_v)  →  Attention over Concat(past_k, k) and Concat(past_v, v)

so that heads are read where they lie, repeated ones as they are, and a cache is one that passes know. What the kernel lacks (caps,
windows, scores given out, types that are not surely float32) keeps the operator and its definition.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.passes.attention import result_dims, transpose_after
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.element_types import element_type, element_types
from qruntime.passes.head_layouts import LAYOUTS, Operand, operand_of, without_repeats
from qruntime.passes.known_ranks import Known, known_ranks
from qruntime.passes.pieces import Pieces
from qruntime.passes.rewriting import Skip, trace
from qruntime.passes.symbolic_shapes import Dim, dims

_FLOAT = 1
_MASKED_TO_ZERO = 2
_OPSET = 23
"""Of the pieces: Reshape, Transpose and Concat have long been what they are there."""


def lower_attention(graph: Graph) -> None:
    """Attention of the standard domain  →  that of ours"""
    lowered = 0
    known = element_types(graph)
    for nested in graph.walk_graphs():
        found = [node for node in nested.nodes if node.is_op("Attention")]
        ranks = known_ranks(nested) if found else {}
        for node in found:
            is_float = all(element_type(v, known) == _FLOAT for v in node.inputs[:3])
            reason = _lower(nested, node, ranks) if is_float else Skip("its inputs are not known to be float32")
            trace(f"lower_attention {'at' if reason is None else 'declines at'} {node.label}{f': {reason}' if reason else ''}")
            lowered += reason is None
    if lowered:
        remove_dead_nodes(graph)


class _Tokens(NamedTuple):
    """q, k or v: its heads, how many there are where that is known, and how large one is."""

    operand: Operand
    heads: int | None
    size: int | None


def _lower(graph: Graph, node: Node, ranks: dict[Value, Known]) -> Skip | None:
    reason = _unlike_the_kernel(node)
    if reason is not None:
        return reason
    shapes = [_shape(v, ranks) for v in node.inputs[:3]]
    lengths = {None if shape is None else len(shape) for shape in shapes}
    if lengths not in ({3}, {4}):
        return Skip("q, k and v are not known to have one rank")
    is_packed = lengths == {3}
    op = Pieces(node, _OPSET)
    heads = node.attr("q_num_heads", 0), node.attr("kv_num_heads", 0), node.attr("kv_num_heads", 0)
    found = [_tokens(op, v, shape, count, is_packed) for v, shape, count in zip(node.inputs[:3], shapes, heads, strict=True)]
    q, k, v = (None if isinstance(one, Skip) else one for one in found)
    if q is None or k is None or v is None:
        op.withdraw()
        return next(one for one in found if isinstance(one, Skip))
    ours = [k.operand, v.operand]
    for i, (past, one) in enumerate(zip((node.input(4), node.input(5)), (k, v), strict=True)):
        output = node.outputs[i + 1] if i + 1 < len(node.outputs) else None
        if past is None and (output is None or not output.is_read):
            continue
        tokens = _by_heads(op, one.operand)
        whole = tokens if past is None else op.Concat(past, tokens, axis=2)
        ours[i] = Operand(whole, "BHSD", rank=4)
        if output is not None:
            graph.replace_uses(output, whole)
    _attend(graph, node, op, q, v, *without_repeats(*ours), is_packed=is_packed)
    return None


def _shape(value: Value | None, ranks: dict[Value, Known]) -> tuple[Dim | None, ...] | None:
    """The dimensions of `value` as far as they are known."""
    found = dims(value)
    known = None if value is None else ranks.get(value)
    if known is None:
        return found
    if found is None or len(found) != known.rank:
        return (*[None] * (known.rank - 1), known.last)
    return (*found[:-1], found[-1] if isinstance(found[-1], int) else known.last)


def _unlike_the_kernel(node: Node) -> Skip | None:
    windows = node.attr("left_window_size", -1), node.attr("right_window_size", -1)
    if node.attr("softcap", 0.0) or windows != (-1, -1):
        return Skip("scores are capped, or seen through a window")
    if node.attr("softmax_precision", _FLOAT) != _FLOAT or node.attr("scale", 0.0) < 0:
        return Skip("it has a softmax of another type, or a negative scale")
    if len(node.outputs) > 3 and node.outputs[3].is_read:
        return Skip("scores are given out")
    if (node.input(4) is None) != (node.input(5) is None) or (node.input(4) is not None and node.input(6) is not None):
        return Skip("past and lengths do not belong together")
    return None


def _tokens(op: Pieces, value: Value | None, shape: object, heads: int, is_packed: bool) -> Skip | _Tokens:
    if value is None or not isinstance(shape, tuple):
        return Skip("an input is missing")
    width = shape[-1] if isinstance(shape[-1], int) else None
    if not is_packed:
        operand = operand_of(value, LAYOUTS, may_scale=False)
        assert operand is not None
        return _Tokens(operand, shape[1] if isinstance(shape[1], int) else None, width)
    if heads < 1 or width is None or width < 1 or width % heads:
        return Skip("the number or the size of heads is not known")
    split = op.Reshape(value, constant("heads", np.array([0, 0, heads, width // heads], np.int64)))
    return _Tokens(Operand(split, "BSHD", rank=4), heads, width // heads)


def _by_heads(op: Pieces, operand: Operand) -> Value:
    """[B, H, S, D] of what lies in one of the two layouts."""
    if operand.layout == "BHSD":
        return operand.value
    if operand.part or len(dims(operand.value) or ()) == 5:
        index = constant("part", np.array(operand.part, np.int64))
        return op.Gather(op.Transpose(operand.value, perm=(2, 0, 3, 1, 4)), index, axis=0)
    return op.Transpose(operand.value, perm=(0, 2, 1, 3))


def _attend(graph: Graph, node: Node, op: Pieces, q: _Tokens, v: _Tokens, *found: object, is_packed: bool) -> None:
    k_operand, v_operand, repeats = found
    assert isinstance(k_operand, Operand)
    assert isinstance(v_operand, Operand)
    output = node.outputs[0]
    transpose = None if is_packed else transpose_after(output, result_dims(output, q.operand, v_operand))
    inputs = [q.operand.value, k_operand.value, v_operand.value, node.input(3), None, *repeats.shapes]  # type: ignore[attr-defined]
    inputs += [None] * (9 - len(inputs)) + [node.input(6)]
    while inputs[-1] is None:
        inputs.pop()
    scale = node.attr("scale")
    made = op.builder.Attention(
        *inputs,
        scale=float(scale) if scale is not None else q.size**-0.5 if q.size else math.nan,
        q_layout=q.operand.layout,
        k_layout=k_operand.layout,
        v_layout=v_operand.layout,
        out_layout="BSHD" if is_packed or transpose is not None else "BHSD",
        parts=(q.operand.part, k_operand.part, v_operand.part),
        kv_repeats=repeats.number if repeats.shapes or repeats.number > 1 else 0,  # type: ignore[attr-defined]
        allowzero=repeats.allowzero,  # type: ignore[attr-defined]
        causal=node.attr("is_causal", 0),
        causal_offset=-1 if node.input(4) is not None else 0,
        pads_mask=1,
        nan_rows_to_zero=_MASKED_TO_ZERO,
    )
    if is_packed:
        assert q.heads is not None
        assert v.size is not None
        made = op.Reshape(made, constant("merged", np.array([0, 0, q.heads * v.size], np.int64)))
    elif transpose is not None and any(user.is_op("Shape") for user, _ in output.uses):
        graph.replace_uses(output, op.Transpose(made, perm=(0, 2, 1, 3)))  # only shapes are read of it
    graph.insert_before(node, *op.builder.nodes)
    graph.replace_uses(output if transpose is None else transpose.outputs[0], made)
