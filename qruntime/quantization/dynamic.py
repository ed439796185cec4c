"""Dynamic quantization: int8 weights now, activations at every run. The first and simplest recipe.

A quantized layer stays a standard operator over a weight that is stored otherwise (storage.py), and the
node carries the metadata `qruntime.dynamic = per_token | per_tensor`. Other runtimes run that as
weight-only quantization; qruntime quantizes the activations too. `qruntime.engine` says that a layer
computes as another runtime does, `qruntime.dtype` that its weight is no int8.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir import Graph, Node, Value
from qruntime.ops import engines
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.einsum import linear_einsum
from qruntime.passes.weights import DYNAMIC, ENGINE, STORED, half_weight, quantized_weight
from qruntime.quantization.embeddings import Tables, describe_embedding
from qruntime.quantization.layers import missing_form, weights_of
from qruntime.quantization.patterns import mistaken, nothing_selected
from qruntime.quantization.qconfig import Observer
from qruntime.quantization.report import (
    Excluded,
    NoWeight,
    QuantizedLayer,
    Reason,
    Report,
    SkippedLayer,
    Stored,
    Unselected,
)
from qruntime.quantization.selection import layer_kind, layer_name
from qruntime.quantization.small_layers import slower_as_int8
from qruntime.quantization.specification import Specification, default_observer
from qruntime.quantization.spectra import spectral_role
from qruntime.quantization.storage import REASON, SNR, Weights, layer_report, stored_snr
from qruntime.quantization.stored import (
    SOURCE,
    Restored,
    StoredForm,
    has_form,
    has_static_activations,
    held_by_others,
    is_usable,
    stored_form,
)

ACTIVATIONS = ("per_token", "per_tensor")
ENGINES = ("qruntime", *engines.ENGINES)
_NAME_IT = "name the layer in qconfig_spec to quantize it anew"


def quantize_graph(
    graph: Graph,
    specification: Specification,
    *,
    activation: str | None = None,
    engine: str = "qruntime",
    strict: bool = False,
    faster_only: bool = False,
) -> Report:
    """Quantize `graph` in place and report what was done, layers that earlier calls quantized included.

    `strict` turns every skipped candidate and every pattern that selects nothing into an error. `faster_only` leaves
    layers float that are too small for int8 to be faster. What becomes of weights that are stored narrow already:
    stored.py.

    Raises QuantizationError for arguments that mean nothing.
    """
    linear_einsum(graph, tied=True)
    nodes = list(graph.walk_nodes())
    candidates = [(node, kind) for node in nodes if (kind := layer_kind(node))]
    idle = _checked_patterns(specification, [node for node, _ in candidates], nodes, strict)
    call = _Call(graph, specification, activation, engine, faster_only)
    for node, kind in candidates:
        made = call.quantize(node, kind)
        if isinstance(made, Reason):
            call.skipped.append(SkippedLayer(layer_name(node), node.op_type, made))
        elif made is not None:
            call.made.append(made)
    call.skipped += held_by_others(nodes)
    clamped = [layer for layer in call.made if layer.reason and layer.scheme == "float16"]
    if clamped:
        others = f", and {len(clamped) - 1} more layers" if len(clamped) > 1 else ""
        advice = "quantize to int8, or leave such layers float with exclude="
        warnings.warn(f"{clamped[0].name}: {clamped[0].reason}{others}; {advice}", stacklevel=3)
    faults = [s for s in call.skipped if not isinstance(s.reason, (Unselected, NoWeight, Stored))]
    if strict and faults:
        listed = "; ".join(f"{s.op_type} {s.name!r}: {s.reason}" for s in faults)
        raise QuantizationError(f"strict=True and {len(faults)} layers cannot be quantized: {listed}. Name them in exclude= to go on.")
    if call.protected:
        warnings.warn(_stay_quantized(call.protected), stacklevel=3)
    remove_dead_nodes(graph)  # dequantizations of what was made anew; a layer may also fail at its second weight
    layers = (*call.kept.values(), *call.made)
    return Report(layers, tuple(call.skipped), tuple(idle), tuple(call.slower), tuple(call.kept))


def _checked_patterns(specification: Specification, layers: list[Node], nodes: list[Node], strict: bool) -> list[str]:
    """The patterns that select nothing; those that are no kinds are a warning, under `strict` all are an error."""
    idle = specification.idle(layers, nodes)
    if strict and idle:
        raise QuantizationError(f"strict=True and {nothing_selected(idle, layers)}")
    unknown = mistaken(idle, nodes)
    if unknown:
        warnings.warn(nothing_selected(unknown, layers), stacklevel=4)
    return idle


def _stay_quantized(names: list[str]) -> str:
    listed = f"{', '.join(map(repr, names[:4]))}{' …' if len(names) > 4 else ''}"
    return f"excluded layers that were quantized before stay so: {listed}; float weights come from the float model alone"


class _Call:
    """One request at work on a graph, layer by layer."""

    def __init__(self, graph: Graph, specification: Specification, activation: str | None, engine: str, faster_only: bool):
        self.graph, self.specification, self.engine, self.faster_only = graph, specification, engine, faster_only
        self.activation = _checked_activation(activation, engine)
        self.asks_activation = activation is not None
        self.weights, self.tables, self.restored = Weights(engine), Tables(), Restored()
        before = describe_existing(graph)
        self.kept = {layer.name: layer for layer in before.layers}
        self.slower = list(before.slower)
        self.made: list[QuantizedLayer] = []
        self.skipped: list[SkippedLayer] = []
        self.protected: list[str] = []
        """Layers that the request excludes although there is no float weight any more."""

    def quantize(self, node: Node, kind: str) -> QuantizedLayer | Reason | None:
        """What became of a layer; None when it was quantized before and stays as it is."""
        observer = self.specification.observer_of(node, kind)
        if isinstance(observer, Observer) and observer.dtype == "qint8" and kind in ("Linear", "Conv"):
            role = None if self.specification.names(node) else spectral_role(node)
            observer = observer if role is None else Unselected(role)
        small = slower_as_int8(node) if isinstance(observer, Observer) and observer.dtype == "qint8" else None
        if small and self.faster_only:
            observer = Unselected(f"{small}, and faster_only=True")
        name = layer_name(node)
        is_ours = name in self.kept and not node.metadata.keys().isdisjoint((DYNAMIC, STORED))
        if isinstance(observer, Reason):
            if not is_ours:
                return observer
            self.protected += [name] if isinstance(observer, Excluded) else []
            return None if isinstance(observer, Unselected) else observer
        if kind == "Embedding":
            return self._embedding(node, observer, is_ours)
        form = stored_form(node)
        if form is None:
            made: QuantizedLayer | str | None = self._linear(node, observer)
        elif has_form(node, form, observer, self.engine) and (is_ours or is_usable(node, form)):
            made = self._as_stored(node, form, observer, is_ours)
        elif self._is_bare(observer):
            made = None if is_ours else Stored(f"the weight is stored as {form}; {_NAME_IT}")
        else:
            made = self._anew(node, form, observer)
        if isinstance(made, QuantizedLayer):
            self.kept.pop(name, None)
            self.slower = [other for other in self.slower if other != name] + ([name] if small else [])
        return made if made is None or isinstance(made, (QuantizedLayer, Reason)) else Reason(made)

    def _is_bare(self, observer: Observer) -> bool:
        """Whether the call asks for nothing but what every call does: then earlier calls and other tools have the say."""
        is_usual = observer == default_observer("qint8") and self.engine == "qruntime" and not self.asks_activation
        return is_usual and self.specification.is_default and self.specification.only is None

    def _embedding(self, node: Node, observer: Observer, is_ours: bool) -> QuantizedLayer | Reason | None:
        if not is_ours:
            made = missing_form(node) or self.tables.quantize_node(node, observer)
            return made if isinstance(made, QuantizedLayer) else Reason(made)
        if node.metadata[STORED] == observer.dtype:
            return None
        return Stored(f"the table is stored as {node.metadata[STORED]} already; other forms are made from the float model")

    def _as_stored(self, node: Node, form: StoredForm, observer: Observer, is_ours: bool) -> QuantizedLayer | Reason | None:
        """The codes stay; at most the activations are treated otherwise from now on."""
        if is_ours:
            if form.dtype == "float16" or not self.asks_activation or node.metadata.get(DYNAMIC) == self.activation:
                return None
            node.metadata[DYNAMIC] = self.activation
            return self.kept[layer_name(node)]
        if form.dtype == "float16":
            node.metadata[STORED] = "float16"
        else:
            if has_static_activations(node) and self._is_bare(observer):
                return Stored(f"the activations are quantized in fixed ranges already; {_NAME_IT}")
            node.metadata[DYNAMIC] = self.activation
        node.metadata[SOURCE] = form.dtype
        made = _describe(node, set())
        return Reason("the stored weight cannot be read") if made is None else made

    def _anew(self, node: Node, form: StoredForm, observer: Observer) -> QuantizedLayer | str:
        """Quantize the values that the stored codes stand for."""
        weights = self.restored.read_by(node)
        if isinstance(weights, str):
            return weights
        stored, metadata = [(i, node.input(i)) for i, _ in weights], dict(node.metadata)
        for position, value in weights:
            node.set_input(position, value)
        for key in (DYNAMIC, ENGINE, STORED, SNR, REASON):
            node.metadata.pop(key, None)
        node.metadata[SOURCE] = form.dtype
        made = self._linear(node, observer)
        if isinstance(made, str):
            for position, old in stored:
                node.set_input(position, old)
            node.metadata.clear()
            node.metadata.update(metadata)
            return made
        return made._replace(source=form.dtype)

    def _linear(self, node: Node, observer: Observer) -> QuantizedLayer | str:
        made = self.weights.quantize_node(self.graph, node, observer)
        if isinstance(made, str):
            return made
        if observer.dtype == "float16":
            node.metadata[STORED] = "float16"
        else:
            node.metadata[DYNAMIC] = self.activation
            if self.engine != "qruntime":
                node.metadata[ENGINE] = self.engine
        node.metadata[SNR] = f"{made.snr_db:.2f}"
        if made.reason:
            node.metadata[REASON] = made.reason
        return made


def _checked_activation(activation: str | None, engine: str) -> str:
    if engine not in ENGINES:
        raise QuantizationError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if activation is None:
        return "per_token" if engine == "qruntime" else "per_tensor"
    if activation not in ACTIVATIONS:
        raise QuantizationError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if engine != "qruntime" and activation != "per_tensor":
        raise QuantizationError(f"engine {engine!r} quantizes activations per tensor, got activation={activation!r}")
    return activation


def describe_existing(graph: Graph) -> Report:
    """Report on a graph that was quantized before and loaded again."""
    layers, slower = [], []
    seen: set[Value] = set()
    for node in graph.walk_nodes():
        kind = layer_kind(node)
        if kind is None or node.metadata.keys().isdisjoint((DYNAMIC, STORED)):
            continue
        layer = describe_embedding(node, seen) if kind == "Embedding" else _describe(node, seen)
        if layer is None:
            continue
        layers.append(layer)
        if DYNAMIC in node.metadata and slower_as_int8(node):
            slower.append(layer.name)
    return Report(tuple(layers), (), slower=tuple(slower))


def _describe(node: Node, seen: set[Value]) -> QuantizedLayer | None:
    """Report row of a layer whose weights are stored narrow; `seen` holds the weights already counted."""
    values = weights_of(node)
    found = [_stored_weight(value) for value in values]
    stored = [weights for weights in found if weights is not None]
    if len(stored) < len(found):
        return None
    # Directions are stored one by one; the layer's shape is that of any of them.
    shapes = [weights.codes[0].shape for weights in stored]
    fresh = [weights for value, weights in zip(values, stored, strict=True) if value not in seen]
    before, after = sum(weights.real_bytes for weights in fresh), sum(weights.stored_bytes for weights in fresh)
    scheme = max((weights.scheme for weights in stored), key=("float16", "per_tensor_affine", "per_channel_affine").index)
    seen.update(value for value in values if value is not None)
    made = layer_report(node, shapes, scheme, before, after, stored_snr(node), not fresh, node.metadata.get(REASON, ""))
    return made._replace(source=node.metadata.get(SOURCE, made.source))


class _StoredWeight(NamedTuple):
    codes: list[np.ndarray]
    stored_bytes: int  # with the scales
    real_bytes: int  # of the numbers that the codes stand for
    scheme: str


def _stored_weight(value: Value | None) -> _StoredWeight | None:
    half = half_weight(value)
    if half is not None:
        return _StoredWeight([half], half.nbytes, 4 * half.size, "float16")
    pieces = [value]
    if value is not None and value.producer is not None and value.producer.is_op("Concat"):
        pieces = list(value.producer.inputs)
    found = [w for v in pieces if (w := quantized_weight(v)) is not None]
    if not found:
        return None
    scheme = "per_tensor_affine" if all(w.axis is None for w in found) else "per_channel_affine"
    stored = sum(w.q.nbytes + w.scale.nbytes + w.zero_point.nbytes for w in found)
    return _StoredWeight([w.q for w in found], stored, sum(w.q.size * w.dtype.itemsize for w in found), scheme)
