"""PEQA: the codes of a model stay, and its scales learn a task.

Jeonghoon Kim, Jung Hyun Lee, Sungdong Kim, Joonsuk Park, Kang Min Yoo, Se Jung Kwon, Dongsoo Lee, "Memory-Efficient Fine-Tuning of
Compressed Large Language Models via sub-4-bit Integer Quantization", arXiv 2305.14152.

    Ŵ = s ⊙ (Q − z),    s = s₀ (1 + δ),    ∂L/∂s = Σ (∂L/∂Ŵ) (Q − z) over the numbers of the scale

Q and z are frozen, so that Ŵ is linear in s and nothing is rounded on the way. A task is a vector of scales: a thousandth of the
model. Deviations: what is trained is δ, as scales of layers differ by orders of magnitude and one rate is to serve them all;
codes are those that the model has, made by whatever method, of a float model those nearest on a range that covers every weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir import Graph, StoredTensor, Value, stored_constant
from qruntime.quantization.adapter import Parts, check_parts
from qruntime.quantization.layers import Layer
from qruntime.quantization.request import patterns_of

_SMALLEST = 1e-3
"""What is left of a scale at least: the sign of a weight is its code's."""

_NAMES = ("scale", "scale_r")
"""Of the scales of the weights of a layer: recurrent layers have two."""


@dataclass(frozen=True)
class PEQA:
    """`targets`: names, module paths, globs or kinds of the layers whose scales are trained; None: of all that have codes."""

    targets: Sequence[str] | None = None

    name: ClassVar[str] = "PEQA"
    scheme: ClassVar[str] = "W3A16"
    rate: ClassVar[float] = 1e-2
    clip: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", None if self.targets is None else patterns_of(self.targets))

    @property
    def settings(self) -> dict[str, float]:
        return {}

    def why_not(self, layer: Layer) -> str | None:
        """Why the scales of a layer cannot be trained; None where they can."""
        if layer.kind == "Embedding":
            return "a table of embeddings keeps its scales"
        for value in layer.weights:
            reason = _why_fixed(value)
            if reason is not None:
                return reason
        return None

    def start(self, layers: Mapping[str, Layer], seed: int) -> dict[str, Parts]:
        """The scales as they are, those of a weight that several layers read with the first of them."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, part, value in _scaled(layers):
            found.setdefault(name, {})[part] = _scale(value).astype(np.float32)
        return dict(found)

    def put(self, graph: Graph, layers: Mapping[str, Layer], arrays: Mapping[str, Parts], settings: Mapping[str, float]) -> None:
        """Give the layers other scales. QuantizationError for such as do not fit."""
        wanted: dict[str, dict[str, Value]] = {name: {} for name in arrays}
        for name, part, value in _scaled(layers):
            wanted[name][part] = value
        for name, parts in arrays.items():
            check_parts(name, parts, {part: _scale(value).shape for part, value in wanted[name].items()})
            if any((array <= 0).any() for array in parts.values()):
                raise QuantizationError(f"layer {name!r}: scales must be above 0, the adapter has others")
            for part, value in wanted[name].items():
                assert value.stored is not None
                new = stored_constant(value.name, replace(value.stored, scale=parts[part]))
                for node, place in list(value.uses):
                    node.set_input(place, new)

    def learning(
        self, graph: Graph, layers: Mapping[str, Layer], arrays: Mapping[str, Parts], settings: Mapping[str, float]
    ) -> LearnedScales:
        """What trains `arrays` by torch."""
        return LearnedScales([(name, part, value, arrays[name][part]) for name, part, value in _scaled(layers)])


class LearnedScales:
    """Scales s₀ (1 + δ) under training."""

    def __init__(self, scales: list[tuple[str, str, Value, np.ndarray]]):
        import torch

        self._places = [(name, part) for name, part, _, _ in scales]
        self._start = [torch.from_numpy(array) for _, _, _, array in scales]
        self._weights = [(value, _decoding(value.stored)) for _, _, value, _ in scales if value.stored is not None]
        self.parameters: list[Any] = [torch.zeros_like(start, requires_grad=True) for start in self._start]

    @property
    def values(self) -> list[Value]:
        return [value for value, _ in self._weights]

    def replaced(self) -> dict[Value, Any]:
        """The weights for the scales as they are now."""
        return {value: decode(scale) for (value, decode), scale in zip(self._weights, self._scales(), strict=True)}

    def project(self) -> None:
        """Keep scales above 0."""
        for delta in self.parameters:
            delta.data.clamp_(min=_SMALLEST - 1)

    def arrays(self) -> dict[str, Parts]:
        found: dict[str, dict[str, np.ndarray]] = {}
        for (name, part), scale in zip(self._places, self._scales(), strict=True):
            found.setdefault(name, {})[part] = scale.detach().numpy().copy()
        return dict(found)

    def _scales(self) -> list[Any]:
        return [start * (1 + delta) for start, delta in zip(self._start, self.parameters, strict=True)]


def _scaled(layers: Mapping[str, Layer]) -> Iterator[tuple[str, str, Value]]:
    """Layer, part and weight of each scale, each weight once."""
    seen: set[Value] = set()
    for name, layer in layers.items():
        for part, value in zip(_NAMES, layer.weights, strict=False):
            if value is not None and value not in seen:
                seen.add(value)
                yield name, part, value


def _why_fixed(value: Value | None) -> str | None:
    stored = None if value is None else value.stored
    if stored is None:
        return "its weight is float: it has no scale"
    if stored.scale is None:
        return f"{stored.format.name} codes have no scale"
    if isinstance(stored.scale, StoredTensor):
        return "its scales are codes themselves"
    if stored.offset is not None or stored.outliers is not None:
        return "some of its numbers do not depend on the scales: offsets, or numbers apart from the codes"
    return None


def _scale(value: Value) -> np.ndarray:
    assert value.stored is not None and isinstance(value.stored.scale, np.ndarray)
    return value.stored.scale


def _decoding(stored: StoredTensor) -> Callable[[Any], Any]:
    """What the codes stand for, as a function of their scales."""
    import torch

    from qruntime.quantization.tuning.operators.products import Scaled

    values = stored.values()
    if stored.ndim == 2 and not stored.block:
        whole = torch.from_numpy(np.ascontiguousarray(values, np.float32))
        return lambda scale: Scaled(whole, scale)
    narrow = values.astype(np.int16) if stored.format.is_integer else values  # torch keeps it for gradients
    if narrow.dtype == np.int16 and not np.array_equal(narrow, values):
        narrow = values  # zero points need not be whole
    units = torch.from_numpy(np.ascontiguousarray(narrow))
    axis, count = stored.block_axis, stored.shape[stored.block_axis] if stored.ndim else 0

    def decode(scale: Any) -> Any:
        if stored.block and scale.shape[axis] > 1:
            scale = scale.repeat_interleave(stored.block, axis).narrow(axis, 0, count)
        return units * scale

    return decode
