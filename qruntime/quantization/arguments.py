"""Checks of numbers that users give to steps and to training."""

from __future__ import annotations

import math
from numbers import Integral, Real

from qruntime.errors import QuantizationError


def check_whole(name: str, given: object, least: int) -> None:
    """QuantizationError for what is no whole number of `least` or more."""
    if not isinstance(given, Integral) or int(given) < least:
        raise QuantizationError(f"{name} must be a whole number of {least} or more, got {given!r}")


def check_rate(name: str, given: object) -> None:
    """QuantizationError for what is no finite number of 0 or more."""
    if not isinstance(given, Real) or not math.isfinite(given) or given < 0:
        raise QuantizationError(f"{name} must be a finite number of 0 or more, got {given!r}")


def check_rates(given: object) -> None:
    """QuantizationError for what is no tuple or list of such numbers, one or more."""
    if not isinstance(given, (tuple, list)) or not given:
        raise QuantizationError(f"rates must be one or more finite numbers of 0 or more, as in rates=(1e-3,), got {given!r}")
    for rate in given:
        check_rate("each of rates", rate)
