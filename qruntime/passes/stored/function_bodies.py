"""The functions that files call, in standard operators: for runtimes that know nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from qruntime.ir import Attribute, AttributeType
from qruntime.onnx_io.functions import OURS
from qruntime.onnx_io.messages import AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto
from qruntime.passes.rewriting import QRUNTIME, as_attribute

LEAST_OPSET = 13
NAMES = tuple(sorted(name for _, name, _ in OURS))
_FLOAT, _INT64 = 1, 7
_LAST = {"Affine": ("zero_point",), "Offset": ("offset",), "Symmetric": (), "Table": ("table",)}


class _OfCall(NamedTuple):
    """An integer attribute of the call, as the attribute of a node."""

    name: str


class _Body:
    """The nodes of a function, written one after the other."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        self._add(op_type, inputs, output, attributes)
        return output

    def last(self, op_type: str, *inputs: str) -> None:
        self._add(op_type, inputs, "y", {})

    def attribute(self, name: str, form: str) -> str:
        """The value of an attribute of the call, as a tensor."""
        output = f"t{len(self.nodes)}"
        kind = AttributeType.INT if form == "value_int" else AttributeType.INTS
        reference = AttributeProto(name=form, ref_attr_name=name, type=int(kind))
        self.nodes.append(NodeProto(op_type="Constant", output=[output], attribute=[reference]))
        return output

    def integers(self, *values: int) -> str:
        return self("Constant", value_ints=values)

    def integer(self, value: int) -> str:
        return self("Constant", value_int=value)

    def _add(self, op_type: str, inputs: Sequence[str], output: str, attributes: dict[str, Any]) -> None:
        made = [_attribute(name, value) for name, value in attributes.items()]
        self.nodes.append(NodeProto(op_type=op_type, input=list(inputs), output=[output], attribute=made))


def _attribute(name: str, value: Any) -> AttributeProto:
    if isinstance(value, _OfCall):
        return AttributeProto(name=name, ref_attr_name=value.name, type=int(AttributeType.INT))
    attribute: Attribute = as_attribute(value)
    field = {AttributeType.INT: "i", AttributeType.INTS: "ints"}[attribute.type]
    held = attribute.value if attribute.type is AttributeType.INT else list(attribute.value)
    return AttributeProto(name=name, type=int(attribute.type), **{field: held})


def function(name: str, opset: int) -> FunctionProto:
    """The definition of one of NAMES in standard operators of that opset, from LEAST_OPSET on."""
    op = _Body()
    if name == "ReplaceOutliers":
        inputs, attributes = _replace_outliers(op)
    else:
        inputs, attributes = _dequantize(op, name.removeprefix("Dequantize").removesuffix("Bytes"), is_packed=not name.endswith("Bytes"))
    return FunctionProto(
        name=name, domain=QRUNTIME, input=inputs, output=["y"], attribute=attributes, node=op.nodes,
        opset_import=[OperatorSetIdProto(domain="", version=opset)],
    )  # fmt: skip


def _dequantize(op: _Body, kind: str, *, is_packed: bool) -> tuple[list[str], list[str]]:
    shape = op.attribute("shape", "value_ints")
    wide = op("Cast", "bytes", to=_INT64)
    flat = _unpacked(op, wide) if is_packed else wide
    count = op("Reshape", op("ReduceProd", shape, keepdims=0), op.integers(1))
    shaped = op("Reshape", op("Slice", flat, op.integers(0), count), shape)
    axis: Any = _OfCall("axis") if kind == "Offset" else -1
    width = op("Gather", shape, op.attribute("axis", "value_int") if kind == "Offset" else op.integer(-1))
    block = op("Div", op("Range", op.integer(0), width, op.integer(1)), op.attribute("block_size", "value_int"))
    scale = op("Gather", op("Cast", "scale", to=_FLOAT), block, axis=axis)
    if kind == "Table":
        op.last("Mul", op("Gather", "table", shaped), scale)
    elif kind == "Affine":
        zero = op("Gather", op("Cast", "zero_point", to=_FLOAT), block, axis=axis)
        op.last("Mul", op("Sub", op("Cast", shaped, to=_FLOAT), zero), scale)
    elif kind == "Offset":
        offset = op("Gather", op("Cast", "offset", to=_FLOAT), block, axis=axis)
        codes = op("Add", shaped, op.attribute("least", "value_int"))
        op.last("Add", op("Mul", op("Cast", codes, to=_FLOAT), scale), offset)
    else:
        half = op("Pow", op.integer(2), op("Sub", op.attribute("bits", "value_int"), op.integer(1)))
        op.last("Mul", op("Cast", op("Sub", shaped, half), to=_FLOAT), scale)
    return ["bytes", "scale", *_LAST[kind]], ["bits", "shape", "block_size", "format", *(["axis", "least"] if kind == "Offset" else [])]


def _unpacked(op: _Body, wide: str) -> str:
    """Codes of bytes: of the eight in a word of `bits` bytes, each lies in one byte or in two that follow one another."""
    bits, one, eight, two = op.attribute("bits", "value_int"), op.integer(1), op.integer(8), op.integer(2)
    words = op("Reshape", wide, op("Concat", op.integers(-1), op("Reshape", bits, op.integers(1)), axis=0))
    start = op("Mul", op("Range", op.integer(0), eight, one), bits)
    byte = op("Div", start, eight)
    following = op("Min", op("Add", byte, one), op("Sub", bits, one))
    pair = op("Add", op("Gather", words, byte, axis=1), op("Mul", op("Gather", words, following, axis=1), op.integer(256)))
    shifted = op("Div", pair, op("Pow", two, op("Sub", start, op("Mul", byte, eight))))
    return op("Reshape", op("Mod", shifted, op("Pow", two, bits)), op.integers(-1))


def _replace_outliers(op: _Body) -> tuple[list[str], list[str]]:
    flat = op("Reshape", "x", op.integers(-1))
    positions = op("CumSum", op("Cast", "gaps", to=_INT64), op.integer(0))
    replaced = op("ScatterElements", flat, positions, op("Cast", "values", to=_FLOAT), axis=0)
    op.last("Reshape", replaced, op("Shape", "x"))
    return ["x", "gaps", "values"], []
