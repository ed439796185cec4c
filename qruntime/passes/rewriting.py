"""Rewrites: a pattern written as ordinary calls, a check that says why it declines, a replacement.

    class FuseSilu(Rewrite):
        '''x · Sigmoid(x)  →  Silu(x)'''

        def pattern(self, op, x):
            return op.Mul(x, op.Sigmoid(x))

        def replace(self, op, x):
            return op.Silu(x, domain=QRUNTIME)

Parameters of `pattern` are variables: the same name binds the same value. `op.X(...)` matches a node
whose operator is X (`op.any_of("Mul", "Div")(...)` one of several), keywords match attributes, floats
match constants of one element. Add and Mul match in either order. What lies inside a match must be of
one graph and have no reader outside it; a variable may.
"""

from __future__ import annotations

import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from qruntime.ir import QRUNTIME, Attribute, AttributeType, Graph, Node, Value

_COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or"})
_MAX_SWEEPS = 20


class Skip(str):
    """Why a rewrite that matched declines."""


class _Variable:
    def __init__(self, name: str):
        self.name = name


class _Call:
    def __init__(self, op_types: tuple[str, ...], inputs: Sequence[Any], domain: str, attributes: dict[str, Any], name: str | None):
        self.op_types, self.inputs, self.domain, self.attributes, self.name = op_types, inputs, domain, attributes, name

    def can_occur(self, op_types: set[str]) -> bool:
        """Whether a graph that has these operators may contain the pattern."""
        return not op_types.isdisjoint(self.op_types) and all(i.can_occur(op_types) for i in self.inputs if type(i) is _Call)


class _PatternBuilder:
    def __getattr__(self, op_type: str) -> Callable[..., _Call]:
        return self.any_of(op_type)

    def any_of(self, *op_types: str) -> Callable[..., _Call]:
        def call(*inputs: Any, domain: str = "", name: str | None = None, **attributes: Any) -> _Call:
            return _Call(op_types, inputs, domain, attributes, name)

        return call


class Builder:
    """Makes the nodes of a replacement: `op.Gelu(x, approximate="none")` returns the new value.

    Nodes of the standard domain are of `opset`, or of the version of the node that they replace.
    """

    def __init__(self, root: Node, opset: int | None = None):
        self._root = root
        self._opset = root.version if opset is None else opset
        self.nodes: list[Node] = []

    def __getattr__(self, op_type: str) -> Callable[..., Value]:
        def call(*inputs: Value | None, domain: str = QRUNTIME, **attributes: Any) -> Value:
            return self.several(1, op_type, *inputs, domain=domain, **attributes)[0]

        return call

    def several(self, count: int, op_type: str, *inputs: Value | None, domain: str = QRUNTIME, **attributes: Any) -> list[Value]:
        """A node with so many outputs."""
        root = self._root
        last = f"/{op_type}" if self.nodes else "/fused"
        outputs = [Value(f"{root.outputs[0].name}{last}{i or ''}") for i in range(count)]
        node = Node(
            op_type, inputs, outputs, {k: as_attribute(v) for k, v in attributes.items()},
            domain=domain, version=1 if domain == QRUNTIME else self._opset,
            name=root.name or root.outputs[0].name, metadata=dict(root.metadata), origin=[root],
        )  # fmt: skip
        node.mark = root.mark
        self.nodes.append(node)
        return outputs

    def standard(self, op_type: str, *inputs: Value | None) -> Value:
        """A node of the standard domain without attributes."""
        return getattr(self, op_type)(*inputs, domain="")


def as_attribute(value: Any) -> Attribute:
    """Attribute of a plain Python value."""
    if isinstance(value, Attribute):
        return value
    if isinstance(value, (bool, int, np.integer)):
        return Attribute(AttributeType.INT, int(value))
    if isinstance(value, float):
        return Attribute(AttributeType.FLOAT, value)
    if isinstance(value, str):
        return Attribute(AttributeType.STRING, value)
    if isinstance(value, np.ndarray):
        return Attribute(AttributeType.TENSOR, value)
    if isinstance(value, (tuple, list)):
        kind = AttributeType.FLOATS if value and isinstance(value[0], float) else AttributeType.INTS
        return Attribute(kind, tuple(value))
    raise TypeError(f"no attribute type for {value!r}")


