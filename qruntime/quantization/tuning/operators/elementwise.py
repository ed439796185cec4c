"""Number by number."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from qruntime.ir import Node


def operators() -> dict[str, Callable[..., Any]]:
    import torch

    functional = torch.nn.functional
    types = {1: torch.float32, 10: torch.float32, 11: torch.float64, 16: torch.float32}
    """By the codes of ONNX; torch_graph.py says why float16 and bfloat16 are float32 here."""

    def clip(node: Node, x: Any, low: Any = None, high: Any = None) -> Any:
        low, high = (node.attr(name) if end is None else end for name, end in (("min", low), ("max", high)))
        x = x if low is None else torch.maximum(x, torch.as_tensor(low, dtype=x.dtype))
        return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype))

    def gelu(node: Node, x: Any) -> Any:
        return functional.gelu(x, approximate=node.attr("approximate", "none"))

    def shrink(node: Node, x: Any) -> Any:
        bias, lambd = node.attr("bias", 0.0), node.attr("lambd", 0.5)
        return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))

    def power(node: Node, a: Any, b: Any) -> Any:
        is_number = b.numel() == 1 and b.ndim <= a.ndim and not b.requires_grad and a.is_floating_point()
        return a ** (b.item() if is_number else b)  # a square is a product then, and its gradient another

    return {
        "Add": lambda node, a, b: a + b,
        "Sub": lambda node, a, b: a - b,
        "Mul": lambda node, a, b: a * b,
        "Div": lambda node, a, b: a / b,
        "Pow": power,
        "PRelu": lambda node, x, slope: torch.where(x < 0, x * slope, x),
        "Max": lambda node, *x: functools.reduce(torch.maximum, x),
        "Min": lambda node, *x: functools.reduce(torch.minimum, x),
        "Sum": lambda node, *x: functools.reduce(operator.add, x),
        "Mean": lambda node, *x: functools.reduce(operator.add, x) / len(x),
        "Where": lambda node, condition, a, b: torch.where(condition, a, b),
        "Identity": lambda node, x: x,
        "Dropout": lambda node, x, *rest: (x, torch.ones_like(x, dtype=torch.bool)),
        "Cast": lambda node, x: x.to(types[node.attr("to")]),
        "CastLike": lambda node, x, like: x.to(like.dtype),
        "Clip": clip,
        "Abs": lambda node, x: x.abs(),
        "Neg": lambda node, x: -x,
        "Exp": lambda node, x: x.exp(),
        "Log": lambda node, x: x.log(),
        "Sqrt": lambda node, x: x.sqrt(),
        "Reciprocal": lambda node, x: x.reciprocal(),
        "Sign": lambda node, x: x.sign(),
        "Floor": lambda node, x: x.floor(),
        "Ceil": lambda node, x: x.ceil(),
        "Round": lambda node, x: x.round(),
        "Erf": lambda node, x: x.erf(),
        "Sin": lambda node, x: x.sin(),
        "Cos": lambda node, x: x.cos(),
        "Tan": lambda node, x: x.tan(),
        "Asin": lambda node, x: x.asin(),
        "Acos": lambda node, x: x.acos(),
        "Atan": lambda node, x: x.atan(),
        "Sinh": lambda node, x: x.sinh(),
        "Cosh": lambda node, x: x.cosh(),
        "Asinh": lambda node, x: x.asinh(),
        "Acosh": lambda node, x: x.acosh(),
        "Atanh": lambda node, x: x.atanh(),
        "Tanh": lambda node, x: x.tanh(),
        "Sigmoid": lambda node, x: x.sigmoid(),
        "Relu": lambda node, x: x.relu(),
        "LeakyRelu": lambda node, x: functional.leaky_relu(x, node.attr("alpha", 0.01)),
        "Elu": lambda node, x: functional.elu(x, node.attr("alpha", 1.0)),
        "Celu": lambda node, x: functional.celu(x, node.attr("alpha", 1.0)),
        "Selu": lambda node, x: node.attr("gamma", 1.0507010221481323) * functional.elu(x, node.attr("alpha", 1.6732631921768188)),
        "ThresholdedRelu": lambda node, x: torch.where(x > node.attr("alpha", 1.0), x, torch.zeros_like(x)),
        "Softplus": lambda node, x: functional.softplus(x, threshold=80),
        "Softsign": lambda node, x: functional.softsign(x),
        "HardSigmoid": lambda node, x: (node.attr("alpha", 0.2) * x + node.attr("beta", 0.5)).clamp(0, 1),
        "HardSwish": lambda node, x: functional.hardswish(x),
        "Swish": lambda node, x: x * (node.attr("alpha", 1.0) * x).sigmoid(),
        "Mish": lambda node, x: functional.mish(x),
        "Gelu": gelu,
        "Shrink": shrink,
        "com.microsoft/Gelu": lambda node, x: functional.gelu(x),
        "com.microsoft/BiasGelu": lambda node, x, bias: functional.gelu(x + bias),
        "com.microsoft/FastGelu": lambda node, x, bias=None: functional.gelu(x if bias is None else x + bias, approximate="tanh"),
        "com.microsoft/QuickGelu": lambda node, x: x * (node.attr("alpha", 1.702) * x).sigmoid(),
    }  # fmt: skip
