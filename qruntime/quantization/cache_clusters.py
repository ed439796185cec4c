"""Which channels of a cache share a range, by where keys and values lie in the data."""

from __future__ import annotations

import numpy as np

from qruntime.errors import CalibrationError
from qruntime.ir import Graph, Value
from qruntime.ir.formats import Format
from qruntime.quantization.cache import Clusters, caches_for, num_heads
from qruntime.quantization.cache_search import Cache, find_caches, is_attention
from qruntime.quantization.calibration import Calibration
from qruntime.quantization.reasons import Unselected
from qruntime.quantization.report import SkippedLayer
from qruntime.quantization.steps import Divide
from qruntime.runtime.segments import Segment

TOKENS = 8192
"""The first feeds that hold so many, in all that is quantized at a time, are looked at."""


def measured_clusters(graph: Graph, form: Format, step: Divide, calibration: Calibration) -> Clusters:
    """What `step` makes of the extremes of every cache of `graph`, which is float yet, over what `calibration` appends to it, but
    for padding.

    CalibrationError for keys and values that are no numbers, and for caches to which nothing is appended.
    """
    caches = [cache for one in caches_for(graph, form) if one.fault is None for cache in one.caches if _is_laid_out(cache)]
    values = list(dict.fromkeys(value for cache in caches for value in cache.new))
    if not caches:
        return {}
    segment = Segment(graph, graph.inputs, values, num_threads=calibration.num_threads, lower=True)
    extremes: dict[Cache, tuple[np.ndarray, np.ndarray]] = {}
    seen = 0
    for number, batch in enumerate(calibration.batches):
        made = segment.run(batch)
        for cache in caches:
            rows = np.concatenate([_without_padding(calibration, number, value, _rows(cache, made[value])) for value in cache.new])
            seen += len(rows) if cache is caches[0] else 0
            if not len(rows):
                continue
            low, high = rows.min(axis=0), rows.max(axis=0)
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise CalibrationError(f"what the data append to {cache.name!r} holds NaN or infinity")
            before = extremes.get(cache, (low, high))
            extremes[cache] = np.minimum(before[0], low), np.maximum(before[1], high)
        if seen >= TOKENS:
            break
    empty = next((cache for cache in caches if cache not in extremes), None)
    if empty is not None:
        raise CalibrationError(f"data: {empty.name!r} gets no token in any feed; give feeds that are not empty, or all padding")
    return {cache.name: step.divide(low, high) for cache, (low, high) in extremes.items()}


def float_caches(graph: Graph, step: str) -> list[SkippedLayer]:
    """That `step` divides no cache of `graph`, as the scheme leaves caches float."""
    reason = Unselected(f"{step} divides the channels of caches of codes, and the scheme leaves caches float; add -KV8 or -KV4")
    return [SkippedLayer(one.value.name, "cache", reason) for one in find_caches(graph)]


def _is_laid_out(cache: Cache) -> bool:
    """Whether the axis of its heads is known."""
    return is_attention(cache.join) or (len(cache.axes) == 4 and cache.axis in (1, 2))


def _rows(cache: Cache, array: np.ndarray) -> np.ndarray:
    """[batch, tokens, heads, channels] of what is appended."""
    if array.ndim == 3:
        return array.reshape(*array.shape[:2], num_heads(cache.join), cache.channels)
    return np.moveaxis(array, 1 if is_attention(cache.join) or cache.axis == 2 else 2, 2)


def _without_padding(calibration: Calibration, number: int, value: Value, rows: np.ndarray) -> np.ndarray:
    """[tokens, heads, channels], without those that are padding in a mask [batch, tokens]."""
    mask = calibration.kept(number, value.name, rows.shape[:2])
    return np.asarray(rows.reshape(-1, *rows.shape[2:]) if mask is None else rows[mask], np.float32)
