"""Parameter-efficient fine-tuning: codes stay as they are, bit for bit, and a few floats beside them learn a task.

What is learned is an adapter (adapter.py). Training needs torch; putting an adapter into a graph, and merging it, does not.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir import Graph, LayerMark, StoredTensor, Value, clone, constant
from qruntime.quantization.adapter import Adapter, Parts, digest_of
from qruntime.quantization.feeds import Data, read_feeds
from qruntime.quantization.layers import Layer, layer_of, missing_form, obstacle, unfit_attributes
from qruntime.quantization.low_rank import branches_beside
from qruntime.quantization.methods.peqa import PEQA
from qruntime.quantization.methods.qlora import QLoRA
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.patterns import matches_any, nothing_selected, rank
from qruntime.quantization.reasons import NoWeight, Unselected
from qruntime.quantization.report import QuantizedLayer, Report
from qruntime.quantization.scheme import BILEVEL, CHANNEL, DOUBLE, FLOAT32, GROUP, HALF, TENSOR, Granularity, QArgs, ScaleCoding
from qruntime.quantization.selection import layer_kind, layer_name
from qruntime.quantization.solving import Solving
from qruntime.quantization.storing import Storing, describe_existing

Layers = Mapping[str, Layer]


class Learned(Protocol):
    """What is under training, as the methods make it."""

    parameters: list[Any]

    @property
    def values(self) -> list[Value]:
        """Constants of the graph that other tensors stand for."""
        ...

    def replaced(self) -> dict[Value, Any]: ...

    def project(self) -> None: ...

    def arrays(self) -> dict[str, Parts]: ...


class Method(Protocol):
    """What a method adds to a model, as arrays of each layer by its name."""

    @property
    def name(self) -> str: ...

    @property
    def scheme(self) -> str:
        """Of the codes of a model that is float yet."""
        ...

    @property
    def rate(self) -> float: ...

    @property
    def clip(self) -> float | None: ...

    @property
    def targets(self) -> Sequence[str] | None: ...

    @property
    def settings(self) -> dict[str, float]: ...

    def why_not(self, layer: Layer) -> str | None: ...

    def start(self, layers: Layers, seed: int) -> dict[str, Parts]: ...

    def put(self, graph: Graph, layers: Layers, arrays: Mapping[str, Parts], settings: Mapping[str, float]) -> None: ...

    def learning(self, graph: Graph, layers: Layers, arrays: Mapping[str, Parts], settings: Mapping[str, float]) -> Learned: ...


METHODS: dict[str, type[Method]] = {"PEQA": PEQA, "QLoRA": QLoRA}


def method_of(given: object) -> Method:
    """A method, or one by its name, whatever its case."""
    if isinstance(given, tuple(METHODS.values())):
        return given  # type: ignore[return-value]
    named = {name.lower(): method for name, method in METHODS.items()}
    if not isinstance(given, str) or given.lower() not in named:
        raise QuantizationError(f"method must be {' or '.join(map(repr, METHODS))}, or one of their class, got {given!r}")
    return named[given.lower()]()


def has_codes(graph: Graph) -> bool:
    """Whether any layer is stored in codes; tables of embeddings do not count."""
    layers = [layer for node in graph.walk_nodes() if layer_kind(node) and (layer := layer_of(node)) and layer.kind != "Embedding"]
    return any(value is not None and value.stored is not None for layer in layers for value in layer.weights)


def train_adapter(
    graph: Graph,
    method: Method,
    data: Data,
    *,
    loss: object,
    validation: Data | None = None,
    epochs: int = 1,
    steps: int | None = None,
    lr: float | None = None,
    batch: int = 1,
    seed: int = 0,
    threads: int = 1,
    start: Adapter | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    told: Any = None,
) -> Adapter:
    """What `method` learns beside the codes of `graph`, which stays as it is; it goes on from `start`.

    Raises QuantizationError where there is nothing to train, CalibrationError for feeds that do not fit.
    """
    from qruntime.quantization.tuning.adapter_training import AdapterLearning, run_of
    from qruntime.quantization.tuning.engine import torch_threads
    from qruntime.quantization.tuning.next_token import loss_of
    from qruntime.quantization.tuning.training import Plan, Training

    measure, graph = loss_of(loss), clone(graph)
    plan = Plan(steps, epochs, batch, method.rate if lr is None else lr, method.clip, seed)
    layers, untouched = targets_of(graph, method)
    if start is not None:
        layers = _layers_named(graph, start.layers)
    base, settings = digest_of(layers), method.settings if start is None else dict(start.settings)
    begun = method.start(layers, seed) if start is None else start.layers
    learned = method.learning(graph, layers, begun, settings)
    feeds = read_feeds(graph, data)
    apart = [] if validation is None else read_feeds(graph, validation, "validation")
    held = None if checkpoint is None else run_of(checkpoint, method.name, settings, plan, base, begun, feeds, apart)
    with torch_threads(threads):
        course = Training(AdapterLearning(graph, learned, measure), feeds, plan, validation=apart, checkpoint=held, told=told).run()
    if course.was_interrupted:
        warnings.warn(f"interrupted after {len(course.losses)} of {course.steps} steps: the adapter is {course}", stacklevel=3)
    return Adapter(method.name, base, learned.arrays(), settings, tuple(course.losses), untouched)


def targets_of(graph: Graph, method: Method) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers that a method trains, by name in running order, and why others are left. QuantizationError for none."""
    found: dict[str, Layer] = {}
    untouched: dict[str, str] = {}
    nodes = [node for node in graph.walk_nodes() if layer_kind(node)]
    idle = [pattern for pattern in method.targets or () if not any(rank(node, pattern) is not None for node in nodes)]
    if idle:
        raise QuantizationError(f"targets={method.targets!r}: {nothing_selected(idle, nodes)}")
    for node in nodes:
        name, layer = layer_name(node), layer_of(node)
        reasons = [missing_form(node)] if layer is None else [obstacle(layer, value) for value in layer.weights]
        if any(isinstance(reason, (NoWeight, Unselected)) for reason in reasons):
            continue
        if method.targets is not None and not matches_any(node, method.targets):
            continue
        reason = next((one for one in (*reasons, unfit_attributes(node)) if one), None)
        if reason is None and node.graph is not graph:
            reason = "no gradient flows into a branch or a loop"
        if reason is None and name in found:
            reason = "another layer has the same name"
        reason = reason or method.why_not(layer)  # type: ignore[arg-type]
        if reason is None:
            assert layer is not None
            found[name] = layer
        else:
            untouched[name] = reason
    if not found:
        said = "; ".join(f"{name}: {reason}" for name, reason in list(untouched.items())[:3]) or "the model has no layers"
        raise QuantizationError(f"{method.name} finds nothing to train: {said}")
    return found, untouched


