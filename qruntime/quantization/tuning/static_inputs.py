"""Ranges of static activations while a model is trained: one for each tensor, which all layers share that read it alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir import Node
from qruntime.quantization.scheme import Scheme
from qruntime.quantization.steps import InputRange
from qruntime.quantization.tuning.fake_quantization import MovingRange, Rounding


class StaticInputs:
    """Those of the layers of `schemes` whose activations are static."""

    def __init__(self, schemes: Mapping[Node, Scheme], momentum: float):
        self.is_frozen = False
        self._unseen: set[MovingRange] = set()
        self._moving: dict[str, MovingRange] = {}
        self.roundings: dict[Node, Rounding | None] = {}
        seen: dict[Any, MovingRange] = {}
        for node, scheme in schemes.items():
            inputs, tensor = scheme.inputs, node.input(0)
            if inputs is None or not inputs.is_static or tensor is None:
                continue
            if inputs.clusters or not inputs.format.is_integer:
                raise QuantizationError(f"{inputs} are not trained; those of integers with one range are")
            moving = seen.setdefault((tensor, inputs), MovingRange(inputs.format, momentum))
            self._moving[tensor.name] = moving
            self.roundings[node] = self._rounding(moving)

    def _rounding(self, moving: MovingRange) -> Rounding:
        def rounding(x: Any) -> Any:
            if moving in self._unseen:
                self._unseen.remove(moving)
                moving.see(x)
            return moving.rounded(x)

        return rounding

    def begin(self, *, sees: bool) -> None:
        """Before a forward pass: whether it counts. A tensor that several layers read is seen once."""
        self._unseen = set(self._moving.values()) if sees and not self.is_frozen else set()

    def ranges(self) -> dict[str, InputRange]:
        """By the name of the tensor. QuantizationError before a batch was seen."""
        return {name: InputRange(np.float32(low), np.float32(high)) for name, (low, high) in self._ends().items()}

    def state(self) -> dict[str, Any]:
        known = {name: [one.low, one.high] for name, one in self._moving.items() if one.low is not None}
        return {"ranges": known, "is_frozen": self.is_frozen}

    def restore(self, state: Mapping[str, Any]) -> None:
        unknown = sorted(state["ranges"].keys() - self._moving.keys())
        if unknown:
            raise QuantizationError(f"the state has a range of {unknown[0]!r}, which this module does not round statically")
        for name, (low, high) in state["ranges"].items():
            self._moving[name].low, self._moving[name].high = low, high
        self.is_frozen = state["is_frozen"]

    def _ends(self) -> dict[str, tuple[float, float]]:
        found = {}
        for name, one in self._moving.items():
            if one.low is None or one.high is None:
                raise QuantizationError(f"the range of {name!r} is not known: let the module see a batch in training mode first")
            found[name] = one.low, one.high
        return found
