"""Which nodes treat every item of a batch by itself.

The executor may run these for one item after the other (kernels/by_items.h). It sees at run time whether what they read are
batches of as many items; what is told here of the nodes holds for tensors of any size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ir import QRUNTIME, Node, Value
from qruntime.ops.contrib.domain import MICROSOFT

_ELEMENTWISE = frozenset({
    "Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish",
    "Mul", "Neg", "PRelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Silu", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh",
    "ThresholdedRelu",
})  # fmt: skip

_OF_BLOCKS = ("BlockedAveragePool", "BlockedGlobalAveragePool", "BlockedMaxPool")
_OF_CODES = ("NhwcMaxPool", "QLinearAdd", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearMul")
"""Operators that ONNX Runtime has beside the standard; as long as their scales are constants."""


def itemwise_nodes(nodes: Sequence[Node]) -> set[Node]:
    """Those of `nodes` (in running order) of which item i of each output, along the first axis, depends on constants and on item i of
    the other inputs, and on no other item. Batches are followed from images in blocks and images of codes on: there the first axis is
    one."""
    ranks: dict[Value, int] = {}
    found: set[Node] = set()
    for node in nodes:
        rank = _rank_of_batch(node, ranks)
        if rank is not None:
            found.add(node)
            ranks.update(dict.fromkeys(node.outputs, rank))
    return found


def _rank_of_batch(node: Node, ranks: dict[Value, int]) -> int | None:
    """Rank of the outputs, whose first axis is the batch; None where that cannot be told or is not so."""
    weight = node.input(1)
    if node.is_op("BlockedConv", "BlockedConvTranspose", "BlockedQuantizedConv", domain=QRUNTIME):
        images = [node.input(0), *(v for v in node.inputs[3:] if v is not None)]
        is_itemwise = weight is not None and weight.shape is not None and all(v is not None and not v.is_constant for v in images)
        return len(weight.shape) + 1 if is_itemwise else None  # type: ignore[union-attr, arg-type]
    read = [v for v in node.inputs if v is not None and not v.is_constant]
    if _is_code_layer(node):
        w = node.input(3)
        return len(w.shape) if w is not None and w.shape is not None and read == [node.input(0)] else None
    if node.is_op("Transpose"):
        perm, is_image = node.attr("perm", ()), any(_is_code_layer(user) for user, _ in node.outputs[0].uses)
        return len(perm) if read and len(perm) > 2 and perm[0] == 0 and (is_image or read[0] in ranks) else None
    rank = ranks.get(read[0]) if read else None
    if rank is None or any(ranks.get(value) != rank for value in read):
        return None
    if node.is_op(*_OF_BLOCKS, "CodeTable", domain=QRUNTIME):
        return rank
    if node.is_op("DequantizeLinear", "QuantizeLinear"):
        return rank if all(v is None or (v.is_constant and v.shape == ()) for v in node.inputs[1:]) else None
    if node.is_op("UnblockChannels", domain=QRUNTIME):
        return rank - 1
    is_elementwise = node.op_type in _ELEMENTWISE and node.domain in ("", QRUNTIME)
    if node.is_op(*_OF_CODES, domain=MICROSOFT):
        if node.op_type not in ("QLinearAdd", "QLinearMul"):
            return rank
        is_elementwise = True
    if is_elementwise and node.version >= (7 if node.domain == "" else 1):
        constants = [v for v in node.inputs if v is not None and v.is_constant]
        return rank if all(v.shape is not None and (len(v.shape) < rank or v.shape[0] == 1) for v in constants) else None
    if node.is_op("Concat", "Split") and node.attr("axis", 0) % rank:
        return rank if node.is_op("Split") or len(read) == len(node.inputs) else None
    if node.is_op("Slice"):
        return rank if _leaves_batch(node, rank) else None
    return rank if node.is_op("Resize") and _scales_pixels(node, rank) else None


def _is_code_layer(node: Node) -> bool:
    return node.is_op("QLinearConv", domain=QRUNTIME)


def _leaves_batch(node: Node, rank: int) -> bool:
    axes = node.input(3)
    return axes is not None and axes.data is not None and bool((axes.data.reshape(-1).astype(np.int64) % rank).all())


def _scales_pixels(node: Node, rank: int) -> bool:
    scales = node.input(2)
    if scales is None or scales.data is None or scales.data.size != rank or node.input(3) is not None or "axes" in node.attributes:
        return False
    return scales.data.reshape(-1)[0] == 1 and node.attr("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
