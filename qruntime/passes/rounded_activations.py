"""Static activations of fewer than 8 bits: how graphs say that no code is greater than some, and what becomes of it when lowered.

    Clip(x, low, high)             one range for the tensor     low = (0 − zero point) · scale
    Min(Max(x, low), high)         a range for each channel     high = (most − zero point) · scale

before QuantizeLinear to uint8: standard operators, by which any runtime finds the same codes.
"""

from __future__ import annotations

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.passes.activations import activation_in
from qruntime.passes.rewriting import Builder, trace
from qruntime.passes.scaled_codes import dequantized_codes, is_dequantize, is_quantize

_WIDEST = 8


def code_bounds(scale: np.ndarray, zero_point: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that codes 0 and `most` stand for, float32."""
    zero, ends = zero_point.astype(np.float32), np.finfo(np.float32)
    with np.errstate(over="ignore"):
        low, high = (np.float32(0) - zero) * scale, (np.float32(most) - zero) * scale
    return np.clip(low, ends.min, ends.max), np.clip(high, ends.min, ends.max)


def round_activations(graph: Graph) -> None:
    """Clip → QuantizeLinear → DequantizeLinear  →  RoundToCodes; with other readers of the codes  →  QuantizeLinear of our domain."""
    for nested in graph.walk_graphs():
        for node in list(nested.nodes):
            if node.graph is nested and is_quantize(node):
                _round(nested, node)


def _round(graph: Graph, node: Node) -> None:
    x, scale, zero_point = node.input(0), node.input(1), node.input(2)
    if x is None or scale is None or zero_point is None or not _is_plain(node, scale, zero_point):
        return
    axis = node.attr("axis", 1)
    source, most = _limited(x, scale, zero_point, axis)
    if source is x and dequantized_codes(x) is not None:
        return  # code for code: a table (code_tables.py) with the dequantization behind it
    codes = node.outputs[0]
    readers = [reader for reader, _ in codes.uses]
    op = Builder(node)
    if readers and not codes.output_of and all(_undoes(reader, node) for reader in readers):
        rounded = op.RoundToCodes(source, scale, zero_point, axis=axis, most=most)
        for reader in readers:
            graph.replace_uses(reader.outputs[0], rounded)
    elif most < (1 << _WIDEST) - 1:
        graph.replace_uses(codes, op.QuantizeLinear(source, scale, zero_point, axis=axis, most=most))
    else:
        return
    graph.insert_before(node, *op.nodes)
    trace(f"round_activations at {node.label}")


def before_rounding(value: Value) -> Value:
    """What a tensor is before it is quantized and dequantized, limits to fewer codes left out; `value` itself where it is not."""
    undo = value.producer
    codes = None if undo is None or not is_dequantize(undo) else undo.input(0)
    node = None if codes is None else codes.producer
    if undo is None or node is None or not is_quantize(node) or not _undoes(undo, node):
        return value
    x, scale, zero_point = node.input(0), node.input(1), node.input(2)
    if x is None or scale is None:
        return value
    if zero_point is None or not _is_plain(node, scale, zero_point):
        return x
    return _limited(x, scale, zero_point, node.attr("axis", 1))[0]


def _is_plain(node: Node, scale: Value, zero_point: Value) -> bool:
    """Whether codes are uint8 with constants that make sense for the tensor, or for each index of an axis."""
    if scale.data is None or zero_point.data is None or scale.data.dtype != np.float32 or zero_point.data.dtype != np.uint8:
        return False
    if node.attr("block_size", 0) or node.attr("precision", 0) or node.attr("output_dtype", 0):
        return False
    if scale.data.ndim > 1 or zero_point.data.shape != scale.data.shape:
        return False
    return bool(np.isfinite(scale.data).all() and (scale.data > 0).all())


def _undoes(node: Node, quantize: Node) -> bool:
    """Whether `node` makes float32 of the codes of `quantize` by the same scales."""
    if not is_dequantize(node) or node.graph is not quantize.graph:
        return False
    if node.attr("block_size", 0) or node.attr("output_dtype", 0) or node.attr("axis", 1) != quantize.attr("axis", 1):
        return False
    return node.input(0) is quantize.outputs[0] and all(_same(node.input(i), quantize.input(i)) for i in (1, 2))


def _same(value: Value | None, other: Value | None) -> bool:
    if value is other:
        return True
    if value is None or other is None or value.data is None or other.data is None or value.data.dtype != other.data.dtype:
        return False
    return np.array_equal(value.data, other.data)


def _limited(x: Value, scale: Value, zero_point: Value, axis: int) -> tuple[Value, int]:
    """What stands before a limit to fewer codes, and the greatest of them; x and 255 where there is no such limit."""
    assert scale.data is not None
    assert zero_point.data is not None
    found = _limits(x)
    if found is not None and found[1].shape == scale.data.shape and (scale.data.ndim == 0 or axis == -1):
        source, low, high = found
        for bits in range(2, _WIDEST + 1):
            most = (1 << bits) - 1
            least, greatest = code_bounds(scale.data, zero_point.data, most)
            if np.array_equal(least, low) and np.array_equal(greatest, high):
                return source, most
    return x, (1 << _WIDEST) - 1


def _limits(x: Value) -> tuple[Value, np.ndarray, np.ndarray] | None:
    """source, low and high of Clip(source, low, high) or Min(Max(source, low), high), bounds of rank 0 or 1."""
    node = x.producer
    if node is None:
        return None
    source = node.input(0)
    if node.is_op("Clip"):
        found = activation_in(node)
        return None if found is None or source is None else (source, *(np.float32(bound).reshape(()) for bound in found.parameters))
    inner = None if source is None else source.producer
    if not node.is_op("Min") or inner is None or not inner.is_op("Max") or len(node.inputs) != 2 or len(inner.inputs) != 2:
        return None
    high, low, first = node.input(1), inner.input(1), inner.input(0)
    if first is None or low is None or high is None or low.data is None or high.data is None:
        return None
    if low.data.ndim != 1 or low.data.shape != high.data.shape or low.data.dtype != np.float32 or high.data.dtype != np.float32:
        return None
    return first, low.data, high.data
