"""What quantization did, layer by layer, and what it left alone and why."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qruntime.errors import QuantizationError
from qruntime.ir import StoredTensor
from qruntime.ir.formats import FLOAT16, INT8, UINT4, UINT8
from qruntime.quantization.json_values import json_value
from qruntime.quantization.layers import Layer
from qruntime.quantization.low_rank import LowRankBranch
from qruntime.quantization.outlying import Outlying, outlying
from qruntime.quantization.reasons import NoWeight, Stored, Unselected


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
    too much, weights that float16 does not reach, or inputs that calibration does not see (`Unobserved`)."""
    source: str = "float"
    """What the codes were made from: float weights, or the element type of codes where the layer was quantized before, int8
    for one. What those had lost stays lost, and `snr_db` does not count it."""
    bits_per_weight: float = math.nan
    """With scales and zero points, and what is beside the layer."""
    facts: tuple[Mapping[str, Any], ...] = ()
    """What the steps that made the codes found out, for each matrix: one of a Linear, one for each weight and direction of an LSTM."""
    error: float | None = None
    """Of its outputs on the calibration data: ‖X Wᵀ − X Qᵀ‖² / ‖X Wᵀ‖², of the worst matrix; None without data."""
    rtn_error: float | None = None
    """The same of weights rounded to nearest."""


FLOAT_QPARAMS = "per_channel_affine_float_qparams"


def scheme_of(stored: Sequence[StoredTensor]) -> str:
    """How the matrices of a layer are stored, under torch's name where it has one; of several such the finest."""
    if any(tensor.offset is not None for tensor in stored):
        return FLOAT_QPARAMS
    if any(tensor.format is FLOAT16 for tensor in stored):
        return "float16"
    if any(tensor.format is not INT8 or tensor.block or not tensor.is_plain for tensor in stored):
        return " and ".join(dict.fromkeys(map(_scheme, stored)))
    return "per_tensor_affine" if all(tensor.has_one_scale for tensor in stored) else "per_channel_affine"


def _scheme(stored: StoredTensor) -> str:
    """Format, granularity and kind of grid."""
    parts = [stored.format.name, f"g{stored.block}" if stored.block else "tensor" if stored.has_one_scale else "channel"]
    if stored.is_shifted:
        parts.append("affine")
    if isinstance(stored.scale, StoredTensor):
        parts.append(f"scales in {stored.scale.format.bits} bits")
    if stored.outliers is not None:
        parts.append(f"{100 * stored.outliers.count / max(1, stored.size):.1f} % outliers")
    return " ".join(parts)


def dtype_of(stored: Sequence[StoredTensor]) -> str:
    """The element types of codes; of tables with float offsets under torch's names."""
    torch_names = {UINT8: "quint8", UINT4: "quint4x2"}
    names = (tensor.format.name if tensor.offset is None else torch_names.get(tensor.format, tensor.format.name) for tensor in stored)
    return " and ".join(dict.fromkeys(names))


def real_bytes(stored: StoredTensor) -> int:
    """Of the numbers that the codes stand for."""
    return stored.size * stored.dtype.itemsize


def row_of(
    layer: Layer, name: str, matrices: Sequence[StoredTensor], fresh: Sequence[StoredTensor], beside: Sequence[LowRankBranch] = ()
) -> QuantizedLayer:
    """The row of a layer that is stored as `matrices`; those of them that are `fresh` belong to no layer before it. What is
    `beside` it counts as a part of it."""
    node, mark = layer.node, layer.node.mark
    assert mark is not None
    branches = sum(branch.nbytes for branch in beside)
    return QuantizedLayer(
        name, node.op_type, layer.kind, layer.size, "".join([scheme_of(matrices), *(f" + {branch}" for branch in beside)]),
        sum(map(real_bytes, fresh)), sum(tensor.nbytes for tensor in fresh) + branches, mark.snr_db, not fresh, mark.reason, mark.source,
        8 * (sum(tensor.nbytes for tensor in matrices) + branches) / max(1, sum(tensor.size for tensor in matrices)),
    )  # fmt: skip


class HeldWeight(NamedTuple):
    """A weight that the file stores in few bits, and that no call of ours made so."""

    name: str
    """Of the node that reads it first."""
    op_type: str
    scheme: str
    """Format, granularity and kind of grid, as in `QuantizedLayer`."""
    numbers: int
    """How many, with those that fill up the last block."""
    bytes: int
    """Of codes, scales and zero points."""

    @property
    def bits(self) -> float:
        """Per number, everything counted."""
        return 8 * self.bytes / max(1, self.numbers)


class QuantizedCache(NamedTuple):
    """An input of keys or values that holds codes."""

    name: str
    """Of the input that takes the codes."""
    format: str
    clusters: int
    """Sets of channels of a head that have ranges of their own."""
    parts: int
    """Keys and values of layers in it."""
    bytes_before: int
    """Of one token of one sequence in it, as floats."""
    bytes_after: int
    """Likewise of codes and ranges."""


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
    kept: tuple[str, ...] = ()
    """Names of layers that were quantized before, and that the call left as they were."""
    held: tuple[HeldWeight, ...] = ()
    """Weights in few bits that stay as another tool stored them."""
    caches: tuple[QuantizedCache, ...] = ()
    """Inputs of keys and values that hold codes."""

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

    @property
    def outlying(self) -> tuple[Outlying, ...]:
        """Layers whose error is out of line with the rest (outlying.py says when)."""
        return outlying(self.layers)

    def skipped_by_reason(self) -> dict[str, list[SkippedLayer]]:
        """Reason → the candidates left alone for it, both in the order of the graph."""
        groups: dict[str, list[SkippedLayer]] = {}
        for layer in self.skipped:
            groups.setdefault(layer.reason, []).append(layer)
        return groups

    def to_dict(self) -> dict[str, Any]:
        """All of it in what JSON can say; None for what is not known, and where nothing was lost for the decibels of that.

        weight_bytes_before, weight_bytes_after    of all layers; weights that layers share count once
        layers      the fields of `QuantizedLayer`, and `exact`: whether the weights are what they were
        skipped     name, op_type, reason
        kept        names of layers that were quantized before and left so
        idle        patterns that select nothing
        slower      names of layers too small for int8 to be faster
        held        the fields of `HeldWeight`, and `bits` per number
        caches      the fields of `QuantizedCache`
        outlying    the fields of `Outlying`, for layers whose error is out of line with the rest
        """
        fields = {
            "weight_bytes_before": self.bytes_before,
            "weight_bytes_after": self.bytes_after,
            "layers": [layer._asdict() | {"exact": layer.snr_db == math.inf} for layer in self.layers],
            "skipped": [layer._asdict() for layer in self.skipped],
            "kept": self.kept,
            "idle": self.idle,
            "slower": self.slower,
            "held": [held._asdict() | {"bits": held.bits} for held in self.held],
            "caches": [cache._asdict() for cache in self.caches],
            "outlying": [one._asdict() for one in self.outlying],
        }
        return {name: json_value(value) for name, value in fields.items()}

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)


def raise_faults(skipped: Sequence[SkippedLayer]) -> None:
    """Raises QuantizationError that lists the layers which were asked for and cannot be quantized, if there are any."""
    faults = [s for s in skipped if not isinstance(s.reason, (Unselected, NoWeight, Stored))]
    if faults:
        listed = "; ".join(f"{s.op_type} {s.name!r}: {s.reason}" for s in faults)
        raise QuantizationError(f"strict=True and {len(faults)} layers cannot be quantized: {listed}. Name them in exclude= to go on.")
