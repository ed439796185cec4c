"""The last pass before a file is written: stored values become codes and what dequantizes them, in standard operators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qruntime.errors import SaveError
from qruntime.ir import Attribute, AttributeType, Graph, Node, StoredTensor, TypeInfo, Value, clone
from qruntime.ir.dtypes import onnx_code
from qruntime.ir.formats import FLOAT16
from qruntime.ir.marks import to_metadata
from qruntime.ir.stored import stack
from qruntime.onnx_io.messages import FunctionProto
from qruntime.passes.rewriting import QRUNTIME, as_attribute
from qruntime.passes.stored import cache_functions, cast_chain, dequantize_linear, functions, half, outliers, rounding_functions
from qruntime.passes.stored.embedding_rows import write_embedding_rows
from qruntime.passes.stored.function_bodies import LEAST_OPSET, function
from qruntime.passes.stored.transposed import transposed_constants, write_transposed

_WRITERS = (half.write, dequantize_linear.write, cast_chain.write, functions.write)
"""In the order of preference."""

DEFAULT_OPSET = 17
"""Of graphs without any standard node."""


def portable(graph: Graph) -> tuple[Graph, list[FunctionProto]]:
    """A graph as files hold it, `graph` itself or a copy where constants are not written as they are, and the functions it calls."""
    is_stored = bool(graph.stored_constants()) or any(node.mark is not None for node in graph.walk_nodes())
    if is_stored or transposed_constants(graph):
        graph = clone(graph)
        write_transposed(graph, standard_opset(graph))
        write_stored(graph)
    called = dict.fromkeys(node.op_type for node in graph.walk_nodes() if node.domain == QRUNTIME)
    return graph, [_function(name, standard_opset(graph)) for name in called]


def _function(name: str, opset: int) -> FunctionProto:
    for family in (cache_functions, rounding_functions):
        if name in family.NAMES:
            return family.function(name, opset)
    return function(name, opset)


def write_stored(graph: Graph) -> None:
    """Stored constants  →  codes, scales and the operators that every runtime has for them."""
    write_embedding_rows(graph)
    for value in graph.stored_constants():
        if value.stored is not None and value.stored.is_bare:
            continue  # files have such types
        reader = next(iter(value.uses))[0]
        nodes: list[Node] = []
        real = _written(value, opset_beside(graph, reader), nodes)
        graph.insert_before(graph.nodes[0], *nodes)
        graph.replace_uses(value, real)
    for node in graph.walk_nodes():
        if node.mark is not None:
            node.metadata = {**node.metadata, **to_metadata(node.mark)}


def opset_beside(graph: Graph, node: Node) -> int:
    """The opset for standard nodes beside `node`, which may be of another domain."""
    return standard_opset(graph) if node.domain else node.version


def standard_opset(graph: Graph) -> int:
    return next((node.version for node in graph.walk_nodes() if not node.domain and node.version), DEFAULT_OPSET)


def _written(value: Value, version: int, nodes: list[Node]) -> Value:
    stored = value.stored
    assert stored is not None
    of_rows = stored.scale is not None and stored.ndim == 3 and stored.scale.shape[0] > 1 and stored.scale.shape[1] > 1
    if not of_rows or stored.block or stored.format.bits != 8 or version < 13:
        return _one(value.name, stored, version, nodes)
    # A scale of its own for each direction of a recurrent layer, as each direction is a layer of its own.
    parts = [stack([stored[d]]) for d in range(stored.shape[0])]
    outputs: list[Value | None] = [
        _one(f"{value.name}_direction{d}", part, version, nodes) for d, part in enumerate(parts) if part is not None
    ]
    joined = Value(f"{value.name}_dequantized", value.type)
    nodes.append(Node("Concat", outputs, [joined], {"axis": Attribute(AttributeType.INT, 0)}, version=version))
    return joined


def _one(name: str, stored: StoredTensor, version: int, nodes: list[Node]) -> Value:
    if stored.outliers is not None and stored.outliers.is_turned:
        turned = _one(name, stored.transposed(), version, nodes)
        output = Value(f"{turned.name}_transposed", TypeInfo("tensor", stored.element_type, stored.shape))
        nodes.append(Node("Transpose", [turned], [output], {"perm": as_attribute((1, 0))}, version=version))
        return output
    has_own_type = stored.outliers is None and (stored.scale is None or stored.scale.dtype == stored.dtype)
    wide = stored if has_own_type else replace(stored, dtype=np.dtype(np.float32), outliers=None)
    real = next((made for write in _WRITERS if (made := write(name, wide, version, nodes)) is not None), None)
    if real is not None and stored.outliers is not None:
        real = outliers.write(name, real, stored.outliers, stored.shape, version, nodes)
    if real is None:
        raise SaveError(
            f"{name!r} is stored as {stored.format}, for which opset {version} has no operators; "
            f"export the model with opset {LEAST_OPSET} or newer"
        )
    if stored.format is FLOAT16 or wide.dtype == stored.dtype:
        return real
    code = onnx_code(stored.dtype)
    output = Value(f"{real.name}_{stored.dtype}", TypeInfo("tensor", code, stored.shape))
    nodes.append(Node("Cast", [real], [output], {"to": Attribute(AttributeType.INT, code)}, version=version))
    return output
