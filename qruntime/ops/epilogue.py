"""What follows the sums of a layer within its kernel: an activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node
from qruntime.ops.registry import find

ELEMENTWISE: dict[str, tuple[str, tuple[str, ...]]] = {
    "leaky_relu": ("LeakyRelu", ("alpha",)),
    "elu": ("Elu", ("alpha",)),
    "celu": ("Celu", ("alpha",)),
    "selu": ("Selu", ("alpha", "gamma")),
    "thresholded_relu": ("ThresholdedRelu", ("alpha",)),
    "hard_sigmoid": ("HardSigmoid", ("alpha", "beta")),
    "hard_swish": ("HardSwish", ()),
    "softplus": ("Softplus", ()),
    "softsign": ("Softsign", ()),
    "mish": ("Mish", ()),
    "quick_gelu": ("Swish", ("alpha",)),
    "clip": ("Clip", ()),
}
"""Elementwise kernels, applied to blocks of results in the cache, with the operator and the attributes that p and q are. Those
of clip are its bounds."""


def activate(y: np.ndarray, activation: str, parameters: Sequence[float] = ()) -> np.ndarray:
    """The definition: `y` through an activation of either kind."""
    if activation == "none":
        return y
    if activation == "silu":
        return y * _evaluate("Sigmoid", y)
    if activation in ("gelu", "gelu_tanh"):
        return _evaluate("Gelu", y, approximate="tanh" if activation == "gelu_tanh" else "none")
    if activation == "clip":
        low, high = (np.asarray(bound, y.dtype) for bound in parameters)
        return np.minimum(np.maximum(y, low), high)
    if activation in ELEMENTWISE:
        op_type, names = ELEMENTWISE[activation]
        return _evaluate(op_type, y, **dict(zip(names, parameters, strict=True)))
    return _evaluate(activation.capitalize(), y)


def _evaluate(op_type: str, y: np.ndarray, **attributes: Any) -> np.ndarray:
    spec = find("", op_type, 24)
    assert spec is not None
    return spec(y, **attributes)


def activation_code(activation: str) -> int:
    """The number by which node functions know it; see kernels/nodes/epilogue.h."""
    if activation in _kernels.ACTIVATION:
        return _kernels.ACTIVATION[activation]
    return len(_kernels.ACTIVATION) + _kernels.UNARY[activation]


def activation_of(node: Node) -> tuple[int, list[float]]:
    """Code, p and q from the attributes `activation` and `parameters` of a lowered layer."""
    return activation_code(node.attr("activation", "none")), [*node.attr("parameters", ()), 0.0, 0.0][:2]
