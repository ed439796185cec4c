"""Which nodes a call means: names, globs, operator types, kinds."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from qruntime.errors import QuantizationError
from qruntime.ir import Node

KINDS: dict[str, tuple[str, ...]] = {
    "Linear": ("MatMul", "Gemm"),
    "LSTM": ("LSTM",),
    "GRU": ("GRU",),
    "RNN": ("RNN",),
}
"""Kinds of layers (torch's class names) and the ONNX operators they become."""


def kind_of(op_type: str) -> str | None:
    return next((kind for kind, ops in KINDS.items() if op_type in ops), None)


def module_path(name: str) -> str:
    """Dotted module path that exporters write into node names: /encoder/layer.0/fc/MatMul → encoder.layer.0.fc."""
    return name.strip("/").rpartition("/")[0].replace("/", ".")


def pattern_name(pattern: object) -> str:
    """Text of a pattern: a string, or a (torch) class by its name."""
    if isinstance(pattern, str):
        return pattern
    if isinstance(pattern, type):
        return pattern.__name__
    known = "names, globs such as 'encoder/*', operator types or kinds"
    raise QuantizationError(f"cannot select layers by {pattern!r}: use {known} {sorted(KINDS)}")


def matches(node: Node, pattern: str) -> bool:
    """True when `pattern` is the node's operator type, kind, name, module path (or above), or a glob over name or path."""
    path = module_path(node.name)
    if pattern in (node.op_type, node.name, path) or pattern == kind_of(node.op_type):
        return True
    if path.startswith(pattern.rstrip(".") + ".") or node.name.startswith(pattern.rstrip("/") + "/"):
        return bool(pattern)
    return fnmatch.fnmatchcase(node.name, pattern) or fnmatch.fnmatchcase(path, pattern)


def matches_any(node: Node, patterns: Iterable[str]) -> bool:
    return any(matches(node, pattern) for pattern in patterns)
