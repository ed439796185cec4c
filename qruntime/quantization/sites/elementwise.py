"""Arithmetic and activations, element by element: some take a change on, some hand it on, most let only an order through."""

from __future__ import annotations

from functools import partial

import numpy as np

from qruntime.ir import Node, Value
from qruntime.quantization.sites.changes import ORDER, SCALE, SHIFT, Blocked, floats_of, replace
from qruntime.quantization.sites.tracing import Trace

_BROADCASTS = 7
"""The opset from which on arithmetic operators broadcast without being told."""

HOMOGENEOUS = ("Abs", "LeakyRelu", "Neg", "PRelu", "Relu")
"""f(x / s) = f(x) / s for s > 0."""

OTHERS = (
    "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Log", "Mish", "Pow", "Reciprocal", "Round",
    "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
)  # fmt: skip
"""Nothing but an order of channels goes through."""

CONTRIB = ("BiasGelu", "FastGelu", "QuickGelu", "ScaledTanh")
"""Of those that ONNX Runtime's tools fuse, likewise."""

ARITHMETIC = ("Add", "Div", "Max", "Min", "Mul", "Sub")


def activation(trace: Trace, node: Node) -> None:
    """An operator of one tensor; what it reads beside that is constant."""
    is_homogeneous = node.is_op(*HOMOGENEOUS)
    trace.roles.append("relu" if node.is_op("LeakyRelu", "PRelu", "Relu") else "activation")
    if trace.kind == SHIFT or (trace.kind == SCALE and not is_homogeneous):
        raise Blocked(f"{node.label} is not linear")
    labels = trace.of(node)
    for index in range(1, len(node.inputs)):
        beside = node.input(index)
        if beside is None:
            continue
        if not beside.is_constant:
            raise Blocked(f"{node.label} has a parameter that is computed at run time")
        if trace.kind == ORDER and differs(beside, labels):
            _note(trace, node, index, labels)
    trace.reach(node, 0, labels)


def arithmetic(trace: Trace, node: Node) -> None:
    if len(node.inputs) != 2 or node.version < _BROADCASTS:
        raise Blocked(f"{node.label} is of opset {node.version} or has {len(node.inputs)} inputs, need opset 7 and two inputs")
    constants = [index for index, value in enumerate(node.inputs) if value is not None and value.is_constant]
    if len(constants) == 1:
        _with_constant(trace, node, constants[0])
    else:
        _of_two(trace, node)


def _with_constant(trace: Trace, node: Node, at: int) -> None:
    floats_of(node, at)
    labels, value, other = trace.of(node), node.input(at), 1 - at
    assert value is not None
    is_product = node.is_op("Mul", "Div")
    if trace.kind == ORDER:
        if is_product and _is_normalized(node.input(other)):
            raise Blocked(f"{node.label} scales what was normalized in the order of its input, which others read")
        if differs(value, labels):
            _note(trace, node, at, labels)
        trace.reach(node, other, labels)
    elif is_product:
        if trace.kind == SHIFT:
            raise Blocked(f"{node.label} has a factor, which takes on no shift")
        if not differs(value, labels):
            if node.is_op("Div") and at == 0:
                raise Blocked(f"{node.label} is not linear")
            trace.reach(node, other, labels)
            return
        trace.roles.append("norm" if _is_normalized(node.input(other)) else "affine")
        _note(trace, node, at, labels)
    elif trace.kind == SCALE:
        _note(trace, node, at, labels)
        trace.reach(node, other, labels)
    elif node.is_op("Add", "Sub"):
        trace.roles.append("affine")
        _note(trace, node, at, labels)
    else:
        raise Blocked(f"{node.label} is not linear")


def _note(trace: Trace, node: Node, at: int, labels: np.ndarray) -> None:
    """Enter the edit of a constant operand."""
    if trace.kind == ORDER:
        moved = trace.sources(labels)
        shape = floats_of(node, at).shape
        if len(moved) != labels.shape[-1] and np.broadcast_shapes(shape, labels.shape) != labels.shape:
            raise Blocked(f"a constant of shape {list(shape)} differs in heads and elsewhere")
        trace.edits.append(partial(_reorder, node, at, labels.shape, moved))
        return
    by = trace.along(labels)
    inverts = node.is_op("Div") and at == 1
    negates = node.is_op("Sub") and at == 1
    trace.edits.append(partial(_edit, node, at, trace.kind, by, inverts, negates))


