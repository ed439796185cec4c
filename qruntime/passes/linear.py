"""Linear layers: MatMul and Gemm with constant weights, and what folds into their epilogue."""

from __future__ import annotations

from typing import Any

import numpy as np

from qruntime.ir import Graph, Node, TypeInfo, Value
from qruntime.ir.dtypes import onnx_code
from qruntime.ops.elementwise import is_narrow_float, is_packable
from qruntime.ops.engines import ENGINES
from qruntime.passes.activations import activation_in
from qruntime.passes.element_types import narrow_results
from qruntime.passes.rewriting import QRUNTIME, Builder, Skip, as_attribute, trace
from qruntime.passes.weights import DYNAMIC, ENGINE, QuantizedWeight, quantized_weight

_LINEAR = ("Linear", "DynamicQuantizedLinear")
_CONVOLUTIONS = ("Conv", "ConvTranspose", "DynamicQuantizedConv")


def constant(name: str, data: np.ndarray) -> Value:
    return Value(name, TypeInfo("tensor", onnx_code(data.dtype), data.shape), data)


def lower_linear(graph: Graph) -> None:
    """MatMul(x, W), Gemm(x, W, C)  →  Linear or DynamicQuantizedLinear (x, W[K, N], …, bias)."""
    scaled: dict[tuple[Value, float], np.ndarray] = {}
    for nested in graph.walk_graphs():
        lowered: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            if not node.is_op("MatMul", "Gemm"):
                continue
            made = _lower(node, scaled)
            if isinstance(made, Skip):
                trace(f"lower_linear declines at {node.label}: {made}")
                continue
            builder, output = made
            nested.replace_uses(node.outputs[0], output)
            lowered[node] = builder.nodes
        splice(nested, lowered)


def splice(graph: Graph, replaced: dict[Node, list[Node]]) -> None:
    """Put the new nodes where the old ones stood."""
    if not replaced:
        return
    nodes = []
    for node in graph.nodes:
        nodes.extend(replaced.get(node, [node]))
    for new in replaced.values():
        for node in new:
            node.graph = graph
    old = list(replaced)
    graph.nodes = nodes
    for node in old:
        for index in range(len(node.inputs)):
            node.set_input(index, None)
        node.graph = None


def _lower(node: Node, scaled: dict[tuple[Value, float], np.ndarray]) -> Skip | tuple[Builder, Value]:
    """`scaled` holds the weights that an alpha multiplied, for other layers that read the same."""
    x, weight = node.input(0), node.input(1)
    if x is None or weight is None:
        return Skip("an input is missing")
    quantized = quantized_weight(weight) if DYNAMIC in node.metadata else None
    if quantized is None and weight.data is None:
        return Skip("the weight is computed at run time")
    stored = weight.data if quantized is None else quantized.q
    if stored is None or stored.ndim != 2:
        return Skip(f"the weight has rank {0 if stored is None else stored.ndim}, need 2")
    if quantized is None and not is_packable(stored.dtype):
        return Skip(f"the weight is {stored.dtype}, need float32 or narrower")
    transposed, alpha = False, 1.0
    bias: np.ndarray | None = None
    if node.op_type == "Gemm":
        if node.attr("transA", 0):
            return Skip("the left-hand side is transposed")
        transposed, alpha = bool(node.attr("transB", 0)), float(node.attr("alpha", 1.0))
        found = _gemm_bias(node, stored.shape[0 if transposed else 1])
        if isinstance(found, Skip):
            return found
        bias = found
    builder = Builder(node)
    bias_value = None if bias is None else constant(f"{weight.name}/bias", bias)
    if quantized is None:
        if alpha != 1.0:
            if is_narrow_float(stored.dtype):
                return Skip(f"alpha · W would be rounded to {stored.dtype}")
            if (weight, alpha) not in scaled:
                scaled[weight, alpha] = stored * np.float32(alpha)
            stored = scaled[weight, alpha]
        matrix = stored.T if transposed else stored
        kernel = weight if matrix is weight.data else constant(weight.name, matrix)
        return builder, builder.Linear(x, kernel, bias_value, None, activation="none")
    matrix, scale, zero_point = _as_columns(quantized, transposed)
    if matrix is None:
        return Skip("the scales run along the reduced dimension")
    return builder, builder.DynamicQuantizedLinear(
        x,
        constant(weight.name, matrix),
        constant(f"{weight.name}/scale", scale * np.float32(alpha)),
        constant(f"{weight.name}/zero_point", zero_point),
        bias_value,
        None,
        activation="none",
        range=node.metadata[DYNAMIC],
        **engine_attribute(node),
    )


def engine_attribute(node: Node) -> dict[str, str]:
    """The attribute of a lowered node that computes as another runtime does."""
    return {"engine": node.metadata[ENGINE]} if node.metadata.get(ENGINE) in ENGINES else {}


