"""One opset version per domain for a graph whose nodes may come from several.

Inlined functions bring nodes written for the versions that the function imports. They can share a file
when the operators in question did not change in between, which the schemas of `onnx` tell.
"""

from __future__ import annotations

from collections.abc import Mapping

from qruntime.errors import SaveError
from qruntime.ir import Graph, Node

_DEFAULT_OPSET = 17  # for graphs whose nodes name no version at all


def choose_opsets(graph: Graph, imports: Mapping[str, int], *, needs_default: bool = False) -> dict[str, int]:
    """Versions for every domain that the nodes of `graph` use; SaveError when no version serves all nodes.

    Nodes of version 0 go with any.
    """
    nodes: dict[str, list[Node]] = {}
    for node in graph.walk_nodes():
        nodes.setdefault(node.domain, []).append(node)
    if needs_default or not nodes:
        nodes.setdefault("", [])
    return {domain: _choose(domain, nodes[domain], imports.get(domain)) for domain in sorted(nodes)}


def _choose(domain: str, nodes: list[Node], imported: int | None) -> int:
    versions = {node.version for node in nodes if node.version}
    if len(versions) <= 1:
        return versions.pop() if versions else imported or (_DEFAULT_OPSET if domain == "" else 1)
    candidates = sorted(versions, key=lambda version: (version != imported, -version))
    for version in candidates:
        if all(node.version in (0, version) or _unchanged(node, version) for node in nodes):
            return version
    raise SaveError(
        f"nodes of domain {domain or 'ai.onnx'!r} were written for opsets {sorted(versions)}, between which operators "
        "changed; convert the model to one opset with onnx.version_converter before inlining"
    )


def _unchanged(node: Node, version: int) -> bool:
    from onnx import defs

    try:
        return (
            defs.get_schema(node.op_type, version, node.domain).since_version
            == defs.get_schema(node.op_type, node.version, node.domain).since_version
        )
    except defs.SchemaError:
        return False
