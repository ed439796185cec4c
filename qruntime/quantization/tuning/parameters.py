"""What a network has learned: the float constants that training may change, with what they are for.

weight   of a layer                     bias   added to what a layer makes, or held by it
table    of an embedding                norm   a factor or summand for each channel: γ and β of norms, as operators or in pieces

Masks, positions, temperatures and epsilons are none; nor is what is stored in codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qruntime.ir import Node, Value, constant
from qruntime.ops.elementwise import is_packable
from qruntime.quantization.layers import CONVOLUTIONS, RECURRENT, Layer, layer_of
from qruntime.quantization.scheme import QArgs, Scheme
from qruntime.quantization.selection import layer_kind, layer_name

WEIGHT, BIAS, NORM, TABLE = "weight", "bias", "norm", "table"

_PLACES = {
    "LayerNormalization": (1, 2), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,), "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2), "BatchNormalization": (1, 2),
    "PRelu": (1,),
}  # fmt: skip
"""Where norms have their factors and summands."""

_BIASES = {"Gemm": 2, "Conv": 2, "ConvTranspose": 2, "LSTM": 3, "GRU": 3, "RNN": 3}
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")


@dataclass(frozen=True, eq=False)
class Parameter:
    """`value` is the constant in the graph; `name` is its own, that of the file."""

    name: str
    value: Value
    role: str
    layer: Layer | None = None
    """Of a weight or a table, the first that reads it."""
    args: QArgs | None = None
    """How a weight is going to be stored; None: it stays float."""

    def tensor(self) -> Any:
        """Its numbers now, float32, in memory of their own."""
        import torch

        assert self.value.data is not None
        return torch.from_numpy(np.array(self.value.data, np.float32))

    def matrices(self, tensor: Any) -> list[Any]:
        """Views of a weight in the layout of the file as matrices [N, K]: one for each direction of a recurrent layer, else one."""
        assert self.layer is not None
        if self.layer.node.op_type in RECURRENT:
            return list(tensor)
        if self.layer.kind in CONVOLUTIONS:
            return [tensor.flatten(1)]
        return [tensor.T if self.layer.along else tensor]

    def joined(self, matrices: Sequence[Any]) -> Any:
        """The way back."""
        import torch

        assert self.layer is not None
        if self.layer.node.op_type in RECURRENT:
            return torch.stack(list(matrices))
        if self.layer.kind in CONVOLUTIONS:
            return matrices[0].reshape(self.value.shape)
        return matrices[0].T if self.layer.along else matrices[0]


def learned(nodes: Iterable[Node], schemes: Mapping[Node, Scheme], streams: Iterable[Value] = ()) -> dict[str, Parameter]:
    """The parameters of `nodes`, in running order. `streams` are values that layers before the nodes make."""
    behind = set(streams)
    found: dict[Value, Parameter] = {}
    for node in nodes:
        layer = layer_of(node) if layer_kind(node) else None
        weights = set() if layer is None else {value for value in layer.weights if value is not None}
        reads = any(value in behind for value in node.inputs)
        for place, value in enumerate(node.inputs):
            if value is None or not _is_learnable(value):
                continue
            if layer is not None and value in weights:
                scheme = schemes.get(node)
                role = TABLE if layer.kind == "Embedding" else WEIGHT
                found.setdefault(value, Parameter(value.name, value, role, layer, None if scheme is None else scheme.weights))
            elif (purpose := _purpose(node, place, value, reads)) is not None:
                found.setdefault(value, Parameter(value.name, value, purpose))
        if reads or any(weight.is_constant for weight in weights):
            behind.update(node.outputs)
    return {one.name: one for one in found.values()}


def separate(nodes: Iterable[Node]) -> None:
    """Give constants of one number throughout, the ones and zeros that norms and biases begin with, to each reader alone.

    Equal constants of a graph are one. That a weight that was trained equals another says that it is the same; of these
    it says nothing.
    """
    for node in nodes:
        for place, value in enumerate(node.inputs):
            if value is None or not _is_learnable(value) or len(value.uses) < 2:
                continue
            if value.data is not None and (value.data == value.data.flat[0]).all():
                node.set_input(place, constant(_name_at(node, place, value), value.data))


def _name_at(node: Node, place: int, value: Value) -> str:
    """A name of its own. Dots lead through modules, so that none is added."""
    return f"{value.name}@{layer_name(node).replace('.', '_')}_{place}"


def _is_learnable(value: Value) -> bool:
    return value.data is not None and value.data.size > 1 and is_packable(value.data.dtype)


def _purpose(node: Node, place: int, value: Value, reads: bool) -> str | None:
    if place == _BIASES.get(node.op_type):
        return BIAS
    if place in _PLACES.get(node.op_type, ()):
        return NORM
    shape = value.shape or ()
    if node.op_type not in _ELEMENTWISE or node.domain or not reads or max(shape) != np.prod(shape):
        return None
    other = node.input(1 - place)
    maker = None if other is None else other.producer
    return BIAS if node.op_type == "Add" and maker is not None and layer_kind(maker) else NORM
