"""The functions of ops/cache_codes.py in standard operators, for other runtimes: the same float32 operations in the same order."""

from __future__ import annotations

import math

from qruntime.onnx_io.functions import CACHES
from qruntime.onnx_io.messages import FunctionProto
from qruntime.ops.cache_codes import PARTS
from qruntime.passes.stored.function_body import Body

LEAST_OPSET = 13
NAMES = frozenset(name for _, name, _ in CACHES)
_FLOAT, _UINT8, _INT32, _INT64, _DOUBLE = 1, 2, 6, 7, 11
_AXES_ARE_INPUTS = 18  # of ReduceMin and ReduceMax


def function(name: str, opset: int) -> FunctionProto:
    """The definition of one of NAMES in standard operators of that opset, from LEAST_OPSET on."""
    op, has_clusters = Body(opset), name.endswith("Clusters")
    labels, attributes = (["labels"], ["bits", "clusters"]) if has_clusters else ([], ["bits"])
    if not name.startswith("Dequantize"):
        _quantize(op, has_clusters, fits=name.startswith("Fit"))
        return op.function(name, ["x", *labels], ["codes", "ranges"], attributes)
    _dequantize(op, has_clusters)
    return op.function(name, ["codes", "ranges", *labels], ["x"], attributes)


def _quantize(op: Body, has_clusters: bool, *, fits: bool) -> None:
    zero, two = op.number(0.0), op.integer(2)
    top = op("Cast", op("Sub", op("Pow", two, op.attribute("bits")), op.integer(1)), to=_FLOAT)
    low, high = _reduce(op, "ReduceMin", "x", keepdims=1), _reduce(op, "ReduceMax", "x", keepdims=1)
    if has_clusters:
        inside, each = _inside(op), op("Unsqueeze", "x", op.integers(-2))
        others = op("Unsqueeze", high, op.integers(-1)), op("Unsqueeze", low, op.integers(-1))
        low = _reduce(op, "ReduceMin", op("Where", inside, each, others[0]), keepdims=0)
        high = _reduce(op, "ReduceMax", op("Where", inside, each, others[1]), keepdims=0)
    low = op("Add", low, zero)
    high = op("Add", op("Max", high, low), zero)
    scale = op("Div", op("Sub", high, low), top)
    own_scale, own_low = (_of_channels(op, inside, part) for part in (scale, low)) if has_clusters else (scale, low)
    is_covered = op("And", op("Greater", own_scale, zero), op("Less", own_scale, op.number(math.inf)))
    shares = op("Where", is_covered, op("Div", op("Sub", "x", own_low), own_scale), zero)
    rounded = op("Clip", op("Round", shares), zero, top)
    op.last("ranges", "Concat", *(_fitted(op, has_clusters, shares, rounded, scale, low) if fits else (scale, low)), axis=-1)
    codes = op("Cast", rounded, to=_INT32)
    # A byte holds one code of each of `places` equal runs of channels.
    (places, weights), width = _places(op), op("Gather", op("Shape", "x"), op.integers(-1))
    shape = op("Concat", _leading(op, "x"), places, op("Div", width, places), axis=0)
    parts = op("Mul", op("Reshape", codes, shape), weights)
    op.last("codes", "Cast", op("ReduceSum", parts, op.integers(-2), keepdims=0), to=_UINT8)


def _fitted(op: Body, has_clusters: bool, shares: str, rounded: str, scale: str, low: str) -> tuple[str, str]:
    """The scales and lows for which codes err least."""
    error = op("Cast", op("Round", op("Mul", op("Sub", shares, rounded), op.number(float(PARTS)))), to=_INT64)
    code, parts = op("Cast", rounded, to=_INT64), op("Cast", op.number(float(PARTS)), to=_DOUBLE)
    # Whole numbers: their sums are the same in any order.
    count, of_code, of_error, of_square, of_both = (
        _of_clusters(op, has_clusters, part)
        for part in (op("Add", op("Sub", code, code), op.integer(1)), code, error, op("Mul", code, code), op("Mul", code, error))
    )
    spread = op("Sub", op("Mul", count, of_square), op("Mul", of_code, of_code))
    slope = op("Div", op("Sub", op("Mul", count, of_both), op("Mul", of_code, of_error)), spread)
    wide = op("Cast", scale, to=_DOUBLE)
    mean = op("Div", op("Sub", of_error, op("Mul", slope, of_code)), op("Mul", parts, count))
    fitted = op("Add", wide, op("Mul", wide, op("Div", slope, parts))), op("Add", op("Cast", low, to=_DOUBLE), op("Mul", wide, mean))
    is_spread = op("Greater", spread, op("Cast", op.number(0.0), to=_DOUBLE))
    new_scale, new_low = (op("Where", is_spread, op("Cast", new, to=_FLOAT), old) for new, old in zip(fitted, (scale, low), strict=True))
    return new_scale, new_low


