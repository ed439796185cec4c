"""Static activations: ranges for ever, from what a tensor held on calibration data.

    scale = (max − min) / (2^bits − 1),   zero_point = rint(−min / scale),   min ≤ 0 ≤ max

One range for the tensor, or one for each cluster of its channels. They stand in the graph as every tool writes them:
QuantizeLinear and DequantizeLinear before the layer, along the channels where there are clusters; of fewer than 8 bits
behind a limit to the codes that there are (passes/rounded_activations.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ir import Attribute, Graph, Node, Value, constant
from qruntime.ir.formats import Format
from qruntime.passes.rewriting import as_attribute
from qruntime.passes.rounded_activations import code_bounds
from qruntime.quantization.scheme import TENSOR, Inputs
from qruntime.quantization.steps import InputRange

LEAST_OPSET = 10
LEAST_OPSET_OF_CLUSTERS = 13
"""QuantizeLinear has an axis from then on."""

_CLIP_OF_INPUTS = 11


def parameters(found: InputRange, form: Format) -> tuple[np.ndarray, np.ndarray]:
    """Scale float32 and zero point uint8, of the shape of the range, for codes 0 … 2^bits − 1 that cover it and 0."""
    low = np.minimum(np.asarray(found.low, np.float32), 0).astype(np.float64)
    high = np.maximum(np.asarray(found.high, np.float32), 0).astype(np.float64)
    span = (high - low) / form.qmax
    scale = np.maximum(np.where(span == 0, 1, span), np.finfo(np.float32).tiny).astype(np.float32)
    zero_point = np.clip(np.rint(-low / scale.astype(np.float64)), 0, form.qmax)
    return scale, zero_point.astype(np.uint8)


def insert_range(graph: Graph, value: Value, readers: Sequence[Node], inputs: Inputs, found: InputRange) -> None:
    """Quantize and dequantize what `readers` of `graph` read of `value` as their first input, in the range `found`."""
    if inputs.granularity == TENSOR:
        found = InputRange(np.min(found.low), np.max(found.high))
    scale, zero_point = parameters(found, inputs.format)
    version = readers[0].version if not readers[0].domain else LEAST_OPSET
    axis = {"axis": as_attribute(-1)} if scale.ndim else {}
    made: list[Node] = []

    def node(op_type: str, taken: Sequence[Value], attributes: dict[str, Attribute], output: Value) -> Value:
        made.append(Node(op_type, taken, [output], attributes, version=version, origin=[readers[0]]))
        return output

    limited = value
    if inputs.format.bits < 8:
        low, high = code_bounds(scale, zero_point, inputs.format.qmax)
        ends = [constant(f"{value.name}_low", low), constant(f"{value.name}_high", high)]
        kept = Value(f"{value.name}_limited", value.type)
        if scale.ndim:
            floor = node("Max", [value, ends[0]], {}, Value(f"{value.name}_from_below", value.type))
            limited = node("Min", [floor, ends[1]], {}, kept)
        elif version >= _CLIP_OF_INPUTS:
            limited = node("Clip", [value, *ends], {}, kept)
        else:
            limited = node("Clip", [value], {"min": as_attribute(float(low)), "max": as_attribute(float(high))}, kept)
    parts = [constant(f"{value.name}_scale", scale), constant(f"{value.name}_zero_point", zero_point)]
    codes = node("QuantizeLinear", [limited, *parts], axis, Value(f"{value.name}_codes"))
    real = node("DequantizeLinear", [codes, *parts], axis, Value(f"{value.name}_rounded", value.type))
    graph.insert_before(min(readers, key=graph.nodes.index), *made)
    for reader in readers:
        reader.set_input(0, real)
