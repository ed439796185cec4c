"""Functions of a single 8-bit code become tables of 256: exactly what the nodes compute.

    DequantizeLinear → elementwise operators → QuantizeLinear       CodeTable
    QLinearSigmoid, QLinearLeakyRelu                                CodeTable
    QLinearAdd, QLinearMul of codes that one code decides           CodeTable, as SiLU and hard swish are
    a table behind a table                                          one table

Codes stay what they were: a table holds what the operators make of each of the 256.
"""

from __future__ import annotations

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.ir.dtypes import onnx_code
from qruntime.ops import registry
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.rewriting import QRUNTIME, Builder, trace
from qruntime.passes.scaled_codes import all_codes, dequantized_codes, element_type, quantization_of, scale_of

_ELEMENTWISE = frozenset({
    "Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min",
    "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Swish",
    "Tanh", "ThresholdedRelu",
})  # fmt: skip
"""Operators that make one number of numbers at the same place."""

_OF_OUR_DOMAIN = ("Gelu", "HardSwish", "Silu")

_MOST_NODES = 16
"""An elementwise function of more nodes is left alone."""


def fold_code_tables(graph: Graph) -> None:
    """Functions of one 8-bit code  →  CodeTable."""
    for nested in graph.walk_graphs():
        for node in list(nested.nodes):
            if node.graph is not nested or len(node.outputs) != 1:
                continue
            found = _table(node)
            if found is None:
                continue
            source, table = found
            op = Builder(node)
            made = source
            if element_type(source) != onnx_code(table.dtype) or not np.array_equal(table, all_codes(table.dtype)):
                made = op.CodeTable(source, constant(f"{node.outputs[0].name}/table", table))
                nested.insert_before(node, *op.nodes)
            nested.replace_uses(node.outputs[0], made)
            trace(f"fold_code_tables at {node.label}")
    remove_dead_nodes(graph)


_Found = tuple[Value, np.ndarray]
"""Codes, and what becomes of each of them, by their bytes."""


def _table(node: Node) -> _Found | None:
    if node.is_op("CodeTable", domain=QRUNTIME):
        inner = _known(node.input(0))
        outer = node.input(1)
        if inner is None or outer is None or outer.data is None:
            return None
        return inner[0], outer.data[inner[1].view(np.uint8)]
    if quantization_of(node) is not None:
        return _quantized(node)
    if node.is_op("QLinearSigmoid", "QLinearLeakyRelu", domain=MICROSOFT):
        return _applied(node, (0,))
    if node.is_op("QLinearAdd", "QLinearMul", domain=MICROSOFT):
        return _applied(node, (0, 3))
    return None


def _known(value: Value | None) -> _Found | None:
    """What a table made `value` of."""
    node = None if value is None else value.producer
    if node is None or not node.is_op("CodeTable", domain=QRUNTIME):
        return None
    source, table = node.input(0), node.input(1)
    return None if source is None or table is None or table.data is None else (source, table.data)


def _computed(node: Node, inputs: list[np.ndarray | None]) -> np.ndarray | None:
    """What the definition of `node` makes of arrays, None when it refuses them."""
    spec = registry.find(node.domain, node.op_type, node.version)
    if spec is None or not spec.deterministic:
        return None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    try:
        with np.errstate(all="ignore"):
            result = spec.definition(*inputs, **attributes)
    except (TypeError, ValueError) as error:  # the run will report it, with the node's name
        trace(f"fold_code_tables declines at {node.label}: {error}")
        return None
    return result if isinstance(result, np.ndarray) and result.shape == (256,) else None


def _applied(node: Node, operands: tuple[int, ...]) -> _Found | None:
    """An operator on codes whose operands all come from one code; the rest of its inputs are constants."""
    inputs = [None if value is None else value.data for value in node.inputs]
    source: Value | None = None
    for index in operands:
        scale = scale_of(node.input(index + 1), node.input(index + 2), 0)
        value = node.input(index)
        if value is None or scale is None or value.data is not None:
            return None
        root, table = _known(value) or (value, all_codes(scale.dtype))
        if source is not None and root is not source:
            return None
        source, inputs[index] = root, table
    if any(value is not None and inputs[i] is None for i, value in enumerate(node.inputs)):
        return None
    result = _computed(node, inputs)
    return None if source is None or result is None else (source, result)


def _quantized(node: Node) -> _Found | None:
    """A QuantizeLinear of an elementwise function of dequantized codes."""
    found = _Function(_MOST_NODES).of(node.input(0))
    if found is None:
        return None
    parameters = [None if value is None else value.data for value in node.inputs[1:]]
    result = _computed(node, [found[1], *parameters])
    return None if result is None else (found[0], result)


class _Function:
    """Values as functions of the codes that alone decide them; each is computed once."""

    def __init__(self, budget: int):
        self.budget = budget
        self.found: dict[Value, _Found | None] = {}

    def of(self, value: Value | None) -> _Found | None:
        if value is None or value.producer is None:
            return None
        if value not in self.found:
            self.found[value] = self._dequantized(value) or self._elementwise(value.producer)
        return self.found[value]

    def _dequantized(self, value: Value) -> _Found | None:
        codes = dequantized_codes(value)
        if codes is None or codes.value.data is not None or value.producer is None:
            return None
        root, table = _known(codes.value) or (codes.value, all_codes(codes.scale.dtype))
        real = _computed(value.producer, [table, *codes.scale.arrays]) if table.dtype == codes.scale.dtype else None
        return None if real is None else (root, real)

    def _elementwise(self, node: Node) -> _Found | None:
        self.budget -= 1
        if self.budget < 0 or not (node.is_op(*_ELEMENTWISE) or node.is_op(*_OF_OUR_DOMAIN, domain=QRUNTIME)):
            return None
        source: Value | None = None
        inputs: list[np.ndarray | None] = []
        for operand in node.inputs:
            if operand is None or operand.data is not None:
                if operand is not None and not _keeps_rank(node, operand):
                    return None
                inputs.append(None if operand is None else operand.data)
                continue
            found = self.of(operand)
            if found is None or (source is not None and found[0] is not source):
                return None
            source = found[0]
            inputs.append(found[1])
        result = None if source is None else _computed(node, inputs)
        return None if source is None or result is None or result.dtype != np.float32 else (source, result)


def _keeps_rank(node: Node, operand: Value) -> bool:
    """Whether a constant is one number, and leaves the other operands the rank they have."""
    if operand.data is None or operand.data.size != 1 or not operand.data.ndim:
        return operand.data is not None and operand.data.size == 1
    others = [value.type for value in node.inputs if value is not None and value.data is None]
    return all(t is not None and t.shape is not None and len(t.shape) >= operand.data.ndim for t in others)
