"""The rows that the weights of a layer multiply: one row for each product with a weight [N, K].

MatMul, Gemm …       the rows of the left-hand side
LSTM, GRU, RNN       x_t for W, h_{t−1} for R, of each direction and all steps of a sequence; of a GRU that resets h before R, h as it was
Conv                 the windows that the kernel covers, at most 4096 of an image

`why_no_rows` says of which layers the rows are not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.ir import Graph, Value
from qruntime.ops.elementwise import widen
from qruntime.ops.windows import padded, window, windows_view
from qruntime.quantization.layers import RECURRENT, Layer
from qruntime.quantization.nested_rows import nested_rows
from qruntime.quantization.reasons import Reason
from qruntime.runtime.segments import Segment

MOST_WINDOWS = 4096

_KINDS = ("Linear", *RECURRENT, "Conv")


def why_no_rows(graph: Graph, layer: Layer) -> Reason | None:
    """Why no run of `graph` shows the rows that a layer meets; None where it does."""
    first = layer.node.input(0)
    if layer.kind == "Embedding":
        return Reason("a table is looked up and multiplies nothing")
    if layer.kind not in _KINDS:
        return Reason(f"what the weight of a {layer.kind} multiplies is not observed")
    if layer.node.graph is not graph and layer.kind != "Linear":
        return Reason(f"what a {layer.kind} in a subgraph (of If, Loop or Scan) reads is not observed")
    if first is None or first.is_constant:
        return Reason("it reads a constant")
    if layer.kind == "Conv" and layer.node.attr("group", 1) != 1:
        return Reason("what the groups of a Conv read apart is not observed")
    return None


def rows_of(graph: Graph, layer: Layer, batches: Sequence[Mapping[Value, Any]], num_threads: int) -> list[list[np.ndarray]]:
    """For each matrix of the weights of `layer`, in their order, the rows [T, K] float32 that it meets in each batch.

    `batches` hold what the node reads, or the node of `graph` that it lies in. A list is empty for a matrix whose rows are not
    known.
    """
    first = layer.node.input(0)
    if first is None or why_no_rows(graph, layer) is not None:
        return [[] for value in layer.weights if value is not None for _ in layer.matrices(value)]
    if layer.node.graph is not graph:
        found = nested_rows(graph, layer, batches, num_threads)
        return [found if any(map(len, found)) else []]
    if layer.node.op_type in RECURRENT:
        return _recurrent(graph, layer, first, batches, num_threads)
    if layer.kind == "Conv":
        return [[_windows(layer, np.asarray(batch[first])) for batch in batches]]
    return [[_flat(np.asarray(batch[first])) for batch in batches]]


def _flat(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(widen(array), np.float32).reshape(-1, array.shape[-1])


def _windows(layer: Layer, images: np.ndarray) -> np.ndarray:
    node, shape = layer.node, layer.shapes[0]
    strides, dilations, pads = (node.attr(name) for name in ("strides", "dilations", "pads"))
    win = window(images.shape[2:], shape[2:], strides, dilations, pads, node.attr("auto_pad", "NOTSET"))
    rank = len(win.kernel)
    views = windows_view(padded(widen(images), win), win)  # [images, channels, *positions, *kernel]
    rows = np.moveaxis(views, 1, 1 + rank).reshape(images.shape[0], -1, int(np.prod(shape[1:])))
    apart = -(-rows.shape[1] // MOST_WINDOWS)
    return _flat(rows[:, ::apart])


def _recurrent(graph: Graph, layer: Layer, x: Value, batches: Sequence[Mapping[Value, Any]], num_threads: int) -> list[list[np.ndarray]]:
    node = layer.node
    states, directions = node.outputs[0], layer.shapes[0][0]
    reads = [value for value in node.inputs if value is not None and not value.is_constant]
    segment = Segment(graph, reads, [states], num_threads=num_threads, lower=True)
    inputs, recurrent = [], [[] for _ in range(directions)]  # type: ignore[var-annotated]
    for batch in batches:
        y = np.asarray(segment.run(batch)[states])
        y = y if not node.attr("layout", 0) else np.moveaxis(y, 0, 2)  # [steps, directions, batch, hidden]
        initial, steps = _initial(layer, batch, y), np.arange(len(y))[:, None]
        lengths = _lengths(layer, batch, y)
        runs = steps < lengths
        inputs.append(_flat(np.asarray(batch[x])[runs.T if node.attr("layout", 0) else runs]))
        for direction in range(directions):
            backwards = node.attr("direction", "forward") == "reverse" or direction == 1
            first = lengths - 1 if backwards else 0
            before = np.roll(y[:, direction], -1 if backwards else 1, axis=0)
            seen = np.where((steps == first)[..., None], initial[direction], before)
            recurrent[direction].append(_flat(seen[runs]))
    return [inputs] * directions + recurrent


def _lengths(layer: Layer, batch: Mapping[Value, Any], y: np.ndarray) -> np.ndarray:
    """How many steps each sequence has: [batch]."""
    given = layer.node.input(4)
    if given is None:
        return np.full(y.shape[2], len(y))
    return np.asarray(given.data if given.is_constant else batch[given])


def _initial(layer: Layer, batch: Mapping[Value, Any], y: np.ndarray) -> np.ndarray:
    """The state before the first step: [directions, batch, hidden]."""
    given = layer.node.input(5)
    if given is None:
        return np.zeros(y.shape[1:], np.float32)
    held = np.asarray(given.data if given.is_constant else batch[given])
    return np.moveaxis(held, 0, 1) if layer.node.attr("layout", 0) else held
