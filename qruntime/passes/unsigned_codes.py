"""Images of int8 codes become images of uint8: each code 128 higher, and zero points with them, so that what a code stands for stays.

Kernels multiply codes from 0 to 255 where they lie, and those from −128 to 127 after a copy. Tables and operators that move codes
work with either; before any other reader, and before what the graph gives out, a table takes the 128 off again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.ir.dtypes import onnx_code
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.passes.rewriting import QRUNTIME, Builder, trace
from qruntime.passes.scaled_codes import all_codes

_UINT8 = onnx_code(np.dtype(np.uint8))
_TOP = np.uint8(0x80)

_MOVING = frozenset({
    "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators whose outputs hold elements of their first input and nothing else."""


def keep_codes_unsigned(graph: Graph) -> None:
    """int8 activations between convolutions on codes  →  uint8."""
    for nested in graph.walk_graphs():
        if any(node.is_op("QLinearConv", domain=QRUNTIME) for node in nested.nodes):
            _Raising(nested).run()


class _Raising:
    """Values of one graph that were int8 and are 128 higher now."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.raised: set[Value] = set()
        self.restored: dict[Value, Value] = {}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            rule = _RULES.get((node.domain, node.op_type))
            if rule is None and not node.domain and node.op_type in _MOVING:
                rule = _move
            if (rule is None or not rule(self, node)) and not node.is_op("Shape", "Size"):
                self.restore(node)
        if self.raised:
            trace(f"keep_codes_unsigned raises {len(self.raised)} values")

    def restore(self, node: Node) -> None:
        """`node` reads int8 as it did."""
        for index, value in enumerate(node.inputs):
            if value is None or value not in self.raised:
                continue
            if value not in self.restored:
                op = Builder(node)
                self.restored[value] = op.CodeTable(value, constant(f"{value.name}/int8", _flipped(all_codes(np.dtype(np.uint8)))))
                self.graph.insert_before(node, *op.nodes)
            node.set_input(index, self.restored[value])

    def may_give(self, node: Node) -> bool:
        """Whether nobody but nodes of this graph reads what `node` gives, behind a transposition neither."""
        readers = [user for v in node.outputs for user, _ in v.uses]
        if any(v.output_of for v in node.outputs) or any(user.graph is not self.graph for user in readers):
            return False
        return all(self.may_give(user) for user in readers if user.is_op("Transpose"))

    def give(self, node: Node) -> None:
        for value in node.outputs:
            self.raised.add(value)
            if value.type is not None:
                value.type = value.type._replace(dtype=_UINT8)


def _flipped(codes: np.ndarray) -> np.ndarray:
    """int8 as uint8 and the reverse, 128 higher or lower."""
    return (codes.view(np.uint8) ^ _TOP).view(np.uint8 if codes.dtype == np.int8 else np.int8)


def _raise(node: Node, index: int) -> None:
    """The constant of int8 at this input, 128 higher; a zero point that is absent is 0."""
    value = node.input(index)
    data = np.int8(0) if value is None else value.data
    assert data is not None
    while len(node.inputs) <= index:
        node.append_input(None)
    name = node.outputs[0].name if value is None else value.name
    node.set_input(index, constant(f"{name}/uint8", _flipped(np.ascontiguousarray(data)).reshape(np.shape(data))))


def _is_int8(node: Node, index: int) -> bool:
    value = node.input(index)
    return value is not None and value.data is not None and value.data.dtype == np.int8


def _quantize(raising: _Raising, node: Node) -> bool:
    if _is_int8(node, 2) and not node.attr("output_dtype", 0) and raising.may_give(node):
        _raise(node, 2)
        raising.give(node)
    return node.input(0) not in raising.raised


def _dequantize(raising: _Raising, node: Node) -> bool:
    if node.input(0) not in raising.raised:
        return True
    scale = node.input(1)
    if not _is_int8(node, 2) and (node.input(2) is not None or scale is None or scale.shape != ()):
        return False
    _raise(node, 2)
    return True


def _table(raising: _Raising, node: Node) -> bool:
    table = node.input(1)
    if table is None or table.data is None:
        return False
    made = table.data
    if node.input(0) in raising.raised:
        made = made[all_codes(np.dtype(np.uint8)) ^ _TOP]
    if made.dtype == np.int8 and raising.may_give(node):
        made = _flipped(made)
        raising.give(node)
    node.set_input(1, constant(f"{table.name}/uint8", made))
    return True


_TABLE = 9
"""The input of a layer that is a table."""


def _layer(raising: _Raising, node: Node) -> bool:
    """QLinearConv and QLinearMatMul: what they read and what they give each for itself."""
    table = node.input(_TABLE)
    if _is_int8(node, 7) and (table is None or _is_int8(node, _TABLE)) and raising.may_give(node):
        _raise(node, 7)
        if table is not None and table.data is not None:
            by_byte = table.data[all_codes(np.dtype(np.uint8)) ^ _TOP]
            node.set_input(_TABLE, constant(f"{table.name}/uint8", _flipped(by_byte)))
        raising.give(node)
    if node.input(0) not in raising.raised:
        return True
    if node.input(2) is not None and not _is_int8(node, 2):
        return False
    _raise(node, 2)
    return True


def _move(raising: _Raising, node: Node) -> bool:
    if node.input(0) not in raising.raised or not raising.may_give(node) or any(v in raising.raised for v in node.inputs[1:]):
        return False
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return False
    if node.op_type == "Resize" and (
        node.attr("mode", "nearest") != "nearest" or node.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    ):
        return False
    raising.give(node)
    return True


def _concat(raising: _Raising, node: Node) -> bool:
    if not raising.may_give(node) or not all(v in raising.raised for v in node.inputs):
        return False
    raising.give(node)
    return True


def _scaled(*operands: int) -> Callable[[_Raising, Node], bool]:
    """Operators whose operands and result are codes of one type, each with its scale and zero point behind it; the result's are last."""

    def rule(raising: _Raising, node: Node) -> bool:
        read = [node.input(i) for i in operands]
        target = operands[-1] + 4
        zeros = [i + 2 for i in operands] + [target]
        if not any(v in raising.raised for v in read) or not raising.may_give(node):
            return False
        if not all(v in raising.raised or _is_int8(node, i) for v, i in zip(read, operands, strict=True)):
            return False
        if any(node.input(i) is not None and not _is_int8(node, i) for i in zeros):
            return False
        for i in zeros:
            _raise(node, i)
        for i in operands:
            if node.input(i) not in raising.raised:
                _raise(node, i)
        raising.give(node)
        return True

    return rule


_RULES: dict[tuple[str, str], Callable[[_Raising, Node], bool]] = {
    ("", "Concat"): _concat,
    ("", "DequantizeLinear"): _dequantize,
    ("", "QuantizeLinear"): _quantize,
    (MICROSOFT, "NhwcMaxPool"): _move,
    (MICROSOFT, "QLinearAdd"): _scaled(0, 3),
    (MICROSOFT, "QLinearAveragePool"): _scaled(0),
    (MICROSOFT, "QLinearGlobalAveragePool"): _scaled(0),
    (MICROSOFT, "QLinearMul"): _scaled(0, 3),
    (QRUNTIME, "CodeTable"): _table,
    (QRUNTIME, "QLinearConv"): _layer,
    (QRUNTIME, "QLinearMatMul"): _layer,
}
