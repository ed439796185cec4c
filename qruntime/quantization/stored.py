"""Weights that are stored narrow before a request comes: by an earlier call, or by another tool.

A request names a form: an element type, one scale or one per channel, an engine. A layer that has it stays as it is. A
layer that has another is quantized anew from the values that its codes stand for, where the request asks for more than
the default does; else it stays too, and the report says so.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qruntime.ir import Node, Value
from qruntime.ir.dtypes import onnx_code, type_name
from qruntime.ops import registry
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.passes.weights import ENGINE, half_weight, quantized_weight
from qruntime.quantization import qconfig
from qruntime.quantization.layers import form_of, missing_form, output_axis, unfit_attributes, weights_of
from qruntime.quantization.qconfig import Observer
from qruntime.quantization.report import SkippedLayer, Stored
from qruntime.quantization.selection import layer_name
from qruntime.quantization.storage import constant

SOURCE = "qruntime.quantized_from"
"""Metadata key of a layer whose codes were made from other codes: the element type of those."""


_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")
"""What other tools leave between the codes and the layer."""

_MAX_DEPTH = 4  # of such nodes: how many there are is the file's to choose


class StoredForm(NamedTuple):
    """How the weights of a layer are stored: element type, whether with more than one scale, values in a block or 0."""

    dtype: str
    per_channel: bool | None = False
    """None where a layer has several weights and they differ."""
    block: int = 0

    def __str__(self) -> str:
        return f"{self.dtype}{f' in blocks of {self.block}' if self.block else ' per channel' if self.per_channel else ''}"


def stored_form(node: Node) -> StoredForm | None:
    """The form in which a layer has its weights, None when they are float or computed."""
    return _joined([_form(value) for value in weights_of(node)])


def _joined(forms: list[StoredForm | None]) -> StoredForm | None:
    """The form of several weights together."""
    found = [form for form in forms if form is not None]
    if not found or len(found) < len(forms):
        return None
    scales = {form.per_channel for form in found}
    dtype = " and ".join(dict.fromkeys(form.dtype for form in found))
    return StoredForm(dtype, scales.pop() if len(scales) == 1 else None, max(form.block for form in found))


def _form(value: Value | None, depth: int = 0) -> StoredForm | None:
    producer = None if value is None else value.producer
    if producer is None or depth > _MAX_DEPTH:
        return None
    if half_weight(value) is not None:
        return StoredForm("float16")
    if producer.is_op(*_MOVES) and all(v is None or v.data is not None for v in producer.inputs[1:]):
        return _form(producer.input(0), depth + 1)
    if producer.is_op("Concat"):  # directions of a recurrent layer
        return _joined([_form(piece, depth + 1) for piece in producer.inputs])
    codes = quantized_weight(value)
    if codes is not None:
        return StoredForm("int8", codes.axis is not None)
    if not producer.is_op("DequantizeLinear") or any(v is not None and v.data is None for v in producer.inputs):
        return None
    source, scale = producer.input(0), producer.input(1)
    if source is None or source.data is None or scale is None or scale.data is None:
        return None
    dtype = type_name(source.type.dtype if source.type is not None else onnx_code(source.data.dtype))
    return StoredForm(dtype, scale.data.size != 1, producer.attr("block_size", 0))


def has_form(node: Node, form: StoredForm, observer: Observer, engine: str) -> bool:
    """Whether the weights already are what `observer` asks for."""
    if observer.dtype == "float16":
        return form.dtype == "float16"
    if form.dtype != "int8" or form.block or node.metadata.get(ENGINE, "qruntime") != engine:
        return False
    return observer == qconfig.engine_weight_observer or observer.per_channel == form.per_channel


def is_usable(node: Node, form: StoredForm) -> bool:
    """Whether the int8 kernels take the codes of another tool as they are: a scale for the tensor, or for each output."""
    layer, weight = form_of(node), quantized_weight(node.input(1))
    if layer is None or layer.kind != "Linear" or weight is None or missing_form(node) or unfit_attributes(node):
        return False
    return not form.block and weight.q.ndim == 2 and weight.q.size > 0 and weight.axis in (None, output_axis(node))


def has_static_activations(node: Node) -> bool:
    """Whether another tool quantizes what the layer reads, with ranges of its own."""
    value = node.input(0)
    dequantize = None if value is None else value.producer
    scale = dequantize.input(1) if dequantize is not None and dequantize.is_op("DequantizeLinear") else None
    return scale is not None and scale.data is not None


class Restored:
    """Stored weights as the float32 constants they stand for, each restored once."""

    def __init__(self) -> None:
        self._made: dict[Value, Value] = {}

    def read_by(self, node: Node) -> list[tuple[int, Value]] | str:
        """Position and constant for each weight of a node whose `stored_form` is known; a string says why there is none."""
        found = []
        layer = form_of(node)
        for position, value in zip(() if layer is None else layer.weights, weights_of(node), strict=True):
            assert value is not None
            if value not in self._made:
                try:
                    data = _values(value)
                except (ValueError, TypeError, IndexError, ArithmeticError) as error:
                    return f"the stored weight cannot be read: {error}"
                self._made[value] = constant(value.name.removesuffix("_dequantized"), data)
            found.append((position, self._made[value]))
        return found


def _values(value: Value) -> np.ndarray:
    half = half_weight(value)
    if half is not None:
        return half.astype(np.float32)
    weight = quantized_weight(value)
    if weight is not None:
        return weight.dequantize()
    node = value.producer
    assert node is not None
    spec = registry.find(node.domain, node.op_type, node.version)
    if spec is None:
        raise ValueError(f"{node.label} has no definition")
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    inputs = (None if v is None else v.data if v.data is not None else _values(v) for v in node.inputs)
    return np.asarray(spec(*inputs, **attributes))


_HELD_BY_OTHERS = {
    ("", "MatMulInteger"): 1,
    ("", "QLinearMatMul"): 3,
    ("", "ConvInteger"): 1,
    ("", "QLinearConv"): 3,
    (MICROSOFT, "MatMulNBits"): 1,
    (MICROSOFT, "MatMulBnb4"): 1,
    (MICROSOFT, "MatMulIntegerToFloat"): 1,
    (MICROSOFT, "DynamicQuantizeMatMul"): 1,
    (MICROSOFT, "DynamicQuantizeLSTM"): 1,
    (MICROSOFT, "QAttention"): 1,
    (MICROSOFT, "QGemm"): 3,
    (MICROSOFT, "QEmbedLayerNormalization"): 2,
    (MICROSOFT, "GatherBlockQuantized"): 0,
}
"""Operators of other tools that hold codes, and which input they are."""


def held_by_others(nodes: list[Node]) -> list[SkippedLayer]:
    """Layers that other tools quantized into operators of their own: they stay as they are."""
    found = []
    for node in nodes:
        position = _HELD_BY_OTHERS.get((node.domain, node.op_type))
        codes = None if position is None else node.input(position)
        if codes is None or codes.data is None:
            continue
        default = 4 if node.op_type in ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized") else 8
        what = f"{node.op_type} holds its weight in {node.attr('bits', default)} bits already; other forms are made from the float model"
        found.append(SkippedLayer(layer_name(node), node.op_type, Stored(what)))
    return found
