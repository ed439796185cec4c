"""Static quantization as files say it: what the codes stand for has the gradient of the number, unless it was clipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qruntime.ir import Node

_RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


def operators() -> dict[str, Callable[..., Any]]:
    from qruntime.quantization.tuning.fake_quantization import straight_through_round

    def spread(node: Node, x: Any, part: Any) -> Any:
        if part is None or (part.numel() == 1 and not node.attr("block_size", 0)):
            return part if part is None else part.reshape(())
        if part.ndim != 1 or node.attr("block_size", 0):
            raise ValueError("scales in blocks have no gradient here")
        return part.reshape(-1, *(1,) * (x.ndim - 1 - node.attr("axis", 1) % x.ndim))

    def quantize(node: Node, x: Any, scale: Any, zero_point: Any = None) -> Any:
        name = "uint8" if zero_point is None else str(zero_point.dtype).removeprefix("torch.")
        if name not in _RANGES or node.attr("output_dtype", 0):
            raise ValueError(f"codes of {name} have no gradient here; those of {', '.join(_RANGES)} have")
        codes = straight_through_round(x / spread(node, x, scale))
        shifted = codes if zero_point is None else codes + spread(node, x, zero_point).to(x.dtype)
        return shifted.clamp(*_RANGES[name])

    def dequantize(node: Node, codes: Any, scale: Any, zero_point: Any = None) -> Any:
        codes = codes.to(scale.dtype)
        shifted = codes if zero_point is None else codes - spread(node, codes, zero_point).to(scale.dtype)
        return shifted * spread(node, codes, scale)

    return {"QuantizeLinear": quantize, "DequantizeLinear": dequantize}
