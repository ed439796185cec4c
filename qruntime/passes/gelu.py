"""GELU and SiLU, as exporters decompose them."""

from __future__ import annotations

import math
from typing import Any

from qruntime.ir import Graph, Value
from qruntime.passes.element_types import narrow_results
from qruntime.passes.rewriting import QRUNTIME, Rewrite, rewrite_graph

_SQRT_2 = math.sqrt(2.0)
_TANH_SCALE = math.sqrt(2.0 / math.pi)


class FuseErfGelu(Rewrite):
    """x · ½ · (1 + erf(x / √2)), in any order of the factors  →  Gelu(x)"""

    needs = "Erf"

    def pattern(self, op: Any, x: Any) -> Any:
        for_erf = (op.Div(x, _SQRT_2), op.Mul(x, 1 / _SQRT_2))
        found = []
        for argument in for_erf:
            one_plus = op.Add(op.Erf(argument), 1.0)
            found += [
                op.Mul(op.Mul(x, one_plus), 0.5),
                op.Mul(op.Mul(x, 0.5), one_plus),
                op.Mul(x, op.Mul(one_plus, 0.5)),
            ]
        return tuple(found)

    def replace(self, op: Any, x: Value) -> Value:
        return op.Gelu(x, approximate="none")


class FuseTanhGelu(Rewrite):
    """x · ½ · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))  →  Gelu(x, approximate="tanh")"""

    needs = "Tanh"

    def pattern(self, op: Any, x: Any) -> Any:
        cubes = (op.Pow(x, 3.0), op.Mul(op.Mul(x, x), x))
        found = []
        for cube in cubes:
            inner = op.Add(x, op.Mul(cube, 0.044715))
            one_plus = op.Add(op.Tanh(op.Mul(inner, _TANH_SCALE)), 1.0)
            found += [
                op.Mul(op.Mul(x, one_plus), 0.5),
                op.Mul(op.Mul(x, 0.5), one_plus),
                op.Mul(x, op.Mul(one_plus, 0.5)),
            ]
        return tuple(found)

    def replace(self, op: Any, x: Value) -> Value:
        return op.Gelu(x, approximate="tanh")


class FuseSilu(Rewrite):
    """x · sigmoid(x)  →  Silu(x)"""

    needs = "Sigmoid"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(x))

    def replace(self, op: Any, x: Value) -> Value:
        return op.Silu(x, domain=QRUNTIME)


def fuse_gelu(graph: Graph) -> None:
    """Recognise GELU (erf and tanh forms) and SiLU."""
    is_narrow = narrow_results(graph)
    rewrite_graph(graph, [FuseErfGelu(), FuseTanhGelu(), FuseSilu()], keeps=is_narrow)
