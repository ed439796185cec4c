"""Runs of parts of a graph, from values that are known: calibration goes through a model layer by layer with it.

    walk = Frontier(graph, [fed_values(graph, feed) for feed in feeds])
    for layer in layers:                           # nodes of the graph, in running order
        inputs = walk.reach(layer)                 # per batch, what the layer reads
        layer.set_input(1, quantized(...))         # layers after it see what this one makes of it
    outputs = walk.finish()                        # per batch, the outputs of the graph

Every node runs once for each batch. A batch keeps only what nodes that are still to run will read; all else is let go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from qruntime.errors import InputError
from qruntime.ir import Graph, Node, TypeInfo, Value, clone_part, needed_nodes, read_by
from qruntime.ir.dtypes import onnx_code
from qruntime.passes import pipeline
from qruntime.runtime.inputs import convert_input
from qruntime.runtime.plan import Planner
from qruntime.runtime.spilling import Spilling

_BATCHES_OF_A_THREAD = 4
"""From so many on, batches go side by side: they are of other sizes, and one thread is done before another."""


class Segment:
    """What computes the values `wanted` of a graph from the values `starts`, and nothing else.

    It is made of the graph as that is now; changes to the graph later, a new weight for one, are for segments made later.
    `lower` hands the part to the kernels by the passes of a whole model, for graphs in canonical form. A lowered graph, and
    one whose every node is to run as it stands, with the bits of a run of that graph, needs none. `like` has arrays of starts whose
    element types the graph does not say: passes do not put one node in place of several where they have to guess.

    `num_threads` is the most threads that one run uses. InputError when `wanted` cannot be computed from `starts`.
    """

    def __init__(
        self,
        graph: Graph,
        starts: Iterable[Value],
        wanted: Iterable[Value],
        *,
        num_threads: int,
        lower: bool = False,
        like: Mapping[Value, Any] | None = None,
    ):
        self.starts = tuple(dict.fromkeys(starts))
        self.wanted = tuple(dict.fromkeys(wanted))
        known = set(self.starts)
        self._constants = {value: _held_by(value) for value in self.wanted if value.is_constant and value not in known}
        self._computed = tuple(value for value in self.wanted if value not in self._constants)
        part = clone_part(graph, self.starts, self._computed)
        for value, copy in zip(self.starts, part.inputs, strict=True):
            array = None if like is None else like.get(value)
            if copy.type is None and isinstance(array, np.ndarray):
                copy.type = TypeInfo("tensor", onnx_code(array.dtype))
        self._executable = Planner(pipeline.lowered(part) if lower else part, num_threads=num_threads).plan().executable
        part.release()  # nobody else sees it: its constants go with this segment, not when cycles are collected

    @property
    def num_threads(self) -> int:
        return self._executable.num_threads

    @num_threads.setter
    def num_threads(self, count: int) -> None:
        self._executable.num_threads = count

    def run(self, known: Mapping[Value, Any]) -> dict[Value, Any]:
        """The wanted values, in their order, from those of all `starts`; `known` may hold more.

        Arrays are as the nodes that make them leave them: of the element type of the value. Results share no memory with
        what is given.
        """
        missing = [value.name for value in self.starts if value not in known]
        if missing:
            raise InputError(f"the part of the graph starts from {missing[0]!r}, which is not given")
        made = self._executable.run([known[value] for value in self.starts])
        computed = dict(zip(self._computed, made, strict=True))
        return {value: computed[value] if value in computed else self._constants[value] for value in self.wanted}


class Frontier:
    """Batches that go through a graph side by side, from node to node, in running order.

    `batches` are the values each batch starts from: of the inputs of the graph (`fed_values`), or of what lies behind
    them. What the walk is for are the inputs of the nodes `stops`, if those are given, and else `outputs` (default: those of
    the graph): nodes that it does not need do not run. `holds`: values that are known beside its inputs when the walk reaches a
    stop. What is held is read-only; beyond `most_bytes` it lies in a temporary file that is mapped into memory. `finishing`: the batches,
    by their numbers, that go on behind the last stop to the outputs of the graph, if anybody asks for them (`finish`).

    The graph may change while the walk stands before a node: what follows may read other weights, or other nodes. What
    has run stays as it ran.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Iterable[Mapping[Value, Any]],
        *,
        outputs: Sequence[Value] | None = None,
        stops: Sequence[Node] = (),
        holds: Mapping[Node, Sequence[Value]] | None = None,
        finishing: Sequence[int] = (),
        num_threads: int,
        lower: bool = False,
        most_bytes: int | None = None,
    ):
        self.graph = graph
        self.outputs = tuple(outputs if outputs is not None else () if stops else graph.outputs)
        self.num_threads = num_threads
        self.lower = lower
        self.most_bytes = most_bytes
        self._stops = tuple(stops)
        self._holds = holds or {}
        self._finishing = tuple(finishing)
        self._pool = ThreadPoolExecutor(max(1, num_threads))
        """The same threads all the way: what is let go of lies where they, and they alone, find memory again."""
        self._batches = [{value: _read_only(given) for value, given in batch.items()} for batch in batches]
        first = set(self._batches[0]) if self._batches else set()
        for index, batch in enumerate(self._batches):
            if batch.keys() != first:
                odd = next(iter(batch.keys() ^ first)).name
                raise InputError(f"batch {index} and batch 0 start from different values: {odd!r} is in one of them only")

    @property
    def held(self) -> tuple[Mapping[Value, Any], ...]:
        """What each batch keeps now."""
        return tuple(self._batches)

    def reach(self, node: Node) -> list[tuple[Any, ...]]:
        """Run what comes before `node`, and return for each batch its inputs; None stands for constants and absent ones.

        InputError for a node that has run, that no output needs, or that lies in a subgraph.
        """
        if self._stops and node is not self._stops[0]:
            self._forget_decoded()
        remaining = self._remaining()
        if node.graph is not self.graph or (node not in self._stops and node not in remaining):
            raise InputError(f"the walk cannot stop before {node.label}: {self._why_not(node)}")
        earlier = set(self.graph.nodes[: self.graph.nodes.index(node)])
        if node in self._stops:
            self._stops = self._stops[self._stops.index(node) :]
        self._run([n for n in remaining if n in earlier], [n for n in remaining if n not in earlier])
        inputs = [None if value is None or value.is_constant else value for value in node.inputs]
        return [tuple(None if value is None else batch[value] for value in inputs) for batch in self._batches]

    def hold(self, node: Node, values: Sequence[Value]) -> None:
        """Let `values` be known too when the walk reaches the stop `node`: of nodes that were inserted before it."""
        self._holds = {**self._holds, node: (*self._holds.get(node, ()), *values)}

    def know(self, batches: Sequence[Mapping[Value, Any]]) -> None:
        """What somebody else has computed of each batch: the nodes that make these values need not run any more."""
        for held, new in zip(self._batches, batches, strict=True):
            held.update((value, _read_only(made)) for value, made in new.items())

    def finish(self) -> list[tuple[Any, ...]]:
        """Run the rest, and return for each batch, or for those that are `finishing`, the outputs, in their order."""
        self._stops = ()
        if self._finishing:
            self.outputs = tuple(self.graph.outputs)
            self._batches, self._finishing = [self._batches[number] for number in self._finishing], ()
        self._run(self._remaining(), [])
        return [tuple(batch[value] if value in batch else _held_by(value) for value in self.outputs) for batch in self._batches]

    def _forget_decoded(self) -> None:
        """What is known twice, as codes too, is known as codes from now on: kernels that multiply them can have them."""
        for index, batch in enumerate(self._batches):
            self._batches[index] = {value: held for value, held in batch.items() if codes_behind(value) not in batch}

    def _remaining(self) -> list[Node]:
        return needed_nodes(self.graph, self._targets(), self._batches[0] if self._batches else self.graph.inputs)

    def _targets(self) -> list[Value]:
        return [*self.outputs, *(value for node in self._stops for value in (*read_by(node), *self._holds.get(node, ())))]

    def _run(self, nodes: list[Node], rest: list[Node]) -> None:
        """Run `nodes`, and keep what the nodes of `rest` and the outputs read."""
        if not self._batches:
            return
        made = {value for node in nodes for value in node.outputs}
        read = dict.fromkeys([*(value for node in rest for value in read_by(node)), *self._targets()])
        later = read.keys() | self._read_later(nodes)
        known = self._batches[0].keys()
        starts = [value for value in dict.fromkeys(value for node in nodes for value in read_by(node)) if value in known]
        wanted = [value for value in dict.fromkeys([*read, *later]) if value in made and value not in known]
        segment = None
        if nodes:
            segment = Segment(self.graph, starts, wanted, num_threads=self.num_threads, lower=self.lower, like=self._batches[0])
        spilling = Spilling(self.most_bytes)
        for index, new in enumerate(self._made(segment)):
            still = later if index in self._finishing else read
            kept = {value: held for value, held in self._batches[index].items() if value in still}
            self._batches[index] = {}
            spilling.take(kept | {value: _read_only(result) for value, result in new.items() if value in still})
        self._batches = list(spilling.taken())

    def _read_later(self, nodes: Sequence[Node]) -> set[Value]:
        """When `nodes` have run, what batches that finish need besides what all need."""
        if not self._finishing:
            return set()
        gone = set(nodes)
        left = (node for node in needed_nodes(self.graph, self.graph.outputs, self._batches[self._finishing[0]]) if node not in gone)
        return {*self.graph.outputs, *(value for node in left for value in read_by(node))}

    def _made(self, segment: Segment | None) -> Iterator[Mapping[Value, Any]]:
        """What `segment` makes of each batch, in their order. Where there are enough of them every thread takes batches of its own:
        none waits for another within a batch, and no more results wait than there are threads."""
        if segment is None:
            yield from ({} for _ in self._batches)
        elif self.num_threads == 1 or len(self._batches) < _BATCHES_OF_A_THREAD * self.num_threads:
            yield from map(segment.run, self._batches)
        else:
            segment.num_threads = 1
            waiting: deque[Future[dict[Value, Any]]] = deque()
            for index in range(len(self._batches)):
                waiting.append(self._pool.submit(self._run_batch, segment, index))
                if len(waiting) > self.num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _run_batch(self, segment: Segment, index: int) -> dict[Value, Any]:
        return segment.run(self._batches[index])

    def _why_not(self, node: Node) -> str:
        if node.graph is None:
            return "it is in no graph any more"
        if node.graph is not self.graph:
            return "it lies in another graph; a subgraph runs as a whole, so stop before the node that it belongs to"
        return "it has run already, or nothing that the walk is for needs it. Nodes are reached in running order"


