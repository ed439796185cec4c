"""Static activations in outlier-victim pairs: rounded before the layers that read them, with one scale for ever."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ir import Graph, Node, TypeInfo, Value, constant
from qruntime.ir.dtypes import onnx_code
from qruntime.passes.rewriting import QRUNTIME, as_attribute
from qruntime.passes.stored.rounding_functions import LEAST_OPSET
from qruntime.quantization.outlier_pairs import MOST_NORMAL
from qruntime.quantization.steps import InputRange

_FLOAT = onnx_code(np.dtype(np.float32))


def insert_pairs(graph: Graph, value: Value, readers: Sequence[Node], found: InputRange) -> None:
    """`readers`, nodes of `graph` whose first input is `value`, read it in pairs along its last axis whose integers have the
    range `found`. Narrower floats are widened before and narrowed behind."""
    scale = np.maximum(np.float32(found.high / MOST_NORMAL), np.finfo(np.float32).tiny)
    version = next((node.version for node in readers if not node.domain), LEAST_OPSET)
    first = min(readers, key=graph.nodes.index)
    wide = _cast(graph, first, value, _FLOAT, version) if _is_narrow(value) else value
    rounded = Value(f"{value.name}_pairs", None if wide.type is None else TypeInfo("tensor", _FLOAT, wide.type.shape))
    parts = [wide, constant(f"{value.name}_scale", scale)]
    graph.insert_before(first, Node("OutlierVictimPairs", parts, [rounded], domain=QRUNTIME, version=1, origin=[first]))
    if value.type is not None and wide is not value:
        rounded = _cast(graph, first, rounded, value.type.dtype, version)
    for node in readers:
        node.set_input(0, rounded)


def _is_narrow(value: Value) -> bool:
    return value.type is not None and value.type.dtype not in (0, _FLOAT)


def _cast(graph: Graph, before: Node, value: Value, code: int, version: int) -> Value:
    output = Value(f"{value.name}_cast", TypeInfo("tensor", code, None if value.type is None else value.type.shape))
    graph.insert_before(before, Node("Cast", [value], [output], {"to": as_attribute(code)}, version=version, origin=[before]))
    return output
