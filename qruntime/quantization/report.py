"""What quantization did, layer by layer, and what it left alone and why."""

from __future__ import annotations

from typing import NamedTuple


class QuantizedLayer(NamedTuple):
    """One quantized layer: its bytes before and after, and how much of its weights survived rounding."""

    name: str
    op_type: str
    kind: str
    shape: tuple[int, ...]
    """(in_features, out_features) of a Linear; (input_size, hidden_size) of an LSTM, GRU or RNN; (in_channels, out_channels,
    *kernel_size) of a Conv; of an Embedding its table."""
    scheme: str
    bytes_before: int
    bytes_after: int
    snr_db: float
    """Of the weight, of the worse one where a layer has several; inf when nothing was lost, NaN when unknown."""
    shared: bool = False
    """The weights belong to an earlier layer; their bytes are counted there."""
    reason: str = ""
    """What made the weight be stored otherwise than was preferred: the channel that one scale for the tensor would have cost
    too much, or weights that float16 does not reach."""


class SkippedLayer(NamedTuple):
    """A candidate that stays as it was."""

    name: str
    op_type: str
    reason: str


class Report(NamedTuple):
    layers: tuple[QuantizedLayer, ...]
    skipped: tuple[SkippedLayer, ...]
    idle: tuple[str, ...] = ()
    """Patterns of the request, in qconfig_spec, only or exclude, that select nothing."""
    slower: tuple[str, ...] = ()
    """Names of quantized layers that are too small for int8 to be faster than float32 (small_layers.py)."""

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers)

    def worst(self, count: int) -> list[QuantizedLayer]:
        """The `count` layers whose weights suffered most, worst first; layers that share weights appear once."""
        known = [layer for layer in self.layers if not layer.shared and layer.snr_db == layer.snr_db]
        return sorted(known, key=lambda layer: layer.snr_db)[:count]

    def skipped_by_reason(self) -> dict[str, list[SkippedLayer]]:
        """Reason → the candidates left alone for it, both in the order of the graph."""
        groups: dict[str, list[SkippedLayer]] = {}
        for layer in self.skipped:
            groups.setdefault(layer.reason, []).append(layer)
        return groups
