"""A linear layer makes the tensor: its rows and its bias take on every change."""

from __future__ import annotations

from functools import partial

import numpy as np

from qruntime.ir import Node, Value, constant
from qruntime.passes.stored.writing import opset_beside
from qruntime.quantization.layers import layer_of, unfit_attributes
from qruntime.quantization.sites.changes import ORDER, SCALE, SHIFT, Blocked, floats_of, give, insert_after, replace
from qruntime.quantization.sites.tracing import Ground, Trace

WITH_BIAS = ("Gemm", "FusedGemm", "GemmFastGelu", "Attention")
"""Operators whose third input is added to the product."""

_BROADCASTS = 7
"""The opset from which on Gemm and arithmetic operators broadcast without being told."""


def linear(trace: Trace, node: Node) -> None:
    reason = unfit_attributes(node)
    if reason:
        raise Blocked(f"{node.label}: {reason}")
    activation = "Gelu" if node.op_type == "GemmFastGelu" else node.attr("activation", "")
    if activation and not (trace.kind == ORDER or (trace.kind == SCALE and activation == "Relu")):
        raise Blocked(f"{node.label} ends in {activation}")
    trace.roles.append("linear" if not activation else "relu" if activation == "Relu" else "activation")
    change_rows(trace, node, trace.channels(node))


def change_rows(trace: Trace, node: Node, labels: np.ndarray) -> None:
    """Enter the edit of the weight and the bias of a layer whose outputs have `labels` [N]."""
    layer, weight = layer_of(node), floats_of(node, 1)
    assert layer is not None
    if weight.ndim != 2 or weight.shape[layer.along] != len(labels):
        raise Blocked(f"{node.label}: the weight has shape {list(weight.shape)}, need {len(labels)} outputs")
    if trace.kind == SHIFT:
        check_bias(node)
        trace.edits.append(partial(add_to_bias, trace.ground, node, -trace.along(labels)))
        return
    has_bias = node.op_type in WITH_BIAS and node.input(2) is not None
    if has_bias:
        check_bias(node)
    moved = trace.sources(labels) if trace.kind == ORDER else trace.along(labels)
    trace.edits.append(partial(_edit, node, layer.along, has_bias, trace.kind, moved))


def _edit(node: Node, along: int, has_bias: bool, kind: str, by: np.ndarray) -> None:
    weight = floats_of(node, 1)
    if kind == ORDER:
        replace(node, 1, np.take(weight, by, along))
    else:
        replace(node, 1, weight / (by if along else by[:, None]))
    if has_bias:
        bias = floats_of(node, 2)
        wide = np.broadcast_to(bias, np.broadcast_shapes(bias.shape, by.shape))
        replace(node, 2, wide[..., by] if kind == ORDER else wide / by)


def check_bias(node: Node) -> None:
    """Blocked where a bias, given or to come, cannot be changed."""
    if node.op_type not in WITH_BIAS:
        return
    if node.is_op("Gemm") and node.version < _BROADCASTS:
        raise Blocked(f"in opset {node.version} an attribute of {node.label} says how its bias is broadcast, need {_BROADCASTS}")
    if node.input(2) is not None:
        floats_of(node, 2)


def add_to_bias(ground: Ground, node: Node, numbers: np.ndarray) -> None:
    """Let a layer give `numbers` [N] more: in its bias, in the Add that follows, or in a new one."""
    weight = floats_of(node, 1)
    numbers = numbers.astype(weight.dtype)
    bias = node.input(2) if node.op_type in WITH_BIAS else None
    name = node.input(1).name  # type: ignore[union-attr]
    if node.op_type in WITH_BIAS:
        beta = float(node.attr("beta", 1.0))
        if bias is None or beta == 0:
            node.attributes.pop("beta", None)
            give(node, 2, f"{name}/bias", numbers)
        else:
            replace(node, 2, floats_of(node, 2) + numbers / weight.dtype.type(beta))
        return
    following = _bias_after(node, len(numbers))
    if following is not None:
        replace(*following, floats_of(*following) + numbers)
        return
    product = node.outputs[0]
    total = Value(f"{product.name}/shifted", product.type)
    version = opset_beside(ground.graph, node)
    added = Node(
        "Add", [product, constant(f"{name}/bias", numbers)], [total], version=version, name=f"{node.name}/shift" if node.name else ""
    )
    assert node.graph is not None
    insert_after(node.graph, product, added)
    ground.shapes.is_like(total, product)


def _bias_after(node: Node, n: int) -> tuple[Node, int] | None:
    """The Add of a constant per channel that alone reads a product, and where the constant stands."""
    product = node.outputs[0]
    if product.output_of or len(product.uses) != 1:
        return None
    (user, index) = next(iter(product.uses))
    other = user.input(1 - index) if user.is_op("Add") and user.graph is node.graph and user.version >= _BROADCASTS else None
    if other is None or other.data is None or other.data.dtype not in (np.float32, np.float64):
        return None
    return (user, 1 - index) if other.data.shape == (n,) else None
