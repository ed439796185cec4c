"""What multiplies and shifts the channels of a layer joins its weight and bias.

    Conv(x, W, b) → BatchNormalization        Conv(x, W · s, b · s + t)
    Gemm(x, W, b) → BatchNormalization        likewise, and MatMul, whose shift becomes an Add
    Conv(x, W, b) → Mul, Div, Add, Sub        likewise, by constants of one number or one per channel

Only where the result says the same: inference, constants alone, one reader, finite numbers, and a weight that no other
node reads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.passes.rewriting import Builder, Skip, only_reader, splice, trace
from qruntime.passes.symbolic_shapes import dims

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_LAYERS = frozenset({*_CONVOLUTIONS, "Gemm", "MatMul"})
_AFTER_CONVOLUTIONS = ("Mul", "Div", "Add", "Sub")
_FLOATS = (np.float32, np.float64)  # what a layer gives in float16 is rounded first


class _Affine(NamedTuple):
    """y = scale · x + shift, per channel, in float64."""

    scale: np.ndarray
    shift: np.ndarray


def fold_channel_affine(graph: Graph) -> None:
    """Conv, ConvTranspose, Gemm or MatMul, then BatchNormalization or (after convolutions) Mul and Add  →  the layer alone."""
    for nested in graph.walk_graphs():
        replaced: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            if node.op_type in _LAYERS and not node.domain:
                while (user := _affine_reader(nested, node)) is not None:
                    new = _join(nested, node, user)
                    if isinstance(new, Skip):
                        trace(f"fold_channel_affine declines at {user.label}: {new}")
                        break
                    trace(f"fold_channel_affine at {user.label}")
                    replaced[user] = new
                    for index in range(len(user.inputs)):
                        user.set_input(index, None)  # so that the layer has one reader again
                    if new:
                        break  # the Add that shifts a MatMul reads it now
        splice(nested, replaced)


def _affine_reader(graph: Graph, node: Node) -> Node | None:
    user = only_reader(graph, node)
    if user is None or user.input(0) is not node.outputs[0]:
        is_swapped = user is not None and user.is_op("Mul", "Add") and user.input(1) is node.outputs[0]
        user = user if is_swapped else None
    if user is None or not (user.is_op("BatchNormalization") or (node.is_op(*_CONVOLUTIONS) and user.is_op(*_AFTER_CONVOLUTIONS))):
        return None
    return user


def _join(graph: Graph, node: Node, user: Node) -> Skip | list[Node]:
    """Change the weights of `node` so that it does what `user` does; the nodes that take the place of `user`."""
    weight, bias = node.input(1), node.input(2)
    if weight is None or weight.data is None or (bias is not None and bias.data is None):
        return Skip("the weight or bias is computed at run time, or stored otherwise")
    if len(weight.uses) > 1 or weight.output_of:
        return Skip("something else reads the weight")
    w = weight.data
    axis = _channel_axis(node, w)
    if isinstance(axis, Skip):
        return axis
    channels = w.shape[axis] * (node.attr("group", 1) if node.op_type == "ConvTranspose" else 1)
    affine = _batch_norm(user, channels) if user.op_type == "BatchNormalization" else _arithmetic(node, user, channels, w.ndim)
    if isinstance(affine, Skip):
        return affine
    wide = np.float64 if w.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        scaled = np.multiply(w, _along_channels(node, affine.scale.astype(wide), w), dtype=wide).astype(w.dtype)
        before = _bias_before(node, bias, channels)
        if isinstance(before, Skip):
            return before
        shift = (before * affine.scale + affine.shift).astype(w.dtype)
    if not (np.isfinite(scaled).all() and np.isfinite(shift).all()):
        return Skip("the product with the weight is not finite")
    node.set_input(1, constant(weight.name, scaled))
    if node.op_type == "MatMul":
        builder = Builder(user)
        added = builder.standard("Add", node.outputs[0], constant(f"{weight.name}/shift", shift))
        graph.replace_uses(user.outputs[0], added)
        return builder.nodes
    named = constant(f"{weight.name}/bias" if bias is None else bias.name, shift)
    if bias is None and len(node.inputs) < 3:
        node.append_input(named)
    else:
        node.set_input(2, named)
    if node.op_type == "Gemm":
        node.attributes.pop("beta", None)
    graph.replace_uses(user.outputs[0], node.outputs[0])
    return []


def _channel_axis(node: Node, w: np.ndarray) -> Skip | int:
    """The axis of the weight along which output channels lie; of a ConvTranspose those of one group."""
    if w.dtype not in _FLOATS or not w.size:
        return Skip(f"the weight is {w.dtype} {list(w.shape)}, need floats")
    if node.is_op(*_CONVOLUTIONS):
        if w.ndim < 3:
            return Skip(f"the weight has rank {w.ndim}, need 3 or more")
        group = node.attr("group", 1)
        if group < 1 or w.shape[0] % group:
            return Skip(f"group {group} does not divide the channels")
        return 0 if node.op_type == "Conv" else 1
    if w.ndim != 2:
        return Skip(f"the weight has rank {w.ndim}, need 2")
    if node.op_type == "Gemm" and node.version < 7:
        return Skip("in old opsets an attribute says whether the bias is broadcast")
    if node.op_type == "MatMul":
        rows = dims(node.input(0))
        return 1 if rows is not None and len(rows) == 2 else Skip("the left-hand side is not known to be a matrix")
    return 0 if node.attr("transB", 0) else 1


def _along_channels(node: Node, factor: np.ndarray, w: np.ndarray) -> np.ndarray:
    """`factor`, one number per output channel, shaped to be multiplied with the weight."""
    if node.op_type == "Conv":
        return factor.reshape(-1, *(1,) * (w.ndim - 1))
    if node.op_type == "ConvTranspose":
        # [C, M / group, …]: the channels of one group after the other.
        group = node.attr("group", 1)
        return np.repeat(factor.reshape(group, -1), w.shape[0] // group, axis=0).reshape(*w.shape[:2], *(1,) * (w.ndim - 2))
    return factor[:, None] if node.op_type == "Gemm" and node.attr("transB", 0) else factor


def _bias_before(node: Node, bias: Value | None, channels: int) -> Skip | np.ndarray:
    if bias is None or bias.data is None or node.op_type == "MatMul":
        return np.zeros(channels)
    data = bias.data
    allowed = [(channels,)] if node.is_op(*_CONVOLUTIONS) else [(channels,), (1, channels), (), (1,), (1, 1)]
    if data.shape not in allowed or data.dtype not in _FLOATS:
        return Skip(f"the bias is {data.dtype} {list(data.shape)}, need [{channels}]")
    beta = float(node.attr("beta", 1.0)) if node.op_type == "Gemm" else 1.0
    return np.broadcast_to(data.astype(np.float64).reshape(-1) * beta, (channels,))


def _batch_norm(user: Node, channels: int) -> Skip | _Affine:
    is_training = user.attr("training_mode", 0) or (len(user.outputs) > 1 and not user.attr("is_test", 0))
    if is_training or not user.attr("spatial", 1):
        return Skip("it is in training mode, or normalizes per activation")
    parameters = []
    for value in (user.input(i) for i in range(1, 5)):
        if value is None or value.data is None or value.data.dtype not in _FLOATS or value.data.shape != (channels,):
            return Skip(f"a parameter is no constant of {channels} numbers")
        parameters.append(value.data.astype(np.float64))
    scale, bias, mean, variance = parameters
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + user.attr("epsilon", 1e-5))
        return _Affine(factor, bias - mean * factor)


def _arithmetic(node: Node, user: Node, channels: int, rank: int) -> Skip | _Affine:
    """Of Mul, Div, Add or Sub by a constant whose channels are those of [N, C, *spatial]."""
    other = user.input(1) if user.input(0) is node.outputs[0] else user.input(0)
    if user.version < 7 or other is None or other.data is None or other.data.dtype not in _FLOATS:
        return Skip("the other operand is no constant")
    data = other.data
    if data.ndim > rank or (1,) * (rank - data.ndim) + data.shape not in ((1,) * rank, (1, channels, *(1,) * (rank - 2))):
        return Skip(f"a constant of shape {list(data.shape)} is not one number per channel")
    numbers = np.broadcast_to(data.astype(np.float64).reshape(-1), (channels,))
    ones, zeros = np.ones(channels), np.zeros(channels)
    with np.errstate(all="ignore"):
        return {
            "Mul": lambda: _Affine(numbers, zeros),
            "Div": lambda: _Affine(1 / numbers, zeros),
            "Add": lambda: _Affine(ones, numbers),
            "Sub": lambda: _Affine(ones, -numbers),
        }[user.op_type]()
