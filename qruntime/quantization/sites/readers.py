"""Layers that read a tensor: their columns, and their bias, undo what is done to it."""

from __future__ import annotations

from functools import partial

import numpy as np

from qruntime.ir import Value
from qruntime.ops.elementwise import widen
from qruntime.quantization.layers import RECURRENT, Layer, obstacle, unfit_attributes
from qruntime.quantization.sites.changes import ORDER, SHIFT, Change, Edit, floats_of, give, replace
from qruntime.quantization.sites.linears import add_to_bias, check_bias
from qruntime.quantization.sites.tracing import Ground

_BIAS = 3
"""Where a recurrent layer has its bias: [directions, of W and of R]."""


class Reader:
    """A layer that reads a tensor of K channels with the weight at input `position`."""

    def __init__(self, layer: Layer, position: int = 1):
        self.layer, self.node, self.position = layer, layer.node, position

    @property
    def weight(self) -> Value:
        value = self.node.input(self.position)
        assert value is not None
        return value

    @property
    def matrix(self) -> np.ndarray:
        """[N, K]: of a recurrent layer that of all directions and gates."""
        parts = [part.values.T if part.along else part.values for part in self.layer.matrices(self.weight)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @property
    def channels(self) -> int:
        """K"""
        return self.weight.shape[self.layer.across]  # type: ignore[index]

    @property
    def multiplies(self) -> bool:
        """Whether all that the layer makes is the product of rows and matrix, times a number, and a constant bias."""
        bias = self.node.input(2)
        return self.node.is_op("MatMul") or (self.node.is_op("Gemm") and (bias is None or bias.data is not None))

    def finished(self, product: np.ndarray) -> np.ndarray:
        """What a layer that `multiplies` makes, of the product [T, N] of rows and matrix."""
        bias, alpha = self.node.input(2), self.node.attr("alpha", 1.0)
        made = product if alpha == 1 else product * np.float32(alpha)
        return made if bias is None or bias.data is None else made + np.float32(self.node.attr("beta", 1.0)) * widen(bias.data)

    def edits(self, ground: Ground, change: Change, made: dict[Value, Value]) -> list[Edit]:
        """What makes the layer give on the changed tensor what it gave before; Blocked where that cannot be.

        `made` holds the weights of other readers of the tensor, of which one may be the same.
        """
        floats_of(self.node, self.position)
        edits: list[Edit] = []
        if change.kind == SHIFT:
            edits.append(partial(self._add, ground, change.by))
            if self.layer.node.op_type in RECURRENT:
                if self.node.input(_BIAS) is not None:
                    floats_of(self.node, _BIAS)
            else:
                check_bias(self.node)
        else:
            edits.append(partial(self._turn, change, made))
        return edits

    def _turn(self, change: Change, made: dict[Value, Value]) -> None:
        old, axis = self.weight, self.layer.across
        if old in made:
            self.node.set_input(self.position, made[old])
            return
        weight = floats_of(self.node, self.position)
        if change.kind == ORDER:
            data = np.take(weight, change.by, axis)
        else:
            data = weight * change.by.reshape([-1 if at == axis else 1 for at in range(weight.ndim)])
        replace(self.node, self.position, data)
        made[old] = self.weight

    def _add(self, ground: Ground, shift: np.ndarray) -> None:
        """b + W z"""
        weight = floats_of(self.node, self.position).astype(np.float64)
        more = np.tensordot(weight, shift.astype(np.float64), ((self.layer.across,), (0,)))
        if self.node.op_type not in RECURRENT:
            add_to_bias(ground, self.node, more * float(self.node.attr("alpha", 1.0)))
            return
        bias = np.zeros((more.shape[0], 2 * more.shape[1])) if self.node.input(_BIAS) is None else floats_of(self.node, _BIAS)
        more = np.concatenate([more, np.zeros_like(more)], 1)
        if self.node.input(_BIAS) is None:
            give(self.node, _BIAS, f"{self.weight.name}/bias", (bias + more).astype(floats_of(self.node, self.position).dtype))
        else:
            replace(self.node, _BIAS, bias + more)


def reader_of(layer: Layer) -> Reader | None:
    """A layer as a reader of its first input; None for one whose weight is no float constant along the channels of that."""
    node = layer.node
    if layer.kind != "Linear" and node.op_type not in RECURRENT:
        return None
    weight = node.input(1)
    if weight is None or weight.data is None or obstacle(layer, weight) or unfit_attributes(node) or node.input(0) is None:
        return None
    return Reader(layer)
