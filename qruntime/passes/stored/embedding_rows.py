"""Tables in 8 or 4 bits with one scale and one offset for every row, of which look-ups read rows.

    row = scale · code + offset

Stored as plain arithmetic after Gather, which every runtime has: Gather of the codes, Cast, Mul by the
gathered scales, Add of the gathered offsets. 4-bit codes are two to a byte, column j in the low half and
column j + D/2 in the high half, so that Floor and Concat take them apart. Where the numbers of the table are of a narrower
float, a Cast to it follows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qruntime.ir import Attribute, AttributeType, Graph, HeldCodes, Node, StoredTensor, Value, constant, stored_constant
from qruntime.ir.dtypes import numpy_dtype, onnx_code
from qruntime.ir.formats import UINT4, UINT8
from qruntime.ir.narrow import NarrowArray
from qruntime.passes.rewriting import Rewrite, Skip, only_reader, rewrite_graph, splice

_FLOAT = 1
_NARROW = (10, 16)  # float16, bfloat16


class _ReadRows(Rewrite):
    """Cast(codes[ids]) · scale[ids] + offset[ids]  →  Gather(stored table, ids)"""

    def pattern(self, op: Any, codes: Any, scale: Any, offset: Any, ids: Any) -> Any:
        return self.scaled(op, op.Cast(op.Gather(codes, ids, name="look_up"), to=_FLOAT), scale, offset, ids)

    def scaled(self, op: Any, rows: Any, scale: Any, offset: Any, ids: Any) -> Any:
        return op.Add(op.Mul(rows, op.Gather(scale, ids, name="scales")), op.Gather(offset, ids, name="offsets"))

    def check(self, codes: Value, scale: Value, offset: Value, ids: Value, **named: Any) -> Skip | None:
        table = codes.data
        if table is None or table.dtype != np.uint8 or table.ndim != 2:
            return Skip("the codes are no uint8 table")
        for value in (scale, offset):
            if value.data is None or value.data.dtype != np.float32 or value.data.shape != (table.shape[0], 1):
                return Skip(f"{value.name} is no float32 constant with one entry for each row")
        gathers = [node for node in named.values() if isinstance(node, Node) and node.is_op("Gather")]
        if any(node.attr("axis", 0) not in (0, -2) for node in gathers):
            return Skip("not the rows are looked up")
        return None

    def stored(self, codes: np.ndarray) -> tuple[Any, Any]:
        return UINT8, codes

    def replace(self, op: Any, codes: Value, scale: Value, offset: Value, ids: Value, look_up: Node, **named: Any) -> Value:
        assert codes.data is not None and scale.data is not None and offset.data is not None
        form, held = self.stored(codes.data)
        table = stored_constant(codes.name.removesuffix("_quantized"), StoredTensor(form, HeldCodes(held), scale.data, offset=offset.data))
        rows = op.Gather(table, ids, domain="", axis=0)
        node = rows.producer
        node.name, node.metadata, node.mark, node.version = look_up.name, dict(look_up.metadata), look_up.mark, look_up.version
        return rows


class _ReadHalfByteRows(_ReadRows):
    """The same with two codes to a byte, taken apart by Floor(byte / 16)"""

    needs = "Floor"

    def pattern(self, op: Any, codes: Any, scale: Any, offset: Any, ids: Any) -> Any:
        pairs = op.Cast(op.Gather(codes, ids, name="look_up"), to=_FLOAT)
        high = op.Floor(op.Mul(pairs, 1 / 16))
        rows = op.Concat(op.Sub(pairs, op.Mul(high, 16)), high, axis=-1)
        return self.scaled(op, rows, scale, offset, ids)

    def stored(self, codes: np.ndarray) -> tuple[Any, Any]:
        rows, columns = codes.shape
        return UINT4, NarrowArray(codes.reshape(-1), 4, False, (rows, 2 * columns), in_halves=True)


def read_embedding_rows(graph: Graph) -> None:
    if not rewrite_graph(graph, [_ReadRows(), _ReadHalfByteRows()]):
        return
    for nested in graph.walk_graphs():
        gone = [cast for node in nested.nodes if node.mark is not None and (cast := _narrowing(nested, node)) is not None]
        nested.remove(*gone)


def _narrowing(graph: Graph, node: Node) -> Node | None:
    """The Cast behind a look-up, once the table has its element type."""
    table, cast = node.input(0), only_reader(graph, node)
    if not is_row_table(table) or cast is None or not cast.is_op("Cast") or cast.attr("to") not in _NARROW:
        return None
    assert table is not None and table.stored is not None
    narrow = stored_constant(table.name, replace(table.stored, dtype=numpy_dtype(cast.attr("to"))))
    node.set_input(0, narrow)
    graph.replace_uses(cast.outputs[0], node.outputs[0])
    node.outputs[0].type = cast.outputs[0].type
    return cast


def is_row_table(value: Value | None) -> bool:
    """Whether a value is a table of rows that have a scale and an offset each."""
    stored = None if value is None else value.stored
    if stored is None or stored.offset is None or stored.format not in (UINT8, UINT4) or stored.outliers is not None or stored.block:
        return False
    per_row = (stored.shape[0], 1)
    is_held = isinstance(stored.codes, np.ndarray) or stored.codes.in_halves
    return is_held and isinstance(stored.scale, np.ndarray) and stored.scale.shape == per_row == stored.offset.shape


def write_embedding_rows(graph: Graph) -> None:
    """Gather(stored table, ids)  →  the arithmetic that makes the rows."""
    parts: dict[Value, list[Value]] = {}
    for nested in graph.walk_graphs():
        replaced: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            table = node.input(0)
            if node.is_op("Gather") and table is not None and is_row_table(table):
                if table not in parts:
                    parts[table] = _constants(table)
                nodes = replaced[node] = _look_up(node, table, *parts[table])
                nested.replace_uses(node.outputs[0], nodes[-1].outputs[0])
        splice(nested, replaced)


def _constants(table: Value) -> list[Value]:
    stored = table.stored
    assert stored is not None and isinstance(stored.scale, np.ndarray) and stored.offset is not None
    return [
        constant(f"{table.name}_quantized", row_codes(stored)),
        constant(f"{table.name}_scale", stored.scale),
        constant(f"{table.name}_offset", stored.offset),
    ]


def row_codes(stored: StoredTensor) -> np.ndarray:
    """The codes uint8 [rows, D], or of 4 bits [rows, D/2]."""
    codes = stored.codes
    return codes if isinstance(codes, np.ndarray) else codes.data.reshape(stored.shape[0], -1)


def _look_up(node: Node, table: Value, codes: Value, scale: Value, offset: Value) -> list[Node]:
    made, stored = _Nodes(node), table.stored
    assert stored is not None
    picked = made("Gather", [codes, node.input(1)])
    made.nodes[0].name, made.nodes[0].metadata, made.nodes[0].mark = node.name, dict(node.metadata), node.mark
    rows = made("Cast", [picked], to=_FLOAT)
    if stored.format is UINT4:
        high = made("Floor", [made("Mul", [rows, constant(f"{table.name}_sixteenth", np.float32(1 / 16))])])
        low = made("Sub", [rows, made("Mul", [high, constant(f"{table.name}_sixteen", np.float32(16))])])
        rows = made("Concat", [low, high], axis=-1)
    scaled = made("Mul", [rows, made("Gather", [scale, node.input(1)])])
    y = made("Add", [scaled, made("Gather", [offset, node.input(1)])])
    if stored.dtype != np.float32:
        y = made("Cast", [y], to=onnx_code(stored.dtype))
    y.type = node.outputs[0].type
    return made.nodes


class _Nodes:
    """Nodes of one look-up, in its opset."""

    def __init__(self, node: Node):
        self.node = node
        self.nodes: list[Node] = []

    def __call__(self, op: str, inputs: list[Value | None], **ints: int) -> Value:
        output = Value(f"{self.node.outputs[0].name}_{op.lower()}{len(self.nodes)}")
        attributes = {key: Attribute(AttributeType.INT, value) for key, value in ints.items()}
        self.nodes.append(Node(op, inputs, [output], attributes, version=self.node.version, origin=[self.node]))
        return output
