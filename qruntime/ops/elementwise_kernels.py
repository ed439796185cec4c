"""Fast paths of elementwise operators, casts, reductions and row operators: tables of kernel names and parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node, Value
from qruntime.ops.registry import NativeCall, find, operator, versions

Binder = Callable[[Node], NativeCall | None]

_UNARY = {
    "Relu": "relu", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Reciprocal": "reciprocal", "Neg": "neg",
    "Abs": "abs", "Tanh": "tanh", "Sigmoid": "sigmoid", "Erf": "erf", "Softplus": "softplus", "HardSwish": "hard_swish",
    "Floor": "floor", "Ceil": "ceil", "Round": "round", "Sin": "sin", "Cos": "cos", "Sign": "sign",
    "Softsign": "softsign", "Mish": "mish",
}  # fmt: skip

# Operator → kernel, parameters (attribute, default): the p and q of kernels/pointwise.h.
_UNARY_WITH_PARAMETERS: dict[str, tuple[str, Sequence[tuple[str, float]]]] = {
    "LeakyRelu": ("leaky_relu", [("alpha", 0.01)]),
    "Elu": ("elu", [("alpha", 1.0)]),
    "HardSigmoid": ("hard_sigmoid", [("alpha", 0.2), ("beta", 0.5)]),
    "Swish": ("quick_gelu", [("alpha", 1.0)]),
    "ThresholdedRelu": ("thresholded_relu", [("alpha", 1.0)]),
    "Shrink": ("shrink", [("lambd", 0.5), ("bias", 0.0)]),
}

_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "Equal": "equal", "Less": "less",
    "LessOrEqual": "less_equal", "Greater": "greater", "GreaterOrEqual": "greater_equal",
    "And": "and", "Or": "or", "Xor": "xor",
}  # fmt: skip

_REDUCTIONS = {
    "ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min", "ReduceProd": "prod",
    "ReduceL2": "l2", "ReduceSumSquare": "sum_square",
}  # fmt: skip


def _unary(opcode: str, parameters: Sequence[tuple[str, float]] = ()) -> Binder:
    code = _kernels.UNARY[opcode]
    return lambda node: NativeCall("unary", ints=[code], floats=[node.attr(name, default) for name, default in parameters])


def _binary(opcode: str) -> Binder:
    code = _kernels.BINARY[opcode]
    return lambda node: NativeCall("binary", ints=[code])


for _name, _opcode in _UNARY.items():
    for _spec in versions(_name):
        _spec.native(_unary(_opcode))
for _name, (_opcode, _parameters) in _UNARY_WITH_PARAMETERS.items():
    for _spec in versions(_name):
        _spec.native(_unary(_opcode, _parameters))
for _name, _opcode in _BINARY.items():
    for _spec in versions(_name, at_least=7):
        _spec.native(_binary(_opcode))


for _spec in versions("PRelu", at_least=7):
    _spec.native(_binary("prelu"))


def _constant(value: Value | None) -> np.ndarray | None:
    return None if value is None else value.data


def _two_operands(opcode: str) -> Binder:
    binary = _binary(opcode)
    return lambda node: binary(node) if len(node.inputs) == 2 else None


for _name, _opcode in {"Max": "max", "Min": "min", "Sum": "add"}.items():
    for _spec in versions(_name, at_least=1):
        _spec.native(_two_operands(_opcode))


def _mod(node: Node) -> NativeCall:
    return NativeCall("binary", ints=[_kernels.BINARY["fmod" if node.attr("fmod", 0) else "mod"]])


def _gelu(node: Node) -> NativeCall:
    return NativeCall("unary", ints=[_kernels.UNARY["gelu_tanh" if node.attr("approximate", "none") == "tanh" else "gelu"]])


def _selu(alpha: float, gamma: float) -> Binder:
    return _unary("selu", [("alpha", alpha), ("gamma", gamma)])


def _celu(node: Node) -> NativeCall | None:
    alpha = node.attr("alpha", 1.0)
    return NativeCall("unary", ints=[_kernels.UNARY["celu"]], floats=[alpha]) if alpha > 0 else None


def _clip(node: Node) -> NativeCall:
    return NativeCall("unary", ints=[_kernels.UNARY["clip"]])


def _clip_attributes(node: Node) -> NativeCall:
    lowest, highest = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
    return NativeCall("unary", ints=[_kernels.UNARY["clip"]], floats=[node.attr("min", lowest), node.attr("max", highest)])


for _spec in versions("Mod"):
    _spec.native(_mod)
for _spec in versions("Gelu"):
    _spec.native(_gelu)
for _spec in versions("Celu"):
    _spec.native(_celu)
for _spec in versions("Selu"):
    _spec.native(_selu(1.6732631921768188, 1.0507010221481323) if _spec.since >= 6 else _selu(1.6732, 1.0507))
for _spec in versions("Clip"):
    _spec.native(_clip if _spec.since >= 11 else _clip_attributes)
for _spec in versions("Not"):
    _spec.native(lambda node: NativeCall("not"))
for _spec in versions("Where"):
    _spec.native(lambda node: NativeCall("where"))
for _spec in versions("Cast", at_least=6):
    _spec.native(lambda node: NativeCall("cast", ints=[node.attr("to")]))


def _reduction(opcode: str) -> Binder:
    code = _kernels.REDUCE[opcode]

    def bind(node: Node) -> NativeCall:
        axes = node.attr("axes", ())
        return NativeCall("reduce", ints=[code, node.attr("keepdims", 1), node.attr("noop_with_empty_axes", 0), *axes])

    return bind


def _arg_reduction(kernel: str) -> Binder:
    return lambda node: NativeCall(kernel, ints=[node.attr("axis", 0), node.attr("keepdims", 1), node.attr("select_last_index", 0)])


def _along_axis(kernel: str) -> Binder:
    return lambda node: NativeCall(kernel, ints=[node.attr("axis", -1)])


for _name, _opcode in _REDUCTIONS.items():
    for _spec in versions(_name):
        _spec.native(_reduction(_opcode))
for _name, _kernel in {"ArgMax": "argmax", "ArgMin": "argmin"}.items():
    for _spec in versions(_name):
        _spec.native(_arg_reduction(_kernel))

for _name, _kernel in {"Softmax": "softmax", "LogSoftmax": "log_softmax"}.items():
    for _spec in versions(_name, at_least=13):
        _spec.native(_along_axis(_kernel))


def _normalization(kernel: str, num_inputs: int) -> Binder:
    def bind(node: Node) -> NativeCall | None:
        if any(output.is_read for output in node.outputs[1:]):
            return None  # mean and inverse deviation are wanted: training graphs only
        if node.attr("stash_type", 1) != 1:
            return None
        inputs = list(range(min(num_inputs, len(node.inputs))))
        return NativeCall(kernel, ints=[node.attr("axis", -1)], floats=[node.attr("epsilon", 1e-5)], inputs=inputs)

    return bind


for _spec in versions("LayerNormalization"):
    _spec.native(_normalization("layer_norm", 3))
for _spec in versions("RMSNormalization"):
    _spec.native(_normalization("rms_norm", 2))


@operator("Gelu", domain="qruntime")
def gelu(x: np.ndarray, *, approximate: str = "none") -> np.ndarray:
    """GELU as passes recognise it, whatever the opset of the model."""
    return find("", "Gelu", 20)(x, approximate=approximate)  # type: ignore[misc]


gelu.native(_gelu)


@operator("Silu", domain="qruntime")
def silu(x: np.ndarray) -> np.ndarray:
    """x · sigmoid(x)."""
    return x * find("", "Sigmoid", 13)(x)  # type: ignore[misc]


silu.native(_unary("silu"))


@operator("HardSwish", domain="qruntime")
def hard_swish(x: np.ndarray) -> np.ndarray:
    """x · clip(x/6 + 1/2, 0, 1), whatever the opset of the model."""
    return find("", "HardSwish", 14)(x)  # type: ignore[misc]


hard_swish.native(_unary("hard_swish"))
