"""Inputs that have a default: weights that a file lists among its inputs too.

Older exporters list all of them, and a runtime may let a caller replace them; hardly anybody does. So two readings of
one graph are needed: as it was declared, to be saved and to be fed, and with the defaults as constants, to see weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np

from qruntime.ir.dtypes import onnx_code
from qruntime.ir.graph import Graph, Node, TypeInfo, Value


class FixedInput(NamedTuple):
    """What an input with a default was before it became a constant."""

    value: Value
    data: np.ndarray
    declared: TypeInfo | None
    uses: frozenset[tuple[Node, int]]
    output_of: frozenset[Graph]


def fix_defaults(graph: Graph, *, fed: Collection[str] = ()) -> list[FixedInput]:
    """Make constants of the inputs of `graph` that have a default, in place; those in `fed` become plain inputs."""
    fixed = []
    for value, data in graph.input_defaults.items():
        if value.name in fed:
            continue
        fixed.append(FixedInput(value, data, value.type, frozenset(value.uses), frozenset(value.output_of)))
        value.data, value.type = data, TypeInfo("tensor", onnx_code(data.dtype), data.shape)
    graph.inputs = [value for value in graph.inputs if not value.is_constant]
    graph.input_defaults = {}
    return fixed


def reopen_defaults(graph: Graph, fixed: Iterable[FixedInput]) -> list[str]:
    """Make inputs with a default of what `fix_defaults` fixed, as far as `graph` still reads it where it did.

    Returns the names of the others: something was computed from them, so that feeding them would change half of it.
    """
    spent = []
    for value, data, declared, uses, output_of in fixed:
        if value.data is not data or uses != value.uses.keys() or output_of != value.output_of.keys():
            spent.append(value.name)
            continue
        graph.inputs.append(value)
        graph.input_defaults[value] = data
        value.data, value.type = None, declared
    return spent
