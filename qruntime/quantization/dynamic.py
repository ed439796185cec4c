"""Dynamic quantization: int8 weights now, activations at every run. The first and simplest recipe.

A quantized layer stays a standard operator. Its weight becomes an int8 constant behind
DequantizeLinear (for opsets without it: Cast, Sub, Mul), and the node carries the metadata
`qruntime.dynamic = per_token | per_tensor`. Other runtimes run that as weight-only quantization;
qruntime quantizes the activations too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir import Attribute, AttributeType, Graph, Node, TypeInfo, Value
from qruntime.ir.dtypes import onnx_code
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.weights import DYNAMIC, quantized_weight
from qruntime.quantization.formats import Int8, QuantizedTensor, quantize
from qruntime.quantization.report import QuantizedLayer, Report, SkippedLayer
from qruntime.quantization.selection import KINDS, kind_of, matches, matches_any, pattern_name

SNR = "qruntime.weight_snr_db"
ACTIVATIONS = ("per_token", "per_tensor")
RECURRENT = ("LSTM", "GRU", "RNN")


def quantize_graph(
    graph: Graph,
    *,
    kinds: Iterable[object] | None = None,
    per_channel: bool = False,
    activation: str = "per_token",
    only: Iterable[object] | None = None,
    exclude: Iterable[object] = (),
    strict: bool = False,
) -> Report:
    """Quantize `graph` in place and report what was done.

    `kinds` limits the operator kinds (None: Linear, LSTM, GRU, RNN). `only` and `exclude` take names,
    module paths, globs and operator types. `strict` turns every skipped candidate and every pattern
    that selects nothing into an error.

    Raises QuantizationError for arguments that mean nothing.
    """
    if activation not in ACTIVATIONS:
        raise QuantizationError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    wanted = None if kinds is None else [pattern_name(k) for k in kinds]
    named = None if only is None else [pattern_name(p) for p in _listed(only)]
    excluded = [pattern_name(p) for p in _listed(exclude)]
    candidates = [node for node in graph.walk_nodes() if not node.domain and kind_of(node.op_type)]
    if strict:
        _refuse_idle_patterns(candidates, [*(wanted or ()), *(named or ()), *excluded])

    weights = _Weights(per_channel)
    layers: list[QuantizedLayer] = []
    skipped: list[SkippedLayer] = []
    for node in candidates:
        reason = None
        if wanted is not None and not matches_any(node, wanted):
            reason = "not selected by qconfig_spec"
        elif named is not None and not matches_any(node, named):
            reason = "not selected by only="
        elif matches_any(node, excluded):
            reason = "excluded by exclude="
        if reason is None:
            made = weights.quantize_node(graph, node)
            if isinstance(made, str):
                reason = made
            else:
                node.metadata[DYNAMIC] = activation
                node.metadata[SNR] = f"{made.snr_db:.2f}"
                layers.append(made)
                continue
        skipped.append(SkippedLayer(node.name or node.outputs[0].name, node.op_type, reason))
    unasked = ("not selected", "excluded", "both inputs are computed")
    faults = [s for s in skipped if not s.reason.startswith(unasked)]
    if strict and faults:
        listed = "; ".join(f"{s.op_type} {s.name!r}: {s.reason}" for s in faults)
        raise QuantizationError(f"strict=True and {len(faults)} layers cannot be quantized: {listed}. Name them in exclude= to go on.")
    if skipped:
        remove_dead_nodes(graph)  # a layer may fail at its second weight
    return Report(tuple(layers), tuple(skipped))


def _listed(patterns: object) -> Iterable[object]:
    return [patterns] if isinstance(patterns, (str, type)) else patterns  # type: ignore[return-value]


def _refuse_idle_patterns(candidates: list[Node], patterns: list[str]) -> None:
    idle = [p for p in patterns if not any(matches(node, p) for node in candidates)]
    if idle:
        names = ", ".join(sorted({node.name for node in candidates if node.name})[:8])
        raise QuantizationError(f"strict=True and nothing is selected by {', '.join(map(repr, idle))}; layers are: {names} …")


class _Weights:
    """Quantizes each weight once, however many nodes read it."""

    def __init__(self, per_channel: bool):
        self.per_channel = per_channel
        self._made: dict[tuple[Value, int | None], tuple[Value, list[QuantizedTensor]]] = {}

    def quantize_node(self, graph: Graph, node: Node) -> str | QuantizedLayer:
        """Replace the weights of one node; a string says why that cannot be."""
        recurrent = node.is_op(*RECURRENT)
        positions = (1, 2) if recurrent else (1,)
        values = [node.input(i) for i in positions]
        for value in values:
            reason = self._obstacle(node, value, 3 if recurrent else 2)
            if reason:
                return reason
        axis = self._channel_axis(node) if self.per_channel else None
        before = after = 0
        replaced: list[tuple[int, Value]] = []
        tensors: list[QuantizedTensor] = []
        shared = []
        for position, value in zip(positions, values, strict=True):
            assert value is not None
            assert value.data is not None
            shared.append((value, axis) in self._made)
            try:
                dequantized, parts = self._dequantized(graph, node, value, axis)
            except ValueError as error:
                return str(error)
            tensors += parts
            replaced.append((position, dequantized))
            if not shared[-1]:
                before += value.data.nbytes
                after += sum(t.nbytes for t in parts)
        for position, dequantized in replaced:
            node.set_input(position, dequantized)
        shapes = [value.data.shape for value in values if value is not None and value.data is not None]
        return _layer(node, shapes, axis, before, after, min(t.snr_db for t in tensors), all(shared))

    def _obstacle(self, node: Node, value: Value | None, rank: int) -> str | None:
        if value is None:
            return "the weight is missing"
        if value.data is None:
            if quantized_weight(value) is not None:
                return "already quantized"
            first = node.input(0)
            return "both inputs are computed" if first is None or first.data is None else "the constant is the left-hand side"
        if value.data.dtype != np.float32:
            return f"the weight is {value.data.dtype}, need float32"
        if value.data.ndim != rank:
            return f"the weight has rank {value.data.ndim}, need {rank}"
        if value.data.size == 0:
            return "the weight is empty"
        if node.op_type == "Gemm" and node.attr("transA", 0):
            return "the left-hand side is transposed"
        return None

    def _channel_axis(self, node: Node) -> int:
        if node.op_type == "Gemm":
            return 0 if node.attr("transB", 0) else 1
        return 1

    def _dequantized(self, graph: Graph, node: Node, value: Value, axis: int | None) -> tuple[Value, list[QuantizedTensor]]:
        key = (value, axis)
        if key not in self._made:
            assert value.data is not None
            data = value.data
            form = Int8(range="mse") if axis is None else Int8(axis)
            if data.ndim == 3 and data.shape[0] > 1:
                # One scale per direction, as each direction is a layer of its own.
                parts = [quantize(data[d : d + 1], form) for d in range(data.shape[0])]
            else:
                parts = [quantize(data, form)]
            first = graph.nodes[0] if graph.nodes else node
            nodes, output = _dequantization(value, parts, node.version)
            graph.insert_before(first, *nodes)
            self._made[key] = (output, parts)
        return self._made[key]


def _constant(name: str, data: np.ndarray) -> Value:
    return Value(name, TypeInfo("tensor", onnx_code(data.dtype), data.shape), data)


def _dequantization(value: Value, parts: list[QuantizedTensor], version: int) -> tuple[list[Node], Value]:
    """Nodes that turn the codes back into the weight, valid in opset `version`."""
    nodes: list[Node] = []
    outputs = []
    for i, part in enumerate(parts):
        name = value.name if len(parts) == 1 else f"{value.name}_direction{i}"
        outputs.append(_dequantize_one(name, part, version, nodes))
    if len(outputs) == 1:
        return nodes, outputs[0]
    joined = Value(f"{value.name}_dequantized", value.type)
    nodes.append(Node("Concat", outputs, [joined], {"axis": Attribute(AttributeType.INT, 0)}, version=version))
    return nodes, joined


def _dequantize_one(name: str, part: QuantizedTensor, version: int, nodes: list[Node]) -> Value:
    typ = TypeInfo("tensor", onnx_code(np.dtype(np.float32)), part.q.shape)
    q = _constant(f"{name}_quantized", part.q)
    output = Value(f"{name}_dequantized", typ)
    if version >= (10 if part.axis is None else 13):
        scale, zero = _constant(f"{name}_scale", part.scale), _constant(f"{name}_zero_point", part.zero_point)
        attributes = {} if part.axis is None else {"axis": Attribute(AttributeType.INT, part.axis)}
        nodes.append(Node("DequantizeLinear", [q, scale, zero], [output], attributes, version=version))
        return output
    shape = [1] * part.q.ndim
    if part.axis is not None:
        shape[part.axis] = -1
    cast = Value(f"{name}_cast", typ)
    nodes.append(Node("Cast", [q], [cast], {"to": Attribute(AttributeType.INT, 1)}, version=version))
    centred = cast
    if part.zero_point.any():
        centred = Value(f"{name}_centred", typ)
        zero = _constant(f"{name}_zero_point", part.zero_point.astype(np.float32).reshape(shape))
        nodes.append(Node("Sub", [cast, zero], [centred], version=version))
    scale = _constant(f"{name}_scale", part.scale.reshape(shape))
    nodes.append(Node("Mul", [centred, scale], [output], version=version))
    return output


def describe_existing(graph: Graph) -> Report:
    """Report on a graph that was quantized before and loaded again."""
    layers = []
    seen: set[Value] = set()
    for node in graph.walk_nodes():
        if DYNAMIC not in node.metadata:
            continue
        values = [node.input(i) for i in ((1, 2) if node.is_op(*RECURRENT) else (1,))]
        stored = [_stored_weights(value) for value in values]
        if not all(stored):
            continue
        unseen = [weights for value, weights in zip(values, stored, strict=True) if value not in seen]
        fresh = [weight for weights in unseen for weight in weights]
        # Directions are stored one by one; the layer's shape is that of any of them.
        layers.append(
            _layer(
                node,
                [weights[0].q.shape for weights in stored],
                stored[0][0].axis,
                sum(weight.q.size * 4 for weight in fresh),
                sum(weight.q.nbytes + weight.scale.nbytes + weight.zero_point.nbytes for weight in fresh),
                _stored_snr(node),
                shared=not fresh,
            )
        )
        seen.update(value for value in values if value is not None)
    return Report(tuple(layers), ())


def _layer(
    node: Node, shapes: list[tuple[int, ...]], axis: int | None, before: int, after: int, snr_db: float, shared: bool
) -> QuantizedLayer:
    """One row of the report for a node whose weights have `shapes` ([K, N] or [N, K]; W and R of recurrent nodes)."""
    inputs, outputs = shapes[0][-2:]
    if node.is_op(*RECURRENT):
        inputs, outputs = shapes[0][-1], shapes[1][-1]
    elif node.op_type == "Gemm" and node.attr("transB", 0):
        inputs, outputs = outputs, inputs
    return QuantizedLayer(
        node.name or node.outputs[0].name,
        node.op_type,
        kind_of(node.op_type) or node.op_type,
        (inputs, outputs),
        "per_tensor_affine" if axis is None else "per_channel_affine",
        before,
        after,
        snr_db,
        shared,
    )


def _stored_snr(node: Node) -> float:
    try:
        return float(node.metadata.get(SNR, math.nan))
    except ValueError:
        return math.nan


def _stored_weights(value: Value | None) -> list:
    if value is not None and value.producer is not None and value.producer.is_op("Concat"):
        return [w for v in value.producer.inputs if (w := quantized_weight(v)) is not None]
    weight = quantized_weight(value)
    return [] if weight is None else [weight]


__all__ = ["KINDS", "describe_existing", "quantize_graph"]
