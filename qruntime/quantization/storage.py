"""How quantized weights stand in the graph: int8 behind DequantizeLinear (for opsets without it: Cast, Sub, Mul),
float16 behind Cast. Standard operators only, so that every runtime reads them."""

from __future__ import annotations

import math

import numpy as np

from qruntime.ir import Attribute, AttributeType, Graph, Node, TypeInfo, Value
from qruntime.ir.dtypes import onnx_code
from qruntime.onnx_io.mapped_file import drop_pages
from qruntime.ops.elementwise import is_narrow_float, is_packable, widen
from qruntime.quantization.formats import QuantizedTensor
from qruntime.quantization.layers import form_of, is_transposed, missing_form, output_axis, unfit_attributes, weights_of
from qruntime.quantization.observed import quantize_weight, snr_db
from qruntime.quantization.qconfig import Observer
from qruntime.quantization.report import NoWeight, QuantizedLayer, Unselected
from qruntime.quantization.selection import CONVOLUTIONS, RECURRENT, weight_shape

SNR = "qruntime.weight_snr_db"
"""Metadata key of a quantized node: the signal-to-noise ratio of its weights."""

_OPSET = 17
"""Of graphs without any standard node."""

REASON = "qruntime.reason"
"""Metadata key of a quantized node whose weight is stored otherwise than was preferred, with what decided that."""

FLOAT16_MAX = np.float32(65504)


class HalfTensor:
    """A weight in half precision, saturated to ±65504 as torch does; `reason` says so where that changed it."""

    def __init__(self, weight: np.ndarray):
        if not np.isfinite(weight).all():
            raise ValueError("the weight holds NaN or infinity")
        beyond = int(np.count_nonzero(np.abs(weight) > FLOAT16_MAX))
        self.reason = f"{beyond} weight{'s' if beyond > 1 else ''} beyond ±65504, the range of float16, clamped to it" if beyond else ""
        self.q = np.clip(weight, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)
        self.snr_db = snr_db(weight, self.q.astype(np.float32))
        self.nbytes = self.q.nbytes


def _opset(graph: Graph, node: Node) -> int:
    """The opset for standard nodes beside `node`, which may be of another domain."""
    if not node.domain:
        return node.version
    return next((other.version for other in graph.walk_nodes() if not other.domain and other.version), _OPSET)


class Weights:
    """Quantizes each weight once, however many nodes read it."""

    def __init__(self, engine: str):
        self.engine = engine
        self._made: dict[tuple[Value, Observer, int], tuple[Value, list[QuantizedTensor | HalfTensor]]] = {}

    def quantize_node(self, graph: Graph, node: Node, observer: Observer) -> str | QuantizedLayer:
        """Replace the weights of one node; a string says why that cannot be."""
        form, values = form_of(node), weights_of(node)
        reason = missing_form(node)
        for value in values:
            reason = reason or _obstacle(node, value)
        reason = reason or unfit_attributes(node)
        if reason or form is None:
            return reason or "it is no layer"
        if form.kind in CONVOLUTIONS and observer.dtype == "qint8":
            if form.kind == "ConvTranspose":
                return "there is no int8 form of ConvTranspose; dtype='float16' has one"
            if self.engine != "qruntime":
                return f"engine {self.engine!r} is not defined for Conv"
            if 1 < node.attr("group", 1) == (weight_shape(node) or (0,))[0]:
                return "a depthwise Conv has one weight for each tap, too few for an int8 kernel"
        narrow_types = {str(v.data.dtype) for v in values if v is not None and v.data is not None and is_narrow_float(v.data.dtype)}
        if observer.dtype == "float16" and narrow_types:
            return f"the weight is {narrow_types.pop()} already"
        if observer.dtype == "float16" and _opset(graph, node) < 6:
            return f"opset {_opset(graph, node)} cannot cast from float16, need 6"
        axis = output_axis(node)
        before = after = 0
        replaced: list[tuple[int, Value]] = []
        tensors: list[QuantizedTensor | HalfTensor] = []
        shared = []
        for position, value in zip(form.weights, values, strict=True):
            assert value is not None
            assert value.data is not None
            shared.append(_key(value, observer, axis) in self._made)
            try:
                restored, parts = self._restored(graph, node, value, observer, axis)
            except ValueError as error:
                return str(error)
            tensors += parts
            replaced.append((position, restored))
            if not shared[-1]:
                before += value.data.nbytes
                after += sum(t.nbytes for t in parts)
        for position, restored in replaced:
            node.set_input(position, restored)
        shapes = [value.data.shape for value in values if value is not None and value.data is not None]
        reason = next((t.reason for t in tensors if t.reason), "")
        return layer_report(node, shapes, _scheme(tensors), before, after, min(t.snr_db for t in tensors), all(shared), reason)

    def _restored(
        self, graph: Graph, node: Node, value: Value, observer: Observer, axis: int
    ) -> tuple[Value, list[QuantizedTensor | HalfTensor]]:
        key = _key(value, observer, axis)
        if key not in self._made:
            data = value.data
            assert data is not None
            nodes: list[Node] = []
            parts: list[QuantizedTensor | HalfTensor] = []
            if observer.dtype == "float16":
                half = HalfTensor(data)
                parts.append(half)
                output = Value(f"{value.name}_dequantized", value.type)
                to = {"to": Attribute(AttributeType.INT, 1)}
                nodes.append(Node("Cast", [constant(f"{value.name}_float16", half.q)], [output], to, version=_opset(graph, node)))
            else:
                # One scale per direction, as each direction is a layer of its own.
                pieces = [data[d : d + 1] for d in range(data.shape[0])] if node.is_op(*RECURRENT) else [data]
                made = [quantize_weight(widen(piece), observer, axis, self.engine) for piece in pieces]
                parts += made
                nodes, output = _dequantization(value, made, _opset(graph, node))
            graph.insert_before(graph.nodes[0], *nodes)
            drop_pages([data])
            self._made[key] = (output, parts)
        return self._made[key]