def only_reader(graph: Graph, node: Node) -> Node | None:
    """The node of `graph` that alone reads the first output of `node`, which no graph gives out."""
    output = node.outputs[0]
    if output.output_of or len(output.uses) != 1:
        return None
    (user, _) = next(iter(output.uses))
    return user if user.graph is graph else None


def splice(graph: Graph, replaced: dict[Node, list[Node]]) -> None:
    """Put the new nodes where the old ones stood."""
    if not replaced:
        return
    nodes = []
    for node in graph.nodes:
        nodes.extend(replaced.get(node, [node]))
    for new in replaced.values():
        for node in new:
            node.graph = graph
    old = list(replaced)
    graph.nodes = nodes
    for node in old:
        for index in range(len(node.inputs)):
            node.set_input(index, None)
        node.graph = None


class Rewrite(ABC):
    """Base of all rewrites; subclasses define `pattern`, `replace` and perhaps `check`."""

    needs: ClassVar[str | None] = None
    """An operator in every alternative of the pattern that few graphs have: for others none is made."""

    @abstractmethod
    def pattern(self, op: Any, *variables: Any) -> Any:
        """What is looked for: calls of `op` over variables, or a tuple of alternatives."""

    def check(self, *args: Any, **bound: Any) -> Skip | None:
        """None to go on, or why not. Receives variables and named nodes by keyword, as `replace` does."""
        return None

    @abstractmethod
    def replace(self, *args: Any, **bound: Any) -> Value:
        """The value that stands for what was found, made by the `Builder` that is the first argument."""

    def patterns(self) -> list[_Call]:
        """The pattern, or several when `pattern` returns a tuple of alternatives."""
        code = self.pattern.__code__
        names = code.co_varnames[2 : code.co_argcount]  # after self and op
        made = self.pattern(_PatternBuilder(), *(_Variable(n) for n in names))
        return list(made) if isinstance(made, tuple) else [made]


def scalar(value: Value | None) -> float | None:
    """The number in a constant of one element, else None."""
    if value is None or value.data is None or value.data.size != 1 or value.data.dtype.kind not in "fiu":
        return None
    return float(value.data.reshape(-1)[0])


_Match = tuple[dict[str, Any], tuple[Node, ...]]
"""What the names of a pattern are bound to, and the nodes that the match consumes."""


def _match(value: Value | None, pattern: Any, bound: dict[str, Any], inner: tuple[Node, ...], is_root: bool) -> Iterator[_Match]:
    if isinstance(pattern, _Variable):
        if value is None:
            return
        known = bound.get(pattern.name)
        if known is None:
            yield {**bound, pattern.name: value}, inner
        elif known is value:
            yield bound, inner
        return
    if isinstance(pattern, (int, float)):
        number = scalar(value)
        if number is not None and math.isclose(number, pattern, rel_tol=1e-4, abs_tol=1e-12):
            yield bound, inner
        return
    if pattern is None:
        if value is None:
            yield bound, inner
        return
    node = None if value is None else value.producer
    if node is None or node.domain != pattern.domain or node.op_type not in pattern.op_types or value is not node.outputs[0]:
        return
    if not is_root and node.graph is None:
        return
    for name, wanted in pattern.attributes.items():
        found = node.attr(name)
        if found != wanted and not (isinstance(wanted, (tuple, list)) and found is not None and tuple(found) == tuple(wanted)):
            return
    given = list(node.inputs)
    while given and given[-1] is None:
        given.pop()
    if len(given) != len(pattern.inputs):
        return
    orders = [pattern.inputs]
    if node.op_type in _COMMUTATIVE and len(given) == 2:
        orders.append(pattern.inputs[::-1])
    if pattern.name is not None:
        bound = {**bound, pattern.name: node}
    for order in orders:
        if all(map(_has_operator, given, order)):
            yield from _match_inputs(given, order, bound, (*inner, node))


