"""Layers whose error is out of line with that of the rest, which a report points out.

A layer is judged among those of about as many bits, so that what was given fewer on purpose is not called bad, by medians, which
a few bad layers do not move, and against a bound below which there is nothing to mend:

    weights    6 dB below the median, four times its noise, and below 30 dB. Scales per channel or group keep the layers of a
               transformer within 3 dB of one another at any number of bits; one scale for the tensor lets a few fall 6 to 12 dB
               short. Of SmolLM2 with strictly one scale in 8 bits these are 12 of 211 layers, and make 0.16 of the 0.20 nats
               that it loses.
    outputs    an error of 10 times the median and above 1 %. Weights of few bits spread the errors of outputs over a factor
               of 3; where data have channels that are far larger than the others, that of one layer may be a hundred times.

Weights are not looked at where a method made the outputs better than rounding to nearest does: it is they that pay for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from qruntime.quantization.report import QuantizedLayer

LEAST_LAYERS = 4
"""A median of fewer says nothing of what is usual."""
BELOW_DB, ENOUGH_DB = 6.0, 30.0
TIMES, ENOUGH_ERROR = 10.0, 1e-2


class Outlying(NamedTuple):
    """A layer that lost far more than others of as many bits."""

    name: str
    snr_db: float | None
    """Of its weights, where they are what is out of line."""
    error: float | None
    """Of its outputs, likewise."""
    usual: float
    """The median of the layers it was held against, in the same measure."""


def outlying(layers: Iterable[QuantizedLayer]) -> tuple[Outlying, ...]:
    """Those of `layers` whose weights or outputs are out of line, in the order of the layers; each once."""
    groups: dict[int | None, list[QuantizedLayer]] = {}
    rows = list(layers)
    for layer in rows:
        groups.setdefault(_bits(layer), []).append(layer)
    usual = {bits: (_median(one.snr_db for one in group), _median(one.error for one in group)) for bits, group in groups.items()}
    found = (_judged(layer, *usual[_bits(layer)]) for layer in rows)
    return tuple(one for one in found if one is not None)


def _judged(layer: QuantizedLayer, usual_db: float | None, usual_error: float | None) -> Outlying | None:
    error, snr_db = layer.error, layer.snr_db
    if error is not None and usual_error is not None and error >= TIMES * usual_error and error > ENOUGH_ERROR:
        return Outlying(layer.name, None, error, usual_error)
    is_nearest = error is None or layer.rtn_error is None or error >= layer.rtn_error
    if is_nearest and usual_db is not None and snr_db <= usual_db - BELOW_DB and snr_db < ENOUGH_DB:
        return Outlying(layer.name, snr_db, None, usual_db)
    return None


def _bits(layer: QuantizedLayer) -> int | None:
    return None if math.isnan(layer.bits_per_weight) else round(layer.bits_per_weight)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return median(known) if len(known) >= LEAST_LAYERS else None
