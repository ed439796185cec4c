"""What quantization did, layer by layer, and what it left alone and why."""

from __future__ import annotations

from typing import NamedTuple


class QuantizedLayer(NamedTuple):
    """One quantized weight: bytes before and after, and how much of it survived rounding."""

    name: str
    op_type: str
    kind: str
    shape: tuple[int, ...]
    scheme: str
    bytes_before: int
    bytes_after: int
    snr_db: float
    shared: bool = False
    """The weight belongs to an earlier layer; its bytes are counted there."""


class SkippedLayer(NamedTuple):
    """A candidate that stays as it was."""

    name: str
    op_type: str
    reason: str


class Report(NamedTuple):
    layers: tuple[QuantizedLayer, ...]
    skipped: tuple[SkippedLayer, ...]

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers)