def put_adapter(graph: Graph, adapter: Adapter) -> None:
    """Change `graph` to what it was trained to. QuantizationError, with `graph` half-way, for an adapter of another model."""
    if adapter.method not in METHODS:
        raise QuantizationError(f"an adapter of {adapter.method!r} means nothing here; there are those of {' and '.join(METHODS)}")
    layers = _layers_named(graph, adapter.layers)
    METHODS[adapter.method]().put(graph, layers, adapter.layers, adapter.settings)


def check_base(graph: Graph, adapter: Adapter) -> None:
    """QuantizationError unless the codes of `graph` are those that an adapter was trained on."""
    if digest_of(_layers_named(graph, adapter.layers)) != adapter.base:
        raise QuantizationError(
            "the adapter was trained on other codes than this model has; load it into the model that it was saved from, or into one "
            "that was quantized in the same way"
        )


def merge_adapter(graph: Graph, adapter: Adapter, report: Report) -> Report:
    """Bring an adapter into the weights of `graph`, the model without it, and report what that costs.

    Scales are the weights' own already. A branch W′ = W + left · right is rounded to the grid that W has, and its row of the
    report has `merged_error`: ‖Q(W′) − W′‖ / ‖W′ − W‖, what rounding costs in units of what was learned.
    """
    if adapter.method == PEQA.name:
        put_adapter(graph, adapter)
        return report
    with_branches = clone(graph)
    put_adapter(with_branches, adapter)
    beside = {name: branches_beside(layer.node)[0] for name, layer in _layers_named(with_branches, adapter.layers).items()}
    storing, rows = Storing(graph), {}
    for name, layer in _layers_named(graph, adapter.layers).items():
        right, left = (weight.data for weight in beside[name].weights)
        assert right is not None and left is not None
        row = _merged(storing, layer, (right.astype(np.float32) @ left.astype(np.float32)) / np.float32(layer.node.attr("alpha", 1.0)))
        if row is not None:
            rows[name] = row
    described = describe_existing(graph)
    known = {row.name: row for row in report.layers} | rows
    return report._replace(layers=tuple(known.get(row.name, row) for row in described.layers))


def _merged(storing: Storing, layer: Layer, change: np.ndarray) -> QuantizedLayer | None:
    """`change` [K, N] is added to the weight of a layer; its row, None where it is float."""
    value, mark = layer.weights[0], layer.node.mark
    assert value is not None
    (matrix,) = layer.matrices(value)
    turned = change if layer.along else change.T
    total = (matrix.values + turned).astype(layer.dtype)
    place = layer.form.weights[0]
    before = layer.stored(value)
    layer.node.set_input(place, constant(value.name, total))
    if not before:
        return None
    made = storing.store(layer, Solving((RTN(),), args_of(before[0])))
    if isinstance(made, str):
        raise QuantizationError(f"layer {layer_name(layer.node)!r} cannot take its adapter: {made}")
    fresh = layer.node.mark
    assert fresh is not None
    layer.node.mark = (mark or LayerMark())._replace(snr_db=fresh.snr_db, reason=fresh.reason, source=before[0].format.name)
    (restored,) = layer.matrices(layer.weights[0])  # type: ignore[arg-type]
    lost = float(np.linalg.norm(restored.values - total) / max(float(np.linalg.norm(turned)), np.finfo(np.float32).tiny))
    return made._replace(source=before[0].format.name, facts=({"merged_error": lost},))


def args_of(stored: StoredTensor) -> QArgs:
    """How a matrix [N, K] is stored, as a scheme says it."""
    scale = stored.scale
    kind = GROUP if stored.block else TENSOR if stored.has_one_scale else CHANNEL
    coding = ScaleCoding(FLOAT32 if scale is None or scale.dtype != np.float16 else HALF)
    if isinstance(scale, StoredTensor):
        coding = ScaleCoding(DOUBLE if stored.zero_point is None else BILEVEL, scale.format.bits, scale.block)
    return QArgs(stored.format, Granularity(kind, stored.block), stored.zero_point is None, coding)


def _layers_named(graph: Graph, names: Iterable[str]) -> dict[str, Layer]:
    """Layers of the graph itself, of those with one name the first. QuantizationError for what is not there."""
    known: dict[str, Layer] = {}
    for node in graph.nodes:
        layer = layer_of(node) if layer_kind(node) else None
        if layer is not None and all(value is not None and value.is_constant for value in layer.weights):
            known.setdefault(layer_name(node), layer)
    missing = [name for name in names if name not in known]
    if missing:
        raise QuantizationError(f"the adapter is of a model with a layer {missing[0]!r}, which this one has not")
    return {name: known[name] for name in names}