def _edit(node: Node, at: int, kind: str, by: np.ndarray, inverts: bool, negates: bool) -> None:
    numbers = floats_of(node, at)
    if kind == SCALE:
        replace(node, at, numbers * by if inverts else numbers / by)
    else:
        replace(node, at, numbers + by if negates else numbers - by)


def _reorder(node: Node, at: int, shape: tuple[int, ...], moved: np.ndarray) -> None:
    numbers = floats_of(node, at)
    if len(moved) == shape[-1]:
        replace(node, at, np.take(numbers, moved, -1))
    else:
        replace(node, at, np.broadcast_to(numbers, shape).reshape(-1)[moved].reshape(shape))


def differs(value: Value, labels: np.ndarray) -> bool:
    """Whether a constant holds something else for each channel, rather than one number for all."""
    shape = value.shape or ()
    depth = min(len(shape), labels.ndim)
    return any(a > 1 and b > 1 for a, b in zip(shape[len(shape) - depth :], labels.shape[labels.ndim - depth :], strict=True))


def _of_two(trace: Trace, node: Node) -> None:
    labels = trace.of(node)
    both = [index for index in (0, 1) if _spans(trace, node, index, labels)]
    if node.is_op("Mul"):
        trace.roles.append("gated")
    if trace.kind == ORDER:
        for index in (0, 1):
            if index in both:
                trace.reach(node, index, labels)
            elif not _is_alike(trace, node, index, labels):
                raise Blocked(f"{node.label} broadcasts a part of its channels")
        return
    if trace.kind == SHIFT:
        choices = [0, 1] if node.is_op("Add") else [0] if node.is_op("Sub") else []
    elif node.is_op("Mul"):
        choices = [0, 1]
    elif node.is_op("Div"):
        choices = [0]
    elif both == [0, 1]:
        trace.reach(node, 0, labels)
        trace.reach(node, 1, labels)
        return
    else:
        raise Blocked(f"{node.label} broadcasts what it adds")
    for is_sole in (True, False):  # what one operand cannot hide from others may be on the way of them all
        for index in choices:
            if index in both and trace.can_reach(node, index, labels, is_sole=is_sole):
                trace.reach(node, index, labels)
                return
    raise Blocked(f"no input of {node.label} can take it on")


def _spans(trace: Trace, node: Node, index: int, labels: np.ndarray) -> bool:
    """Whether an operand has an element for every channel."""
    dims = trace.shapes.dims(node.input(index))
    if dims is None or len(dims) < labels.ndim:
        return False
    sizes = dims[len(dims) - labels.ndim :]
    return all(n == 1 or (size.is_known and size.number == n) for size, n in zip(sizes, labels.shape, strict=True))


def _is_alike(trace: Trace, node: Node, index: int, labels: np.ndarray) -> bool:
    """Whether an operand has one element for all channels."""
    dims = trace.shapes.dims(node.input(index))
    if dims is None:
        return False
    depth = min(len(dims), labels.ndim)
    sizes = dims[len(dims) - depth :]
    return all(n == 1 or (size.is_known and size.number == 1) for size, n in zip(sizes, labels.shape[labels.ndim - depth :], strict=True))


def _is_normalized(value: Value | None) -> bool:
    """Whether a mean over channels decides the size of `value`: x · 1 / √(mean(x²) + ε), however that is written."""
    node = None if value is None else value.producer
    for _ in range(2):  # a cast may stand between
        if node is not None and node.is_op("Cast") and node.input(0) is not None:
            node = node.input(0).producer  # type: ignore[union-attr]
    if node is None or not node.is_op("Mul", "Div"):
        return node is not None and node.is_op("LayerNormalization", "RMSNormalization", "LpNormalization")
    return any(_is_mean(factor) for factor in node.inputs)


def _is_mean(value: Value | None) -> bool:
    for _ in range(6):
        node = None if value is None else value.producer
        if node is None:
            return False
        if node.is_op("ReduceMean", "ReduceL2", "ReduceSumSquare"):
            return True
        if not node.is_op("Add", "Cast", "Div", "Max", "Clip", "Pow", "Reciprocal", "Sqrt"):
            return False
        value = next((v for v in node.inputs if v is not None and not v.is_constant), None)
    return False
