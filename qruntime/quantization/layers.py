"""Operators that are layers: where they hold their weights, and which way these lie.

Operators that ONNX Runtime's optimizers fuse are the layers that they were made of. What reads weights in a form that
cannot be quantized stands here too, so that reports name it.
"""

from __future__ import annotations

from typing import NamedTuple

from qruntime.ir import Node, Value
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.passes.einsum import why_not_linear


class Form(NamedTuple):
    """How an operator is a layer."""

    kind: str
    """torch's name of the class."""
    weights: tuple[int, ...] = (1,)
    """Positions of the weights among the inputs."""
    ranks: tuple[int, int] = (2, 2)
    """The least and greatest that a weight may have."""
    is_quantizable: bool = True


_LINEAR, _CONV = Form("Linear"), Form("Conv", ranks=(3, 5))
_OTHER_LINEAR, _OTHER_CONV = _LINEAR._replace(is_quantizable=False), _CONV._replace(is_quantizable=False)

FORMS: dict[tuple[str, str], Form] = {
    ("", "MatMul"): _LINEAR,
    ("", "Gemm"): _LINEAR,
    ("", "LSTM"): Form("LSTM", (1, 2), (3, 3)),
    ("", "GRU"): Form("GRU", (1, 2), (3, 3)),
    ("", "RNN"): Form("RNN", (1, 2), (3, 3)),
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
    form = FORMS.get((node.domain, node.op_type))
    if form is None or form.is_quantizable or any(_is_large(value) for value in node.inputs):
        return form
    return None


def _is_large(value: Value | None) -> bool:
    data = None if value is None else value.data
    return data is not None and data.dtype.kind == "f" and data.size >= LARGE


def weights_of(node: Node) -> list[Value | None]:
    """The weights of a layer, None for one that is missing."""
    form = FORMS.get((node.domain, node.op_type))
    return [] if form is None else [node.input(i) for i in form.weights]


def is_transposed(node: Node) -> bool:
    """Whether the weight of a Linear is [N, K]."""
    return node.op_type in ("Gemm", "FusedGemm", "FusedMatMul", "TransposeMatMul") and bool(node.attr("transB", 0))


def output_axis(node: Node) -> int:
    """The axis of a weight along which output channels lie."""
    return 0 if node.op_type in ("Conv", "FusedConv") or is_transposed(node) else 1


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
