"""Model-local functions: their calls are replaced by their bodies while a graph is built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from qruntime.errors import InvalidModel
from qruntime.ir import Node
from qruntime.onnx_io.messages import FunctionProto, NodeProto
from qruntime.onnx_io.node_order import label, subgraphs
from qruntime.onnx_io.scopes import Binding, Body, Scope

if TYPE_CHECKING:
    from qruntime.onnx_io.graph_builder import GraphBuilder

Key = tuple[str, str, str]
"""Domain, name and overload."""


_GRIDS = (f"Dequantize{grid}{width}" for grid in ("Affine", "Offset", "Symmetric", "Table") for width in ("", "Bytes"))
STORED = frozenset(("qruntime", name, "") for name in (*_GRIDS, "DequantizePairs", "ReplaceOutliers"))
"""Functions whose calls passes/stored reads as what they store."""
CACHES = frozenset(("qruntime", f"{name}Cache{kind}", "") for name in ("Quantize", "Fit", "Dequantize") for kind in ("", "Clusters"))
"""Functions that are operators here: ops/cache_codes.py defines them."""
ROUNDING = frozenset({("qruntime", "OutlierVictimPairs", "")})
"""The same of those that round activations."""
OURS = STORED | CACHES | ROUNDING
"""Functions that files of our own call, and whose bodies nobody here reads."""


def table(protos: Sequence[FunctionProto]) -> dict[Key, FunctionProto]:
    """Functions by key; InvalidModel when one is defined twice or has no name."""
    found: dict[Key, FunctionProto] = {}
    for proto in protos:
        key = ("" if proto.domain == "ai.onnx" else proto.domain, proto.name, proto.overload)
        if not proto.name or key in found:
            raise InvalidModel(f"function {proto.domain}.{proto.name} is defined twice or has no name")
        found[key] = proto
    return found


def inline(
    builder: GraphBuilder,
    key: Key,
    function: FunctionProto,
    call: NodeProto,
    body: Body,
    scope: Scope,
    out: list[Node],
) -> None:
    """Append the nodes of `function` to `out` in place of `call`, which stands in `body` and `scope`."""
    where = f"{label(call)}, a call of function {function.domain}.{function.name}"
    if key in body.calls:
        chain = " → ".join(name for _, name, _ in (*body.calls, key))
        raise InvalidModel(f"{where}: functions call themselves: {chain}")
    for what, given, declared in (("inputs", call.input, function.input), ("outputs", call.output, function.output)):
        if len(given) > len(declared):
            raise InvalidModel(f"{where}: {len(given)} {what} are given but {len(declared)} declared")
        if len(set(declared)) < len(declared):
            raise InvalidModel(f"{where}: the function declares {what} twice: {list(declared)}")
    opsets = builder.function_opsets(function)
    prefix = body.prefix_of_call(call.name or function.name)
    defaults_body = Body(opsets, prefix=prefix, calls=(*body.calls, key))
    bindings = {item.name: Binding(item, defaults_body, Scope()) for item in function.attribute_proto}
    for item in call.attribute:
        if item.ref_attr_name and body.bindings is not None and item.ref_attr_name not in body.bindings:
            continue  # refers to an attribute that is not set: the default stays
        bindings[item.name] = Binding(item, body, scope)
    inner = Scope()
    inner.names.update(dict.fromkeys(function.input))
    inner.names.update(zip(function.input, builder.inputs(call, scope), strict=False))
    folders = folders_of(function.node)
    builder.nodes(function.node, Body(opsets, folders, prefix, bindings, (*body.calls, key)), inner, out, where)
    for index, name in enumerate(call.output):
        value = inner.names.get(function.output[index])
        if value is None:
            raise InvalidModel(f"{where}: nothing makes output {function.output[index]!r} of the function")
        if name and value.producer is not None and value.name.startswith(prefix):
            value.name = body.prefix + name
        builder.define(call, index, value, scope)


def folders_of(nodes: Sequence[NodeProto], names: Iterable[str] = ()) -> frozenset[str]:
    """Every "a/", "a/b/" … that begins a name used by `nodes` or their subgraphs, or one of `names`."""
    found: set[str] = set()
    for name in (*names, *_names(nodes)):
        end = name.find("/")
        while end >= 0:
            found.add(name[: end + 1])
            end = name.find("/", end + 1)
    return frozenset(found)


def _names(nodes: Sequence[NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield node.name
        yield from node.output
        for graph in subgraphs(node.attribute):
            yield from (info.name for info in graph.input)
            yield from (tensor.name for tensor in graph.initializer)
            yield from _names(graph.node)
