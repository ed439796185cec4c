"""Operators that are layers: where they hold their weights, and which way these lie. The one border of orientation.

Outside of this file a weight is a matrix [N, K], N outputs and K inputs, whatever the operator stores.

Operators that ONNX Runtime's optimizers fuse are the layers that they were made of. What reads weights in a form that
cannot be quantized stands here too, so that reports name it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from qruntime.ir import Node, StoredTensor, Value, stored_constant
from qruntime.ir.formats import FLOAT16
from qruntime.ir.marks import LAYER
from qruntime.ir.stored import stack
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.elementwise import is_packable, widen
from qruntime.passes.einsum import why_not_linear
from qruntime.quantization.reasons import NoWeight, Unselected
from qruntime.quantization.rounding import Matrix


class Form(NamedTuple):
    """How an operator is a layer."""

    kind: str
    """torch's name of the class."""
    weights: tuple[int, ...] = (1,)
    """Positions of the weights among the inputs."""
    ranks: tuple[int, int] = (2, 2)
    """The least and greatest that a weight may have."""
    is_quantizable: bool = True
    packed_bias: int | None = None
    """Position of a bias that int8 kernels pack with the weights, so that it must be a constant."""


_LINEAR, _CONV = Form("Linear"), Form("Conv", ranks=(3, 5), packed_bias=2)
_OTHER_LINEAR, _OTHER_CONV = _LINEAR._replace(is_quantizable=False), _CONV._replace(is_quantizable=False)

FORMS: dict[tuple[str, str], Form] = {
    ("", "MatMul"): _LINEAR,
    ("", "Gemm"): _LINEAR,
    ("", "LSTM"): Form("LSTM", (1, 2), (3, 3), packed_bias=3),
    ("", "GRU"): Form("GRU", (1, 2), (3, 3), packed_bias=3),
    ("", "RNN"): Form("RNN", (1, 2), (3, 3), packed_bias=3),
    ("", "Gather"): Form("Embedding", (0,)),
    ("", "Conv"): _CONV,
    ("", "ConvTranspose"): Form("ConvTranspose", ranks=(3, 5)),
    (MICROSOFT, "FusedMatMul"): _LINEAR,
    (MICROSOFT, "TransposeMatMul"): _LINEAR,
    (MICROSOFT, "FusedGemm"): _LINEAR,
    (MICROSOFT, "GemmFastGelu"): _LINEAR,
    (MICROSOFT, "Attention"): _LINEAR,
    (MICROSOFT, "FusedConv"): _CONV,
    # Without a quantized form.
    ("", "Einsum"): _OTHER_LINEAR,
    ("", "DeformConv"): _OTHER_CONV,
    ("", "CausalConvWithState"): _OTHER_CONV,
    (MICROSOFT, "CausalConvWithState"): _OTHER_CONV,
    (MICROSOFT, "VarlenCausalConvWithState"): _OTHER_CONV,
    (MICROSOFT, "ConvTransposeWithDynamicPads"): Form("ConvTranspose", is_quantizable=False),
    (MICROSOFT, "WordConvEmbedding"): _OTHER_CONV,
    (MICROSOFT, "SparseToDenseMatMul"): _OTHER_LINEAR,
    (MICROSOFT, "CDist"): _OTHER_LINEAR,
    (MICROSOFT, "MoE"): _OTHER_LINEAR,
    (MICROSOFT, "AttnLSTM"): Form("LSTM", is_quantizable=False),
    (MICROSOFT, "EmbedLayerNormalization"): Form("Embedding", (2,), is_quantizable=False),
}
"""By domain and operator."""

LARGE = 4096
"""Elements from which on a constant is a weight, of operators that cannot be quantized."""


def form_of(node: Node) -> Form | None:
    """The form of a node that is a layer; of those without a quantized form, only where a float constant is large."""
    form = None if _is_beside(node) else FORMS.get((node.domain, node.op_type))
    if form is None or form.is_quantizable or any(_is_large(value) for value in node.inputs):
        return form
    return None


