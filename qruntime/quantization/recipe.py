"""`model.quantize`: a scheme for the layers, and what makes the codes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qruntime.errors import QuantizationError
from qruntime.ir import Graph, Node
from qruntime.ir.formats import FLOAT16, INT8, UINT8
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.einsum import linear_einsum
from qruntime.quantization import scheme as scheme_names
from qruntime.quantization.feeds import Data
from qruntime.quantization.foreign import held_by_others, held_weights
from qruntime.quantization.layers import layer_of, missing_form, obstacle, unfit_attributes
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.patterns import matches_any, mistaken, nothing_selected, rank
from qruntime.quantization.reasons import Excluded, Reason, Unselected
from qruntime.quantization.report import QuantizedLayer, Report, SkippedLayer, raise_faults
from qruntime.quantization.rounding import RoundToHalf
from qruntime.quantization.scheme import GROUP, QArgs, Scheme
from qruntime.quantization.selection import layer_kind, layer_name, pattern_name
from qruntime.quantization.solving import Rounding, Solving
from qruntime.quantization.static_ranges import insert_ranges
from qruntime.quantization.storing import Storing, describe_existing

METHODS = ("RTN",)
"""Names of methods; RTN is round to nearest."""

DEFAULT = "W4A16-g128"

_KINDS = ("Linear", "LSTM", "GRU", "RNN")
"""What is quantized unless an override names more."""


class Recipe:
    """A scheme for every layer: `scheme`, or that of the closest pattern of `overrides`, None to leave layers float."""

    def __init__(
        self,
        scheme: str | Scheme = DEFAULT,
        overrides: Mapping[object, str | Scheme | None] | None = None,
        only: Iterable[object] | None = None,
        exclude: Iterable[object] = (),
    ):
        self.scheme = scheme_names.parse(scheme)
        entries = {} if overrides is None else overrides
        if not isinstance(entries, Mapping):
            raise QuantizationError(f"overrides must be a dict from patterns to schemes or None, got {overrides!r}")
        self.overrides = {pattern_name(key): None if value is None else scheme_names.parse(value) for key, value in entries.items()}
        self.only = None if only is None else _patterns(only)
        self.exclude = _patterns(exclude)

    @property
    def needs_data(self) -> bool:
        return any(scheme is not None and scheme.needs_data for scheme in (self.scheme, *self.overrides.values()))

    def scheme_of(self, node: Node, kind: str) -> Scheme | Reason:
        """The scheme of a layer, or why it has none."""
        if self.only is not None and not matches_any(node, self.only):
            return Unselected("not selected by only=")
        if matches_any(node, self.exclude):
            return Excluded("excluded by exclude=")
        found = [(place, pattern) for pattern in self.overrides if (place := rank(node, pattern)) is not None]
        if found:
            scheme = self.overrides[max(found)[1]]
            return Excluded("excluded by overrides=") if scheme is None else scheme
        if kind not in _KINDS:
            return Unselected(f"not selected: overrides= must name {kind}, or the layer")
        return self.scheme

    def idle(self, layers: list[Node], nodes: list[Node]) -> list[str]:
        """Patterns that select nothing."""
        among = [(pattern, layers) for pattern in (*self.overrides, *(self.only or ()))] + [(pattern, nodes) for pattern in self.exclude]
        return [pattern for pattern, those in among if pattern and not any(rank(node, pattern) is not None for node in those)]


def _patterns(patterns: Iterable[object]) -> tuple[str, ...]:
    return tuple(map(pattern_name, [patterns] if isinstance(patterns, (str, type)) else patterns))


def checked_method(method: object) -> None:
    """Raises QuantizationError for a method that does not exist."""
    if method is not None and (not isinstance(method, str) or method.upper() not in METHODS):
        raise QuantizationError(f"method must be one of {', '.join(METHODS)}, got {method!r}")


def quantize_with(graph: Graph, recipe: Recipe, *, data: Data | None = None, threads: int = 1, strict: bool = False) -> Report:
    """Quantize `graph` in place, rounding to nearest, and report what was done. `data` is for ranges of static activations.

    Raises QuantizationError for data that do not fit, and where `strict` and a layer cannot be what was asked for, or a
    pattern selects nothing.
    """
    if any(scheme is not None and scheme.cache is not None for scheme in (recipe.scheme, *recipe.overrides.values())):
        raise QuantizationError("caches of keys and values stay float: leave -KV out of the scheme")
    linear_einsum(graph, tied=True)
    nodes = list(graph.walk_nodes())
    candidates = [(node, kind) for node in nodes if (kind := layer_kind(node))]
    layers = [node for node, _ in candidates]
    idle = recipe.idle(layers, nodes)
    unknown = mistaken(idle, nodes)
    if unknown and strict:
        raise QuantizationError(f"strict=True and {nothing_selected(unknown, layers)}")
    kept = {row.name: row for row in describe_existing(graph).layers}
    schemes = {node: recipe.scheme_of(node, kind) for node, kind in candidates}
    static = {node: None for node, scheme in schemes.items() if _has_static_form(graph, node, scheme)}
    if static and data is not None:
        insert_ranges(graph, list(static), data, threads)
    storing, made, skipped = Storing(graph), [], held_by_others(nodes)
    for node, scheme in schemes.items():
        row = _quantize(storing, node, scheme, node in static)
        if isinstance(row, QuantizedLayer):
            kept.pop(row.name, None)
            made.append(row)
        elif not (isinstance(row, Unselected) and layer_name(node) in kept):
            skipped.append(SkippedLayer(layer_name(node), node.op_type, row))
    if strict:
        raise_faults(skipped)
    remove_dead_nodes(graph)
    return Report((*kept.values(), *made), tuple(skipped), tuple(idle), (), tuple(kept), held_weights(graph.walk_nodes()))


def _has_static_form(graph: Graph, node: Node, scheme: Scheme | Reason) -> bool:
    """Whether a layer that is to have static activations can: a linear one, of the graph itself, with a constant weight."""
    layer = layer_of(node)
    if isinstance(scheme, Reason) or not scheme.needs_data or layer is None or layer.kind != "Linear" or node.graph is not graph:
        return False
    return all(obstacle(layer, value) is None for value in layer.weights) and unfit_attributes(node) is None


def _is_plain_int8(args: QArgs) -> bool:
    return args.format is INT8 and args.granularity.kind != GROUP


def _quantize(storing: Storing, node: Node, scheme: Scheme | Reason, is_static: bool) -> QuantizedLayer | Reason:
    if isinstance(scheme, Reason):
        return scheme
    layer = layer_of(node)
    if scheme.needs_data and not is_static and layer is not None and obstacle(layer, layer.weights[0]) is None:
        return Reason("static activations are for linear layers outside of subgraphs; a scheme without -static has ranges at every run")
    if layer is None:
        return Reason(missing_form(node) or "it is no layer")
    assert scheme.weights is not None
    if scheme.inputs is not None and (scheme.inputs.format is not UINT8 or scheme.inputs.clusters):
        return Reason(f"there is no kernel for {scheme.inputs}")
    if scheme.inputs is not None and layer.kind != "Linear" and not _is_plain_int8(scheme.weights):
        return Reason(f"8-bit activations of {layer.kind} need 8-bit integers with one scale or one per output; write A16")
    rounding: Rounding = RoundToHalf() if scheme.weights.format is FLOAT16 else Solving((RTN(),), scheme.weights)
    before, node.mark = node.mark, None
    made = storing.store(layer, rounding, scheme.inputs)
    if isinstance(made, str):
        node.mark = before
        return made if isinstance(made, Reason) else Reason(made)
    return made
