"""FPTQ: Li et al., "FPTQ: Fine-grained Post-Training Quantization for Large Language Models" (2023), arXiv 2308.15987.

The range v = max|X| of what a layer reads decides how its activations are quantized (§4.1):

    v ≤ v0          one static range for the tensor
    v0 < v < v1     logarithmic equalization, then one static range
    v1 ≤ v          ranges of each token, found at every run

    s_j = max|X_j| / log2(2 + max|X_j|),   X ← X / s,   W ← W · s          eq. 6

Equalization looks at activations alone. Where nothing can absorb its scales, the layer keeps ranges of each token. The
weights are groups of 128 rounded to nearest; GPTQ() may follow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.quantization.methods.smoothquant import tied
from qruntime.quantization.reasons import Reason, Unselected
from qruntime.quantization.scheme import TENSOR, Inputs, Scheme
from qruntime.quantization.statistics import EXTREMES, Statistics
from qruntime.quantization.steps import Equivalence, Facts, SiteView

V0, V1 = 15.0, 150.0


@dataclass(frozen=True)
class LogEqualize:
    """Logarithmic equalization of tensors whose range lies between `v0` and `v1`."""

    v0: float = V0
    v1: float = V1

    def __post_init__(self) -> None:
        _check(self.v0, self.v1)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({EXTREMES})

    def choose(self, site: SiteView) -> Equivalence | Reason:
        absmax = site.statistics.absmax.astype(np.float64)
        reach = float(absmax.max())
        if not any(scheme is not None and scheme.inputs is not None for scheme in site.schemes):
            return Unselected("activations are float")
        if not self.v0 < reach < self.v1:
            return Unselected(f"the range {reach:.4g} is not between {self.v0:g} and {self.v1:g}")
        if "scale" not in site.allows:
            return Reason(f"the range is {reach:.4g}, and nothing before the tensor can absorb a scale")
        scale = np.where(absmax > 0, absmax / np.log2(2 + absmax), 1.0)
        return Equivalence(scale=tied(scale, site.ties).astype(np.float32), facts={"equalized from": reach})


@dataclass(frozen=True)
class ActivationMode:
    """Static activations up to the range `v0`, ranges of each token above it."""

    v0: float = V0

    def __post_init__(self) -> None:
        _check(self.v0, np.inf)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({EXTREMES})

    def scheme(self, name: str, weight: np.ndarray, scheme: Scheme, statistics: Statistics | None) -> tuple[Scheme | Reason, Facts]:
        if scheme.inputs is None or statistics is None:
            return scheme, {}
        reach = float(statistics.absmax.max())
        form = scheme.inputs.format
        if reach <= self.v0 and form.is_integer:
            return replace(scheme, inputs=Inputs(form, TENSOR, is_static=True)), {"range": reach, "activations": "static"}
        return replace(scheme, inputs=Inputs(form)), {"range": reach, "activations": "per token"}


def _check(v0: float, v1: float) -> None:
    if not 0 <= v0 < v1:
        raise QuantizationError(f"thresholds of FPTQ must be 0 ≤ v0 < v1, got {v0} and {v1}")
