"""`model.quantize` with a recipe that trains the model as a whole."""

from __future__ import annotations

import warnings
from typing import Any

from qruntime.errors import CalibrationError, QuantizationError
from qruntime.quantization.feeds import Data, read_feeds
from qruntime.quantization.reasons import NoWeight
from qruntime.quantization.recipe import Recipe
from qruntime.quantization.report import raise_faults
from qruntime.quantization.request import Request
from qruntime.quantization.steps import Progress
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
    made = module_class()(
        model, request.scheme, overrides=request.overrides, only=request.only, exclude=request.exclude, steps=step.steps,
        recompute=step.recompute,
    )  # fmt: skip
    if not made.to_quantize:
        left = [f"{one.name}: {one.reason}" for one in made.left() if not isinstance(one.reason, NoWeight)]
        reasons = "; ".join(left[:3]) or "what is selected is stored in codes already"
        raise QuantizationError(f"{name} has nothing to train for, no float layer is selected for {request.scheme}: {reasons}")
    if strict:
        raise_faults(made.left())
    feeds = [] if data is None else read_feeds(model.graph, data)
    teacher = made.to_float() if made.drops else model  # which does not draw
    with torch_threads(model.threads):
        made.facts = step.train(made, teacher, feeds, mask, progress or (lambda done, total, what: None))
    if "interrupted" in made.facts:
        warnings.warn(f"{name} was interrupted {made.facts['interrupted']}: the model is the best so far", stacklevel=4)
    return made.eval()
