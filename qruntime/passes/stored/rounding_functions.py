"""The function of ops/outlier_pairs.py in standard operators, for other runtimes: the same float32 operations."""

from __future__ import annotations

from qruntime.onnx_io.functions import ROUNDING
from qruntime.onnx_io.messages import FunctionProto
from qruntime.passes.stored.function_body import Body

LEAST_OPSET = 13
NAMES = frozenset(name for _, name, _ in ROUNDING)


def function(name: str, opset: int) -> FunctionProto:
    """The definition of one of NAMES in standard operators of that opset, from LEAST_OPSET on."""
    op = Body(opset)
    _outlier_victim_pairs(op)
    return op.function(name, ["x", "scale"], ["y"], [])


def _outlier_victim_pairs(op: Body) -> None:
    zero, beyond = op.number(0.0), op.number(9.5)
    quotient = op("Div", "x", "scale")
    steps = op("Where", op("IsNaN", quotient), zero, quotient)
    size, width = op("Abs", steps), op("Gather", op("Shape", "x"), op.integer(-1))
    other = partner(op, size, width)
    is_second = op("Equal", op("Mod", op("Range", op.integer(0), width, op.integer(1)), op.integer(2)), op.integer(1))
    is_less = op("Or", op("Less", size, other), op("And", is_second, op("Equal", size, other)))
    is_victim = op("And", op("Greater", other, beyond), is_less)
    # What a mantissa of one bit counts in: half of the greatest power of two that is no greater.
    inside, half_power = op("Min", size, op.number(96.0)), op.number(32.0)
    for power in (64.0, 32.0, 16.0):
        half_power = op("Where", op("Less", inside, op.number(power)), op.number(power / 4), half_power)
    outlier = op("Max", op("Mul", op("Round", op("Div", inside, half_power)), half_power), op.number(12.0))
    normal = op("Min", op("Round", size), op.number(7.0))
    rounded = op("Where", is_victim, zero, op("Where", op("Greater", size, beyond), outlier, normal))
    op.last("y", "Mul", op("Mul", op("Sign", steps), rounded), "scale")


def partner(op: Body, values: str, width: str) -> str:
    """Of elements 2i and 2i + 1 of the last axis, of `width` indices, each other; the last of an odd number itself."""
    one, two, index = op.integer(1), op.integer(2), op("Range", op.integer(0), width, op.integer(1))
    other = op("Sub", op("Add", index, one), op("Mul", op("Mod", index, two), two))
    return op("Gather", values, op("Min", other, op("Sub", width, one)), axis=-1)
