"""The graph: values, nodes and their use-def links.

A `Value` is one edge of the graph. It has at most one producer and knows all its uses, also those in
the subgraphs of `If`, `Loop` and `Scan`, which refer to outer values directly (no name look-up, no
shadowing). Constants are values with `data`, or `stored` in fewer bits, and no producer.

Invariants, held by `Graph.check()`:

- a node belongs to exactly one graph and every output names it as its producer;
- `value.uses` holds precisely the (node, input position) pairs that read it;
- nodes come after the producers of what they, or their subgraphs, read.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from qruntime.errors import InvalidModel
from qruntime.ir.dtypes import onnx_code, type_name
from qruntime.ir.marks import LayerMark
from qruntime.ir.stored import StoredTensor

QRUNTIME = "qruntime"
"""Domain of operators that exist in lowered graphs only: passes make them, files cannot name them."""

Dim = int | str | None
"""A known size, a symbolic name, or nothing known."""


class AttributeType(enum.IntEnum):
    """Codes of ONNX AttributeProto.AttributeType."""

    FLOAT = 1
    INT = 2
    STRING = 3
    TENSOR = 4
    GRAPH = 5
    FLOATS = 6
    INTS = 7
    STRINGS = 8
    TENSORS = 9
    GRAPHS = 10
    SPARSE_TENSOR = 11
    SPARSE_TENSORS = 12
    TYPE_PROTO = 13
    TYPE_PROTOS = 14


class Attribute(NamedTuple):
    """`value` is float, int, str, ndarray, Graph, TypeInfo or a tuple of one of them, as `type` says.

    A STRING that is not UTF-8 stays bytes.
    """

    type: AttributeType
    value: Any


class TypeInfo(NamedTuple):
    """Type of a value: `kind` is "tensor", "sparse_tensor", "sequence", "optional" or "map".

    `dtype` is an ONNX element code (the key type for a map, 0 if unknown), `shape` is None when even
    the rank is unknown, `elem` is the element type of sequences, optionals and maps.
    """

    kind: str
    dtype: int = 0
    shape: tuple[Dim, ...] | None = None
    elem: TypeInfo | None = None

    def __str__(self) -> str:
        if self.kind == "tensor":
            dims = "" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
            return f"{type_name(self.dtype)}[{'...' if self.shape is None else dims}]"
        if self.kind == "map":
            return f"map({type_name(self.dtype)}, {self.elem})"
        return f"{self.kind}({self.elem or type_name(self.dtype)})"


class Value:
    """One edge: an input, a constant or what a node makes.

    A constant has `data`, or is `stored` narrow: who does not know of that finds neither data nor a producer, and declines.
    """

    __slots__ = ("data", "name", "output_of", "producer", "stored", "type", "uses")

    def __init__(self, name: str, type: TypeInfo | None = None, data: np.ndarray | None = None, stored: StoredTensor | None = None):
        self.name = name
        self.type = type
        self.data = data
        self.stored = stored
        self.producer: Node | None = None
        self.uses: dict[tuple[Node, int], None] = {}  # a dict for its order and quick removal
        self.output_of: dict[Graph, None] = {}

    @property
    def is_constant(self) -> bool:
        return self.data is not None or self.stored is not None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of a constant; None of what is computed."""
        held = self.stored if self.data is None else self.data
        return None if held is None else held.shape

    def arrays(self) -> list[np.ndarray]:
        """What a constant holds; nothing of what is computed."""
        if self.data is not None:
            return [self.data]
        return [] if self.stored is None else self.stored.arrays()

    @property
    def is_read(self) -> bool:
        """True when a node reads it or a graph, its own or a nested one, gives it out."""
        return bool(self.uses or self.output_of)

    def __repr__(self) -> str:
        return f"Value({self.name!r}{', constant' if self.is_constant else ''})"


class UnusedValue(Value):
    """A place among the outputs of a node that the model leaves empty: nobody reads it."""

    __slots__ = ()


