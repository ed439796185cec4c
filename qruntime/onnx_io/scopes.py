"""What names mean at one place of a file, while its nodes are made."""

from __future__ import annotations

from typing import NamedTuple

from qruntime.ir import Value
from qruntime.onnx_io.messages import AttributeProto


class Scope:
    """Names of one graph, and of the graphs around it. None stands for an absent function input."""

    __slots__ = ("names", "outer")

    def __init__(self, outer: Scope | None = None):
        self.names: dict[str, Value | None] = {}
        self.outer = outer

    def find(self, name: str) -> Value | None:
        """The value called `name`; KeyError when there is none."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        raise KeyError(name)


class Binding(NamedTuple):
    """An attribute of a function call, to be read where the call stands."""

    proto: AttributeProto
    body: Body
    scope: Scope


class Body:
    """Where nodes come from: the model, or one call of a function.

    `folders` are what stands before a slash in its names: no prefix of an inlined call may be among them. `bindings`
    are the attributes of the call, None outside functions; `calls` the functions being inlined, outermost first.
    """

    def __init__(
        self,
        opsets: dict[str, int],
        folders: frozenset[str] = frozenset(),
        prefix: str = "",
        bindings: dict[str, Binding] | None = None,
        calls: tuple[tuple[str, str, str], ...] = (),
    ):
        self.opsets, self.folders, self.prefix, self.bindings, self.calls = opsets, folders, prefix, bindings, calls
        self._used: set[str] = set()  # prefixes given out to calls in this body

    def prefix_of_call(self, stem: str) -> str:
        """A prefix that no other name in the model begins with."""
        stem, number = stem.strip("/") or "function", 0
        name = f"{stem}/"
        while name in self.folders or name in self._used:
            number += 1
            name = f"{stem}_{number}/"
        self._used.add(name)
        return self.prefix + name