def _is_beside(node: Node) -> bool:
    """Whether a node is a part of what stands beside a layer."""
    return node.mark is not None and node.mark.role != LAYER


def _is_large(value: Value | None) -> bool:
    data = None if value is None else value.data
    return data is not None and data.dtype.kind == "f" and data.size >= LARGE


def weights_of(node: Node) -> list[Value | None]:
    """The weights of a layer, None for one that is missing."""
    form = FORMS.get((node.domain, node.op_type))
    return [] if form is None else [node.input(i) for i in form.weights]


RECURRENT = ("LSTM", "GRU", "RNN")
CONVOLUTIONS = ("Conv", "ConvTranspose")


def is_transposed(node: Node) -> bool:
    """Whether the weight of a Linear is [N, K]."""
    return node.op_type in ("Gemm", "FusedGemm", "FusedMatMul", "TransposeMatMul") and bool(node.attr("transB", 0))


class Layer:
    """A node of a form that can be quantized, with its weights as matrices.

    A recurrent layer has one matrix for each direction, every other one for each weight. `along` of a matrix is the axis of
    its output channels; of an Embedding those are the rows.
    """

    def __init__(self, node: Node):
        form = FORMS[node.domain, node.op_type]
        assert form.is_quantizable
        self.node, self.form, self.kind = node, form, form.kind

    @property
    def weights(self) -> list[Value | None]:
        return [self.node.input(position) for position in self.form.weights]

    @property
    def along(self) -> int:
        """The axis of output channels of a matrix as it is stored."""
        return int(self.kind == "Linear" and not is_transposed(self.node))

    @property
    def across(self) -> int:
        """The axis of input channels of a weight as it is stored, of a Linear or recurrent layer."""
        return 1 - self.along if self.kind == "Linear" else 2

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the weights, as the operator stores them; empty unless all are constants."""
        shapes = [value.shape for value in self.weights if value is not None and value.shape is not None]
        return shapes if len(shapes) == len(self.form.weights) else []

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers of its first weight, and so of the activations that it reads."""
        first = self.weights[0]
        held = None if first is None else first.stored if first.stored is not None else first.data
        assert held is not None
        return held.dtype

    @property
    def is_finite(self) -> bool:
        """Whether no weight holds NaN or infinity."""
        held = [widen(value.data) for value in self.weights if value is not None and value.data is not None]
        return all(np.isfinite(end(data, initial=0)) for data in held for end in (np.min, np.max))

    @property
    def size(self) -> tuple[int, ...]:
        """What reports call its shape: (in, out) features, (input, hidden) size, (in, out, *kernel) of a Conv, (rows, columns)."""
        first, *others = self.shapes
        if self.node.op_type in RECURRENT:
            return first[-1], others[0][-1]
        if self.kind in CONVOLUTIONS:
            group, (outer, inner, *kernel) = self.node.attr("group", 1), first
            return (inner * group, outer, *kernel) if self.kind == "Conv" else (outer, inner * group, *kernel)
        return first[::-1] if self.kind == "Linear" and not self.along else first

    def matrices(self, value: Value) -> list[Matrix]:
        """The numbers of one of the weights; of a stored one, what it stands for."""
        data = value.data if value.stored is None else value.stored.decoded()
        assert data is not None
        data = widen(data)
        if self.node.op_type in RECURRENT:
            return [Matrix(direction, 0) for direction in data]
        if self.kind in CONVOLUTIONS:
            channels = data if self.kind == "Conv" else np.moveaxis(data, 1, 0)
            return [Matrix(channels.reshape(channels.shape[0], -1), 0)]
        return [Matrix(data, self.along)]

    def store(self, value: Value, matrices: Sequence[StoredTensor]) -> Value:
        """A constant in place of `value` that holds the matrices [N, K]; its numbers keep the element type."""
        if self.node.op_type in RECURRENT:
            joined = stack(matrices)
            assert joined is not None
        elif self.kind == "Conv":
            assert value.shape is not None
            joined = matrices[0].reshaped(*value.shape)
        elif self.kind == "ConvTranspose":
            joined = self._transposed_convolution(value, matrices[0])
        else:
            joined = matrices[0].transposed() if self.along else matrices[0]
        dtype = np.dtype(np.float32) if joined.format is FLOAT16 else value.stored.dtype if value.stored else value.data.dtype  # type: ignore[union-attr]
        return stored_constant(value.name, replace(joined, dtype=dtype))

    def _transposed_convolution(self, value: Value, matrix: StoredTensor) -> StoredTensor:
        assert matrix.format is FLOAT16 and value.shape is not None
        channels, per_group, *kernel = value.shape
        codes = np.moveaxis(matrix.unpacked().reshape(per_group, channels, *kernel), 0, 1)
        return matrix.with_codes(np.ascontiguousarray(codes), (None, None, None))

    def stored(self, value: Value) -> list[StoredTensor]:
        """The matrices [N, K] of a weight that is stored narrow; empty for one that is not, or that lies otherwise than its kind does."""
        stored = value.stored
        if stored is None or not self.form.ranks[0] <= stored.ndim <= self.form.ranks[1]:
            return []
        if self.node.op_type in RECURRENT:
            return [stored[d] for d in range(stored.shape[0])]
        if self.kind in CONVOLUTIONS:
            if self.kind == "ConvTranspose":
                return [stored] if stored.format is FLOAT16 else []
            if stored.scale is not None and stored.scale.size not in (1, stored.scale.shape[0]):
                return []
            return [stored.reshaped(stored.shape[0], stored.size // max(1, stored.shape[0]))]
        return [stored.transposed() if self.along else stored]


def layer_of(node: Node) -> Layer | None:
    """The layer that a node is, of those that have a quantized form."""
    form = form_of(node)
    return Layer(node) if form is not None and form.is_quantizable else None


def missing_form(node: Node) -> str | None:
    """That an operator has no quantized form, and of an Einsum why; None when it has one."""
    form = FORMS.get((node.domain, node.op_type))
    if node.is_op("Einsum"):
        return f"this Einsum is no linear layer: {why_not_linear(node)}"
    return None if form is not None and form.is_quantizable else f"there is no quantized form of {node.op_type}"


def unfit_attributes(node: Node) -> str | None:
    """Why a layer whose operator has a quantized form is none of that form; None when it is."""
    if node.attr("transA", 0):
        return "the left-hand side is transposed"
    if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
        return "a batch is transposed"
    if node.domain == MICROSOFT and (node.attr("do_rotary", 0) or node.attr("past_present_share_buffer", 0)):
        return "there is no quantized form of Attention with a rotary embedding or a shared cache"
    return None


def obstacle(layer: Layer, value: Value | None) -> str | None:
    """Why a weight of a layer cannot be quantized, as it stands there; None when it can."""
    if value is None:
        return "the weight is missing"
    if not value.is_constant:
        first = layer.node.input(0)
        if any(v is not None and not v.is_constant and _is_computed_once(v) for v in (value, first)):
            return Unselected("the weight is computed from fewer numbers than it holds: none that was learned")
        if layer.kind in CONVOLUTIONS:
            return "the weight is computed at run time"
        if first is not None and first.is_constant:
            return "the constant is the left-hand side"
        return NoWeight("both inputs are computed")
    if value.data is not None and not is_packable(value.data.dtype):
        return f"the weight is {value.data.dtype}, need float32 or narrower"
    least, most = layer.form.ranks
    shape = value.shape or ()
    if not least <= len(shape) <= most:
        return f"the weight has rank {len(shape)}, need {least}{f' to {most}' if most > least else ''}"
    if 0 in shape:
        return f"the {'table' if layer.kind == 'Embedding' else 'weight'} is empty"
    return None


def _is_computed_once(value: Value) -> bool:
    """Whether constants alone decide what `value` is."""
    pending, seen = [value], {value}
    while pending:
        one = pending.pop()
        if not one.is_constant:
            if one.producer is None or one.producer.subgraphs or not one.producer.inputs:
                return False
            fresh = {v for v in one.producer.inputs if v is not None} - seen
            seen |= fresh
            pending += fresh
    return True
