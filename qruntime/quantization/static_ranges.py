"""Static activations: one range for a tensor for ever, from what it held on calibration data.

    scale = (max − min) / 255,   zero_point = rint(−min / scale),   min ≤ 0 ≤ max

They stand in the graph as every tool writes them: QuantizeLinear and DequantizeLinear before the layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.quantization.steps import InputRange

LEAST_OPSET = 10


def insert_range(graph: Graph, value: Value, readers: Sequence[Node], found: InputRange) -> None:
    """Quantize and dequantize what `readers` of `graph` read of `value` as their first input, in the range `found`."""
    low, high = min(0.0, float(found.low)), max(0.0, float(found.high))
    rounded = _pair(graph, value, low, high, readers)
    for node in readers:
        node.set_input(0, rounded)


def _pair(graph: Graph, value: Value, low: float, high: float, readers: Sequence[Node]) -> Value:
    scale = np.float32((high - low) / 255 or 1)
    zero_point = np.uint8(np.clip(np.rint(-low / float(scale)), 0, 255))
    parts = [constant(f"{value.name}_scale", scale), constant(f"{value.name}_zero_point", zero_point)]
    codes, real = Value(f"{value.name}_codes"), Value(f"{value.name}_rounded", value.type)
    version = readers[0].version if not readers[0].domain else LEAST_OPSET
    made = [
        Node("QuantizeLinear", [value, *parts], [codes], version=version, origin=[readers[0]]),
        Node("DequantizeLinear", [codes, *parts], [real], version=version, origin=[readers[0]]),
    ]
    graph.insert_before(min(readers, key=graph.nodes.index), *made)
    return real
