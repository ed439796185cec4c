"""HardSigmoid and HardSwish, as exporters of mobile networks decompose them."""

from __future__ import annotations

import math
from typing import Any

from qruntime.ir import Graph, Node, Value
from qruntime.passes.element_types import narrow_results
from qruntime.passes.rewriting import QRUNTIME, Rewrite, Skip, rewrite_graph

_SLOPE, _OFFSET = 1 / 6, 0.5


def _clipped(op: Any, x: Any) -> tuple[Any, Any]:
    """clip(x + 3, 0, 6), with bounds as inputs and, before opset 11, as attributes."""
    shifted = op.Add(x, 3.0)
    return op.Clip(shifted, 0.0, 6.0), op.Clip(shifted, min=0.0, max=6.0)


class FuseHardSigmoid(Rewrite):
    """clip(x + 3, 0, 6) / 6  →  HardSigmoid(x)"""

    needs = "Clip"

    def pattern(self, op: Any, x: Any) -> Any:
        return tuple(made for clip in _clipped(op, x) for made in (op.Div(clip, 6.0), op.Mul(clip, _SLOPE)))

    def replace(self, op: Any, x: Value) -> Value:
        return op.HardSigmoid(x, domain="", alpha=_SLOPE, beta=_OFFSET)


class FuseClippedHardSwish(Rewrite):
    """x · clip(x + 3, 0, 6) / 6  →  HardSwish(x)"""

    needs = "Clip"

    def pattern(self, op: Any, x: Any) -> Any:
        products = [op.Mul(x, clip) for clip in _clipped(op, x)]
        return tuple(made for product in products for made in (op.Div(product, 6.0), op.Mul(product, _SLOPE)))

    def replace(self, op: Any, x: Value) -> Value:
        return op.HardSwish(x, domain=QRUNTIME)


class FuseHardSwish(Rewrite):
    """x · HardSigmoid(x) of slope 1/6 and offset 1/2  →  HardSwish(x)"""

    needs = "HardSigmoid"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.HardSigmoid(x, name="gate"))

    def check(self, x: Value, gate: Node) -> Skip | None:
        slope, offset = gate.attr("alpha", 0.2), gate.attr("beta", 0.5)
        if isinstance(slope, float) and math.isclose(slope, _SLOPE, rel_tol=1e-6) and offset == _OFFSET:
            return None
        return Skip(f"the gate is clip({slope}·x + {offset}, 0, 1)")

    def replace(self, op: Any, x: Value, gate: Node) -> Value:
        return op.HardSwish(x, domain=QRUNTIME)


def fuse_hard_swish(graph: Graph) -> None:
    """Recognise HardSwish, and HardSigmoid alone where that is all there is."""
    is_narrow = narrow_results(graph)
    rewrite_graph(graph, [FuseHardSigmoid(), FuseClippedHardSwish()], keeps=is_narrow)
    rewrite_graph(graph, [FuseHardSwish()], keeps=is_narrow)
