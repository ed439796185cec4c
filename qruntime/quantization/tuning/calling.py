"""`model.quantize` with a recipe that trains the model as a whole."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qruntime.errors import CalibrationError, QuantizationError
from qruntime.quantization.feeds import Data, read_feeds
from qruntime.quantization.quantizing import quantize_with
from qruntime.quantization.reasons import NoWeight
from qruntime.quantization.recipe import Recipe
from qruntime.quantization.report import raise_faults
from qruntime.quantization.request import Request
from qruntime.quantization.steps import Progress, Step
from qruntime.quantization.tuning.dropouts import stop_dropping
from qruntime.quantization.tuning.engine import check_engine, torch_threads
from qruntime.quantization.tuning.quantized_module import module_class


def trained_module(
    model: Any, recipe: Recipe, request: Request, data: Data | None, mask: str | None, progress: Progress | None, *, strict: bool
) -> Any:
    """A `QuantizedModule` of `model` after the training step of `recipe`, in evaluation mode.

    CalibrationError where data are missing, or given to a step that makes its own; QuantizationError where `strict` and a layer
    that was asked for cannot have the scheme.
    """
    step = recipe.training
    assert step is not None
    name = type(step).__name__
    check_engine(name)
    if step.takes_data and data is None:
        raise CalibrationError(f"{name} trains on data: give data=, feeds {{input name: array}} that may hold labels beside the inputs")
    if not step.takes_data and data is not None:
        raise CalibrationError(
            f'{name} takes no data: it trains on text that the model writes itself. Leave data= out, or train on data with "QAT", '
            'whose loss="distill" is the same'
        )
    feeds = [] if data is None else read_feeds(model.graph, data)
    before = recipe.before_training
    begun, floats = _with_codes(model, before, request, feeds, mask, progress) if before else (model, {})
    made = module_class()(
        begun, request.scheme, overrides=request.overrides, only=request.only, exclude=request.exclude, steps=step.steps,
        recompute=step.recompute, from_codes=bool(before),
    )  # fmt: skip
    made.lean(floats)
    if not made.to_quantize:
        left = [f"{one.name}: {one.reason}" for one in made.left() if not isinstance(one.reason, NoWeight)]
        reasons = "; ".join(left[:3]) or "what is selected is stored in codes already"
        raise QuantizationError(f"{name} has nothing to train for, no float layer is selected for {request.scheme}: {reasons}")
    if strict:
        raise_faults(made.left())
    teacher = _without_dropout(model) if made.drops else model
    with torch_threads(model.threads):
        facts = step.train(made, teacher, feeds, mask, progress or (lambda done, total, what: None))
    made.facts = ({"from the codes of": ", ".join(type(one).__name__ for one in before)} if before else {}) | facts
    if "interrupted" in made.facts:
        warnings.warn(f"{name} was interrupted {made.facts['interrupted']}: the model is the best so far", stacklevel=4)
    return made.eval()


def _without_dropout(model: Any) -> Any:
    """A model whose runs draw nothing."""
    graph, fixed = model._copied()
    stop_dropping(graph)
    return model._quantized(graph, fixed, model.report, False)


def _with_codes(
    model: Any, steps: Sequence[Step], request: Request, feeds: Sequence[dict[str, Any]], mask: str | None, progress: Progress | None
) -> tuple[Any, dict[str, np.ndarray]]:
    """What `steps` make of the model, for the same layers, and the floats that its codes were made of. Caches stay float: the module
    rounds what they hold."""
    inputs = [{value.name: feed[value.name] for value in model.graph.inputs} for feed in feeds]
    wanted = copy.copy(request)
    wanted.scheme = replace(request.scheme, cache=None)
    graph, fixed = model._copied()
    floats: dict[str, np.ndarray] = {}
    report = quantize_with(
        graph, Recipe("", steps=tuple(steps)), wanted, data=inputs, mask=mask, progress=progress, threads=model.threads, made_of=floats
    )
    return model._quantized(graph, fixed, report, False), floats
