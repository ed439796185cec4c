"""Dynamic quantization: int8 weights now, activations at every run. The first and simplest recipe.

A quantized layer stays a standard operator over a weight that is stored otherwise, and its mark says how activations are
treated. Other runtimes run what is saved of it as weight-only quantization; qruntime quantizes the activations too.
"""

from __future__ import annotations

import warnings

from qruntime.errors import QuantizationError
from qruntime.ir import Graph, LayerMark, Node
from qruntime.ops import engines
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.einsum import linear_einsum
from qruntime.quantization.foreign import held_by_others, held_weights
from qruntime.quantization.layers import Layer, layer_of, missing_form
from qruntime.quantization.patterns import mistaken, nothing_selected
from qruntime.quantization.reasons import Excluded, Reason, Stored, Unselected
from qruntime.quantization.report import QuantizedLayer, Report, SkippedLayer, raise_faults
from qruntime.quantization.scheme import TENSOR, TOKEN, Inputs
from qruntime.quantization.selection import layer_kind, layer_name
from qruntime.quantization.small_layers import slower_as_int8
from qruntime.quantization.spectra import spectral_role
from qruntime.quantization.stored import (
    StoredForm,
    has_form,
    has_static_activations,
    is_usable,
    stored_form,
)
from qruntime.quantization.storing import Storing, describe_existing, row_of_layer
from qruntime.quantization.torch_names.arithmetic import solve_of
from qruntime.quantization.torch_names.qconfig import Observer
from qruntime.quantization.torch_names.specification import Specification, default_observer

ACTIVATIONS = {"per_token": Inputs(granularity=TOKEN), "per_tensor": Inputs(granularity=TENSOR)}
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
    if strict:
        raise_faults(call.skipped)
    if call.protected:
        warnings.warn(_stay_quantized(call.protected), stacklevel=3)
    remove_dead_nodes(graph)
    layers = (*call.kept.values(), *call.made)
    return Report(layers, tuple(call.skipped), tuple(idle), tuple(call.slower), tuple(call.kept), held_weights(graph.walk_nodes()))


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
        self.storing = Storing(graph)
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
        is_ours = name in self.kept and node.mark is not None
        if isinstance(observer, Reason):
            if not is_ours:
                return observer
            self.protected += [name] if isinstance(observer, Excluded) else []
            return None if isinstance(observer, Unselected) else observer
        layer = layer_of(node)
        form = None if layer is None else stored_form(layer)
        if layer is None or form is None:
            made: QuantizedLayer | str | None = self._store(node, layer, observer)
        elif has_form(node, form, observer, self.engine) and (is_ours or is_usable(layer)):
            made = self._as_stored(layer, form, observer, is_ours)
        elif self._is_bare(observer):
            made = None if is_ours else Stored(f"the weight is stored as {form}; {_NAME_IT}")
        elif kind == "Embedding":
            made = Stored(f"the table is stored as {form.dtype} already; other forms are made from the float model")
        else:
            made = self._anew(layer, observer)
        if isinstance(made, QuantizedLayer):
            self.kept.pop(name, None)
            self.slower = [other for other in self.slower if other != name] + ([name] if small else [])
        return made if made is None or isinstance(made, (QuantizedLayer, Reason)) else Reason(made)

    def _is_bare(self, observer: Observer) -> bool:
        """Whether the call asks for nothing but what every call does: then earlier calls and other tools have the say."""
        is_usual = observer == default_observer("qint8") and self.engine == "qruntime" and not self.asks_activation
        return is_usual and self.specification.is_default and self.specification.only is None

    def _as_stored(self, layer: Layer, form: StoredForm, observer: Observer, is_ours: bool) -> QuantizedLayer | Reason | None:
        """The codes stay; at most the activations are treated otherwise from now on."""
        node = layer.node
        if node.mark is not None and is_ours:
            asked = node.mark._replace(activations=self.activation, codes=LayerMark().codes)
            if not node.mark.is_dynamic or not self.asks_activation or node.mark == asked:
                return None
            node.mark = asked
            return self.kept[layer_name(node)]
        if form.dtype == "float16":
            node.mark = LayerMark(source=form.dtype)
        else:
            if has_static_activations(node) and self._is_bare(observer):
                return Stored(f"the activations are quantized in fixed ranges already; {_NAME_IT}")
            node.mark = LayerMark(self.activation, source=form.dtype)
        return row_of_layer(layer, set())

    def _anew(self, layer: Layer, observer: Observer) -> QuantizedLayer | str:
        """Quantize the values that the stored codes stand for."""
        before = layer.node.mark
        layer.node.mark = None
        made = self._store(layer.node, layer, observer)
        if isinstance(made, str):
            layer.node.mark = before
        return made

    def _store(self, node: Node, layer: Layer | None, observer: Observer) -> QuantizedLayer | str:
        """Replace the weights of one layer; a string says why that cannot be."""
        if layer is None:
            return missing_form(node) or "it is no layer"
        return self.storing.store(layer, solve_of(observer, self.engine), ACTIVATIONS[self.activation], self.engine)


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
