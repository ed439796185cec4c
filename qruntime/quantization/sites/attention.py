"""Attention takes a weighted mean of the values, whose channels so take on what the result is to become."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from qruntime.ir import Node
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.quantization.layers import unfit_attributes
from qruntime.quantization.sites import linears
from qruntime.quantization.sites.changes import ORDER, SCALE, SHIFT, Blocked, floats_of, replace
from qruntime.quantization.sites.tracing import Trace, leads_out, reads_shape


class Operator(NamedTuple):
    """Where an operator that is attention as a whole has its values, and the names of its numbers of heads."""

    heads: str
    kv_heads: str
    past: int
    """Among the inputs. Values are input 2, and output 2 once they are appended."""
    masks: tuple[int, ...] | None
    """Inputs that may hide all there is from a query, so that its weights need not sum to 1; None where something always may."""
    bias: int | None = None
    """What is added to queries, keys and values before."""


_VALUES = 2

OPERATORS: dict[tuple[str, str], Operator] = {
    ("", "Attention"): Operator("q_num_heads", "kv_num_heads", 5, (3, 6)),
    (MICROSOFT, "MultiHeadAttention"): Operator("num_heads", "num_heads", 7, (4, 5), bias=3),
    (MICROSOFT, "GroupQueryAttention"): Operator("num_heads", "kv_num_heads", 4, None),
}


def values(trace: Trace, node: Node) -> None:
    """MatMul of probabilities and values: P · (V / s) = (P · V) / s; and P · (V − z) = P · V − z where rows of P sum to 1."""
    labels = trace.of(node)
    if labels.ndim > 1 and labels.shape[-2] != 1:
        raise Blocked(f"the channels are not the last axis of what {node.label} makes")
    if trace.kind == SHIFT and not _sums_to_one(node):
        raise Blocked(f"the rows that {node.label} multiplies do not sum to 1")
    if trace.kind == ORDER:
        trace.keep_apart(labels.reshape(-1, labels.shape[-1]))
    if trace.shapes.dims(node.input(1)) is None:
        raise Blocked(f"the shape of the values that {node.label} reads is not known")
    trace.roles.append("values")
    trace.reach(node, 1, labels)


def _sums_to_one(node: Node) -> bool:
    weights = node.input(0)
    softmax = None if weights is None else weights.producer
    if softmax is None or not softmax.is_op("Softmax") or softmax.outputs[0] is not weights:
        return False
    return softmax.attr("axis", -1 if softmax.version >= 13 else 1) == -1 or _is_last(softmax)


def _is_last(softmax: Node) -> bool:
    value = softmax.input(0)
    kind = None if value is None else value.type
    return kind is not None and kind.shape is not None and softmax.attr("axis", 1) == len(kind.shape) - 1


def whole(trace: Trace, node: Node) -> None:
    """One operator for all of attention, of values [b, t, h · d] or [b, h, t, d]."""
    operator = OPERATORS[node.domain, node.op_type]
    if node.input(_VALUES) is None or node.attr("k_quant_type", "NONE") != "NONE":
        raise Blocked(f"{node.label} has its values beside queries and keys, or as codes")
    if trace.kind == SHIFT and (operator.masks is None or any(node.input(at) is not None for at in operator.masks)):
        raise Blocked(f"the weights of {node.label} need not sum to 1")
    dims, labels = trace.shapes.dims(node.input(_VALUES)), trace.of(node)
    heads = node.attr(operator.heads) or (labels.shape[-3] if labels.ndim > 2 else 0)
    if dims is None or len(dims) not in (3, 4) or not heads or labels.size % heads:
        raise Blocked(f"the heads of {node.label} are not known")
    kv_heads = node.attr(operator.kv_heads) or (dims[1].number if len(dims) == 4 and dims[1].is_known else 0)
    if not kv_heads or heads % kv_heads:
        raise Blocked(f"the heads of the values of {node.label} are not known")
    if trace.kind == ORDER:
        trace.keep_apart(labels.reshape(heads, -1))
    ours = trace.tied(labels.reshape(kv_heads, heads // kv_heads, -1), 1)
    trace.roles.append("values")
    _keep(trace, node, operator, ours)
    flat = ours.reshape(-1)
    if operator.bias is not None and node.input(operator.bias) is not None:
        _change_bias(trace, node, operator.bias, flat)
        if trace.kind == SHIFT:
            return
    trace.reach(node, _VALUES, flat if len(dims) == 3 else ours)


def _keep(trace: Trace, node: Node, operator: Operator, labels: np.ndarray) -> None:
    """Follow the change into the cache, if there is one and it may change."""
    present = node.outputs[_VALUES] if len(node.outputs) > _VALUES else None
    if present is not None and present.is_read:
        leaves = all(reads_shape(user) or leads_out(user, trace.ground.graph) for user, _ in present.uses)
        if not trace.ground.cache_is_private or not leaves:
            raise Blocked(f"{node.label} keeps its values in {present.name!r}")
    if node.input(operator.past) is not None:
        trace.reach(node, operator.past, labels)


def _change_bias(trace: Trace, node: Node, at: int, labels: np.ndarray) -> None:
    bias = floats_of(node, at)
    if bias.ndim != 1 or len(bias) < len(labels):
        raise Blocked(f"the bias of {node.label} has shape {list(bias.shape)}, need {len(labels)} numbers for values and more")
    own = np.concatenate([np.full(len(bias) - len(labels), -1), labels])
    by = trace.sources(own) if trace.kind == ORDER else trace.along(own)
    trace.edits.append(partial(_edit_bias, node, at, trace.kind, by))


def _edit_bias(node: Node, at: int, kind: str, by: np.ndarray) -> None:
    bias = floats_of(node, at)
    replace(node, at, bias[by] if kind == ORDER else bias / by if kind == SCALE else bias - by)


def with_projection(trace: Trace, node: Node) -> None:
    """ONNX Runtime's Attention, which holds the layer that makes queries, keys and values side by side: [K, 3 · D]."""
    labels, heads = trace.channels(node), node.attr("num_heads", 0)
    outputs = floats_of(node, 1).shape[-1]
    reason = unfit_attributes(node)
    if reason or not heads or len(labels) % heads or outputs < len(labels):
        raise Blocked(f"{node.label}: {reason or 'its heads are not known'}")
    if node.input(4) is not None or any(output.is_read for output in node.outputs[1:]):
        raise Blocked(f"{node.label} keeps its values")
    if trace.kind == SHIFT and (node.input(3) is not None or node.input(5) is not None):
        raise Blocked(f"the weights of {node.label} need not sum to 1")
    if trace.kind == ORDER:
        trace.keep_apart(labels.reshape(heads, -1))
    trace.roles.append("values")
    linears.change_rows(trace, node, np.concatenate([np.full(outputs - len(labels), -1), labels]))
