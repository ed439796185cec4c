"""Products that make or read a spectrum: they are signal processing, and not for 8 bits.

A Fourier transform is a MatMul or Conv with a constant, and so is the filter bank behind it. The values of a spectrum span
more decades than the codes of one range: the quiet bands, which the logarithm after the bank is for, become zero. That
holds for a learned layer which reads one without a logarithm between, too.
"""

from __future__ import annotations

import numpy as np

from qruntime.ir import Node, Value

_LAYOUT = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Gather", "Cast", "Identity", "Pad"}
_RANGE_KEPT = _LAYOUT | {"Sqrt", "Pow", "Abs", "Relu", "Clip", "Max", "Add", "Mul", "Div", "ReduceSum", "ReduceL2", "ReduceSumSquare"}
_TRANSFORMS = ("STFT", "DFT")
_FAR = 24
"""Nodes between a layer and the spectrum at most."""


def spectral_role(node: Node) -> str | None:
    """Why a product belongs to a spectrum: it makes one, or reads one; None when it does not."""
    if _reads_a_spectrum(node.input(0)):
        return "it reads a spectrum, whose range is too wide for 8 bits; quantized when named"
    if any(_makes_a_spectrum(output) for output in node.outputs):
        return "it makes a spectrum, whose range is too wide for 8 bits; quantized when named"
    return None


def _reads_a_spectrum(value: Value | None) -> bool:
    for _ in range(_FAR):
        node = None if value is None else value.producer
        if node is None:
            return False
        if node.is_op(*_TRANSFORMS) or _is_sum_of_two_squares(node):
            return True
        computed = {v for v in node.inputs if v is not None and v.data is None}
        if node.domain or node.op_type not in _RANGE_KEPT or not computed:
            return False
        if node.op_type not in _LAYOUT and len(computed) > 1:
            return False
        value = node.input(0) if node.op_type in _LAYOUT else computed.pop()
    return False


def _makes_a_spectrum(value: Value) -> bool:
    pending, seen = [value], {value}
    while pending and len(seen) <= _FAR:
        found = pending.pop()
        for user, position in found.uses:
            if user.domain or (user.op_type in _LAYOUT and position):
                continue
            if _is_square(user):
                if any(_is_sum_of_two_squares(reader) for reader, _ in user.outputs[0].uses):
                    return True
            elif user.op_type in _LAYOUT:
                fresh = [output for output in user.outputs if output not in seen]
                seen.update(fresh)
                pending += fresh
    return False


def _is_sum_of_two_squares(node: Node) -> bool:
    """re² + im²"""
    first, second = (None if v is None else v.producer for v in (node.input(0), node.input(1)))
    return node.is_op("Add") and first is not second and _is_square(first) and _is_square(second)


def _is_square(node: Node | None) -> bool:
    if node is None:
        return False
    if node.is_op("Mul"):
        return node.input(0) is node.input(1)
    exponent = node.input(1) if node.is_op("Pow") else None
    return exponent is not None and exponent.data is not None and bool(np.all(exponent.data == 2))
