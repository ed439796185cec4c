"""The functions behind which files store weights, in standard operators: for runtimes that know nothing of ours."""

from __future__ import annotations

from typing import Any

from qruntime.ir.formats import MARKER
from qruntime.onnx_io.functions import STORED
from qruntime.onnx_io.messages import FunctionProto
from qruntime.passes.stored.function_body import Body, OfCall
from qruntime.passes.stored.rounding_functions import partner

LEAST_OPSET = 13
NAMES = tuple(sorted(name for _, name, _ in STORED))
_FLOAT, _INT64 = 1, 7
_LAST = {"Affine": ("zero_point",), "Offset": ("offset",), "Symmetric": (), "Table": ("table",), "Pairs": ("table",)}


def function(name: str, opset: int) -> FunctionProto:
    """The definition of one of NAMES in standard operators of that opset, from LEAST_OPSET on."""
    op = Body(opset)
    if name == "ReplaceOutliers":
        inputs, attributes = _replace_outliers(op)
    else:
        inputs, attributes = _dequantize(op, name.removeprefix("Dequantize").removesuffix("Bytes"), is_packed=not name.endswith("Bytes"))
    return op.function(name, inputs, ["y"], attributes)


def _dequantize(op: Body, kind: str, *, is_packed: bool) -> tuple[list[str], list[str]]:
    shape = op.attribute("shape", "value_ints")
    wide = op("Cast", "bytes", to=_INT64)
    flat = _unpacked(op, wide) if is_packed else wide
    count = op("Reshape", op("ReduceProd", shape, keepdims=0), op.integers(1))
    shaped = op("Reshape", op("Slice", flat, op.integers(0), count), shape)
    axis: Any = OfCall("axis") if kind == "Offset" else -1
    width = op("Gather", shape, op.attribute("axis") if kind == "Offset" else op.integer(-1))
    block = op("Div", op("Range", op.integer(0), width, op.integer(1)), op.attribute("block_size"))
    scale = op("Gather", op("Cast", "scale", to=_FLOAT), block, axis=axis)
    if kind == "Table":
        op.last("y", "Mul", op("Gather", "table", shaped), scale)
    elif kind == "Pairs":
        is_marked = op("Equal", partner(op, shaped, width), op.integer(MARKER))
        place = op("Add", shaped, op("Mul", op("Cast", is_marked, to=_INT64), op.integer(16)))
        op.last("y", "Mul", op("Gather", "table", place), scale)
    elif kind == "Affine":
        zero = op("Gather", op("Cast", "zero_point", to=_FLOAT), block, axis=axis)
        op.last("y", "Mul", op("Sub", op("Cast", shaped, to=_FLOAT), zero), scale)
    elif kind == "Offset":
        offset = op("Gather", op("Cast", "offset", to=_FLOAT), block, axis=axis)
        codes = op("Add", shaped, op.attribute("least"))
        op.last("y", "Add", op("Mul", op("Cast", codes, to=_FLOAT), scale), offset)
    else:
        half = op("Pow", op.integer(2), op("Sub", op.attribute("bits"), op.integer(1)))
        op.last("y", "Mul", op("Cast", op("Sub", shaped, half), to=_FLOAT), scale)
    return ["bytes", "scale", *_LAST[kind]], ["bits", "shape", "block_size", "format", *(["axis", "least"] if kind == "Offset" else [])]


def _unpacked(op: Body, wide: str) -> str:
    """Codes of bytes: of the eight in a word of `bits` bytes, each lies in one byte or in two that follow one another."""
    bits, one, eight, two = op.attribute("bits"), op.integer(1), op.integer(8), op.integer(2)
    words = op("Reshape", wide, op("Concat", op.integers(-1), op("Reshape", bits, op.integers(1)), axis=0))
    start = op("Mul", op("Range", op.integer(0), eight, one), bits)
    byte = op("Div", start, eight)
    following = op("Min", op("Add", byte, one), op("Sub", bits, one))
    pair = op("Add", op("Gather", words, byte, axis=1), op("Mul", op("Gather", words, following, axis=1), op.integer(256)))
    shifted = op("Div", pair, op("Pow", two, op("Sub", start, op("Mul", byte, eight))))
    return op("Reshape", op("Mod", shifted, op("Pow", two, bits)), op.integers(-1))


def _replace_outliers(op: Body) -> tuple[list[str], list[str]]:
    flat = op("Reshape", "x", op.integers(-1))
    positions = op("CumSum", op("Cast", "gaps", to=_INT64), op.integer(0))
    replaced = op("ScatterElements", flat, positions, op("Cast", "values", to=_FLOAT), axis=0)
    op.last("y", "Reshape", replaced, op("Shape", "x"))
    return ["x", "gaps", "values"], []
