"""ZeroQuant-FP: A Leap Forward in LLMs Post-Training W4A8 Quantization Using Floating-Point Formats. Wu et al., arXiv 2307.09782.

FP4 weights (E2M1) in groups of 256 found by GPTQ, whose grid is then the table scaled so that its 6 is the largest weight of a
group, and FP8 activations (E4M3) with a scale for each token at every run, the largest at 448. Scales may be held to powers of two,
so that FP4 becomes FP8 by a shift (section 3, "casting the FP4 to FP8"):

    M1    Ŝ = 2^⌈log₂ S⌉                          each scale for itself
    M2    Ŝ_i = S_max · 2^−n_i                    of the groups of a row

`PowerOfTwoScales` makes that a part of the scheme, so that GPTQ rounds to what is stored. What the low-rank branch of the paper
makes good is the step LowRank.

What differs from the paper. n_i = ⌊log₂(S_max / S_i)⌋: rounded up it would cut off the largest weights. It is 8 at most, up to which
the cast is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qruntime.quantization.scheme import POW2, ROW_POW2, ScaleCoding, Scheme
from qruntime.quantization.statistics import Statistics
from qruntime.quantization.steps import Facts

_CODINGS = {"M1": POW2, "M2": ROW_POW2}


@dataclass(frozen=True)
class PowerOfTwoScales:
    """`constraint`: "M1" or "M2"."""

    constraint: str = "M2"

    def __post_init__(self) -> None:
        if self.constraint not in _CODINGS:
            raise ValueError(f"constraint must be one of {', '.join(_CODINGS)}, got {self.constraint!r}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    def scheme(self, name: str, weight: np.ndarray, scheme: Scheme, statistics: Statistics | None) -> tuple[Scheme, Facts]:
        if scheme.weights is None:
            return scheme, {}
        return replace(scheme, weights=replace(scheme.weights, scales=ScaleCoding(_CODINGS[self.constraint]))), {}