class Node:
    """One operator call. `inputs` may hold None for an optional input that is absent.

    `subgraphs` are the graphs among the attributes it is made with; attributes set later are no graphs. `origin` is the
    label of what the node stands for, when it is in no file: passes make it with `origin=` the nodes that it replaces.
    `mark` says how a layer with stored weights is quantized.
    """

    __slots__ = (
        "_inputs", "attributes", "doc", "domain", "graph", "mark", "metadata", "name", "op_type", "origin", "outputs", "overload",
        "subgraphs", "version",
    )  # fmt: skip

    def __init__(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[Value],
        attributes: dict[str, Attribute] | None = None,
        *,
        domain: str = "",
        version: int = 0,
        name: str = "",
        metadata: dict[str, str] | None = None,
        doc: str = "",
        overload: str = "",
        origin: Sequence[Node] = (),
    ):
        self.op_type = op_type
        self.domain = domain
        self.origin: str = ", ".join(dict.fromkeys(node.origin or node.label for node in origin)) if origin else ""
        self.version = version  # opset version of `domain` that this node was written for
        self.name = name
        self.attributes = attributes or {}
        self.metadata = metadata or {}
        self.doc = doc
        self.overload = overload
        self.mark: LayerMark | None = None
        self.graph: Graph | None = None
        self.subgraphs = _graphs_in(attributes) if attributes else ()
        self._inputs = list(inputs)
        for index, value in enumerate(self._inputs):
            if value is not None:
                value.uses[self, index] = None
        self.outputs = list(outputs)
        for output in self.outputs:
            if output.producer is not None or output.data is not None:
                raise InvalidModel(f"value {output.name!r} is made twice: by {output.producer} and by {self}")
            output.producer = self

    @property
    def inputs(self) -> tuple[Value | None, ...]:
        return tuple(self._inputs)

    def input(self, index: int) -> Value | None:
        """Input at `index`, None when absent or beyond the list."""
        inputs = self._inputs
        return inputs[index] if index < len(inputs) else None

    def append_input(self, value: Value | None) -> None:
        if value is not None:
            value.uses[self, len(self._inputs)] = None
        self._inputs.append(value)

    def set_input(self, index: int, value: Value | None) -> None:
        old = self._inputs[index]
        if old is not None:
            del old.uses[self, index]
        if value is not None:
            value.uses[self, index] = None
        self._inputs[index] = value

    def attr(self, name: str, default: Any = None) -> Any:
        """Plain value of an attribute, `default` when it is not set."""
        attribute = self.attributes.get(name)
        return default if attribute is None else attribute.value

    def captured(self) -> list[Value]:
        """Outer values that the subgraphs of this node read, in first-use order, constants included."""
        seen: dict[Value, None] = {}
        for graph in self.subgraphs:
            seen.update(dict.fromkeys(graph.captured()))
        return list(seen)

    def is_op(self, *op_types: str, domain: str = "") -> bool:
        return self.domain == domain and self.op_type in op_types

    @property
    def label(self) -> str:
        """How messages call this node: operator, and name or first output, those of the file first."""
        op = f"{self.domain}.{self.op_type}" if self.domain else self.op_type
        if self.origin:
            return self.origin if self.origin.startswith(f"{op} ") else f"{self.origin} ({op})"
        return f"{op} {self.name or (self.outputs[0].name if self.outputs else '')!r}"

    def __repr__(self) -> str:
        return f"Node({self.label})"


def constant(name: str, data: np.ndarray | np.generic) -> Value:
    """A value that holds `data`."""
    data = np.asarray(data)
    return Value(name, TypeInfo("tensor", onnx_code(data.dtype), data.shape), data)


def stored_constant(name: str, stored: StoredTensor) -> Value:
    """A value that stands for what `stored` decodes to."""
    return Value(name, TypeInfo("tensor", stored.element_type, stored.shape), stored=stored)


def _graphs_in(attributes: dict[str, Attribute]) -> tuple[Graph, ...]:
    found: list[Graph] = []
    for attribute in attributes.values():
        if attribute.type is AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type is AttributeType.GRAPHS:
            found.extend(attribute.value)
    return tuple(found)


