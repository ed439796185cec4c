"""Outlier Suppression+: Wei et al., "Outlier Suppression+: Accurate quantization of large language models by equivalent and
optimal shifting and scaling" (2023), arXiv 2304.09145.

    z_j = (max X_j + min X_j) / 2,                    X' = X − z                eq. 4
    s_j = max(1, max|X'_j| / t),                      X'' = X' / s              eq. 7
    t* = argmin over t of ‖ f(X, W) − f(Q(X''), Q(W · s)) ‖²                    eq. 5 and 6

Channels that lie aside are moved to the middle, those that reach beyond t are scaled down to it, all others stay as they are.
f is what the layers that read the tensor compute together: attention, the gated product, else their outputs; activations and
weights are quantized in it. t runs over `grid` steps in equal ratios from the largest magnitude down to 1/256 of it (the
authors: equal differences); the largest is no scaling, so that nothing is lost on the data.

The shift needs a summand before the tensor that can take it (of a LayerNorm, a linear layer) and biases behind it; norms
without one (RMSNorm) are scaled only, as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.quantization.methods.smoothquant import tied
from qruntime.quantization.reasons import Reason, Unselected
from qruntime.quantization.rehearsal import losses_of_scales
from qruntime.quantization.statistics import EXTREMES
from qruntime.quantization.steps import Equivalence, SiteView

REACH = 256.0


@dataclass(frozen=True)
class OutlierSuppressionPlus:
    """`grid`: how many thresholds are tried. `shift`: False leaves channels where they lie."""

    grid: int = 25
    shift: bool = True
    insert: bool = False

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise QuantizationError(f"grid of OutlierSuppressionPlus must be 1 or more, got {self.grid}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({EXTREMES})

    def choose(self, site: SiteView) -> Equivalence | Reason:
        if not any(scheme is not None and scheme.inputs is not None for scheme in site.schemes):
            return Unselected("activations are float")
        if "scale" not in site.allows and not self.insert:
            return Reason("nothing before the tensor can absorb a scale")
        middle = self.middle(site)
        low, high = site.statistics.low - middle, site.statistics.high - middle
        magnitudes = np.maximum(-low, high)
        tried = thresholds(float(magnitudes.max()), self.grid)
        scales = [tied(np.maximum(1, magnitudes / threshold), site.ties).astype(np.float32) for threshold in tried]
        reached_by_all = int(np.sum(tried <= magnitudes.min()))
        losses = losses_of_scales(site, middle, low, high, scales, alike=reached_by_all)
        least = min(losses)
        best = next((scale for scale, loss in zip(scales[::-1], losses[::-1], strict=True) if loss == least), np.ones_like(low))
        facts = {"threshold": float((magnitudes / best).max()), "loss": least, "loss without": losses[0]}
        is_shifted = bool(np.any(middle))
        return Equivalence(scale=best if np.any(best != 1) else None, shift=middle if is_shifted else None, insert=self.insert, facts=facts)

    def middle(self, site: SiteView) -> np.ndarray:
        """z [K] float32; zeros where the tensor cannot be shifted."""
        if not self.shift or ("shift" not in site.allows and not self.insert):
            return np.zeros_like(site.statistics.low)
        return (site.statistics.high + site.statistics.low) / np.float32(2)


def thresholds(most: float, grid: int) -> np.ndarray:
    """From the largest magnitude down, in equal ratios; of a tensor of zeros 1."""
    return np.geomspace(most, most / REACH, grid) if most > 0 else np.ones(1)
