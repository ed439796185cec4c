"""Quantized layers that read the same activations, as the projections of attention do and the two of a gated MLP."""

from __future__ import annotations

from collections.abc import Iterator

from qruntime.ir import Attribute, AttributeType, Graph, Node, Value
from qruntime.ir.formats import INT8
from qruntime.ops.low_bit_weights import fits_quantized_activations
from qruntime.passes.rewriting import QRUNTIME, splice, trace

_MOST = 16
"""MAX_LAYERS in kernels/nodes/linear.c."""

_ROWS = ("range", "bits", "scale", "zero_point")
"""How rows become codes."""


def merge_linear(graph: Graph) -> None:
    """DynamicQuantizedLinear(x, …), DynamicQuantizedLinear(x, …), …  →  one node that quantizes x once.

    Only layers that follow one another: results that wait for their readers take memory.
    """
    for nested in graph.walk_graphs():
        replaced: dict[Node, list[Node]] = {}
        for siblings in list(_runs(nested)):
            merged = _merge(siblings)
            trace(f"merge_linear at {merged.label}")
            for node, output in zip(siblings, merged.outputs):
                nested.replace_uses(node.outputs[0], output)
                replaced[node] = []
            replaced[siblings[0]] = [merged]
        splice(nested, replaced)


def _runs(graph: Graph) -> Iterator[list[Node]]:
    """Layers with nothing but other operators between them that can be merged, two at least."""
    run: list[Node] = []
    for node in graph.nodes:
        if not node.is_op("DynamicQuantizedLinear", domain=QRUNTIME):
            continue
        if run and len(run) < _MOST and _fits(run[0], node):
            run.append(node)
            continue
        if len(run) > 1:
            yield run
        run = [node] if _is_plain(node) else []
    if len(run) > 1:
        yield run


def _is_plain(node: Node) -> bool:
    weight = node.input(1)
    stored = None if weight is None else weight.stored
    if stored is None or node.input(3) is not None or {"engine", "parameters"} & node.attributes.keys():
        return False
    return (stored.format is INT8 and not stored.block) or fits_quantized_activations(stored)


def _fits(first: Node, node: Node) -> bool:
    return _is_plain(node) and node.input(0) is first.input(0) and all(node.attr(name) == first.attr(name) for name in _ROWS)


def _merge(siblings: list[Node]) -> Node:
    parameters = [value for node in siblings for value in node.inputs[1:3]]
    activations = tuple(node.attr("activation") for node in siblings)
    return Node(
        "MergedDynamicQuantizedLinear",
        [siblings[0].input(0), *parameters],
        [Value(f"{node.outputs[0].name}/merged", node.outputs[0].type) for node in siblings],
        {
            "activations": Attribute(AttributeType.STRINGS, activations),
            **{name: siblings[0].attributes[name] for name in _ROWS if name in siblings[0].attributes},
        },
        domain=QRUNTIME,
        version=1,
        name=", ".join(node.name or node.outputs[0].name for node in siblings),
        origin=siblings,
    )
