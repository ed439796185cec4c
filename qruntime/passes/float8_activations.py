"""Layers whose mark says that activations are rounded to 8-bit floats per token."""

from __future__ import annotations

from qruntime.ir import Graph, Value
from qruntime.passes.rewriting import Builder, trace


def round_to_float8(graph: Graph) -> None:
    """MatMul(x, W), Gemm(x, W, C), marked  →  the same of RoundToFloat8(x), which layers that read one x share."""
    for nested in graph.walk_graphs():
        rounded: dict[Value, Value] = {}
        for node in list(nested.nodes):
            x, weight = node.input(0), node.input(1)
            if node.mark is None or not node.mark.rounds_to_float8 or not node.is_op("MatMul", "Gemm"):
                continue
            if x is None or weight is None or not weight.is_constant:
                continue  # of what another operator was taken apart into, this is not the layer
            if x not in rounded:
                op = Builder(node)
                rounded[x] = op.RoundToFloat8(x)
                nested.insert_before(node, *op.nodes)
                trace(f"round_to_float8 at {node.label}")
            node.set_input(0, rounded[x])