def _of_clusters(op: Body, has_clusters: bool, numbers: str) -> str:
    """Sums over the channels of each cluster, double [..., clusters]."""
    if has_clusters:
        inside = op("Where", _inside(op), op("Unsqueeze", numbers, op.integers(-2)), op.integer(0))
        return op("Cast", op("ReduceSum", inside, op.integers(-1), keepdims=0), to=_DOUBLE)
    return op("Cast", op("ReduceSum", numbers, op.integers(-1), keepdims=1), to=_DOUBLE)


def _dequantize(op: Body, has_clusters: bool) -> None:
    places, weights = _places(op)
    wide = op("Unsqueeze", op("Cast", "codes", to=_INT32), op.integers(-2))
    base = op("Cast", op("Pow", op.integer(2), op.attribute("bits")), to=_INT32)
    parts = op("Mod", op("Div", wide, weights), base)
    width = op("Mul", op("Gather", op("Shape", "codes"), op.integers(-1)), places)
    unpacked = op("Cast", op("Reshape", parts, op("Concat", _leading(op, "codes"), width, axis=0)), to=_FLOAT)
    clusters = op.attribute("clusters") if has_clusters else op.integer(1)
    count, last = op("Reshape", clusters, op.integers(1)), op.integers(-1)
    scale = op("Slice", "ranges", op.integers(0), count, last)
    low = op("Slice", "ranges", count, op.integers((1 << 31) - 1), last)
    if has_clusters:
        inside = _inside(op)
        scale, low = _of_channels(op, inside, scale), _of_channels(op, inside, low)
    op.last("x", "Add", op("Mul", unpacked, scale), low)


def _reduce(op: Body, op_type: str, x: str, *, keepdims: int) -> str:
    """Along the last axis."""
    if op.opset >= _AXES_ARE_INPUTS:
        return op(op_type, x, op.integers(-1), keepdims=keepdims)
    return op(op_type, x, axes=(-1,), keepdims=keepdims)


def _places(op: Body) -> tuple[str, str]:
    """How many codes a byte holds, [1], and what those of each place are multiplied with in it, int32 [places, 1]."""
    bits = op.attribute("bits")
    count = op("Div", op.integer(8), bits)
    powers = op("Pow", op.integer(2), op("Mul", op("Range", op.integer(0), count, op.integer(1)), bits))
    return op("Reshape", count, op.integers(1)), op("Cast", op("Unsqueeze", powers, op.integers(-1)), to=_INT32)


def _leading(op: Body, x: str) -> str:
    """All dimensions of `x` but the last."""
    return op("Slice", op("Shape", x), op.integers(0), op.integers(-1))


def _inside(op: Body) -> str:
    """Whether a channel belongs to a cluster, bool [..., clusters, channels]."""
    clusters = op("Range", op.integer(0), op.attribute("clusters"), op.integer(1))
    own = op("Unsqueeze", op("Cast", "labels", to=_INT64), op.integers(-2))
    return op("Equal", own, op("Unsqueeze", clusters, op.integers(-1)))


def _of_channels(op: Body, inside: str, per_cluster: str) -> str:
    """[..., clusters] as [..., channels]: all but one of the numbers that are added are 0."""
    chosen = op("Where", inside, op("Unsqueeze", per_cluster, op.integers(-1)), op.number(0.0))
    return op("ReduceSum", chosen, op.integers(-2), keepdims=0)
