"""What a method of fine-tuning learns beside codes, under training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qruntime.ir import Graph
from qruntime.quantization.adapter import Parts
from qruntime.quantization.tuning.checkpoint import Checkpoint, digest
from qruntime.quantization.tuning.engine import measured
from qruntime.quantization.tuning.torch_graph import TorchGraph
from qruntime.quantization.tuning.training import Plan

VERSION = 1
"""Of checkpoints."""


class AdapterLearning:
    """`learned` (finetuning.Learned) as constants of `graph`, by what `loss` says of its outputs and a feed."""

    def __init__(self, graph: Graph, learned: Any, loss: Callable[[Any, Any], Any]):
        self._graph, self._learned, self._loss = graph, learned, loss
        self._part = TorchGraph(graph, parameters=learned.values)

    @property
    def groups(self) -> list[dict[str, Any]]:
        return [{"params": self._learned.parameters}]

    def loss(self, feed: Mapping[str, Any]) -> Any:
        graph = self._graph
        made = self._part.run({value: feed[value.name] for value in graph.inputs}, self._learned.replaced())
        outputs = {name: made[value] for name, value in zip(graph.output_names, graph.outputs, strict=True)}
        return measured(self._loss, outputs, feed)

    def begin(self, done: int, steps: int) -> None:
        """Nothing changes with the steps."""

    def settle(self) -> None:
        self._learned.project()

    def state(self) -> dict[str, Any]:
        return {str(place): parameter.detach() for place, parameter in enumerate(self._learned.parameters)}

    def restore(self, state: Mapping[str, Any]) -> None:
        for place, parameter in enumerate(self._learned.parameters):
            parameter.data.copy_(state[str(place)])


def run_of(
    path: str | os.PathLike[str],
    method: str,
    settings: Mapping[str, float],
    plan: Plan,
    base: str,
    begun: Mapping[str, Parts],
    feeds: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
) -> Checkpoint:
    """The checkpoint of a run that starts from `begun`, arrays of each layer, beside codes whose digest is `base`."""
    asked = {
        "version": VERSION, "method": method, "steps": plan.steps_over(len(feeds)), "batch": plan.batch, "lr": plan.rate,
        "clip": plan.clip, "seed": plan.seed, **settings,
    }  # fmt: skip
    origin = {
        "another model": base.encode(), "another beginning": digest(list(begun.values())), "other data": digest(feeds),
        "other data for validation": digest(validation),
    }  # fmt: skip
    return Checkpoint(path, asked | origin)
