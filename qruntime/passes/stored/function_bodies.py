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
_FLOAT, _UINT8, _INT32, _INT64 = 1, 2, 6, 7
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
    flat = _unpacked(op) if is_packed else "bytes"
    count = op("Reshape", op("ReduceProd", shape, keepdims=0), op.integers(1))
    codes = op("Reshape", op("Slice", flat, op.integers(0), count), shape)
    axis: Any = OfCall("axis") if kind == "Offset" else -1
    width = op("Gather", shape, op.attribute("axis") if kind == "Offset" else op.integer(-1))
    length = op.attribute("block_size")
    entries = op("Where", op("Greater", width, length), width, op.integer(1))  # one for all serves as it is
    block = op("Div", op("Range", op.integer(0), entries, op.integer(1)), length)
    scale = op("Gather", op("Cast", "scale", to=_FLOAT), block, axis=axis)
    if kind == "Table":
        op.last("y", "Mul", op("Gather", "table", op("Cast", codes, to=_INT32)), scale)
    elif kind == "Pairs":
        place = op("Cast", codes, to=_INT32)
        is_marked = op("Equal", partner(op, place, width), op("Cast", op.integer(MARKER), to=_INT32))
        further = op("Mul", op("Cast", is_marked, to=_INT32), op("Cast", op.integer(16), to=_INT32))
        op.last("y", "Mul", op("Gather", "table", op("Add", place, further)), scale)
    elif kind == "Affine":
        zero = op("Gather", op("Cast", "zero_point", to=_FLOAT), block, axis=axis)
        op.last("y", "Mul", op("Sub", op("Cast", codes, to=_FLOAT), zero), scale)
    elif kind == "Offset":
        greatest = op("Sub", op("Gather", op("Shape", "offset"), op.attribute("axis")), op.integer(1))
        offset = op("Gather", op("Cast", "offset", to=_FLOAT), op("Min", block, greatest), axis=axis)
        from_zero = op("Add", op("Cast", codes, to=_FLOAT), op("Cast", op.attribute("least"), to=_FLOAT))
        op.last("y", "Add", op("Mul", from_zero, scale), offset)
    else:
        half = op("Cast", op("Pow", op.integer(2), op("Sub", op.attribute("bits"), op.integer(1))), to=_FLOAT)
        op.last("y", "Mul", op("Sub", op("Cast", codes, to=_FLOAT), half), scale)
    return ["bytes", "scale", *_LAST[kind]], ["bits", "shape", "block_size", "format", *(["axis", "least"] if kind == "Offset" else [])]


def _unpacked(op: Body) -> str:
    """Codes of bytes, uint8 [codes, 1]: `bits` bits that follow one another, times 1, 2, 4 …

    Runtimes fold this as they load a model, and may hold every array on the way, of all weights, until they have done so: all
    but an index are of bytes. The bits of a byte are looked up, where shifting and masking makes two arrays of them; the product
    is QLinearMatMul because that of MatMulInteger is int32.
    """
    one, two, last = op.integer(1), op.integer(2), op.integers(-1)
    bits = op("Reshape", op.attribute("bits"), op.integers(1))
    powers = op("Pow", two, op("Range", op.integer(0), op.integer(8), one))
    byte = op("Unsqueeze", op("Range", op.integer(0), op.integer(256), one), last)
    bits_of_byte = op("Cast", op("Mod", op("Div", byte, powers), two), to=_UINT8)
    rows = op("Reshape", op("Gather", bits_of_byte, op("Cast", "bytes", to=_INT32)), op("Concat", last, bits, axis=0))
    column = op("Unsqueeze", op("Cast", op("Slice", powers, op.integers(0), bits), to=_UINT8), last)
    unit, zero = op.number(1.0), op("Cast", op.integer(0), to=_UINT8)
    return op("QLinearMatMul", rows, unit, zero, column, unit, zero, unit, zero)


def _replace_outliers(op: Body) -> tuple[list[str], list[str]]:
    flat = op("Reshape", "x", op.integers(-1))
    positions = op("CumSum", op("Cast", "gaps", to=_INT64), op.integer(0))
    replaced = op("ScatterElements", flat, positions, op("Cast", "values", to=_FLOAT), axis=0)
    op.last("y", "Reshape", replaced, op("Shape", "x"))
    return ["x", "gaps", "values"], []