def _as_columns(quantized: QuantizedWeight, transposed: bool) -> tuple[Any, np.ndarray, np.ndarray]:
    """Weight as [K, N] with scales per column; None when the scales run along K."""
    columns = 0 if transposed else 1
    if quantized.axis is not None and quantized.axis != columns:
        return None, quantized.scale, quantized.zero_point
    return (quantized.q.T if transposed else quantized.q), quantized.scale, quantized.zero_point


def _gemm_bias(node: Node, n: int) -> np.ndarray | Skip | None:
    c = node.input(2)
    if c is None:
        return None
    if c.data is None:
        return Skip("the bias is computed at run time")
    data = c.data
    if data.ndim > 2 or data.size not in (1, n) or (data.ndim == 2 and data.shape[0] != 1):
        return Skip(f"the bias has shape {list(data.shape)}, need [{n}]")
    beta = np.float32(node.attr("beta", 1.0))
    return np.full(n, (data * beta).reshape(-1), np.float32)


def fuse_epilogues(graph: Graph) -> None:
    """Linear followed by Add(constant vector), an activation, Add(residual)  →  one node, in that order; a convolution and
    an activation  →  one node. Narrow floats are rounded after each of them, so there they stay apart."""
    is_narrow = narrow_results(graph)
    for nested in graph.walk_graphs():
        gone: list[Node] = []
        for node in nested.nodes:
            if is_narrow(node.outputs[0]):
                continue
            if node.is_op(*_CONVOLUTIONS, domain=QRUNTIME):
                user = only_reader(nested, node)
                if user is not None and _absorb_activation(node, user):
                    _drop(nested, user, node.outputs[0])
                    gone.append(user)
                continue
            if not node.is_op(*_LINEAR, domain=QRUNTIME):
                continue
            while True:
                user = only_reader(nested, node)
                own = node.outputs[0]
                if user is not None and user.is_op("Reshape") and user.input(0) is own:
                    own, user = user.outputs[0], only_reader(nested, user)
                    if user is None or not _absorb_activation(node, user):
                        break
                elif user is None or not _absorb(node, user):
                    break
                _drop(nested, user, own)
                gone.append(user)
        if gone:
            dropped = set(gone)
            nested.nodes = [n for n in nested.nodes if n not in dropped]
            nested.sort()  # a residual may be made after the linear layer it is added to


def _drop(graph: Graph, node: Node, instead: Value) -> None:
    graph.replace_uses(node.outputs[0], instead)
    for index in range(len(node.inputs)):
        node.set_input(index, None)
    node.graph = None


def only_reader(graph: Graph, node: Node) -> Node | None:
    """The node of `graph` that alone reads the first output of `node`, which no graph gives out."""
    output = node.outputs[0]
    if output.output_of or len(output.uses) != 1:
        return None
    (user, _) = next(iter(output.uses))
    return user if user.graph is graph else None


def _bias_index(node: Node) -> int:
    return 2 if node.op_type == "Linear" else 4


def _absorb(node: Node, user: Node) -> bool:
    bias_at = _bias_index(node)
    residual_at = bias_at + 1
    activation = node.attr("activation")
    if node.input(residual_at) is not None:
        return False
    if user.is_op("Add"):
        other = user.input(1) if user.input(0) is node.outputs[0] else user.input(0)
        if other is None or other is node.outputs[0]:
            return False
        if other.data is not None:
            return activation == "none" and _absorb_bias(node, bias_at, other.data)
        if keeps_activation_shape(other):
            node.set_input(residual_at, other)
            return True
        return False
    return _absorb_activation(node, user)


def _absorb_activation(node: Node, user: Node) -> bool:
    has_residual = node.is_op(*_LINEAR, domain=QRUNTIME) and node.input(_bias_index(node) + 1) is not None
    found = activation_in(user)
    if node.attr("activation") != "none" or has_residual or found is None:
        return False
    node.attributes["activation"] = as_attribute(found.name)
    if found.parameters:
        node.attributes["parameters"] = as_attribute(found.parameters)
    return True


def _absorb_bias(node: Node, bias_at: int, data: np.ndarray) -> bool:
    weight = node.input(1)
    assert weight is not None and weight.data is not None
    n = weight.data.shape[1]
    if data.dtype != np.float32 or data.ndim > 1 or data.size not in (1, n):
        return False
    vector = np.full(n, data.reshape(-1), np.float32)
    before = node.input(bias_at)
    if before is not None:
        assert before.data is not None
        vector = before.data + vector
    node.set_input(bias_at, constant(f"{weight.name}/bias", vector))
    return True


def keeps_activation_shape(value: Value) -> bool:
    """Whether a residual very likely has the shape of the layer's output.

    A wrong guess costs speed only: the kernel declines what does not fit and the definition broadcasts.
    """
    node = value.producer
    if node is None:
        return False
    if node.is_op(*_LINEAR, "LayerNormalization", "RMSNormalization", domain=QRUNTIME):
        return True
    return node.is_op("LayerNormalization", "Add", "RMSNormalization", "Relu")
