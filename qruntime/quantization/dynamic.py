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
from qruntime.ir import Graph, Value
from qruntime.ops import engines
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.einsum import linear_einsum
from qruntime.passes.weights import DYNAMIC, ENGINE, STORED, half_weight, quantized_weight
from qruntime.quantization.embeddings import Tables, describe_embedding
from qruntime.quantization.layers import missing_form, weights_of
from qruntime.quantization.patterns import mistaken, nothing_selected
from qruntime.quantization.qconfig import Observer
from qruntime.quantization.report import QuantizedLayer, Report, SkippedLayer
from qruntime.quantization.selection import layer_kind, layer_name
from qruntime.quantization.small_layers import slower_as_int8
from qruntime.quantization.specification import Specification, Unselected
from qruntime.quantization.spectra import spectral_role
from qruntime.quantization.storage import REASON, SNR, Weights, layer_report, stored_snr

ACTIVATIONS = ("per_token", "per_tensor")
ENGINES = ("qruntime", *engines.ENGINES)


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
    layers float that are too small for int8 to be faster.

    Raises QuantizationError for arguments that mean nothing.
    """
    activation = _checked_activation(activation, engine)
    linear_einsum(graph, tied=True)
    nodes = list(graph.walk_nodes())
    candidates = [(node, kind) for node in nodes if (kind := layer_kind(node))]
    choices = [node for node, _ in candidates]
    idle = specification.idle(choices, nodes)
    if strict and idle:
        raise QuantizationError(f"strict=True and {nothing_selected(idle, choices)}")
    unknown = mistaken(idle, nodes)
    if unknown:
        warnings.warn(nothing_selected(unknown, choices), stacklevel=3)
    weights, tables = Weights(engine), Tables()
    before = describe_existing(graph)
    layers, slower = list(before.layers), list(before.slower)
    done = {layer.name for layer in layers}
    skipped: list[SkippedLayer] = []
    for node, kind in candidates:
        if not node.metadata.keys().isdisjoint((DYNAMIC, STORED)) and layer_name(node) in done:
            continue
        observer = specification.observer_of(node, kind)
        if isinstance(observer, Observer) and observer.dtype == "qint8" and kind in ("Linear", "Conv"):
            role = None if specification.names(node) else spectral_role(node)
            observer = observer if role is None else Unselected(role)
        small = slower_as_int8(node) if isinstance(observer, Observer) and observer.dtype == "qint8" else None
        if small and faster_only:
            observer = Unselected(f"{small}, and faster_only=True")
        name = layer_name(node)
        made: str | QuantizedLayer
        if isinstance(observer, str):
            made = observer
        elif kind == "Embedding":
            made = missing_form(node) or tables.quantize_node(node, observer)
        else:
            made = weights.quantize_node(graph, node, observer)
        if isinstance(made, str):
            skipped.append(SkippedLayer(name, node.op_type, made))
            continue
        layers.append(made)
        slower += [name] if small else []
        if kind == "Embedding":
            continue
        if isinstance(observer, Observer) and observer.dtype == "float16":
            node.metadata[STORED] = "float16"
        else:
            node.metadata[DYNAMIC] = activation
            if engine != "qruntime":
                node.metadata[ENGINE] = engine
        node.metadata[SNR] = f"{made.snr_db:.2f}"
        if made.reason:
            node.metadata[REASON] = made.reason
    clamped = [layer for layer in layers if layer.reason and layer.scheme == "float16" and layer.name not in done]
    if clamped:
        others = f", and {len(clamped) - 1} more layers" if len(clamped) > 1 else ""
        advice = "quantize to int8, or leave such layers float with exclude="
        warnings.warn(f"{clamped[0].name}: {clamped[0].reason}{others}; {advice}", stacklevel=3)
    faults = [s for s in skipped if not isinstance(s.reason, Unselected) and s.reason != "both inputs are computed"]
    if strict and faults:
        listed = "; ".join(f"{s.op_type} {s.name!r}: {s.reason}" for s in faults)
        raise QuantizationError(f"strict=True and {len(faults)} layers cannot be quantized: {listed}. Name them in exclude= to go on.")
    if skipped:
        remove_dead_nodes(graph)  # a layer may fail at its second weight
    return Report(tuple(layers), tuple(skipped), tuple(idle), tuple(slower))


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
        if kind == "Embedding":
            embedding = describe_embedding(node, seen)
            layers += [embedding] if embedding else []
            continue
        values = weights_of(node)
        found = [_stored_weight(value) for value in values]
        stored = [weights for weights in found if weights is not None]
        if len(stored) < len(found):
            continue
        # Directions are stored one by one; the layer's shape is that of any of them.
        shapes = [weights.codes[0].shape for weights in stored]
        fresh = [weights for value, weights in zip(values, stored, strict=True) if value not in seen]
        before, after = sum(weights.real_bytes for weights in fresh), sum(weights.stored_bytes for weights in fresh)
        scheme = max((weights.scheme for weights in stored), key=("float16", "per_tensor_affine", "per_channel_affine").index)
        reason = node.metadata.get(REASON, "")
        layers.append(layer_report(node, shapes, scheme, before, after, stored_snr(node), not fresh, reason))
        seen.update(value for value in values if value is not None)
        if DYNAMIC in node.metadata and slower_as_int8(node):
            slower.append(layers[-1].name)
    return Report(tuple(layers), (), slower=tuple(slower))


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
