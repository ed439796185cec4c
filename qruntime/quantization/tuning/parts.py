"""What steps with gradients see: a block of a network, or all of it, with the batches that reach it.

    for part in Blocks(graph, original, calibration):       # in running order, from the graph as it is then
        ...                                                 # tuned and stored: what later blocks see

A block has two streams of inputs: of the float model, and of the model as it is quantized so far. Both go through the graph
block by block; a batch holds what later blocks read, and nothing else. What the float block makes of its stream, the target of
most steps, is what the next one reads: whoever computes it first does so for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from qruntime import _kernels
from qruntime.errors import CalibrationError, QuantizationError
from qruntime.ir import Graph, Node, Value, constant, needed_nodes
from qruntime.ops.elementwise import widen
from qruntime.quantization.calibration import Calibration
from qruntime.quantization.layers import layer_of
from qruntime.quantization.scheme import Scheme
from qruntime.quantization.selection import layer_kind
from qruntime.quantization.sites import Site, find_sites
from qruntime.quantization.sites.changes import SCALE
from qruntime.quantization.steps import Equivalence
from qruntime.quantization.tuning.blocks import Block, blocks_of
from qruntime.quantization.tuning.parameters import Parameter
from qruntime.quantization.tuning.student import Student
from qruntime.runtime.segments import Frontier, Segment

FLOAT, QUANTIZED = "float", "quantized"
"""Streams."""

ROWS = 4096
"""What is to be known of a block and not learned (how good it is) is found on feeds that hold so many rows."""


class Part:
    """A block, number `index` of `count`, and what is known of its inputs.

    `student` computes it with torch as it is now: floats that are under training, layers that are stored in their codes.
    """

    def __init__(
        self, graph: Graph, block: Block, original: Graph, twin: Block, schemes: Mapping[Node, Scheme], index: int, count: int,
        inputs: Mapping[str, Sequence[Mapping[Value, Any]]], calibration: Calibration, kept: dict[int, float],
    ):  # fmt: skip
        self.kept = kept
        """The rate at which a step descended in the blocks before, by its id (descent.descend_as_before)."""
        self.graph, self.block, self.schemes, self.index, self.count = graph, block, schemes, index, count
        self._original, self._twin, self._inputs, self._calibration = original, twin, inputs, calibration
        self._targets: dict[tuple[int, str], Any] = {}

    @property
    def calibration(self) -> Calibration:
        """Of the layers of the block, on the stream of the model as it is quantized so far."""
        return self._calibration.starting_from(self._inputs[QUANTIZED])

    @property
    def sample(self) -> Calibration:
        """Likewise of `some` batches."""
        return self._calibration.starting_from(self._inputs[QUANTIZED], self.some)

    @cached_property
    def some(self) -> list[int]:
        """Batches from all over the data that hold `ROWS` rows of the stream, or all."""
        shape = np.shape(self._inputs[QUANTIZED][0][self.block.start])
        count = min(self.batches, -(-ROWS // max(1, math.prod(shape[:-1]))))
        return [place * self.batches // count for place in range(count)]

    @cached_property
    def student(self) -> Student:
        return Student(self.graph, self.schemes, self.block.inputs, [self.block.end])

    @property
    def parameters(self) -> dict[str, Parameter]:
        return self.student.parameters

    @property
    def batches(self) -> int:
        return len(self._inputs[QUANTIZED])

    @property
    def num_threads(self) -> int:
        return self._calibration.num_threads

    def inputs(self, batch: int, stream: str = QUANTIZED) -> dict[Value, Any]:
        """What the block reads in a batch, arrays by the values of `block.inputs`."""
        if stream == QUANTIZED:
            return dict(self._inputs[QUANTIZED][batch])
        return dict(zip(self.block.inputs, (self._inputs[FLOAT][batch][value] for value in self._twin.inputs), strict=True))

    def target(self, batch: int, stream: str = FLOAT) -> Any:
        """What the float block makes of a batch of that stream, a tensor; kept once it is known. CalibrationError for one of the
        float stream that is no number."""
        import torch

        if (batch, stream) not in self._targets:
            given = self.inputs(batch, stream)
            known = {twin: given[value] for value, twin in zip(self.block.inputs, self._twin.inputs, strict=True)}
            made = self._float.run(known)[self._twin.end]
            rows = self.rows(batch, torch.from_numpy(widen(made)))
            if stream == FLOAT and not bool(torch.isfinite(rows).all()):
                what = f"data[{batch}] makes NaN or infinity of {self._twin.end.name!r}"
                raise CalibrationError(f"{what}; leave that feed out, or exclude the layers before it")
            self._targets[batch, stream] = made
        return torch.from_numpy(widen(self._targets[batch, stream]))

    @property
    def float_outputs(self) -> list[dict[Value, Any]] | None:
        """What the float block makes of the float stream, if that is known of all batches."""
        known = [self._targets.get((batch, FLOAT)) for batch in range(self.batches)]
        return None if any(made is None for made in known) else [{self._twin.end: made} for made in known]

    def rows(self, batch: int, made: Any) -> Any:
        """Of what is made of a batch the rows [t, C] float32 without padding."""
        import torch

        rows = made.float().reshape(-1, made.shape[-1])
        mask = self._calibration.kept(batch, self.block.end.name, tuple(made.shape[:-1]))
        return rows if mask is None else rows[torch.from_numpy(mask.reshape(-1))]

    def run(
        self,
        batch: int,
        tensors: Mapping[str, Any] | None = None,
        *,
        weights: Mapping[str, Any] | None = None,
        stream: str = QUANTIZED,
        is_quantized: bool = True,
    ) -> Any:
        """What the block makes of a batch with `tensors` for parameters and `weights` for what these become (Student.run)."""
        made = self.student.run(self.inputs(batch, stream), tensors, weights=weights, is_quantized=is_quantized)
        return made[self.block.end]

    @cached_property
    def sites(self) -> list[Site]:
        """Tensors within the block whose channels a norm before them can scale, for layers that read them and nothing else."""
        inside = set(self.block.nodes)
        layers = [layer for node in self.block.nodes if layer_kind(node) and (layer := layer_of(node)) is not None]
        found = (site for site in find_sites(self.graph, layers) if site.role in ("norm", "affine") and SCALE in site.allows)
        return [site for site in found if site.value.producer in inside and site.ties is None]

    def scale(self, scales: Mapping[str, np.ndarray]) -> None:
        """Divide the channels of tensors, by name, and multiply what reads them."""
        for site in self.sites:
            if site.value.name in scales:
                site.apply(Equivalence(scale=scales[site.value.name]))

    def change(self, constants: Mapping[str, np.ndarray]) -> None:
        """Give parameters other numbers, for the nodes of this block."""
        inside = set(self.student.part.nodes)
        for name, numbers in constants.items():
            old = self.parameters[name].value
            assert old.data is not None
            new = constant(old.name, np.ascontiguousarray(numbers, old.data.dtype).reshape(old.data.shape))
            for node, place in list(old.uses):
                if node in inside:
                    node.set_input(place, new)
        self.renew()

    def renew(self) -> None:
        """Look at the graph anew: it was changed."""
        for name in ("student", "sites"):
            self.__dict__.pop(name, None)

    @cached_property
    def _float(self) -> Segment:
        return Segment(self._original, self._twin.inputs, [self._twin.end], num_threads=self._calibration.num_threads, lower=True)


class Blocks:
    """The blocks of `graph`, which changes on the way, beside those of `original`, the same graph in floats."""

    def __init__(self, graph: Graph, original: Graph, calibration: Calibration, schemes: Mapping[Node, Scheme]):
        self.graph, self.original, self.calibration, self.schemes = graph, original, calibration, schemes
        self._kept: dict[int, float] = {}
        self.blocks, self._twins = blocks_of(graph), blocks_of(original)
        if not self.blocks or len(self.blocks) != len(self._twins):
            raise QuantizationError(
                "the model has no blocks: no addition joins what a layer reads with what is made of it. Methods that go block by block "
                "need residual streams, as transformers and residual networks have; others go layer by layer"
            )
        for whole, blocks in ((graph, self.blocks), (original, self._twins)):
            whole.nodes = _in_blocks(whole, blocks)

    def __iter__(self) -> Iterator[Part]:
        streams = [self._walk(self.graph, self.blocks), self._walk(self.original, self._twins)]
        for index in range(len(self.blocks)):
            part = self._part(index, streams)
            yield part
            known = part.float_outputs
            del part  # what it holds is let go while the streams go on
            _kernels.trim_memory()  # training leaves much that is free, in pieces, to the threads that had it
            if known is not None:
                streams[1].know(known)
            del known

    def _part(self, index: int, streams: Sequence[Frontier]) -> Part:
        block, twin = self.blocks[index], self._twins[index]
        inputs = {}
        for name, walk, one in zip((QUANTIZED, FLOAT), streams, (block, twin), strict=True):
            walk.reach(one.nodes[0])
            inputs[name] = [{value: held[value] for value in one.inputs} for held in walk.held]
        return Part(self.graph, block, self.original, twin, self.schemes, index, len(self.blocks), inputs, self.calibration, self._kept)

    def _walk(self, graph: Graph, blocks: Sequence[Block]) -> Frontier:
        named = {value.name: value for value in graph.inputs}
        batches = [{named[value.name]: array for value, array in batch.items()} for batch in self.calibration.batches]
        firsts = [block.nodes[0] for block in blocks]
        holds = {block.nodes[0]: block.inputs for block in blocks}
        return Frontier(
            graph, batches, stops=firsts, holds=holds, num_threads=self.calibration.num_threads, lower=True,
            most_bytes=self.calibration.most_bytes,
        )  # fmt: skip


def _in_blocks(graph: Graph, blocks: Sequence[Block]) -> list[Node]:
    """The nodes in an order in which a block begins when all that it reads is known, and ends before the next begins."""
    order: dict[Node, None] = {}
    for block in blocks:
        order.update(dict.fromkeys(needed_nodes(graph, block.inputs)))
        order.update(dict.fromkeys(block.nodes))
    return list(dict.fromkeys([*order, *graph.nodes]))
