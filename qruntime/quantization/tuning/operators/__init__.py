"""Operators through which gradients flow, as torch computes them: one line each, a file for each family.

An operator is a function of the node, for its attributes, and of its inputs: tensors, and lists of integers where the data of an
input decide a shape. None stands for inputs that are absent. It returns a tensor or a tuple of them; outputs beyond these are
not computed. What no gradient flows through (masks, shapes, positions) needs no line here: the definitions of the runtime
compute it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from qruntime.ir import Node
from qruntime.quantization.tuning.operators import convolution, elementwise, layout, normalization, products, quantization, recurrent

Operator = Callable[..., Any]

FAMILIES = (elementwise, normalization, products, layout, convolution, recurrent, quantization)

ROUNDING_WITHIN = frozenset({"Conv", "LSTM", "GRU", "RNN"})
"""Layers that round what they multiply themselves, with the keyword `rounding`: windows and hidden states are no input of theirs."""

_WITHOUT_GRADIENT = frozenset(
    {
        "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Equal", "EyeLike", "Greater",
        "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "Shape",
        "Size", "Xor",
    }
)  # fmt: skip
_FLOATS = frozenset({1, 10, 11, 16})
"""ONNX codes of float, float16, double, bfloat16."""


@functools.cache
def table() -> dict[tuple[str, str], Operator]:
    """All of them, by domain and name."""
    made: dict[tuple[str, str], Operator] = {}
    for family in FAMILIES:
        for name, function in family.operators().items():
            domain, _, op_type = name.rpartition("/")
            made[domain, op_type] = function
    return made


def passes_gradients(node: Node) -> bool:
    """Whether what a node makes of floats has a gradient: not shapes, comparisons and positions."""
    if node.is_op("Cast"):
        return node.attr("to", 1) in _FLOATS
    return bool(node.domain) or node.op_type not in _WITHOUT_GRADIENT