def _more_telling(declared: TypeInfo | None, known: TypeInfo | None) -> TypeInfo | None:
    if declared is None:
        return known
    if known is not None and declared.kind == known.kind == "tensor" and declared.shape is None and declared.dtype in (0, known.dtype):
        return known
    return declared


class Graph:
    """A list of nodes in an order in which they can run, with named inputs and outputs."""

    def __init__(
        self,
        inputs: Iterable[Value] = (),
        outputs: Iterable[Value] = (),
        nodes: Iterable[Node] = (),
        *,
        name: str = "graph",
        doc: str = "",
    ):
        self.name = name
        self.doc = doc
        self.inputs = list(inputs)
        self._outputs: tuple[Value, ...] = ()
        self.outputs = outputs
        self.output_names = [value.name for value in self.outputs]  # the public names: survive any rewrite
        self.output_types = [value.type for value in self.outputs]  # as declared; likewise
        self.input_defaults: dict[Value, np.ndarray] = {}  # inputs that need not be fed
        self.exact = False  # kernels are to keep the bound that sums of products have: exact=True of load, here for every copy and part
        self.nodes: list[Node] = []
        for node in nodes:
            self.append(node)

    @property
    def outputs(self) -> tuple[Value, ...]:
        return self._outputs

    @outputs.setter
    def outputs(self, values: Iterable[Value]) -> None:
        for value in self._outputs:
            value.output_of.pop(self, None)
        self._outputs = tuple(values)
        for value in self._outputs:
            value.output_of[self] = None

    def described_outputs(self) -> list[tuple[str, TypeInfo | None]]:
        """Name and type of every output: as declared, or what is known of its value where nothing is declared."""
        declared = [*self.output_types, *[None] * len(self._outputs)]
        return [
            (name, _more_telling(kind, value.type)) for name, kind, value in zip(self.output_names, declared, self._outputs, strict=False)
        ]

    def append(self, node: Node) -> None:
        node.graph = self
        self.nodes.append(node)

    def insert_before(self, anchor: Node, *nodes: Node) -> None:
        at = self.nodes.index(anchor)
        for node in nodes:
            node.graph = self
        self.nodes[at:at] = nodes

    def insert_after(self, anchor: Node, *nodes: Node) -> None:
        at = self.nodes.index(anchor) + 1
        for node in nodes:
            node.graph = self
        self.nodes[at:at] = nodes

    def remove(self, *nodes: Node) -> None:
        """Drop nodes whose outputs nobody reads any more."""
        gone = set(nodes)
        for node in nodes:
            for index in range(len(node._inputs)):
                node.set_input(index, None)
            for graph in node.subgraphs:
                graph.release()
            node.graph = None
        self.nodes = [node for node in self.nodes if node not in gone]

    def release(self) -> None:
        """Withdraw every use that this graph makes of outer values (it is being thrown away)."""
        self.outputs = ()
        for node in self.nodes:
            for index in range(len(node._inputs)):
                node.set_input(index, None)
            for graph in node.subgraphs:
                graph.release()

    def replace_uses(self, old: Value, new: Value) -> None:
        """Make every reader of `old`, outputs of graphs included, read `new`."""
        for node, index in list(old.uses):
            node.set_input(index, new)
        for graph in list(old.output_of):
            graph.outputs = [new if value is old else value for value in graph.outputs]

    def walk_graphs(self) -> Iterator[Graph]:
        """This graph and all graphs nested in it."""
        stack = [self]
        while stack:
            graph = stack.pop()
            yield graph
            for node in graph.nodes:
                if node.subgraphs:
                    stack.extend(node.subgraphs)

    def walk_nodes(self) -> Iterator[Node]:
        for graph in self.walk_graphs():
            yield from graph.nodes

    def captured(self) -> list[Value]:
        """Outer values this graph reads, in first-use order (constants included)."""
        own: set[Value] = set(self.inputs)
        seen: dict[Value, None] = {}
        for node in self.nodes:
            for value in (*node.inputs, *node.captured()):
                if value is not None and value not in own:
                    seen[value] = None
            own.update(node.outputs)
        for value in self.outputs:
            if value not in own:
                seen[value] = None
        return list(seen)

    def constants(self) -> list[Value]:
        """Constants read in this graph or below, each once."""
        seen: dict[Value, None] = {}
        for graph in self.walk_graphs():
            for node in graph.nodes:
                for value in node._inputs:
                    if value is not None and value.data is not None:
                        seen[value] = None
            seen.update((v, None) for v in graph.outputs if v.data is not None)
        return list(seen)

    def stored_constants(self) -> list[Value]:
        """Constants that are stored narrow and read in this graph or below, each once."""
        seen: dict[Value, None] = {}
        for graph in self.walk_graphs():
            seen.update((v, None) for node in graph.nodes for v in node._inputs if v is not None and v.stored is not None)
            seen.update((v, None) for v in graph.outputs if v.stored is not None)
        return list(seen)

    def sort(self) -> None:
        """Order nodes after the producers of what they and their subgraphs read (stable).

        Raises InvalidModel on a cycle, naming a node on it.
        """
        if self._is_sorted():
            return
        position = {node: i for i, node in enumerate(self.nodes)}
        needs: dict[Node, set[Node]] = {}
        readers: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            read = (*node.inputs, *node.captured()) if node.subgraphs else node.inputs
            needs[node] = {v.producer for v in read if v is not None and v.producer in position}
            for producer in needs[node]:
                readers[producer].append(node)
        import heapq

        ready = [position[n] for n in self.nodes if not needs[n]]
        heapq.heapify(ready)
        originals, ordered = self.nodes, []
        while ready:
            node = originals[heapq.heappop(ready)]
            ordered.append(node)
            for reader in readers[node]:
                needs[reader].discard(node)
                if not needs[reader]:
                    heapq.heappush(ready, position[reader])
        if len(ordered) != len(originals):
            stuck = next(n for n in originals if needs[n])
            raise InvalidModel(f"graph {self.name!r} has a cycle through {stuck.label}")
        self.nodes = ordered

    def _is_sorted(self) -> bool:
        seen: set[Node] = set()
        for node in self.nodes:
            for value in (*node._inputs, *node.captured()) if node.subgraphs else node._inputs:
                if value is not None and value.producer is not None and value.producer.graph is self and value.producer not in seen:
                    return False
            seen.add(node)
        return True

    def check(self) -> None:
        """Raise InvalidModel, naming the place, when an invariant of this module is broken."""
        self._check(set())

    def _check(self, outer: set[Value]) -> None:
        known = outer | set(self.inputs)
        for node in self.nodes:
            if node.graph is not self:
                raise InvalidModel(f"{node.label} is listed in graph {self.name!r} but belongs to another")
            for index, value in enumerate(node.inputs):
                if value is None:
                    continue
                if (node, index) not in value.uses:
                    raise InvalidModel(f"{node.label} reads {value.name!r} but is not among its uses")
                if not value.is_constant and value not in known:
                    raise InvalidModel(f"{node.label} reads {value.name!r} before anything makes it")
            for graph in node.subgraphs:
                graph._check(known)
            for output in node.outputs:
                if output.producer is not node:
                    raise InvalidModel(f"output {output.name!r} of {node.label} names {output.producer} as its producer")
                known.add(output)
        for value in self.outputs:
            if not value.is_constant and value not in known:
                raise InvalidModel(f"output {value.name!r} of graph {self.name!r} is never made")


class ModelInfo(NamedTuple):
    """What a file says beside its graph; kept so that `save` writes it back."""

    ir_version: int = 10
    opset_imports: dict[str, int] = {}  # noqa: RUF012 (no field is ever changed)
    producer_name: str = ""
    producer_version: str = ""
    domain: str = ""
    model_version: int = 0
    doc: str = ""
    metadata: dict[str, str] = {}  # noqa: RUF012
