"""What a call asks for: which layer gets which scheme, and which stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qruntime.errors import QuantizationError
from qruntime.ir import Node
from qruntime.quantization import scheme as scheme_names
from qruntime.quantization.layers import layer_of
from qruntime.quantization.patterns import matches_any, rank
from qruntime.quantization.reasons import Excluded, Reason, Unselected
from qruntime.quantization.scheme import Scheme
from qruntime.quantization.selection import pattern_name

_KINDS = ("Linear", "LSTM", "GRU", "RNN")
"""What is quantized unless an override names more."""

VOCABULARY = 4
"""From so many times as many outputs as inputs on, a layer that makes an output of the model scores a vocabulary."""
_PASSED = ("Add", "Cast", "Identity", "Reshape", "Softmax", "LogSoftmax")


class Request:
    """A scheme for every layer: `scheme`, or that of the closest pattern of `overrides`, None to leave layers float."""

    def __init__(
        self,
        scheme: str | Scheme,
        overrides: Mapping[object, str | Scheme | None] | None = None,
        only: Iterable[object] | None = None,
        exclude: Iterable[object] = (),
    ):
        self.scheme = scheme_names.parse(scheme)
        entries = {} if overrides is None else overrides
        if not isinstance(entries, Mapping):
            raise QuantizationError(f"overrides must be a dict from patterns to schemes or None, got {overrides!r}")
        self.overrides = {pattern_name(key): None if value is None else scheme_names.parse(value) for key, value in entries.items()}
        if any(one is not None and one.cache is not None for one in self.overrides.values()):
            raise QuantizationError("caches of keys and values belong to the whole model: write -KV in scheme=, not in overrides=")
        self.only = None if only is None else patterns_of(only)
        self.exclude = patterns_of(exclude)

    @property
    def needs_data(self) -> bool:
        return any(scheme is not None and scheme.needs_data for scheme in (self.scheme, *self.overrides.values()))

    def scheme_of(self, node: Node, kind: str) -> Scheme | Reason:
        """The scheme of a layer, or why it has none.

        What scores a vocabulary has ranges of each token where others have static ones: outliers of the last norm are its readers'
        alone, and one coarse step moves every score.
        """
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
        if self.scheme.weights is not None and self.scheme.weights.format.bits < 8 and scores_vocabulary(node):
            return Unselected("scores a vocabulary: below 8 bits it costs more than all other layers; overrides= may name it")
        return self.scheme.per_token if self.scheme.needs_data and scores_vocabulary(node) else self.scheme

    def idle(self, layers: list[Node], nodes: list[Node]) -> list[str]:
        """Patterns that select nothing."""
        among = [(pattern, layers) for pattern in (*self.overrides, *(self.only or ()))] + [(pattern, nodes) for pattern in self.exclude]
        return [pattern for pattern, those in among if pattern and not any(rank(node, pattern) is not None for node in those)]


def patterns_of(patterns: Iterable[object]) -> tuple[str, ...]:
    """Patterns as texts: of one, or of several."""
    return tuple(map(pattern_name, [patterns] if isinstance(patterns, (str, type)) else patterns))


def scores_vocabulary(node: Node) -> bool:
    """Whether a layer makes an output of the model that is far wider than what it reads."""
    layer = layer_of(node)
    if layer is None or layer.kind != "Linear" or not layer.shapes or len(layer.shapes[0]) != 2:
        return False
    inputs, outputs = layer.size
    value = node.outputs[0]
    while not value.output_of and len(value.uses) == 1 and next(iter(value.uses))[0].is_op(*_PASSED):
        value = next(iter(value.uses))[0].outputs[0]
    return outputs >= VOCABULARY * inputs and any(graph is node.graph for graph in value.output_of)
