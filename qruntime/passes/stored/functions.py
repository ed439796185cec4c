"""What the standard has no operator for: a call of a function of ours, whose body is standard operators.

    DequantizeAffine     (bytes, scale, zero_point)     scale · (code − zero_point)
    DequantizeSymmetric  (bytes, scale)                 scale · (code − 2^(bits − 1))
    DequantizeTable      (bytes, scale, table)          scale · table[code]
    …Bytes                                              the same with codes of a byte, not of 2 to 7 bits

Attributes: `bits`; `shape` of the result; `block_size` along its last axis, for each of which `scale` [..., blocks] has one
entry; `format`, a name of ir/formats.py. Codes count from the least one of the format and follow one another from the
lowest bit of a byte up, in whole words of 8 codes. Other runtimes run the body; here the call is read as what it stores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qruntime.ir import Attribute, AttributeType, Node, StoredTensor, TypeInfo, Value, constant
from qruntime.ir.formats import FORMATS, Format
from qruntime.ir.narrow import NarrowArray, packed_size, unpack
from qruntime.ir.stored import held
from qruntime.onnx_io.functions import OURS
from qruntime.onnx_io.messages import AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto
from qruntime.passes.rewriting import QRUNTIME, as_attribute

LEAST_OPSET = 13
NAMES = tuple(sorted(name for _, name, _ in OURS))
_FLOAT, _INT64 = 1, 7
_LAST = {"Affine": ("zero_point",), "Symmetric": (), "Table": ("table",)}


def write(name: str, stored: StoredTensor, version: int, nodes: list[Node]) -> Value | None:
    """A call that joins `nodes`, behind it a Transpose where the blocks do not run along the last axis."""
    if version < LEAST_OPSET or stored.scale is None or stored.offset is not None or stored.format.bits > 8 or stored.ndim < 2:
        return None
    if (stored.block and stored.block_axis != stored.ndim - 1) or (not stored.block and stored.scale.shape[-1] != 1):
        turned = write(name, stored.transposed(), version, nodes) if stored.ndim == 2 and _turns(stored) else None
        if turned is None:
            return None
        output = Value(f"{turned.name}_transposed", TypeInfo("tensor", _FLOAT, stored.shape))
        nodes.append(Node("Transpose", [turned], [output], {"perm": as_attribute((1, 0))}, version=version))
        return output
    form, kind = stored.format, _kind(stored)
    inputs = [constant(f"{name}_quantized", _packed(stored)), constant(f"{name}_scale", stored.scale)]
    if kind == "Table":
        inputs.append(constant(f"{form.name}_table", form.values))
    elif kind == "Affine":
        zero = np.zeros(stored.scale.shape, np.int16) if stored.zero_point is None else stored.zero_point.astype(np.int16)
        inputs.append(constant(f"{name}_zero_point", (zero - form.qmin).astype(np.uint8)))
    attributes = {"bits": form.bits, "shape": stored.shape, "block_size": stored.block or stored.shape[-1], "format": form.name}
    output = Value(f"{name}_dequantized", TypeInfo("tensor", _FLOAT, stored.shape))
    made = {key: as_attribute(value) for key, value in attributes.items()}
    nodes.append(Node(_name(kind, form.bits), inputs, [output], made, domain=QRUNTIME, version=1))
    return output


def _turns(stored: StoredTensor) -> bool:
    """Whether the other way round the scales are of the last axis."""
    turned = stored.transposed()
    return turned.block_axis == 1 if turned.block else turned.scale is not None and turned.scale.shape[-1] == 1


def _kind(stored: StoredTensor) -> str:
    if stored.format.table is not None:
        return "Table"
    is_symmetric = stored.format.is_signed and (stored.zero_point is None or not stored.zero_point.any())
    return "Symmetric" if is_symmetric else "Affine"


def _name(kind: str, bits: int) -> str:
    return f"Dequantize{kind}{'Bytes' if bits == 8 else ''}"


def _packed(stored: StoredTensor) -> np.ndarray:
    """Bytes of the codes, counted from the least one, in whole words of 8."""
    form = stored.format
    codes = stored.unpacked()
    from_least = (codes.astype(np.int16) - form.qmin).astype(np.uint8) if form.is_signed else codes
    if form.bits == 8:
        return np.ascontiguousarray(from_least).reshape(-1)
    data = NarrowArray.of(np.ascontiguousarray(from_least), form.bits).data
    return np.concatenate([data, np.zeros(-data.size % form.bits, np.uint8)])


def read(node: Node) -> StoredTensor | None:
    """None for a call that does not say what it should: it has no other meaning here."""
    codes, scale, last = (None if v is None else v.data for v in (node.input(i) for i in range(3)))
    form, layout = FORMATS.get(str(node.attr("format"))), _layout(node)
    kind = node.op_type.removeprefix("Dequantize").removesuffix("Bytes")
    if codes is None or scale is None or form is None or layout is None or form.is_float or form.bits > 8:
        return None
    if node.op_type != _name(kind, form.bits) or node.attr("bits") != form.bits or (last is None) != (kind == "Symmetric"):
        return None
    if (kind == "Table") != (form.table is not None) or (kind == "Table" and not _is_table(last, form)):
        return None
    shape, block = layout
    count, scales = math.prod(shape), (*shape[:-1], -(-shape[-1] // block))
    if codes.dtype != np.uint8 or codes.ndim != 1 or codes.size < packed_size(count, form.bits):
        return None
    fits = scale.ndim == len(shape) and scale.shape[-1] == scales[-1] and all(n in (1, m) for n, m in zip(scale.shape, scales))
    if not fits or scale.dtype not in (np.float32, np.float16) or not np.isfinite(scale).all():
        return None
    zero_point = None
    if kind == "Affine" and last is not None:
        if last.shape != scale.shape or last.dtype != np.uint8:
            return None
        zero_point = _from_least(last, form)
    flat = codes[:count] if form.bits == 8 else unpack(codes[: packed_size(count, form.bits)], form.bits, count)
    made = StoredTensor(form, held(_from_least(flat, form).reshape(shape), form), scale, zero_point)
    return made if block >= shape[-1] else replace(made, block=block, block_axis=len(shape) - 1)


def _layout(node: Node) -> tuple[tuple[int, ...], int] | None:
    """Shape and block size, None for what cannot be such."""
    shape, block = node.attr("shape"), node.attr("block_size")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n > 0 for n in shape) or not isinstance(block, int):
        return None
    return (shape, block) if len(shape) > 1 and math.prod(shape) <= 1 << 40 and block > 0 else None


def _is_table(data: np.ndarray | None, form: Format) -> bool:
    return data is not None and np.array_equal(data, form.values, equal_nan=True)


def _from_least(codes: np.ndarray, form: Format) -> np.ndarray:
    """Codes of `form` that count from its least one, as they are."""
    return (codes.astype(np.int16) + form.qmin).astype(np.int8) if form.is_signed else codes


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
        made = [_attribute(name, as_attribute(value)) for name, value in attributes.items()]
        self.nodes.append(NodeProto(op_type=op_type, input=list(inputs), output=[output], attribute=made))


def _attribute(name: str, attribute: Attribute) -> AttributeProto:
    field = {AttributeType.INT: "i", AttributeType.INTS: "ints"}[attribute.type]
    value = attribute.value if attribute.type is AttributeType.INT else list(attribute.value)
    return AttributeProto(name=name, type=int(attribute.type), **{field: value})


def function(name: str, opset: int) -> FunctionProto:
    """The definition of one of NAMES in standard operators of that opset, from LEAST_OPSET on."""
    op, kind = _Body(), name.removeprefix("Dequantize").removesuffix("Bytes")
    shape = op.attribute("shape", "value_ints")
    wide = op("Cast", "bytes", to=_INT64)
    if name.endswith("Bytes"):
        flat = wide
    else:
        # Of the eight codes in a word of `bits` bytes, each lies in one byte or in two that follow one another.
        bits, one, eight, two = op.attribute("bits", "value_int"), op.integer(1), op.integer(8), op.integer(2)
        words = op("Reshape", wide, op("Concat", op.integers(-1), op("Reshape", bits, op.integers(1)), axis=0))
        start = op("Mul", op("Range", op.integer(0), eight, one), bits)
        byte = op("Div", start, eight)
        following = op("Min", op("Add", byte, one), op("Sub", bits, one))
        pair = op("Add", op("Gather", words, byte, axis=1), op("Mul", op("Gather", words, following, axis=1), op.integer(256)))
        shifted = op("Div", pair, op("Pow", two, op("Sub", start, op("Mul", byte, eight))))
        flat = op("Reshape", op("Mod", shifted, op("Pow", two, bits)), op.integers(-1))
    count = op("Reshape", op("ReduceProd", shape, keepdims=0), op.integers(1))
    shaped = op("Reshape", op("Slice", flat, op.integers(0), count), shape)
    width = op("Gather", shape, op.integer(-1))
    block = op("Div", op("Range", op.integer(0), width, op.integer(1)), op.attribute("block_size", "value_int"))
    scale = op("Gather", op("Cast", "scale", to=_FLOAT), block, axis=-1)
    if kind == "Table":
        values = op("Gather", "table", shaped)
    elif kind == "Affine":
        values = op("Sub", op("Cast", shaped, to=_FLOAT), op("Gather", op("Cast", "zero_point", to=_FLOAT), block, axis=-1))
    else:
        half = op("Pow", op.integer(2), op("Sub", op.attribute("bits", "value_int"), op.integer(1)))
        values = op("Cast", op("Sub", shaped, half), to=_FLOAT)
    op.last("Mul", values, scale)
    return FunctionProto(
        name=name, domain=QRUNTIME, input=["bytes", "scale", *_LAST[kind]], output=["y"],
        attribute=["bits", "shape", "block_size", "format"], node=op.nodes, opset_import=[OperatorSetIdProto(domain="", version=opset)],
    )  # fmt: skip
