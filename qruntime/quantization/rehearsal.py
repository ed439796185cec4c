"""What quantization will do to activations and weights, for steps that try before they choose.

The arithmetic is that of the codes: scale = (high − low) / (2^b − 1), zero_point = rint(−low / scale), round half to even.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime import _kernels
from qruntime.ir.formats import FP8, INT8
from qruntime.quantization.grid import channel_codes, nearest_entry, nearest_values
from qruntime.quantization.rounding import power
from qruntime.quantization.scheme import CHANNEL, FLOAT32, TOKEN, Inputs, QArgs, Scheme
from qruntime.quantization.static_ranges import parameters
from qruntime.quantization.steps import InputRange, SiteView

ROWS = 512
"""Scales are tried on the runs that hold so many rows."""
CLEARLY = 1.05
"""A loss that is greater by this factor is so for more than roundings."""


class RehearsedLayer:
    """A linear layer with the weight [N, K] · `factor` [K] float32 as its nearest codes stand for it, which reads activations as
    `inputs` say, and with a bias [N] float32.

    Whole numbers are multiplied by the kernel that will multiply them when the model runs: four times as fast as floats.
    """

    def __init__(
        self,
        weight: np.ndarray,
        factor: np.ndarray,
        scheme: Scheme | None,
        inputs: Inputs | None,
        bias: np.ndarray | None = None,
    ):
        args = None if scheme is None else scheme.weights
        self.inputs = inputs
        self._of_codes = inputs is not None and _are_whole(inputs, args)
        self._weight: _kernels.Packed
        if self._of_codes:
            assert args is not None
            codes, scale, zero_point = channel_codes(weight, factor, args)
            self._weight = _kernels.PackedQ8(codes.view(np.int8).T, scale, zero_point, bias)
        else:
            self._weight = _kernels.PackedF32(rounded_weight(weight * factor, scheme).T, bias)

    def product(self, rows: np.ndarray, low: np.ndarray | float = 0, high: np.ndarray | float = 0) -> np.ndarray:
        """[t, N] float32 of `rows` [t, K] float32, on one thread. `low` and `high` as `rounded_rows` takes them."""
        if not self._of_codes:
            return multiplied(rounded_rows(rows, self.inputs, low, high), self._weight)
        assert self.inputs is not None
        return multiplied(rows, self._weight, *_grid(self.inputs, low, high))


def multiplied(rows: np.ndarray, weight: _kernels.Packed, ints: Sequence[int] = (0,), floats: Sequence[float] = ()) -> np.ndarray:
    """[t, N] float32 of `rows` [t, K] float32 and a packed weight, on one thread. `ints` and `floats` of the node "linear" say how
    rows become codes, where the weight is of codes."""
    made = _kernels.call_node("linear", [rows], [0, *ints], [0.0, 0.0, *floats], [weight])
    assert made is not None, "float rows of as many columns as the weight has are what the node takes"
    return made[0]


def _are_whole(inputs: Inputs, args: QArgs | None) -> bool:
    """Whether what is multiplied are whole numbers of a byte, with a scale for a row and one for an output."""
    if args is None or not args.format.is_integer or args.format.qmax > INT8.qmax:
        return False
    return inputs.format.is_integer and not inputs.clusters and args.granularity.kind == CHANNEL and args.scales.kind == FLOAT32


def _grid(inputs: Inputs, low: np.ndarray | float, high: np.ndarray | float) -> tuple[list[int], list[float]]:
    """How rows become codes, as the kernel is told it: integers and floats."""
    most = inputs.format.qmax
    if not inputs.is_static:
        return [_kernels.RANGE["per_token" if inputs.granularity == TOKEN else "per_tensor"], most], []
    scale, zero_point = parameters(InputRange(np.min(low), np.max(high)), inputs.format)
    return [_kernels.RANGE["static"], most, int(zero_point)], [float(scale)]


def rounded_rows(rows: np.ndarray, inputs: Inputs | None, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Rows [t, K] float32 as a layer with such activations sees them. `low` and `high`, one for all or one for each channel,
    are the range of static activations; others have that of each row."""
    if inputs is None:
        return rows
    if inputs.format is FP8:
        scale = _above_zero(np.abs(rows).max(axis=1, keepdims=True) / np.float32(448))
        return FP8.values[nearest_entry(rows / scale, FP8)] * scale
    if not inputs.is_static:
        axis = 1 if inputs.granularity == TOKEN else None
        low, high = rows.min(axis=axis, keepdims=True), rows.max(axis=axis, keepdims=True)
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    steps = np.float32((1 << inputs.format.bits) - 1)
    scale = _above_zero((high - low) / steps)
    zero = np.clip(np.rint(-low / scale), 0, steps)
    rounded = rows / scale
    np.rint(rounded, out=rounded)
    rounded += zero
    np.clip(rounded, 0, steps, out=rounded)
    rounded -= zero
    rounded *= scale
    return rounded


