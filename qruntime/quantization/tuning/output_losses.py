"""Losses of a whole model that have names: functions of its outputs and of a feed, both tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qruntime.errors import QuantizationError
from qruntime.ir import Graph
from qruntime.quantization.tuning.next_token import NextToken

Loss = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""loss(outputs, feed): a scalar tensor. A feed holds the inputs, and what else the data have beside them: labels."""

NEXT_TOKEN, DISTILL, MSE = "next_token", "distill", "mse"
NAMES = (NEXT_TOKEN, DISTILL, MSE)


def loss_of(given: object, graph: Graph, teacher: Callable[[Mapping[str, Any]], Mapping[str, Any]], mask: str | None = None) -> Loss:
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
        return _like_teacher(graph.output_names[0], teacher, mask, is_divergence=given == DISTILL)
    names = ", ".join(map(repr, NAMES))
    raise QuantizationError(f"loss must be one of {names}, or a function of (outputs, feed) that returns a scalar tensor, got {given!r}")


def _like_teacher(output: str, teacher: Callable[[Mapping[str, Any]], Mapping[str, Any]], mask: str | None, *, is_divergence: bool) -> Loss:
    def loss(outputs: Mapping[str, Any], feed: Mapping[str, Any]) -> Any:
        made, wanted = outputs[output], teacher(feed)[output]
        if is_divergence:
            log_wanted = wanted.log_softmax(-1)
            each = (log_wanted.exp() * (log_wanted - made.log_softmax(-1))).sum(-1)
        else:
            each = (made - wanted).square().mean(-1)
        return _mean(each, None if mask is None else feed[mask])

    return loss


def _mean(each: Any, mask: Any) -> Any:
    """Over all, or over what a mask of that shape leaves."""
    if mask is None or mask.shape != each.shape:
        return each.mean()
    weight = (mask != 0).to(each.dtype)
    return (each * weight).sum() / weight.sum().clamp(min=1)
