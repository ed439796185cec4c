"""What a call of `quantize_dynamic` asks for, layer by layer: qconfig_spec, dtype and mapping of torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from qruntime.errors import QuantizationError
from qruntime.ir import Node
from qruntime.quantization.patterns import KIND, OWN, matches, matches_any, rank
from qruntime.quantization.reasons import Excluded, Reason, Unselected
from qruntime.quantization.selection import (
    CONVOLUTIONS,
    EMBEDDINGS,
    KINDS,
    is_kind,
    kind_of,
    kinds_of,
    pattern_name,
)
from qruntime.quantization.torch_names import qconfig as presets
from qruntime.quantization.torch_names.qconfig import Observer, PlaceholderObserver, dtype_name, weight_observer

Spec = Iterable[object] | Mapping[object, object]

_DEFAULTS = {
    "qint8": presets.engine_weight_observer,
    "float16": presets.float16_dynamic_qconfig.weight,
    "quint8": presets.default_float_qparams_observer,
    "quint4x2": presets.default_float_qparams_observer_4bit,
}
DTYPES = tuple(_DEFAULTS)

EMBEDDINGS_HINT = (
    "an entry 'Embedding': float_qparams_weight_only_qconfig of qconfig_spec quantizes embeddings too, dtype='quint8' them alone"
)


def default_kinds(dtype: str) -> tuple[str, ...]:
    """The kinds that a call quantizes to `dtype` when it names none."""
    return ("Embedding",) if dtype in EMBEDDINGS else ("Linear", "LSTM", "GRU", "RNN")


def default_observer(dtype: str) -> Observer:
    """How a call quantizes weights to `dtype` when it says no more."""
    return _DEFAULTS[dtype]


class Specification(NamedTuple):
    """`entries`: pattern → observer of the weights, None to exclude; `mapping`: the kinds that may be quantized, None for
    all; `only` and `exclude`: patterns that limit what the entries select.

    Convolutions are quantized when an entry names them or their kind, or when `mapping` does; that a container or the
    whole model is named is not enough.
    """

    entries: dict[str, Observer | None]
    mapping: frozenset[str] | None
    is_default: bool
    only: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    def observer_of(self, node: Node, kind: str) -> Observer | Reason:
        """The observer for a layer; else the reason, a plain one when the request does not fit the layer.

        Raises QuantizationError when it does not fit and names just this layer or its kind.
        """
        named = kinds_of(node).intersection(self.entries) if self.is_default else self.entries  # kinds alone, no modules called so
        ranked = [(found, pattern) for pattern in named if (found := rank(node, pattern)) is not None]
        if not ranked:
            if kind == "Embedding" and self.is_default:
                return Unselected(f"not selected: {EMBEDDINGS_HINT}")
            if kind == "Conv" and self.is_default:
                return Unselected("not selected: qconfig_spec must name Conv, or the layer")
            return Unselected("not selected by qconfig_spec")
        closeness, pattern = max(ranked)
        observer = self.entries[pattern]
        if observer is None:
            return Excluded("excluded by qconfig_spec")
        if self.mapping is not None and self.mapping.isdisjoint(kinds_of(node)):
            return Unselected("not selected by mapping")
        is_named = any(found.level in (OWN, KIND) for found, _ in ranked)
        if kind in CONVOLUTIONS and self.mapping is None and not is_named:
            return Unselected(f"not selected: qconfig_spec or mapping must name {kind}, or the layer")
        misfit = _misfit(kind, observer)
        names_it = closeness.level in (OWN, KIND) and closeness.is_literal
        if misfit and names_it and not self.is_default:
            raise QuantizationError(f"qconfig_spec {pattern!r} selects {node.label}: {misfit}")
        if misfit:
            return Reason(misfit)
        if self.only is not None and not matches_any(node, self.only):
            return Unselected("not selected by only=")
        return Excluded("excluded by exclude=") if matches_any(node, self.exclude) else observer

    def names(self, node: Node) -> bool:
        """Whether an entry or `only` gives the very name or path of `node`."""
        found = (rank(node, pattern) for pattern in (*self.entries, *(self.only or ())))
        return any(closeness is not None and closeness.level == OWN and closeness.is_literal for closeness in found)

    def idle(self, layers: Sequence[Node], nodes: Sequence[Node]) -> list[str]:
        """Patterns that select none of the layers, or exclude none of the nodes."""
        wanted = [] if self.is_default else [(pattern, layers if value else nodes) for pattern, value in self.entries.items()]
        wanted += [(pattern, layers) for pattern in self.only or ()] + [(pattern, nodes) for pattern in self.exclude]
        idle = (pattern for pattern, among in wanted if pattern and not any(matches(node, pattern) for node in among))
        return list(dict.fromkeys(idle))


def _misfit(kind: str, observer: Observer) -> str | None:
    is_half = isinstance(observer, PlaceholderObserver) and observer.dtype == "float16"
    if kind == "Embedding":
        if observer.dtype in EMBEDDINGS and observer.qscheme == "per_channel_affine_float_qparams":
            return None
        return "an Embedding needs float_qparams_weight_only_qconfig (dtype='quint8'), or its 4-bit form (dtype='quint4x2')"
    if is_half or (observer.dtype == "qint8" and not isinstance(observer, PlaceholderObserver)):
        return None
    return f"the only dtypes for {kind} are qint8 and float16, got {observer.dtype}"


def read(
    spec: Spec | None,
    dtype: object,
    mapping: Spec | None,
    per_channel: bool | None,
    only: Iterable[object] | None = None,
    exclude: Iterable[object] = (),
) -> Specification:
    """Check and resolve the arguments of a call. Raises QuantizationError for those that mean nothing."""
    kinds = None if mapping is None else _read_mapping(mapping)
    limits = None if only is None else _names(only), _names(exclude)
    name = dtype_name(dtype)
    if isinstance(spec, str):
        raise QuantizationError(f"qconfig_spec must be a set or a dict, got the string {spec!r}; write {{{spec!r}}}")
    if isinstance(spec, Mapping):
        if per_channel is not None:
            qconfig = "per_channel_dynamic_qconfig" if per_channel else "default_dynamic_qconfig"
            raise QuantizationError(f"per_channel={per_channel} says nothing beside a dict of QConfigs: write {qconfig} into it")
        values = {pattern_name(key): None if value is None else weight_observer(value, key) for key, value in spec.items()}
        return Specification(values, kinds, False, *limits)
    if name not in _DEFAULTS:
        raise QuantizationError(f"do not know how to quantize to dtype {dtype!r}; known are {', '.join(_DEFAULTS)}")
    observer: Observer = _DEFAULTS[name]
    if per_channel and name == "float16":
        raise QuantizationError("per_channel has no meaning for dtype='float16', which has no scales")
    if per_channel is not None and name == "qint8":
        observer = presets.default_per_channel_weight_observer if per_channel else presets.default_weight_observer
    if spec is None:
        chosen: Iterable[object] = default_kinds(name)
    else:
        chosen = spec
    return Specification({pattern_name(key): observer for key in chosen}, kinds, spec is None, *limits)


def _names(patterns: Iterable[object]) -> tuple[str, ...]:
    return tuple(pattern_name(p) for p in ([patterns] if isinstance(patterns, (str, type)) else patterns))


def _read_mapping(mapping: Spec) -> frozenset[str]:
    if isinstance(mapping, str):
        raise QuantizationError(f"mapping must be a dict or a set of kinds, got the string {mapping!r}; write {{{mapping!r}}}")
    kinds = {}
    for key in mapping:
        kind = pattern_name(key)
        if not is_kind(kind):
            raise QuantizationError(f"mapping: there is no quantized form of {kind!r}; kinds are {', '.join(KINDS)}")
        kinds[kind] = key
    if isinstance(mapping, Mapping):
        for name, key in kinds.items():
            target = pattern_name(mapping[key]).removeprefix("Dynamic").removeprefix("Quantized")
            kind = kind_of(name) or name
            if pattern_name(target) not in (kind, name):
                raise QuantizationError(f"mapping[{key!r}]: a layer of kind {kind} becomes DynamicQuantized{kind}, got {mapping[key]!r}")
    return frozenset(kinds)
