"""What a quantized layer does with its activations, and what is known of how it was made.

That is all that standard operators cannot say of a layer: files keep it as one entry of the node's metadata.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from qruntime.ir.formats import FORMATS, FP8, OVP4, UNSIGNED

KEY, VERSION = "qruntime.layer", 1

_CODES = frozenset(form.name for form in (*UNSIGNED, FP8, OVP4))
"""Formats of activations."""

WEIGHT_ONLY = "none"
PER_TOKEN, PER_TENSOR = "per_token", "per_tensor"
STATIC = "static"
"""In the range that QuantizeLinear before the layer gives, whatever the tensor."""

LAYER, LOW_RANK = "layer", "low_rank"


class LayerMark(NamedTuple):
    """Of a layer whose weights are stored narrow by a method of ours."""

    activations: str = WEIGHT_ONLY
    """In which ranges activations are quantized: per_token, per_tensor, static, none."""
    engine: str = "qruntime"
    """Whose arithmetic it computes in."""
    snr_db: float = math.nan
    """Power of its weights over that of their rounding errors, in decibels, inf when nothing was lost; NaN when unknown."""
    reason: str = ""
    """What decided that the weights are stored otherwise than was preferred."""
    source: str = "float"
    """What the codes were made from: float weights, or codes of that element type."""
    codes: str = "uint8"
    """Format of activations that are quantized."""
    role: str = LAYER
    """low_rank: one of the two products of a branch beside a layer, and none itself."""

    @property
    def is_dynamic(self) -> bool:
        """Whether activations are quantized at every run in a range of their own."""
        return self.activations in (PER_TOKEN, PER_TENSOR)

    @property
    def bits(self) -> int:
        """Of the codes of activations."""
        return FORMATS[self.codes].bits

    @property
    def rounds_to_float8(self) -> bool:
        """Whether rows of activations are rounded to 8-bit floats before they are multiplied as floats."""
        return self.activations == PER_TOKEN and self.codes == FP8.name

    @property
    def multiplies_codes(self) -> bool:
        """Whether the integers that activations become at every run are multiplied as such."""
        return self.is_dynamic and FORMATS[self.codes].is_integer


def to_metadata(mark: LayerMark) -> dict[str, str]:
    """The entry of a node's metadata that says the same."""
    import json

    said = {name: value for name, value in mark._asdict().items() if value != LayerMark._field_defaults[name]}
    if "snr_db" in said:
        said["snr_db"] = None if math.isnan(mark.snr_db) else "inf" if math.isinf(mark.snr_db) else round(mark.snr_db, 2)
    return {KEY: json.dumps({"version": VERSION, **{name: value for name, value in said.items() if value is not None}})}


def from_metadata(metadata: Mapping[str, str]) -> LayerMark | None:
    """The mark in a node's metadata, that of earlier versions too; None where there is none that can be read."""
    if KEY in metadata:
        return _parsed(metadata[KEY])
    return None if _EARLIER.isdisjoint(metadata) else _earlier(metadata)


def without_mark(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key != KEY and key not in _EARLIER_KEYS}


def _parsed(text: str) -> LayerMark | None:
    import json

    try:
        said = json.loads(text)
        if not isinstance(said, dict) or said.get("version") != VERSION:
            return None
        names = ("activations", "engine", "reason", "source", "codes", "role")
        texts = {name: said[name] for name in names if isinstance(said.get(name), str)}
        mark = LayerMark(**texts, snr_db=_number(said.get("snr_db", "nan")))
        return mark if mark.codes in _CODES else None
    except (ValueError, RecursionError):
        return None


# Until November 2026 each was a metadata entry of its own.
_DYNAMIC, _ENGINE, _DTYPE = "qruntime.dynamic", "qruntime.engine", "qruntime.dtype"
_SNR, _REASON, _SOURCE, _TABLE = "qruntime.weight_snr_db", "qruntime.reason", "qruntime.quantized_from", "qruntime.table"
_EARLIER = frozenset({_DYNAMIC, _DTYPE})
_EARLIER_KEYS = frozenset({_DYNAMIC, _ENGINE, _DTYPE, _SNR, _REASON, _SOURCE, _TABLE})


def _earlier(metadata: Mapping[str, str]) -> LayerMark:
    return LayerMark(
        metadata.get(_DYNAMIC, WEIGHT_ONLY),
        metadata.get(_ENGINE, "qruntime"),
        _number(metadata.get(_SNR, "nan")),
        metadata.get(_REASON, ""),
        metadata.get(_SOURCE, "float"),
    )


def _number(text: object) -> float:
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan
