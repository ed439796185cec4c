"""Static activations in outlier-victim pairs: rounded before the layers that read them, with one scale for ever."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.ir.dtypes import onnx_code
from qruntime.passes.rewriting import QRUNTIME, as_attribute
from qruntime.passes.stored.rounding_functions import LEAST_OPSET
from qruntime.quantization.layers import Layer
from qruntime.quantization.outlier_pairs import MOST_NORMAL
from qruntime.quantization.static_ranges import retyped
from qruntime.quantization.steps import InputRange

_FLOAT = onnx_code(np.float32)


def insert_pairs(graph: Graph, value: Value, readers: Sequence[Layer], found: InputRange, before: Node | None = None) -> Value:
    """`value` of `graph`, which `readers` read as their first input, before them, or the node that is given, in pairs along its last
    axis whose integers have the range `found`. Narrower floats are widened before and narrowed behind."""
    scale = np.maximum(np.float32(found.high / MOST_NORMAL), np.finfo(np.float32).tiny)
    nodes, code = [reader.node for reader in readers], onnx_code(readers[0].dtype)
    version = next((node.version for node in nodes if not node.domain), LEAST_OPSET)
    first = before or min(nodes, key=graph.nodes.index)
    wide = value if code == _FLOAT else _cast(graph, first, value, _FLOAT, version)
    rounded = Value(f"{value.name}_pairs", retyped(wide.type, _FLOAT))
    parts = [wide, constant(f"{value.name}_scale", scale)]
    graph.insert_before(first, Node("OutlierVictimPairs", parts, [rounded], domain=QRUNTIME, version=1, origin=[first]))
    return rounded if code == _FLOAT else _cast(graph, first, rounded, code, version)


def _cast(graph: Graph, before: Node, value: Value, code: int, version: int) -> Value:
    output = Value(f"{value.name}_cast", retyped(value.type, code))
    graph.insert_before(before, Node("Cast", [value], [output], {"to": as_attribute(code)}, version=version, origin=[before]))
    return output
