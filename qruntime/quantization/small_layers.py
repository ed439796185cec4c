"""Where int8 is not faster than float32: layers so small that quantizing their rows costs more than the product saves.

Measured with benchmarks/small_layers.py on AVX2, AVX-512 VNNI and AMX, one thread, 1 to 128 rows (Xeon of the Granite
Rapids generation, November 2026). Above these sizes int8 was faster on each of them, or as fast within 10 %; below, slower
on most. A saved model runs on any machine, so the rule knows sizes only.

Convolutions on images in blocks, measured again on Zen 5: of 2,304 weights 1.4 times as fast in int8 with AVX-512 VNNI, 1.2 with
AVX-512, 0.7 with AVX2; of 4,096 1.1, 0.9 and 1.2; of one or three channels slower everywhere; above 8,192 faster, but on AVX2 with 16
outputs (0.9).
"""

from __future__ import annotations

import math

from qruntime.ir import Node
from qruntime.quantization.layers import RECURRENT, layer_of
from qruntime.quantization.selection import weight_shape

LINEAR_WEIGHTS, LINEAR_OUTPUTS = 4096, 32
HIDDEN = {"LSTM": 40, "GRU": 64, "RNN": 64}
CONV_WEIGHTS = 8192  # of one group


def slower_as_int8(node: Node) -> str | None:
    """Why int8 should not make this layer faster; None when it should, or when that is unknown."""
    shape = weight_shape(node)
    if shape is None:
        return None
    if node.is_op(*RECURRENT):
        hidden = shape[1] // {"LSTM": 4, "GRU": 3, "RNN": 1}[node.op_type]
        least = HIDDEN[node.op_type]
        return f"int8 is slower below {least} hidden units" if hidden < least else None
    layer = layer_of(node)
    kind = None if layer is None else layer.kind
    if kind == "Conv":
        is_small = math.prod(shape) < CONV_WEIGHTS * max(1, node.attr("group", 1))
        return f"int8 is slower below {CONV_WEIGHTS} weights a group" if is_small else None
    if layer is None or kind != "Linear":
        return None
    outputs = shape[layer.along]
    if math.prod(shape) < LINEAR_WEIGHTS or outputs < LINEAR_OUTPUTS:
        return f"int8 is slower below {LINEAR_WEIGHTS} weights or {LINEAR_OUTPUTS} outputs"
    return None