def _has_operator(value: Value | None, pattern: Any) -> bool:
    """False when `value` is not made by the operator that `pattern` wants: most attempts end here, at little cost."""
    if type(pattern) is not _Call:
        return True
    return value is not None and value.producer is not None and value.producer.op_type in pattern.op_types


def _match_inputs(
    given: Sequence[Value | None], patterns: Sequence[Any], bound: dict[str, Any], inner: tuple[Node, ...]
) -> Iterator[_Match]:
    if not given:
        yield bound, inner
        return
    for bound_here, inner_here in _match(given[0], patterns[0], bound, inner, False):
        yield from _match_inputs(given[1:], patterns[1:], bound_here, inner_here)


def _is_closed(root: Node, inner: Sequence[Node]) -> bool:
    """True when the match is of one graph and nothing inside it is read outside (the root's output excepted)."""
    members = set(inner)
    for node in members:
        if node is root:
            continue
        if node.graph is not root.graph:
            return False
        for output in node.outputs:
            if output.output_of or any(user not in members for user, _ in output.uses):
                return False
    return True


def rewrite_graph(graph: Graph, rewrites: Sequence[Rewrite], *, keeps: Callable[[Value], bool] = lambda value: False) -> int:
    """Apply rewrites to `graph` and the graphs nested in it until none applies; returns how many did.

    What makes a value that `keeps` is true of stays as it is.
    """
    op_types = {node.op_type for node in graph.walk_nodes()}
    possible = [rewrite for rewrite in rewrites if rewrite.needs is None or rewrite.needs in op_types]
    compiled = [(rewrite, pattern) for rewrite in possible for pattern in rewrite.patterns()]
    total = 0
    for nested in list(graph.walk_graphs()):
        for _ in range(_MAX_SWEEPS):
            count = _sweep(nested, compiled, keeps)
            total += count
            if not count:
                break
    return total


def _sweep(graph: Graph, compiled: Sequence[tuple[Rewrite, _Call]], keeps: Callable[[Value], bool]) -> int:
    op_types = {node.op_type for node in graph.nodes}
    by_root: dict[str, list[tuple[Rewrite, _Call]]] = {}
    for rewrite, pattern in compiled:
        if pattern.can_occur(op_types):
            for op_type in pattern.op_types:
                by_root.setdefault(op_type, []).append((rewrite, pattern))
    inserted: dict[Node, list[Node]] = {}
    removed: set[Node] = set()
    for root in graph.nodes if by_root else ():
        if root in removed or keeps(root.outputs[0]):
            continue
        for rewrite, pattern in by_root.get(root.op_type, ()):
            made = _try(graph, root, rewrite, pattern, removed)
            if made is None:
                continue
            new_nodes, dropped = made
            inserted[root] = new_nodes
            for node in new_nodes:
                node.graph = graph
            for node in dropped:
                removed.add(node)
                for index in range(len(node.inputs)):
                    node.set_input(index, None)
                node.graph = None
            break
    if inserted:
        nodes: list[Node] = []
        for node in graph.nodes:
            nodes.extend(inserted.get(node, ()))
            if node not in removed:
                nodes.append(node)
        graph.nodes = nodes
    return len(inserted)


def _try(graph: Graph, root: Node, rewrite: Rewrite, pattern: _Call, removed: set[Node]) -> tuple[list[Node], list[Node]] | None:
    for bound, inner in _match(root.outputs[0], pattern, {}, (), True):
        if not removed.isdisjoint(inner) or not _is_closed(root, inner):
            continue
        if any(output.is_read for output in root.outputs[1:]):
            continue  # a replacement makes the first alone
        reason = rewrite.check(**bound)
        if reason is not None:
            trace(f"{type(rewrite).__name__} declines at {root.label}: {reason}")
            continue
        builder = Builder(root)
        new = rewrite.replace(builder, **bound)
        graph.replace_uses(root.outputs[0], new)
        trace(f"{type(rewrite).__name__} at {root.label}")
        return builder.nodes, list(dict.fromkeys(inner))
    return None


def tracing() -> bool:
    return "passes" in os.environ.get("QRUNTIME_TRACE", "").split(",")


def trace(message: str) -> None:
    if tracing():
        print(f"qruntime: {message}", file=sys.stderr)
