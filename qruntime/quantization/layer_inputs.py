"""The rows that the weights of a layer multiply: one row for each product with a weight [N, K].

MatMul, Gemm …       the rows of the left-hand side
LSTM, GRU, RNN       x_t for W, h_{t−1} for R, of each direction; of a GRU that resets h before R, h as it was
Conv                 the windows that the kernel covers, at most 4096 of an image; none of grouped ones
Embedding            none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.ir import Graph, Value
from qruntime.ops.elementwise import widen
from qruntime.ops.windows import padded, window, windows_view
from qruntime.quantization.layers import RECURRENT, Layer
from qruntime.runtime.segments import Segment

MOST_WINDOWS = 4096


def rows_of(graph: Graph, layer: Layer, batches: Sequence[Mapping[Value, Any]], num_threads: int) -> list[list[np.ndarray]]:
    """For each matrix of the weights of `layer`, in their order, the rows [T, K] float32 that it meets in each batch.

    `batches` hold what the node reads. A list is empty for a matrix whose rows are not known.
    """
    first = layer.node.input(0)
    if layer.node.op_type in RECURRENT:
        return _recurrent(graph, layer, batches, num_threads)
    if layer.kind == "Conv" and layer.node.attr("group", 1) == 1 and first is not None:
        return [[_windows(layer, np.asarray(batch[first])) for batch in batches]]
    if layer.kind == "Linear" and first is not None and not first.is_constant:
        return [[_flat(np.asarray(batch[first])) for batch in batches]]
    return [[] for value in layer.weights if value is not None for _ in layer.matrices(value)]


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


def _recurrent(graph: Graph, layer: Layer, batches: Sequence[Mapping[Value, Any]], num_threads: int) -> list[list[np.ndarray]]:
    node = layer.node
    x, states = node.input(0), node.outputs[0]
    directions = layer.shapes[0][0]
    if x is None:
        return [[] for _ in range(2 * directions)]
    reads = [value for value in node.inputs if value is not None and not value.is_constant]
    segment = Segment(graph, reads, [states], num_threads=num_threads, lower=True)
    inputs, recurrent = [], [[] for _ in range(directions)]  # type: ignore[var-annotated]
    for batch in batches:
        inputs.append(_flat(np.asarray(batch[x])))
        y = np.asarray(segment.run(batch)[states])
        y = y if not node.attr("layout", 0) else np.moveaxis(y, 0, 2)  # [steps, directions, batch, hidden]
        initial = _initial(layer, batch, y)
        for direction in range(directions):
            backwards = node.attr("direction", "forward") == "reverse" or direction == 1
            seen = [y[1:, direction], initial[None, direction]] if backwards else [initial[None, direction], y[:-1, direction]]
            recurrent[direction].append(_flat(np.concatenate(seen)))
    return [inputs] * directions + recurrent


def _initial(layer: Layer, batch: Mapping[Value, Any], y: np.ndarray) -> np.ndarray:
    """The state before the first step: [directions, batch, hidden]."""
    given = layer.node.input(5)
    if given is None:
        return np.zeros(y.shape[1:], np.float32)
    held = np.asarray(given.data if given.is_constant else batch[given])
    return np.moveaxis(held, 0, 1) if layer.node.attr("layout", 0) else held
