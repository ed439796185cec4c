"""erf and erfc for arrays, in float64.

|x| ≤ 1: the Maclaurin series of erf. x > 1: erfc(x) = exp(−x²) · Q(1 / (1 + x)), where the smooth Q is a
Chebyshev series interpolated once from the C library's erfc.
"""

from __future__ import annotations

import functools
import math

import numpy as np

_MACLAURIN = [2 / math.sqrt(math.pi) * (-1) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(18)]
_LARGEST = 26.0  # erfc(26) is about 1e-296; beyond 28 erfc is 0
_LOW, _HIGH = 1 / (1 + _LARGEST), 0.5  # the range of 1 / (1 + x)


def _exp_of_square(x: np.ndarray, sign: float) -> np.ndarray:
    """exp(sign · x²) with the rounding error of x² put back: x = head + tail, head² exact."""
    head = x.astype(np.float32).astype(np.float64)
    return np.exp(sign * head * head) * np.exp(sign * (x - head) * (x + head))


@functools.lru_cache(maxsize=1)
def _tail_series() -> np.ndarray:
    def scaled_erfc(t: np.ndarray) -> np.ndarray:
        x = 1 / (_LOW + (t + 1) / 2 * (_HIGH - _LOW)) - 1
        return np.array([math.erfc(v) for v in x]) * _exp_of_square(x, 1.0)

    return np.polynomial.chebyshev.chebinterpolate(scaled_erfc, 24)


def _near(x: np.ndarray) -> np.ndarray:
    """erf(x) for |x| ≤ 1."""
    return x * np.polynomial.polynomial.polyval(x * x, _MACLAURIN)


def _far(x: np.ndarray) -> np.ndarray:
    """erfc(x) for x ≥ 1."""
    x = np.minimum(x, 28.0)
    t = (1 / (1 + x) - _LOW) / (_HIGH - _LOW) * 2 - 1
    return _exp_of_square(x, -1.0) * np.polynomial.chebyshev.chebval(t, _tail_series())


def erf(x: np.ndarray) -> np.ndarray:
    """Error function of float64 `x`; NaN stays NaN, −0 stays −0."""
    x = np.asarray(x, np.float64)
    y = np.asarray(_near(np.clip(x, -1, 1)))
    far = np.abs(x) > 1
    y[far] = np.copysign(1 - _far(np.abs(x[far])), x[far])
    return y


def erfc(x: np.ndarray) -> np.ndarray:
    """1 − erf(x) of float64 `x`, without cancellation for large `x`."""
    x = np.asarray(x, np.float64)
    y = np.asarray(1 - _near(np.clip(x, -1, 1)))
    far = np.abs(x) > 1
    tail = _far(np.abs(x[far]))
    y[far] = np.where(x[far] > 0, tail, 2 - tail)
    return y
