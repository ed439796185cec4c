"""Fused operators that ONNX Runtime's optimizers write (com.microsoft), taken apart again.

The pieces are standard operators, so that every later pass sees what it knows. What has no pieces here, or
uses inputs and outputs that the pieces lack, keeps its numpy definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qruntime.ir import Graph, Node, Value, constant, stored_constant
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.passes.foreign_quantization import dynamic_linear, dynamic_source
from qruntime.passes.known_ranks import known_ranks
from qruntime.passes.pieces import Pieces
from qruntime.passes.rewriting import Skip, splice, trace
from qruntime.passes.stored.matmul_nbits import matmul_bnb4, matmul_nbits
from qruntime.passes.symbolic_shapes import rank

Expansion = Callable[[Pieces, Node], Value | Skip | tuple[Value | None, ...]]
"""Returns the new first output, or one per output of the node, None where the pieces have nothing to give."""

_LAST = -1


def expand_contrib(graph: Graph) -> None:
    """Gelu, SkipLayerNormalization, FusedMatMul, Attention, MatMulNBits, …  →  standard operators."""
    for nested in graph.walk_graphs():
        replaced: dict[Node, list[Node]] = {}
        ranks = known_ranks(nested) if any((node.domain, node.op_type) in _EXPANSIONS for node in nested.nodes) else {}
        for node in nested.nodes:
            expand = _EXPANSIONS.get((node.domain, node.op_type))
            if expand is None:
                continue
            pieces = Pieces(node, ranks=ranks)
            made = expand(pieces, node)
            if isinstance(made, Skip):
                pieces.withdraw()
                trace(f"expand_contrib declines at {node.label}: {made}")
                continue
            outputs = made if isinstance(made, tuple) else (made,)
            pairs = [(old, outputs[i] if i < len(outputs) else None) for i, old in enumerate(node.outputs)]
            if any(new is None and old.is_read for old, new in pairs):
                pieces.withdraw()
                trace(f"expand_contrib declines at {node.label}: a further output is read")
                continue
            for old, new in pairs:
                if new is not None:
                    nested.replace_uses(old, new)
            replaced[node] = pieces.builder.nodes
            trace(f"expand_contrib at {node.label}")
        splice(nested, replaced)


def _needed(node: Node, count: int) -> bool:
    return all(node.input(i) is not None for i in range(count))


def _plus(op: Pieces, x: Value | None, bias: Value | None) -> Value | None:
    return x if bias is None else op.Add(x, bias)


def _gelu(op: Pieces, node: Node) -> Value:
    return op.Gelu(_plus(op, node.input(0), node.input(1)), approximate="none")


def _fast_gelu(op: Pieces, node: Node) -> Value:
    return op.Gelu(_plus(op, node.input(0), node.input(1)), approximate="tanh")


def _quick_gelu(op: Pieces, node: Node) -> Value:
    x, alpha = node.input(0), node.attr("alpha", 1.702)
    return op.Mul(x, op.Sigmoid(x if alpha == 1 else op.Mul(x, op.number(alpha))))


def _skip_layer_norm(op: Pieces, node: Node) -> Skip | tuple[Value | None, ...]:
    if not _needed(node, 3):
        return Skip("an input is missing")
    total = op.Add(_plus(op, node.input(0), node.input(4)), node.input(1))
    y = op.LayerNormalization(total, node.input(2), node.input(3), axis=_LAST, epsilon=node.attr("epsilon", 1e-12))
    return y, None, None, total


def _skip_rms_norm(op: Pieces, node: Node) -> Skip | tuple[Value | None, ...]:
    if not _needed(node, 3):
        return Skip("an input is missing")
    total = op.Add(_plus(op, node.input(0), node.input(3)), node.input(1))
    y = op.RMSNormalization(total, node.input(2), axis=_LAST, epsilon=node.attr("epsilon", 1e-12))
    return y, None, None, total


def _rms_norm(op: Pieces, node: Node) -> Value:
    axis, epsilon = node.attr("axis", _LAST), node.attr("epsilon", 1e-5)
    return op.RMSNormalization(node.input(0), node.input(1), axis=axis, epsilon=epsilon)


def _fused_matmul(op: Pieces, node: Node) -> Skip | Value:
    if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
        return Skip("a batch is transposed")
    alpha = node.attr("alpha", 1.0)
    left = _transposed(op, node.input(0), node.attr("transA", 0))
    if isinstance(left, Skip):
        return left
    held = node.input(1)
    if held is not None and held.stored is not None and held.stored.ndim == 2:
        codes = held.stored.transposed() if node.attr("transB", 0) else held.stored
        return op.MatMul(left, stored_constant(held.name, codes.scaled(alpha)))
    weight = _transposed(op, held, node.attr("transB", 0))
    if isinstance(weight, Skip):
        return weight
    if weight.data is not None and weight.data.dtype == np.float32:
        weight, alpha = constant(weight.name, weight.data * np.float32(alpha)) if alpha != 1 else weight, 1.0
    product = op.MatMul(left, weight)
    return product if alpha == 1 else op.Mul(product, op.number(alpha))


def _transposed(op: Pieces, value: Value | None, transpose: int) -> Skip | Value:
    if value is None:
        return Skip("an input is missing")
    if not transpose:
        return value
    count = rank(value)
    if count is None:
        return Skip("what is transposed has an unknown rank")
    if count < 2:
        return value
    if value.data is not None:
        return constant(value.name, value.data.swapaxes(-1, -2))
    return op.Transpose(value, perm=(*range(count - 2), count - 1, count - 2))


_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "": (), "Relu": (), "Sigmoid": (), "Tanh": (), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"),
}  # fmt: skip


def _activated(op: Pieces, y: Value, activation: str, parameters: tuple[float | None, ...]) -> Skip | Value:
    if activation == "":
        return y
    if activation == "Clip" and len(parameters) >= 2 and None not in parameters[:2]:
        return op.Clip(y, *(op.number(p) for p in parameters[:2] if p is not None))
    if activation not in _ACTIVATIONS:
        return Skip(f"the activation {activation}")
    names = _ACTIVATIONS[activation]
    return getattr(op, activation)(y, **{n: p for n, p in zip(names, parameters, strict=False) if p is not None})


def _fused_gemm(op: Pieces, node: Node) -> Skip | Value:
    if not _needed(node, 2):
        return Skip("an input is missing")
    kept = {name: node.attributes[name] for name in ("alpha", "beta", "transA", "transB") if name in node.attributes}
    parameters = (node.attr("activation_alpha"), node.attr("activation_beta"))
    return _activated(op, op.Gemm(*node.inputs[:3], **kept), node.attr("activation", ""), parameters)


def _gemm_fast_gelu(op: Pieces, node: Node) -> Skip | Value:
    if not _needed(node, 2):
        return Skip("an input is missing")
    return op.Gelu(_plus(op, op.MatMul(node.input(0), node.input(1)), node.input(2)), approximate="tanh")


def _fused_conv(op: Pieces, node: Node) -> Skip | Value:
    if not _needed(node, 2):
        return Skip("an input is missing")
    kept = {name: a for name, a in node.attributes.items() if not name.startswith("activation")}
    y = op.Conv(node.input(0), node.input(1), node.input(2), **kept)
    if node.input(3) is not None:
        y = op.Add(y, node.input(3))
    return _activated(op, y, node.attr("activation", ""), tuple(node.attr("activation_params", ())))


def _attention(op: Pieces, node: Node) -> Skip | Value | tuple[Value | None, ...]:
    """One linear layer, whose result q, k and v share, and the fused kernel; with a past or else, MultiHeadAttention."""
    weights = node.input(1)
    shape = None if weights is None else weights.shape
    if not _needed(node, 2) or shape is None or len(shape) != 2:
        return Skip("the weights are no constant matrix")
    columns = shape[1]
    if node.attr("do_rotary", 0) or node.attr("past_present_share_buffer", 0) or node.input(6) is not None:
        return Skip("it is rotary, or shares the buffer of its past")
    bias = node.input(2)
    if bias is not None and bias.data is not None and bias.data.shape != (columns,):
        return Skip(f"the bias has shape {list(bias.data.shape)}, need [{columns}]")
    projected = _plus(op, op.MatMul(node.input(0), weights), bias)
    reason = _unlike_the_kernel(node, columns)
    if reason is None and node.input(4) is None and not any(output.is_read for output in node.outputs[1:]):
        made = _attend(op, node, projected, columns // 3, node.input(3), node.input(5))
        if not isinstance(made, Skip):
            return made
    return _attend_apart(op, node, projected, columns)


def _attend_apart(op: Pieces, node: Node, projected: Value | None, columns: int) -> Skip | tuple[Value | None, ...]:
    """q, k and v as inputs of MultiHeadAttention, the halves of a past as two, and the present of its two outputs."""
    sizes = tuple(node.attr("qkv_hidden_sizes") or (columns // 3,) * 3)
    if len(sizes) != 3 or min(sizes) < 1 or sum(sizes) != columns:
        return Skip(f"the hidden sizes {sizes} do not fill {columns} columns")
    if sizes[1] != sizes[2] and any(output.is_read for output in node.outputs[1:]):
        return Skip("keys and values of different sizes have no common cache")
    parts = op.several(3, "Split", projected, _integers("sizes", *sizes), axis=_LAST)
    halves: tuple[Value | None, ...] = (None, None)
    if node.input(4) is not None:
        halves = tuple(op.Squeeze(half, _axes(0)) for half in op.several(2, "Split", node.input(4), axis=0, num_outputs=2))
    kept = ("num_heads", "unidirectional", "scale", "mask_filter_value")
    attributes = {name: node.attributes[name] for name in kept if name in node.attributes}
    inputs = (*parts, None, node.input(3), node.input(5), *halves)
    y, keys, values = op.several(3, "MultiHeadAttention", *inputs, domain=MICROSOFT, **attributes)
    if not any(output.is_read for output in node.outputs[1:]):
        return y, None
    return y, op.Concat(op.Unsqueeze(keys, _axes(0)), op.Unsqueeze(values, _axes(0)), axis=0)


def _quantized_attention(op: Pieces, node: Node) -> Skip | Value:
    """The same behind a DynamicQuantizeLinear, with a dynamic linear layer."""
    weights, bias = node.input(1), node.input(2)
    if weights is None or weights.data is None or weights.data.ndim != 2 or bias is None or node.input(8) is not None:
        return Skip("the weights are no constant matrix, or it has a past")
    source = dynamic_source(node.input(0), node.input(6), node.input(3))
    reason = source if isinstance(source, Skip) else _unlike_the_kernel(node, weights.data.shape[1])
    if isinstance(source, Skip) or reason is not None:
        return reason or Skip("")
    made = dynamic_linear(node, node, source.input(0), weights, node.input(4), node.input(7), bias)
    if isinstance(made, Skip):
        return made
    op.builder.nodes.append(made[1])
    return _attend(op, node, made[1].outputs[0], weights.data.shape[1] // 3, node.input(5), None)


def _unlike_the_kernel(node: Node, columns: int) -> Skip | None:
    heads, width = node.attr("num_heads", 0), columns // 3
    if node.attr("unidirectional", 0) or node.attr("do_rotary", 0) or node.attr("past_present_share_buffer", 0):
        return Skip("it is causal or rotary")
    sizes = tuple(node.attr("qkv_hidden_sizes") or (width,) * 3)
    if heads < 1 or width * 3 != columns or sizes != (width,) * 3 or width % heads or not width:
        return Skip("q, k and v differ in size, or the heads do not divide it")
    return None


def _attend(op: Pieces, node: Node, projected: Value | None, width: int, mask: Value | None, attention_bias: Value | None) -> Skip | Value:
    """softmax(q · kᵀ) · v of the three parts of `projected` [B, S, 3 · width]."""
    heads = node.attr("num_heads")
    added = _mask(op, node, mask)
    if isinstance(added, Skip):
        return added
    if attention_bias is not None:
        added = attention_bias if added is None else op.Add(attention_bias, added)
    size = width // heads
    packed = op.Reshape(projected, constant("heads", np.array([0, 0, 3, heads, size], np.int64)))
    y = op.builder.Attention(
        *([packed] * 3 if added is None else [packed] * 3 + [added]),
        scale=float(node.attr("scale", 0.0) or size**-0.5), q_layout="BSHD", k_layout="BSHD", v_layout="BSHD",
        out_layout="BSHD", parts=(0, 1, 2),
    )  # fmt: skip
    return op.Reshape(y, constant("merged", np.array([0, 0, width], np.int64)))


def _mask(op: Pieces, node: Node, mask: Value | None) -> Skip | Value | None:
    """What a raw mask [B, T], or the ends [B] that EmbedLayerNormalization counts, adds to the scores."""
    if mask is None:
        return None
    embedding = mask.producer
    if embedding is not None and embedding.is_op("EmbedLayerNormalization", domain=MICROSOFT) and mask is not embedding.outputs[0]:
        if embedding.input(7) is None:
            return None  # all ends are 0: every score of a row gets the same value added
        position = op.Range(_integer(0), op.Gather(op.Shape(node.input(0)), _integer(1)), _integer(1))
        seen = op.Less(position, op.Unsqueeze(op.Cast(mask, to=_INT64), _axes(1)))
    elif rank(mask) == 2 and _last_dimension(mask) == 1:
        return None  # it only holds the place of a mask
    elif rank(mask) == 2:
        seen = op.Greater(op.Cast(mask, to=_INT64), _integer(0))
    else:
        return Skip("the mask is not known to be [B, T]")
    added = op.Where(seen, op.number(0.0), op.number(node.attr("mask_filter_value", -10000.0)))
    return op.Unsqueeze(added, _axes(1, 2))


def _last_dimension(value: Value) -> object:
    """A number, a name or None, of a value that has dimensions or whose type is unknown."""
    if value.data is not None:
        return value.data.shape[-1]
    return None if value.type is None or not value.type.shape else value.type.shape[-1]


_INT64 = 7


def _integer(value: int) -> Value:
    return constant(f"{value}", np.array(value, np.int64))


def _axes(*axes: int) -> Value:
    return _integers("axes", *axes)


def _integers(name: str, *numbers: int) -> Value:
    return constant(name, np.array(numbers, np.int64))


def _multi_head_attention(op: Pieces, node: Node) -> Skip | tuple[Value | None, ...]:
    """[B, S, D] each, without padding mask and a buffer of a past: the standard operator."""
    heads, bias = node.attr("num_heads", 0), node.input(3)
    if not _needed(node, 3) or any(_rank(op, node.input(i)) != 3 for i in (1, 2)):
        return Skip("query, key and value are not known to be [B, S, D]")
    if any(node.input(i) is not None for i in (4, 8, 9)) or node.attr("unidirectional", 0) or heads < 1:
        return Skip("it is causal or has a padding mask, or a past in a buffer")
    if (node.input(6) is None) != (node.input(7) is None):
        return Skip("keys or values alone have a past")
    parts: list[Value | None] = list(node.inputs[:3])
    if bias is not None:
        if bias.data is None or bias.data.ndim != 1 or bias.data.size % 3:
            return Skip("the bias is no constant, or query, key and value differ in size")
        pieces = np.split(bias.data, 3)
        parts = [op.Add(part, constant(f"{bias.name}/{i}", pieces[i])) for i, part in enumerate(parts)]
    parts += node.inputs[5:8]
    while parts[-1] is None:
        parts.pop()
    attributes: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads}
    if node.attr("scale", 0.0):
        attributes["scale"] = float(node.attr("scale"))
    return tuple(op.several(3, "Attention", *parts, **attributes))


def _rank(op: Pieces, value: Value | None) -> int | None:
    found = rank(value)
    known = None if value is None else op.ranks.get(value)
    return known.rank if found is None and known is not None else found


_EXPANSIONS: dict[tuple[str, str], Expansion] = {
    (MICROSOFT, "Gelu"): _gelu,
    (MICROSOFT, "BiasGelu"): _gelu,
    (MICROSOFT, "FastGelu"): _fast_gelu,
    (MICROSOFT, "QuickGelu"): _quick_gelu,
    (MICROSOFT, "SkipLayerNormalization"): _skip_layer_norm,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip_rms_norm,
    (MICROSOFT, "SimplifiedLayerNormalization"): _rms_norm,
    ("", "SimplifiedLayerNormalization"): _rms_norm,
    (MICROSOFT, "FusedMatMul"): _fused_matmul,
    (MICROSOFT, "TransposeMatMul"): _fused_matmul,
    (MICROSOFT, "FusedGemm"): _fused_gemm,
    (MICROSOFT, "GemmFastGelu"): _gemm_fast_gelu,
    (MICROSOFT, "FusedConv"): _fused_conv,
    (MICROSOFT, "MatMulNBits"): matmul_nbits,
    (MICROSOFT, "MatMulBnb4"): matmul_bnb4,
    (MICROSOFT, "Attention"): _attention,
    (MICROSOFT, "QAttention"): _quantized_attention,
    (MICROSOFT, "MultiHeadAttention"): _multi_head_attention,
}
