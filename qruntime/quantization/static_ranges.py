"""Static activations: one range for a tensor for ever, from what it held on calibration data.

    scale = (max − min) / 255,   zero_point = rint(−min / scale),   min ≤ 0 ≤ max

They stand in the graph as every tool writes them: QuantizeLinear and DequantizeLinear before the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qruntime.errors import InputError, QuantizationError
from qruntime.ir import Graph, Node, Value, constant
from qruntime.quantization.feeds import Data, Feed, feeds_of
from qruntime.runtime.segments import Segment, fed_values

LEAST_OPSET = 10


def insert_ranges(graph: Graph, nodes: Sequence[Node], data: Data, threads: int) -> None:
    """Quantize and dequantize what `nodes` of `graph` read, in the range that it has on `data`.

    Raises QuantizationError for data that do not fit the model, and for a tensor that is no number somewhere.
    """
    values = list(dict.fromkeys(value for node in nodes if (value := node.input(0)) is not None))
    ranges = extremes(graph, values, data, threads)
    rounded = {value: _pair(graph, value, *ranges[value], [n for n in nodes if n.input(0) is value]) for value in values}
    for node in nodes:
        value = node.input(0)
        if value is not None:
            node.set_input(0, rounded[value])


def extremes(graph: Graph, values: Sequence[Value], data: Data, threads: int) -> dict[Value, tuple[float, float]]:
    """The least and greatest number that each of `values` holds on `data`, 0 among them."""
    part = Segment(graph, graph.inputs, values, num_threads=threads, lower=True)
    found = np.zeros((len(values), 2))
    for number, feed in enumerate(feeds_of(data)):
        for i, array in enumerate(part.run(_fed(graph, feed, number)).values()):
            held = np.asarray(array, np.float32)
            if not held.size:
                continue
            low, high = float(held.min()), float(held.max())
            if not np.isfinite([low, high]).all():
                raise QuantizationError(f"data[{number}] makes NaN or infinity of {values[i].name!r}, which is to have a range")
            found[i] = min(found[i, 0], low), max(found[i, 1], high)
    return {value: (low, high) for value, (low, high) in zip(values, found.tolist(), strict=True)}


def _fed(graph: Graph, feed: Feed, number: int) -> dict[Value, Any]:
    try:
        return fed_values(graph, feed)
    except InputError as error:
        raise QuantizationError(f"data[{number}]: {error}") from error


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
