"""Static activations: ranges for ever, from what a tensor held on calibration data.

    scale = (max − min) / (2^bits − 1),   zero_point = rint(−min / scale),   min ≤ 0 ≤ max

One range for the tensor, or one for each cluster of its channels. They stand in the graph as every tool writes them:
QuantizeLinear and DequantizeLinear before the layer, along the channels where there are clusters; of fewer than 8 bits
behind a limit to the codes that there are (passes/rounded_activations.py). Scales are float32, so narrower floats are widened
before and narrowed behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ir import Attribute, Graph, Node, TypeInfo, Value, constant
from qruntime.ir.dtypes import onnx_code
from qruntime.ir.formats import Format
from qruntime.passes.rewriting import as_attribute
from qruntime.passes.rounded_activations import code_bounds
from qruntime.quantization.layers import Layer
from qruntime.quantization.scheme import TENSOR, Inputs
from qruntime.quantization.steps import InputRange

LEAST_OPSET = 10
LEAST_OPSET_OF_CLUSTERS = 13
"""QuantizeLinear has an axis from then on."""

_CLIP_OF_INPUTS = 11
_FLOAT = onnx_code(np.float32)


def parameters(found: InputRange, form: Format) -> tuple[np.ndarray, np.ndarray]:
    """Scale float32 and zero point uint8, of the shape of the range, for codes 0 … 2^bits − 1 that cover it and 0."""
    low = np.minimum(np.asarray(found.low, np.float32), 0).astype(np.float64)
    high = np.maximum(np.asarray(found.high, np.float32), 0).astype(np.float64)
    span = (high - low) / form.qmax
    scale = np.maximum(np.where(span == 0, 1, span), np.finfo(np.float32).tiny).astype(np.float32)
    zero_point = np.clip(np.rint(-low / scale.astype(np.float64)), 0, form.qmax)
    return scale, zero_point.astype(np.uint8)


def insert_range(
    graph: Graph, value: Value, readers: Sequence[Layer], inputs: Inputs, found: InputRange, before: Node | None = None
) -> Value:
    """`value` of `graph`, which `readers` read as their first input, quantized and dequantized in the range `found`, before them, or
    before the node that is given."""
    if inputs.granularity == TENSOR:
        found = InputRange(np.min(found.low), np.max(found.high))
    scale, zero_point = parameters(found, inputs.format)
    nodes, code = [reader.node for reader in readers], onnx_code(readers[0].dtype)
    version = nodes[0].version if not nodes[0].domain else LEAST_OPSET
    axis = {"axis": as_attribute(-1)} if scale.ndim else {}
    made: list[Node] = []

    def node(op_type: str, taken: Sequence[Value], attributes: dict[str, Attribute], output: Value) -> Value:
        made.append(Node(op_type, taken, [output], attributes, version=version, origin=[nodes[0]]))
        return output

    def cast(value: Value, to: int, name: str) -> Value:
        return value if code == _FLOAT else node("Cast", [value], {"to": as_attribute(to)}, Value(name, retyped(value.type, to)))

    wide = limited = cast(value, _FLOAT, f"{value.name}_wide")
    if inputs.format.bits < 8:
        low, high = code_bounds(scale, zero_point, inputs.format.qmax)
        ends = [constant(f"{value.name}_low", low), constant(f"{value.name}_high", high)]
        kept = Value(f"{value.name}_limited", wide.type)
        if scale.ndim:
            floor = node("Max", [wide, ends[0]], {}, Value(f"{value.name}_from_below", wide.type))
            limited = node("Min", [floor, ends[1]], {}, kept)
        elif version >= _CLIP_OF_INPUTS:
            limited = node("Clip", [wide, *ends], {}, kept)
        else:
            limited = node("Clip", [wide], {"min": as_attribute(float(low)), "max": as_attribute(float(high))}, kept)
    parts = [constant(f"{value.name}_scale", scale), constant(f"{value.name}_zero_point", zero_point)]
    codes = node("QuantizeLinear", [limited, *parts], axis, Value(f"{value.name}_codes"))
    real = node("DequantizeLinear", [codes, *parts], axis, Value(f"{value.name}_rounded", wide.type))
    rounded = cast(real, code, f"{value.name}_narrow")
    graph.insert_before(before or min(nodes, key=graph.nodes.index), *made)
    return rounded


def retyped(known: TypeInfo | None, code: int) -> TypeInfo:
    """The type of a tensor like one of type `known` with elements of another."""
    return TypeInfo("tensor", code, None if known is None else known.shape)
