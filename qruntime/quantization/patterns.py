"""Which nodes a pattern means: names, module paths, globs, operator types, kinds.

Names are compared component by component, whatever separates them: /encoder/layer.0/fc/MatMul is encoder, layer, 0, fc,
MatMul. A pattern means a layer when its components stand in the layer's name or module path one after the other, from
anywhere on: `layer.0`, `encoder/layer.0`, `fc`, but not `layer.1` for layer.10. A leading / says from the root. In a
glob, * stands for any text, over components too, and a component means as well what exporters number behind it: modules that
are called out of a list are o, o_1, o_2 … to torch's, and `*/o/*` means them all. A kind or an operator type means the layers
of that kind, and the modules at the root that are called so.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from qruntime.ir import Node
from qruntime.quantization.selection import is_kind, kinds_of, layer_name, layer_paths

WHOLE_MODEL, KIND, AROUND, OWN = range(4)

_NUMBERED = re.compile(r"_[0-9]+$")
_MAX_GLOBBED = 64  # components of a name that a glob is held against: names are the file's to choose
_MAX_COMPARED = 200  # characters of a name that may be suggested


class Closeness(NamedTuple):
    """How closely a pattern means a layer; of two patterns the greater one counts."""

    level: int
    """WHOLE_MODEL for "", KIND, AROUND for a container of the layer, OWN for the layer itself."""
    depth: int = 0
    """Components of the layer's path up to the end of the match: the deeper, the closer."""
    components: int = 0
    """Of the pattern, a bare * left out; of a kind, 1 when it is the operator type."""
    is_literal: bool = True


def components(text: str) -> list[str]:
    return [part for part in re.split(r"[./]", text) if part]


def is_glob(pattern: str) -> bool:
    return any(wildcard in pattern for wildcard in "*?[")


def rank(node: Node, pattern: str) -> Closeness | None:
    """How closely `pattern` means the node; None when it does not."""
    if not pattern:
        return Closeness(WHOLE_MODEL)
    parts = components(pattern)
    if pattern == layer_name(node):
        return Closeness(OWN, len(parts), len(parts))
    if pattern in kinds_of(node):
        return Closeness(KIND, components=int(pattern == node.op_type))
    from_root = pattern.startswith("/") or is_kind(pattern)
    found = [_place(components(path), parts, from_root) for path in layer_paths(node)]
    return max((place for place in found if place is not None), default=None)


def _place(path: Sequence[str], parts: Sequence[str], from_root: bool) -> Closeness | None:
    """Where in a path the deepest match of a pattern ends."""
    text, wanted = f".{'.'.join(path)}.", f".{'.'.join(parts)}."
    at = text.find(wanted, 0, len(wanted)) if from_root else text.rfind(wanted)
    if parts and at >= 0:
        depth = text.count(".", 0, at + len(wanted)) - 1
        return Closeness(OWN if depth == len(path) else AROUND, depth, len(parts))
    if not is_glob(wanted):
        return None
    core = list(parts)
    while core and not core[-1].strip("*"):
        del core[-1]  # encoder.* means what encoder holds, and is no closer than that
    while core and not core[0].strip("*"):
        del core[0]
        from_root = False
    if not core:
        return Closeness(AROUND, is_literal=False)
    end = _glob_end(path[:_MAX_GLOBBED], core, from_root)
    return None if end is None else Closeness(OWN if end == len(path) else AROUND, end, len(core), is_literal=False)


def _glob_end(path: Sequence[str], core: Sequence[str], from_root: bool) -> int | None:
    """Components of `path` up to the end of the deepest match, in which * stays in its component where it can."""
    for depth in (len(core),) if from_root else range(len(path), len(core) - 1, -1):
        if depth <= len(path) and all(map(_fits, path[depth - len(core) : depth], core)):
            return depth
    glob = f"{'' if from_root else '*'}.{'.'.join(core)}."
    depths = range(1, len(path) + 1)
    for depth in depths if core[-1].endswith("*") else reversed(depths):
        if fnmatch.fnmatchcase(f".{'.'.join(path[:depth])}.", glob):
            return depth
    return None


def _fits(part: str, glob: str) -> bool:
    return fnmatch.fnmatchcase(part, glob) or fnmatch.fnmatchcase(_NUMBERED.sub("", part), glob)


def matches(node: Node, pattern: str) -> bool:
    return rank(node, pattern) is not None


def matches_any(node: Node, patterns: Iterable[str]) -> bool:
    return any(matches(node, pattern) for pattern in patterns)


def mistaken(idle: Sequence[str], nodes: Sequence[Node]) -> list[str]:
    """Those of the patterns that select nothing which are no kinds that the model happens not to have.

    A kind by whose name a module below the root goes may have been meant as that module.
    """
    if not idle:
        return []
    inner = {part for node in nodes for path in layer_paths(node) for part in components(path)}
    return [pattern for pattern in idle if not is_kind(pattern) or pattern in inner]


def nothing_selected(patterns: Sequence[str], nodes: Sequence[Node]) -> str:
    """The message for patterns that select none of `nodes`, with what is called alike."""
    shown, is_any_close = [], False
    for pattern in patterns:
        close = _close_names(pattern, nodes)
        is_any_close = is_any_close or bool(close)
        shown.append(f"{pattern!r}" + (f" (close: {', '.join(map(repr, close))})" if close else ""))
    message = f"nothing in the model is selected by {', '.join(shown)}"
    names = sorted({layer_name(node) for node in nodes})
    if is_any_close or not names:
        return message
    return f"{message}; layers are: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"


def _close_names(pattern: str, nodes: Sequence[Node]) -> list[str]:
    """Names, kinds, and parts of paths with as many components as the pattern, that are spelled alike."""
    length = max(1, len(components(pattern)))
    pool: dict[str, str] = {}
    for node in nodes:
        names = [layer_name(node), *kinds_of(node)]
        for path in layer_paths(node):
            parts = components(path)[:_MAX_GLOBBED]
            names += [".".join(parts[i : i + length]) for i in range(len(parts) - length + 1)]
        pool |= {name.lower(): name for name in names if len(name) <= _MAX_COMPARED}
    return [pool[name] for name in difflib.get_close_matches(pattern.lower().replace("*", ""), pool)]
