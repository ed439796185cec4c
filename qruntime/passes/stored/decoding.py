"""Stored constants that no kernel reads as codes become float constants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.ir.dtypes import onnx_code
from qruntime.ir.formats import INT8
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.low_bit_weights import fits_kernels
from qruntime.passes.rewriting import QRUNTIME, Builder, splice
from qruntime.passes.stored import cache_functions, rounding_functions
from qruntime.passes.stored.embedding_rows import is_row_table, row_codes

_LAYERS = frozenset({"MatMul", "Gemm", "LSTM", "GRU", "RNN", "Conv"})
_FUSED_LAYERS = frozenset({"FusedMatMul", "TransposeMatMul", "FusedGemm", "GemmFastGelu", "FusedConv", "Attention"})
"""Of com.microsoft: a later pass makes layers of them."""

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_LINEAR = frozenset({"MatMul", "Gemm", "FusedMatMul", "TransposeMatMul", "FusedGemm", "GemmFastGelu"})
"""Those with kernels for codes and float activations."""

_LEAST_OPSET = 10  # of DequantizeLinear


def decode_bare_codes(graph: Graph) -> None:
    """Constants of element types that numpy lacks become arrays, but for operators that read them as they lie."""
    for value in graph.stored_constants():
        assert value.stored is not None
        readers = [(node, index) for node, index in value.uses if not _reads_bare_codes(node, index)]
        if not value.stored.is_bare or not (readers or value.output_of):
            continue
        array = constant(value.name, value.stored.decoded())
        for node, index in readers:
            node.set_input(index, array)
        for nested in list(value.output_of):
            nested.outputs = [array if one is value else one for one in nested.outputs]


def _reads_bare_codes(node: Node, index: int) -> bool:
    value = node.input(index)
    is_bare = value is not None and value.stored is not None and value.stored.is_bare
    return is_bare and index in (0, 3) and node.is_op("GatherBlockQuantized", domain=MICROSOFT)


def decode_stored(graph: Graph) -> None:
    """For readers other than layers whose activations are quantized; of tables, rows are looked up as codes."""
    _look_up_codes(graph)
    _decode(graph, _may_read_codes)


def decode_what_is_left(graph: Graph) -> None:
    """For layers that no kernel of codes took after all: their definitions read numbers."""
    _decode(graph, lambda node, index: _is_lowered(node) or _reads_bare_codes(node, index))


def _is_lowered(node: Node) -> bool:
    """Whether a pass made the node of what stood in the file, and knows what it reads."""
    return node.domain == QRUNTIME and node.op_type not in (cache_functions.NAMES | rounding_functions.NAMES)


def _decode(graph: Graph, reads_codes: Callable[[Node, int], bool]) -> None:
    decoded: dict[Value, Value] = {}
    for node in graph.walk_nodes():
        for index, value in enumerate(node.inputs):
            if value is not None and value.stored is not None and not reads_codes(node, index):
                if value not in decoded:
                    decoded[value] = constant(value.name, value.stored.decoded())
                node.set_input(index, decoded[value])


def _may_read_codes(node: Node, index: int) -> bool:
    """Whether a pass may hand the weight at that input to a kernel as it is stored."""
    if _is_lowered(node) or _reads_bare_codes(node, index):
        return True
    weight = node.input(index)
    stored = None if weight is None else weight.stored
    if index == 0 or stored is None or node.op_type not in (_FUSED_LAYERS if node.domain else _LAYERS):
        return False
    multiplies_codes = node.mark is not None and node.mark.multiplies_codes
    if multiplies_codes and stored.format is INT8 and not stored.block and stored.is_plain:
        return True
    if node.op_type in _RECURRENT:
        return not multiplies_codes and index in (1, 2) and all(_fits_recurrent(value) for value in node.inputs[1:3])
    if index != 1 or node.op_type not in _LINEAR:
        return False
    return fits_kernels(stored.transposed() if node.attr("transB", 0) and stored.ndim == 2 else stored)


def _fits_recurrent(value: Value | None) -> bool:
    """Whether every direction of a weight has a form of the kernels of few bits."""
    stored = None if value is None else value.stored
    if stored is None or stored.ndim != 3 or stored.dtype.name != "float32" or (stored.block and stored.block_axis != 2):
        return False
    return fits_kernels(stored[0].transposed())


def _look_up_codes(graph: Graph) -> None:
    """Gather(stored table, ids)  →  QuantizedEmbedding, or with one scale for all, DequantizeLinear(Gather(codes, ids))."""
    for nested in graph.walk_graphs():
        replaced: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            table = node.input(0)
            if table is None or table.stored is None or not node.is_op("Gather"):
                continue
            op = Builder(node, opset=max(node.version, _LEAST_OPSET))
            rows = _rows(op, node, table)
            if rows is not None:
                nested.replace_uses(node.outputs[0], rows)
                replaced[node] = op.nodes
        splice(nested, replaced)


def _rows(op: Builder, node: Node, table: Value) -> Value | None:
    stored = table.stored
    assert stored is not None
    if is_row_table(table):
        if node.attr("axis", 0) not in (0, -2):
            return None
        codes, name = row_codes(stored), table.name
        parts = [constant(name, codes), constant(f"{name}/scale", stored.scale), constant(f"{name}/offset", stored.offset)]  # type: ignore[arg-type]
        y = op.QuantizedEmbedding(*parts, node.input(1), bits=stored.format.bits)
        return y if stored.dtype.name == "float32" else op.Cast(y, domain="", to=onnx_code(stored.dtype))
    if stored.scale is None:
        return None
    scale, zero_point = stored.scale, stored.zero_point
    is_one = stored.has_one_scale and stored.outliers is None and stored.format.is_integer and stored.format.bits >= 8
    is_one = is_one and scale.dtype == stored.dtype
    if not is_one or not isinstance(scale, np.ndarray) or not isinstance(zero_point, np.ndarray):
        is_narrow = stored.format.bits < 8 or stored.block  # float rows are found faster than bytes are decoded
        is_of_rows = is_narrow and stored.ndim == 2 and node.attr("axis", 0) in (0, -2) and (not stored.block or stored.block_axis == 1)
        return op.StoredEmbedding(table, node.input(1)) if is_of_rows and stored.format.bits <= 8 else None
    rows = op.Gather(constant(table.name, stored.unpacked()), node.input(1), domain="", **node.attributes)
    of_rows = constant(f"{table.name}/scale", scale.reshape(())), constant(f"{table.name}/zero_point", zero_point.reshape(()))
    return op.DequantizeLinear(rows, *of_rows, domain="")
