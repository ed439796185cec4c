"""SmoothQuant: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models" (2023),
arXiv 2211.10438.

    s_j = max|X_j|^α / max|W_j|^(1−α)          eq. 4; W_j over all layers that read the tensor
    X ← X / s,   W ← W · s                     eq. 3

The outliers of activations become those of weights, which bear them better, the more so with a scale for each output. Scales that must
be the same (heads that read the same values) are the largest of their channels.

What differs: the paper has one α for a model, 0.5 for OPT and BLOOM and 0.75 to 0.9 for models with larger outliers, found by trying some;
here that is done for each tensor, by what its readers lose together with quantized activations and weights. The paper folds scales into
the norm or layer before. Where a residual sum reads the norm too, as in post-norm encoders (BERT), that would change the model, and a Mul
is put before the layers where their ranges are static.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.quantization.reasons import Reason, Unselected
from qruntime.quantization.rehearsal import losses_of_scales
from qruntime.quantization.statistics import EXTREMES
from qruntime.quantization.steps import Equivalence, SiteView

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
SMALLEST = 1e-5
"""Of maxima and scales, as in the authors' code."""


@dataclass(frozen=True)
class SmoothQuant:
    """`alpha`: how much of the outliers goes to the weights, 0 to 1; None takes for each tensor what loses least of 0.5 to 0.9.
    `insert`: also where nothing before the tensor can absorb the scales, by a Mul before the layers; None does that for static
    ranges, and not for those of a token, which bear more."""

    alpha: float | None = None
    insert: bool | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise QuantizationError(f"alpha of SmoothQuant must be 0 to 1, got {self.alpha}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({EXTREMES})

    def choose(self, site: SiteView) -> Equivalence | Reason:
        inputs = [scheme.inputs for scheme in site.schemes if scheme is not None and scheme.inputs is not None]
        if not inputs:
            return Unselected("activations are float")
        insert = any(one.is_static for one in inputs) if self.insert is None else self.insert
        if "scale" not in site.allows and not insert:
            return Reason("nothing before the tensor can absorb a scale")
        activations = np.maximum(site.statistics.absmax.astype(np.float64), SMALLEST)
        weights = np.maximum(np.max([np.abs(weight).max(axis=0) for weight in site.weights], axis=0).astype(np.float64), SMALLEST)
        tried = ALPHAS if self.alpha is None else (self.alpha,)
        scales = [tied(np.maximum(activations**a / weights ** (1 - a), SMALLEST), site.ties).astype(np.float32) for a in tried]
        best = _least(site, scales) if len(scales) > 1 else 0
        return Equivalence(scale=scales[best], insert=insert, facts={"alpha": tried[best]})


def _least(site: SiteView, scales: list[np.ndarray]) -> int:
    """Which scale loses least; of equals the first."""
    statistics = site.statistics
    return int(np.argmin(losses_of_scales(site, np.zeros_like(statistics.low), statistics.low, statistics.high, scales)))


def tied(scale: np.ndarray, ties: np.ndarray | None) -> np.ndarray:
    """The largest scale of those channels that must have the same."""
    if ties is None:
        return scale
    most = np.zeros(int(ties.max()) + 1)
    np.maximum.at(most, ties, scale)
    return most[ties]
