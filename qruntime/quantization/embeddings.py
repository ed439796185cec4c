"""Embedding tables in 8 or 4 bits, one scale and one offset for every row.

    row = scale · q + offset

Stored as plain arithmetic after Gather, which every runtime has: Gather of the codes, Cast, Mul by the
gathered scales, Add of the gathered offsets. 4-bit codes are two to a byte, column j in the low half and
column j + D/2 in the high half, so that Floor and Concat take them apart. Where the table was of a narrower float, a Cast
to it follows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qruntime._kernels import table_codes
from qruntime.ir import Attribute, AttributeType, Node, Value
from qruntime.ir.dtypes import onnx_code
from qruntime.onnx_io.mapped_file import drop_pages
from qruntime.ops.elementwise import is_narrow_float
from qruntime.passes.weights import STORED
from qruntime.quantization.observed import decibels
from qruntime.quantization.qconfig import Observer
from qruntime.quantization.ranges import row_blocks
from qruntime.quantization.report import QuantizedLayer
from qruntime.quantization.selection import is_quantized_embedding
from qruntime.quantization.storage import SNR, constant, stored_snr

SCHEME = "per_channel_affine_float_qparams"

_TABLE = "qruntime.table"
"""Metadata key of a look-up whose table was of a float narrower than float32: its ONNX element code."""

_NARROW = ("10", "16")  # float16, bfloat16


class Table(NamedTuple):
    """A quantized table as constants: codes (packed when of 4 bits), scale and offset."""

    codes: Value
    scale: Value
    offset: Value
    snr_db: float

    @property
    def nbytes(self) -> int:
        return sum(part.data.nbytes for part in self[:3] if part.data is not None)


class Tables:
    """Quantizes each table once, however many look-ups read it."""

    def __init__(self) -> None:
        self._made: dict[tuple[Value, Observer], Table] = {}

    def quantize_node(self, node: Node, observer: Observer) -> str | QuantizedLayer:
        """Replace a Gather from a float table; a string says why that cannot be."""
        value, owner = node.input(0), node.graph
        assert value is not None
        assert value.data is not None
        assert owner is not None
        reason = _obstacle(node, value.data, observer)
        if reason:
            return reason
        shared = (value, observer) in self._made
        if not shared:
            try:
                self._made[value, observer] = _quantize_table(value.name, value.data, observer)
            except ValueError as error:
                return str(error)
        table = self._made[value, observer]
        nodes = _look_up(node, value, table, observer)
        owner.insert_before(node, *nodes)
        owner.replace_uses(node.outputs[0], nodes[-1].outputs[0])
        owner.remove(node)
        before, after = (0, 0) if shared else (value.data.nbytes, table.nbytes)
        drop_pages([value.data])
        name = node.name or node.outputs[0].name
        return QuantizedLayer(name, "Gather", "Embedding", value.data.shape, SCHEME, before, after, table.snr_db, shared)


def _obstacle(node: Node, data: np.ndarray, observer: Observer) -> str | None:
    if data.size == 0:
        return "the table is empty"
    if observer.dtype == "quint4x2" and data.shape[1] % 2:
        return f"the table has {data.shape[1]} columns, quint4x2 needs an even number"
    return f"opset {node.version} lacks the arithmetic, need 6" if node.version < 6 else None


def _quantize_table(name: str, data: np.ndarray, observer: Observer) -> Table:
    q, scale, offset, snr = quantize_rows(data, observer)
    if observer.dtype == "quint4x2":
        half = q.shape[1] // 2
        low, high = q[:, :half], q[:, half:]
        q = np.left_shift(high, 4, order="C")
        q |= low
    return Table(constant(f"{name}_quantized", q), constant(f"{name}_scale", scale), constant(f"{name}_offset", offset), snr)


def _look_up(node: Node, value: Value, table: Table, observer: Observer) -> list[Node]:
    made, name = _Nodes(node), value.name
    metadata = {**node.metadata, STORED: observer.dtype, SNR: f"{table.snr_db:.2f}"}
    code = onnx_code(value.data.dtype) if value.data is not None and is_narrow_float(value.data.dtype) else 0
    if code:
        metadata[_TABLE] = str(code)
    rows = made("Cast", [made("Gather", [table.codes, node.input(1)], metadata, node.name)], to=1)
    if observer.dtype == "quint4x2":
        high = made("Floor", [made("Mul", [rows, constant(f"{name}_sixteenth", np.float32(1 / 16))])])
        low = made("Sub", [rows, made("Mul", [high, constant(f"{name}_sixteen", np.float32(16))])])
        rows = made("Concat", [low, high], axis=-1)
    scaled = made("Mul", [rows, made("Gather", [table.scale, node.input(1)])])
    y = made("Add", [scaled, made("Gather", [table.offset, node.input(1)])])
    if code:
        y = made("Cast", [y], to=code)
    y.type = node.outputs[0].type
    return made.nodes


def quantize_rows(table: np.ndarray, observer: Observer) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Codes uint8 [N, D], scale and offset float32 [N, 1] of `table`, with torch's arithmetic; signal to noise in dB.

    Raises ValueError for a table that is empty or holds NaN or infinity.
    """
    q = np.empty(table.shape, np.uint8)
    scale, offset = np.empty((2, table.shape[0], 1), np.float32)
    signal = noise = 0.0
    for part in row_blocks(table):  # a block that is not contiguous, not aligned or of a narrow float is copied
        block = np.require(table[part], np.float32, "CA")
        powers = table_codes(block, *observer.codes, observer.eps, q[part], scale[part, 0], offset[part, 0])
        signal, noise = signal + powers[0], noise + powers[1]
    return q, scale, offset, decibels(signal, noise)


class _Nodes:
    """Nodes of one look-up, in its opset."""

    def __init__(self, node: Node):
        self.node = node
        self.nodes: list[Node] = []

    def __call__(self, op: str, inputs: list[Value | None], metadata: dict[str, str] | None = None, name: str = "", **ints: int) -> Value:
        output = Value(f"{self.node.outputs[0].name}_{op.lower()}{len(self.nodes)}")
        attributes = {key: Attribute(AttributeType.INT, value) for key, value in ints.items()}
        made = Node(
            op, inputs, [output], attributes, version=self.node.version, name=name, metadata=metadata, origin=[self.node]
        )
        self.nodes.append(made)
        return output


def _bytes_of_number(node: Node) -> int:
    """Of the table that the codes were made from; files may say anything."""
    return 2 if node.metadata.get(_TABLE) in _NARROW else 4


def describe_embedding(node: Node, seen: set[Any]) -> QuantizedLayer | None:
    """Report row of a quantized lookup that was loaded from a file; `seen` holds the tables already counted."""
    table = node.input(0)
    if table is None or table.data is None or not is_quantized_embedding(node):
        return None
    rows, width = table.data.shape
    columns = width * (2 if node.metadata[STORED] == "quint4x2" else 1)
    shared = table in seen
    seen.add(table)
    before, after = (0, 0) if shared else (rows * columns * _bytes_of_number(node), table.data.nbytes + 8 * rows)
    return QuantizedLayer(
        node.name or node.outputs[0].name, "Gather", "Embedding", (rows, columns), SCHEME, before, after, stored_snr(node), shared
    )