def _key(value: Value, observer: Observer, axis: int) -> tuple[Value, Observer, int]:
    """What makes a stored weight; where the channels lie has no say in one of half precision."""
    return value, observer, 0 if observer.dtype == "float16" else axis


def _obstacle(node: Node, value: Value | None) -> str | None:
    form = form_of(node)
    if value is None or form is None:
        return "the weight is missing"
    if value.data is None:
        first = node.input(0)
        if any(v is not None and v.data is None and _is_computed_once(v) for v in (value, first)):
            return Unselected("the weight is computed from fewer numbers than it holds: none that was learned")
        if form.kind in CONVOLUTIONS:
            return "the weight is computed at run time"
        if first is not None and first.data is not None:
            return "the constant is the left-hand side"
        return NoWeight("both inputs are computed")
    if not is_packable(value.data.dtype):
        return f"the weight is {value.data.dtype}, need float32 or narrower"
    least, most = form.ranks
    if not least <= value.data.ndim <= most:
        return f"the weight has rank {value.data.ndim}, need {least}{f' to {most}' if most > least else ''}"
    if value.data.size == 0:
        return "the weight is empty"
    return None


def _is_computed_once(value: Value) -> bool:
    """Whether constants alone decide what `value` is."""
    pending, seen = [value], {value}
    while pending:
        one = pending.pop()
        if one.data is None:
            if one.producer is None or one.producer.subgraphs or not one.producer.inputs:
                return False
            fresh = {v for v in one.producer.inputs if v is not None} - seen
            seen |= fresh
            pending += fresh
    return True


def constant(name: str, data: np.ndarray | np.generic) -> Value:
    data = np.asarray(data)
    return Value(name, TypeInfo("tensor", onnx_code(data.dtype), data.shape), data)


def _dequantization(value: Value, parts: list[QuantizedTensor], version: int) -> tuple[list[Node], Value]:
    """Nodes that turn the codes back into the weight, valid in opset `version`."""
    nodes: list[Node] = []
    outputs = []
    for i, part in enumerate(parts):
        name = value.name if len(parts) == 1 else f"{value.name}_direction{i}"
        real = _dequantize_one(name, part, version, nodes)
        outputs.append(_narrowed(real, value, version, nodes))
    if len(outputs) == 1:
        return nodes, outputs[0]
    joined = Value(f"{value.name}_dequantized", value.type)
    nodes.append(Node("Concat", outputs, [joined], {"axis": Attribute(AttributeType.INT, 0)}, version=version))
    return nodes, joined


def _dequantize_one(name: str, part: QuantizedTensor, version: int, nodes: list[Node]) -> Value:
    typ = TypeInfo("tensor", onnx_code(np.dtype(np.float32)), part.q.shape)
    q = constant(f"{name}_quantized", part.q)
    output = Value(f"{name}_dequantized", typ)
    if version >= (10 if part.axis is None else 13):
        scale, zero = constant(f"{name}_scale", part.scale), constant(f"{name}_zero_point", part.zero_point)
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
        zero = constant(f"{name}_zero_point", part.zero_point.astype(np.float32).reshape(shape))
        nodes.append(Node("Sub", [cast, zero], [centred], version=version))
    scale = constant(f"{name}_scale", part.scale.reshape(shape))
    nodes.append(Node("Mul", [centred, scale], [output], version=version))
    return output


def _narrowed(real: Value, weight: Value, version: int, nodes: list[Node]) -> Value:
    """`real` in the element type of a weight narrower than float32: scales stay float32, which every opset dequantizes with."""
    assert weight.data is not None and real.type is not None
    if not is_narrow_float(weight.data.dtype):
        return real
    code = onnx_code(weight.data.dtype)
    output = Value(f"{real.name}_{weight.data.dtype}", TypeInfo("tensor", code, real.type.shape))
    nodes.append(Node("Cast", [real], [output], {"to": Attribute(AttributeType.INT, code)}, version=version))
    return output


def stored_snr(node: Node) -> float:
    """What `SNR` says, NaN when that is unknown or unreadable."""
    try:
        return float(node.metadata.get(SNR, math.nan))
    except ValueError:
        return math.nan


def _scheme(tensors: list[QuantizedTensor | HalfTensor]) -> str:
    """Of a layer with several weights the finer one."""
    if isinstance(tensors[0], HalfTensor):
        return "float16"
    one = all(isinstance(t, QuantizedTensor) and t.axis is None for t in tensors)
    return "per_tensor_affine" if one else "per_channel_affine"


def layer_report(
    node: Node, shapes: list[tuple[int, ...]], scheme: str, before: int, after: int, snr: float, shared: bool, reason: str
) -> QuantizedLayer:
    """One row of the report for a node whose weights have `shapes` ([K, N] or [N, K]; W and R of recurrent nodes)."""
    shape, form = shapes[0], form_of(node)
    kind = node.op_type if form is None else form.kind
    if node.is_op(*RECURRENT):
        shape = shapes[0][-1], shapes[1][-1]
    elif kind in CONVOLUTIONS:
        group, (first, second, *kernel) = node.attr("group", 1), shape
        shape = (second * group, first, *kernel) if kind == "Conv" else (first, second * group, *kernel)
    elif is_transposed(node):
        shape = shape[::-1]
    return QuantizedLayer(node.name or node.outputs[0].name, node.op_type, kind, shape, scheme, before, after, snr, shared, reason)
