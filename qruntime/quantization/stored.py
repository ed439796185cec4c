"""Weights that are stored narrow before a request comes: by an earlier call, or by another tool.

A request names a form: an element type, one scale or one per channel, an engine. A layer that has it stays as it is. A
layer that has another is quantized anew from the values that its codes stand for, where the request asks for more than
the default does; else it stays too, and the report says so.
"""

from __future__ import annotations

from typing import NamedTuple

from qruntime.ir import LayerMark, Node, StoredTensor
from qruntime.ir.formats import INT8
from qruntime.quantization.layers import Layer, missing_form, unfit_attributes
from qruntime.quantization.report import dtype_of
from qruntime.quantization.torch_names import qconfig
from qruntime.quantization.torch_names.qconfig import Observer


class StoredForm(NamedTuple):
    """How the weights of a layer are stored: element type, whether with more than one scale, values in a block or 0."""

    dtype: str
    per_channel: bool | None = False
    """None where a layer has several weights and they differ."""
    block: int = 0

    def __str__(self) -> str:
        return f"{self.dtype}{f' in blocks of {self.block}' if self.block else ' per channel' if self.per_channel else ''}"


def stored_form(layer: Layer) -> StoredForm | None:
    """The form in which a layer has its weights, None when they are float or computed."""
    found: list[StoredTensor] = []
    for value in layer.weights:
        if value is None or value.stored is None:
            return None
        found += layer.stored(value) or [value.stored]
    scales = {not matrix.has_one_scale for matrix in found}
    return StoredForm(dtype_of(found), scales.pop() if len(scales) == 1 else None, max(matrix.block for matrix in found))


def has_form(node: Node, form: StoredForm, observer: Observer, engine: str) -> bool:
    """Whether the weights already are what `observer` asks for."""
    if observer.dtype != "qint8":
        return form.dtype == observer.dtype
    if form.dtype != "int8" or form.block or (node.mark or LayerMark()).engine != engine:
        return False
    return observer == qconfig.engine_weight_observer or observer.per_channel == form.per_channel


def is_usable(layer: Layer) -> bool:
    """Whether the int8 kernels take the codes of another tool as they are: a scale for the tensor, or for each output."""
    weight = layer.weights[0]
    if layer.kind != "Linear" or weight is None or weight.stored is None or missing_form(layer.node) or unfit_attributes(layer.node):
        return False
    matrices = layer.stored(weight)
    return bool(matrices) and all(
        m.format is INT8 and not m.block and m.size > 0 and m.scale is not None and m.scale.shape[1] == 1 for m in matrices
    )


def has_static_activations(node: Node) -> bool:
    """Whether another tool quantizes what the layer reads, with ranges of its own."""
    value = node.input(0)
    dequantize = None if value is None else value.producer
    scale = dequantize.input(1) if dequantize is not None and dequantize.is_op("DequantizeLinear") else None
    return scale is not None and scale.data is not None