def fed_values(graph: Graph, feed: Mapping[str, Any]) -> dict[Value, Any]:
    """The values of `graph` that {input name: array-like} stands for; InputError for what does not fit."""
    inputs = {value.name: value for value in graph.inputs}
    unknown = [name for name in feed if name not in inputs]
    missing = [name for name, value in inputs.items() if name not in feed and not (value.type and value.type.kind == "optional")]
    if unknown or missing:
        what = f"unknown input {unknown[0]!r}" if unknown else f"missing input {missing[0]!r}"
        raise InputError(f"{what}; the inputs are: {', '.join(inputs) or 'none'}")
    return {value: convert_input(value, feed.get(name)) for name, value in inputs.items()}


def codes_behind(value: Value) -> Value | None:
    """The codes, with a scale for each channel, that `value` was made of; None of other values."""
    node = value.producer
    if node is None or not node.is_op("DequantizeLinear") or node.attr("axis", 1) != -1:
        return None
    scale = node.input(1)
    return node.input(0) if scale is not None and scale.data is not None and scale.data.ndim == 1 else None


def _held_by(constant: Value) -> Any:
    """What a constant stands for."""
    return constant.stored.decoded() if constant.stored is not None else constant.data


def _read_only(value: Any) -> Any:
    """A view that cannot be written to: an observer must not change what the next node reads."""
    if not isinstance(value, np.ndarray):
        return value
    view = value.view()
    view.flags.writeable = False
    return view
