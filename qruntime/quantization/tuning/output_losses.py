"""Losses of a whole model that have names: functions of its outputs and of a feed, both tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir import Graph
from qruntime.ops.elementwise import widen
from qruntime.quantization.tuning.next_token import NextToken

Loss = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""loss(outputs, feed): a scalar tensor. A feed holds the inputs, and what else the data have beside them: labels."""

Teacher = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""What the float model makes of a feed: tensors by name."""

NEXT_TOKEN, DISTILL, MSE = "next_token", "distill", "mse"
NAMES = (NEXT_TOKEN, DISTILL, MSE)


def loss_of(given: object, graph: Graph, teacher: Teacher, mask: str | None = None) -> Loss:
    """The loss that `given` stands for, of the first output of the model.

    next_token   cross entropy of each token, given those before it (next_token.py)
    distill      Kullback-Leibler divergence of softmax over the last axis from that of the float model
    mse          mean squared difference to what the float model makes

    `mask` names an input that is 0 where a feed holds padding. QuantizationError for what is no loss.
    """
    if callable(given):
        return given
    if given == NEXT_TOKEN:
        return NextToken(mask=mask)
    if given in (DISTILL, MSE):
        return like_teacher(graph.output_names[0], teacher, mask, is_divergence=given == DISTILL)
    names = ", ".join(map(repr, NAMES))
    raise QuantizationError(f"loss must be one of {names}, or a function of (outputs, feed) that returns a scalar tensor, got {given!r}")


def like_teacher(output: str, teacher: Teacher, mask: str | None = None, *, is_divergence: bool = True) -> Loss:
    """How far an output is from that of the float model: the divergence of its softmax, or the mean squared difference."""

    def loss(outputs: Mapping[str, Any], feed: Mapping[str, Any]) -> Any:
        made, wanted = outputs[output], teacher(feed)[output]
        if is_divergence:
            cross = (wanted.softmax(-1) * (made - wanted)).sum(-1)
            each = made.logsumexp(-1) - wanted.logsumexp(-1) - cross  # of the shape of the scores torch keeps one tensor
        else:
            each = (made - wanted).square().mean(-1)
        return _mean(each, None if mask is None else feed[mask])

    return loss


def teacher_of(model: Any, outputs: Sequence[str] | None = None) -> Teacher:
    """`outputs` of the float model, all unless named, with the kernels of the runtime."""

    def made(feed: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        run = model.run({value.name: np.asarray(feed[value.name]) for value in model.graph.inputs}, outputs)
        return {name: torch.from_numpy(np.ascontiguousarray(widen(array))) for name, array in run.items()}

    return made


def _mean(each: Any, mask: Any) -> Any:
    """Over all, or over what a mask of that shape leaves."""
    if mask is None or mask.shape != each.shape:
        return each.mean()
    weight = (mask != 0).to(each.dtype)
    return (each * weight).sum() / weight.sum().clamp(min=1)