def rounded_weight(weight: np.ndarray, scheme: Scheme | None) -> np.ndarray:
    """A weight [N, K] as its nearest codes stand for it."""
    if scheme is None or scheme.weights is None or scheme.weights.format.is_float:
        return weight
    return nearest_values(np.ascontiguousarray(weight, np.float32), scheme.weights)


def _above_zero(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 0, scale, np.float32(1)).astype(np.float32)


def losses_of_scales(
    site: SiteView, middle: np.ndarray, low: np.ndarray, high: np.ndarray, scales: Sequence[np.ndarray], alike: int = 0
) -> list[float]:
    """For each scale [K] of the channels of a tensor less `middle` [K], which lies between `low` and `high` then: the squared error of
    what the readers compute, of quantized activations and weights, on the runs that hold `ROWS` rows. All readers see one tensor: it
    is rounded as the first that is quantized asks.

    The last `alike` of the scales are multiples of one another. What has the scale of its range becomes the same codes with all of
    them, so that their losses differ by roundings alone: where the first loses clearly more than another scale, it stands for the rest.
    """
    inputs = next(scheme.inputs for scheme in site.schemes if scheme is not None and scheme.inputs is not None)
    runs = site.first_runs(ROWS)
    moved = [rows - middle for rows in runs] if middle.any() else runs
    floats = [np.ascontiguousarray(weight, np.float32) for weight in site.weights]
    wanted = site.outputs(runs, floats)
    biases = [weight @ middle if middle.any() else None for weight in floats]

    def made(scale: np.ndarray) -> list[np.ndarray]:
        changed = [rows / scale for rows in moved]
        ends = (low / scale).min(), (high / scale).max()
        if site.outputs_of is None:
            rounded = [rounded_rows(rows, inputs, *ends) * scale + middle for rows in changed]
            weights = [rounded_weight(weight * scale, scheme) / scale for weight, scheme in zip(floats, site.schemes, strict=True)]
            return site.outputs(rounded, weights)
        layers = [
            RehearsedLayer(weight, scale, scheme, inputs, bias) for weight, scheme, bias in zip(floats, site.schemes, biases, strict=True)
        ]
        return site.outputs_of([[layer.product(rows, *ends) for layer in layers] for rows in changed])

    def loss(scale: np.ndarray) -> float:
        return sum(power(one - other) for one, other in zip(made(scale), wanted, strict=True))

    if alike < 2 or not all(scheme is None or _follows_range(scheme) for scheme in site.schemes):
        return site.side_by_side(loss, scales)
    different = len(scales) - alike + 1
    losses = site.side_by_side(loss, scales[:different])
    if losses[-1] > CLEARLY * min(losses):
        return losses + losses[-1:] * (alike - 1)
    return losses + site.side_by_side(loss, scales[different:])


def _follows_range(scheme: Scheme) -> bool:
    """Whether numbers and their ranges times a factor become the codes of before, but for what is rounded."""
    return scheme.weights is None or scheme.weights.format.is_float or scheme.weights.scales.kind == FLOAT32
