"""What names mean at one place of a file, while its nodes are made."""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Binding:
    """An attribute of a function call, to be read where the call stands."""

    proto: AttributeProto
    body: Body
    scope: Scope


@dataclass(frozen=True)
class Body:
    """Where nodes come from: the model, or one call of a function."""

    opsets: dict[str, int]
    folders: frozenset[str] = frozenset()
    """What stands before a slash in the names of this body; no prefix of an inlined call may be among it."""
    prefix: str = ""
    bindings: dict[str, Binding] | None = None
    """Attributes of the call; None outside functions."""
    calls: tuple[tuple[str, str, str], ...] = ()
    """Functions that are being inlined, outermost first."""
    used: set[str] = field(default_factory=set)
    """Prefixes given out to calls in this body."""

    def prefix_of_call(self, stem: str) -> str:
        """A prefix that no other name in the model begins with."""
        stem, number = stem.strip("/") or "function", 0
        name = f"{stem}/"
        while name in self.folders or name in self.used:
            number += 1
            name = f"{stem}_{number}/"
        self.used.add(name)
        return self.prefix + name
