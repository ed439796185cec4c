"""MoFQ: Integer or Floating Point? New Outlooks for Low-Bit Quantization on Large Language Models. Zhang et al., arXiv 2305.12356.

Every layer has the format, integers or floats of the same bits, that holds it better (algorithm 1): 4 bits are int4 or FP4
(E2M1, whose codes for infinities and NaN are numbers), 8 bits int8 or FP8 (E4M3). Both are symmetric with a scale that covers the
largest value, so that neither has an advantage that the other lacks. A layer has one kind for weights and activations.

    metric    what is compared
    tensor    the mean squared error of the weights; where activations are quantized too, the relative errors of both together,
              as far as there are data to see them in
    output    the mean squared error of the outputs on a sample of the inputs

What differs from the paper. Activations in FP8 have a scale for each token, and integers those of the scheme, which has one
range for the tensor where it says -static. Integers of 4 bits are symmetric whatever the scheme says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir.formats import FORMATS, FP4, FP8, Format
from qruntime.quantization.grid import nearest_values
from qruntime.quantization.scheme import CHANNEL, TENSOR, TOKEN, Granularity, Inputs, QArgs, Scheme
from qruntime.quantization.statistics import SAMPLE, Statistics
from qruntime.quantization.steps import Facts

METRICS = ("tensor", "output")

_FORMATS: dict[int, tuple[Format, Format]] = {4: (FORMATS["int4"], FP4), 8: (FORMATS["int8"], FP8)}


@dataclass(frozen=True)
class MoFQ:
    """`metric`: "tensor" or "output"."""

    metric: str = "tensor"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {self.metric!r}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({SAMPLE}) if self.metric == "output" else frozenset()

    def scheme(self, name: str, weight: np.ndarray, scheme: Scheme, statistics: Statistics | None) -> tuple[Scheme, Facts]:
        """Of candidates that are equally good the integers. Raises QuantizationError for weights of other than 4 or 8 bits."""
        if scheme.weights is None:
            return scheme, {}
        sample = None if statistics is None else statistics.sample
        errors = [(self._error(weight, one, sample), one) for one in candidates(scheme)]
        best = min(errors, key=lambda pair: pair[0])[1]
        return best, {f"{self.metric} error of {one.weights.format}": error for error, one in errors if one.weights is not None}

    def _error(self, weight: np.ndarray, scheme: Scheme, sample: np.ndarray | None) -> float:
        assert scheme.weights is not None
        restored = nearest_values(weight, scheme.weights)
        if self.metric == "tensor":
            lost = _lost(weight, restored)
            is_seen = scheme.inputs is not None and sample is not None
            return lost + _lost(sample, _rounded_rows(sample, scheme.inputs)) if is_seen else lost  # type: ignore[arg-type]
        if sample is None:
            raise ValueError("the outputs of this layer are not known: no run shows its inputs")
        read = sample if scheme.inputs is None else _rounded_rows(sample, scheme.inputs)
        return _lost(sample.astype(np.float64) @ weight.T, read.astype(np.float64) @ restored.T)


def candidates(scheme: Scheme) -> tuple[Scheme, Scheme]:
    """`scheme` with integers and with floats of its bits."""
    args = scheme.weights
    if args is None or args.format.bits not in _FORMATS:
        raise QuantizationError(f"MoFQ chooses between integers and floats of 4 or of 8 bits, got a scheme with {scheme}")
    whole, real = (QArgs(form, args.granularity, True, args.scales) for form in _FORMATS[args.format.bits])
    inputs = scheme.inputs
    if inputs is None:
        return replace(scheme, weights=whole), replace(scheme, weights=real)
    as_integers = inputs if inputs.format.is_integer else Inputs()
    return replace(scheme, weights=whole, inputs=as_integers), replace(scheme, weights=real, inputs=Inputs(FP8))


def _rounded_rows(rows: np.ndarray, inputs: Inputs) -> np.ndarray:
    """Activations [T, K] as codes of `inputs` hold them, a static range being that of these rows."""
    granularity = Granularity(CHANNEL if inputs.granularity == TOKEN else TENSOR)
    return nearest_values(rows, QArgs(inputs.format, granularity, symmetric=False))


def _lost(wanted: np.ndarray, got: np.ndarray) -> float:
    """The squared error as a share of the squares."""
    whole = float(np.sum(np.square(wanted, dtype=np.float64)))
    return float(np.sum(np.square(got.astype(np.float64) - wanted))) / whole if whole else 0.0
