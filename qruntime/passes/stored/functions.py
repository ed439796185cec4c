"""What the standard has no operator for: a call of a function of ours, whose body is standard operators (function_bodies.py).

    DequantizeAffine     (bytes, scale, zero_point)     scale · (code − zero_point)
    DequantizeSymmetric  (bytes, scale)                 scale · (code − 2^(bits − 1))
    DequantizeOffset     (bytes, scale, offset)         scale · (least + code) + offset
    DequantizeTable      (bytes, scale, table)          scale · table[code]
    DequantizePairs      (bytes, scale, table)          scale · table[code], 16 entries further on beside code 8
    …Bytes                                              the same with codes of a byte, not of 2 to 7 bits

Attributes: `bits`; `shape` of the result; `block_size` along its last axis, or of DequantizeOffset along `axis`, for each of
which scales have one entry, and offsets one or one for all; `format`, a name of ir/formats.py, and of DequantizeOffset the
`least` of it. Codes count from the least one of the format and follow one another from the lowest bit of a byte up, in whole
words of 8 codes. Scales and zero points that are codes themselves come from another such call. Other runtimes run the body,
which may differ between files; here the call is read as what it stores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from qruntime.ir import HeldCodes, Node, StoredTensor, TypeInfo, Value, constant
from qruntime.ir.formats import FORMATS, Format
from qruntime.ir.narrow import NarrowArray, packed_size, unpack
from qruntime.ir.stored import held, numbers
from qruntime.passes.rewriting import QRUNTIME, as_attribute
from qruntime.passes.stored.function_bodies import LEAST_OPSET

_FLOAT = 1
_TABLES = ("Table", "Pairs")


def write(name: str, stored: StoredTensor, version: int, nodes: list[Node]) -> Value | None:
    """A call that joins `nodes`, behind it a Transpose where the blocks do not run along the last axis."""
    if version < LEAST_OPSET or stored.scale is None or stored.outliers is not None or stored.format.bits > 8 or stored.ndim < 2:
        return None
    if stored.offset is None and not _runs_along_last(stored):
        turned = write(name, stored.transposed(), version, nodes) if stored.ndim == 2 and _runs_along_last(stored.transposed()) else None
        if turned is None:
            return None
        output = Value(f"{turned.name}_transposed", TypeInfo("tensor", _FLOAT, stored.shape))
        nodes.append(Node("Transpose", [turned], [output], {"perm": as_attribute((1, 0))}, version=version))
        return output
    form, kind = stored.format, _kind(stored)
    scale = _part(f"{name}_scale", stored.scale, version, nodes)
    inputs = [constant(f"{name}_quantized", _packed(stored)), scale]
    attributes = {"bits": form.bits, "shape": stored.shape, "block_size": stored.block or stored.shape[-1], "format": form.name}
    if kind in _TABLES:
        inputs.append(constant(f"{form.name}_table", _table(form)))
    elif kind == "Affine":
        inputs.append(_zero_points(f"{name}_zero_point", stored, version, nodes))
    elif kind == "Offset" and stored.offset is not None:
        inputs.append(constant(f"{name}_offset", stored.offset))
        attributes |= {"axis": stored.block_axis, "block_size": stored.block or stored.shape[stored.block_axis], "least": form.qmin}
    if None in inputs:
        return None
    output = Value(f"{name}_dequantized", TypeInfo("tensor", _FLOAT, stored.shape))
    made = {key: as_attribute(value) for key, value in attributes.items()}
    nodes.append(Node(_name(kind, form.bits), inputs, [output], made, domain=QRUNTIME, version=1))
    return output


def _part(name: str, part: np.ndarray | StoredTensor, version: int, nodes: list[Node]) -> Value | None:
    return write(name, part, version, nodes) if isinstance(part, StoredTensor) else constant(name, part)


def _zero_points(name: str, stored: StoredTensor, version: int, nodes: list[Node]) -> Value | None:
    """Counted from the least code, as the codes are; None of floats that this would round."""
    zero, least = stored.zero_point, stored.format.qmin
    if zero is None:
        zero = np.zeros((1,) * stored.ndim if stored.scale is None else stored.scale.shape, np.int16)
    if isinstance(zero, np.ndarray) and zero.dtype.kind in "iu":
        return constant(name, (zero.astype(np.int16) - least).astype(np.uint8))
    return None if least else _part(name, zero, version, nodes)


def _runs_along_last(stored: StoredTensor) -> bool:
    """Whether blocks and pairs run along the last axis, or nothing does."""
    if (stored.block or stored.format.is_paired) and stored.block_axis != stored.ndim - 1:
        return False
    return bool(stored.block) or (stored.scale is not None and stored.scale.shape[-1] == 1)


def _kind(stored: StoredTensor) -> str:
    if stored.offset is not None:
        return "Offset"
    if stored.format.is_paired:
        return "Pairs"
    if stored.format.table is not None:
        return "Table"
    return "Symmetric" if stored.format.is_signed and not stored.is_shifted else "Affine"


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
    codes, scale, last = (None if v is None else v.stored if v.data is None else v.data for v in (node.input(i) for i in range(3)))
    form, layout = FORMATS.get(str(node.attr("format"))), _layout(node)
    kind = node.op_type.removeprefix("Dequantize").removesuffix("Bytes")
    if not isinstance(codes, np.ndarray) or scale is None or form is None or layout is None or form.is_float or form.bits > 8:
        return None
    if node.op_type != _name(kind, form.bits) or node.attr("bits") != form.bits or (last is None) != (kind == "Symmetric"):
        return None
    if (kind == "Table") != (form.table is not None and kind != "Offset") or (kind == "Pairs") != form.is_paired:
        return None
    if kind in _TABLES and not (isinstance(last, np.ndarray) and np.array_equal(last, _table(form), equal_nan=True)):
        return None
    count = math.prod(layout.shape)
    if codes.dtype != np.uint8 or codes.ndim != 1 or codes.size < packed_size(count, form.bits) or not layout.is_served_by(scale):
        return None
    zero_point = offset = None
    if kind == "Affine" and last is not None:
        zero_point = _read_zero_points(last, form)
        if zero_point is None or last.shape != scale.shape:
            return None
    elif kind == "Offset":
        if not isinstance(last, np.ndarray) or not form.is_integer or node.attr("least") != form.qmin:
            return None
        if not layout.is_served_by(last, or_one=True):
            return None
        offset = last
    flat = codes[:count] if form.bits == 8 else unpack(codes[: packed_size(count, form.bits)], form.bits, count)
    weight = held(_from_least(flat, form).reshape(layout.shape), form)
    block = layout.block if layout.block < layout.shape[layout.axis] else 0
    return StoredTensor(form, HeldCodes(weight), scale, zero_point, offset, block=block, block_axis=layout.axis)


class _Layout(NamedTuple):
    shape: tuple[int, ...]
    block: int
    axis: int

    def is_served_by(self, part: np.ndarray | StoredTensor, *, or_one: bool = False) -> bool:
        """Whether scales, or offsets, are finite floats with an entry for each block, or one for all."""
        entries = [-(-n // self.block) if i == self.axis else n for i, n in enumerate(self.shape)]
        if part.ndim != len(entries) or part.dtype not in (np.float32, np.float16):
            return False
        if part.shape[self.axis] != entries[self.axis] and not (or_one and part.shape[self.axis] == 1):
            return False
        return all(n in (1, m) for n, m in zip(part.shape, entries)) and bool(np.isfinite(numbers(part)).all())


def _layout(node: Node) -> _Layout | None:
    """None for what cannot be such."""
    shape, block = node.attr("shape"), node.attr("block_size")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n > 0 for n in shape) or not isinstance(block, int):
        return None
    axis = node.attr("axis") if "Offset" in node.op_type else len(shape) - 1
    if not isinstance(axis, int) or not 0 <= axis < len(shape):
        return None
    return _Layout(shape, block, axis) if len(shape) > 1 and math.prod(shape) <= 1 << 40 and block > 0 else None


def _table(form: Format) -> np.ndarray:
    return form.values if form.pairs is None else np.array(form.pairs, np.float32)


def _read_zero_points(part: np.ndarray | StoredTensor, form: Format) -> np.ndarray | StoredTensor | None:
    if isinstance(part, np.ndarray) and part.dtype == np.uint8:
        return _from_least(part, form)
    if part.dtype not in (np.float32, np.float16) or form.qmin or not np.isfinite(numbers(part)).all():
        return None
    return part


def _from_least(codes: np.ndarray, form: Format) -> np.ndarray:
    """Codes of `form` that count from its least one, as they are."""
    return (codes.astype(np.int16) + form.qmin).astype(np.int8) if form.is_signed else codes
