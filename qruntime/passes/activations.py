"""Activations that epilogues can apply, as they stand in a graph."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qruntime.ir import Node
from qruntime.ops.epilogue import ELEMENTWISE
from qruntime.passes.rewriting import QRUNTIME, scalar

_WITHOUT_PARAMETERS = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "HardSwish": "hard_swish", "Mish": "mish", "Softplus": "softplus",
    "Softsign": "softsign",
}  # fmt: skip
_OF_OUR_DOMAIN = {"Silu": "silu", "HardSwish": "hard_swish"}
_DEFAULTS = {
    "LeakyRelu": (0.01,), "Elu": (1.0,), "Celu": (1.0,), "ThresholdedRelu": (1.0,), "HardSigmoid": (0.2, 0.5), "Swish": (1.0,),
    "Selu": (1.6732631921768188, 1.0507010221481323),
}  # fmt: skip
_KERNELS = {op_type: (kernel, names) for kernel, (op_type, names) in ELEMENTWISE.items()}


class Activation(NamedTuple):
    name: str  # one of those in qruntime/ops/epilogue.py
    parameters: tuple[float, ...] = ()


def activation_in(node: Node) -> Activation | None:
    """What `node` does to its first input, when that is an activation of an epilogue."""
    if node.is_op("Gelu", domain=QRUNTIME) or node.is_op("Gelu"):
        return Activation("gelu_tanh" if node.attr("approximate", "none") == "tanh" else "gelu")
    if node.is_op(*_OF_OUR_DOMAIN, domain=QRUNTIME):
        return Activation(_OF_OUR_DOMAIN[node.op_type])
    if node.is_op(*_WITHOUT_PARAMETERS):
        return Activation(_WITHOUT_PARAMETERS[node.op_type])
    if node.is_op("Clip"):
        return _clip(node)
    if not node.is_op(*_DEFAULTS) or (node.op_type == "Selu" and node.version < 6):
        return None
    kernel, names = _KERNELS[node.op_type]
    found = _numbers([node.attr(name, default) for name, default in zip(names, _DEFAULTS[node.op_type], strict=True)])
    if found is None or (kernel == "celu" and not found[0] > 0):
        return None
    return Activation(kernel, found)


def _numbers(values: list[Any]) -> tuple[float, ...] | None:
    """Attributes as they should be; the definition reports others."""
    return tuple(map(float, values)) if all(isinstance(value, (int, float)) for value in values) else None


def _clip(node: Node) -> Activation | None:
    """Bounds that are constants: inputs, or attributes before version 11."""
    limits = np.finfo(np.float32)
    if node.version < 11:
        found = _numbers([node.attr("min", float(limits.min)), node.attr("max", float(limits.max))])
        return None if found is None else Activation("clip", found)
    bounds = []
    for index, absent in ((1, -np.inf), (2, np.inf)):
        bound = node.input(index)
        value = absent if bound is None else scalar(bound)
        if value is None or (bound is not None and bound.data is not None and bound.data.dtype != np.float32):
            return None
        bounds.append(float(value))
    return Activation("clip", tuple(bounds))
