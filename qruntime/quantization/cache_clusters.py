"""Which channels of a cache share a range, by where keys and values lie in the data."""

from __future__ import annotations

import numpy as np

from qruntime.errors import CalibrationError
from qruntime.ir import Graph, Value
from qruntime.ir.formats import Format
from qruntime.quantization.cache import Clusters, caches_for, num_heads
from qruntime.quantization.cache_search import Cache, is_attention
from qruntime.quantization.calibration import Calibration
from qruntime.quantization.steps import Divide
from qruntime.runtime.segments import Segment

TOKENS = 8192
"""The first feeds that hold so many, in all that is quantized at a time, are looked at."""


def measured_clusters(graph: Graph, form: Format, step: Divide, calibration: Calibration) -> Clusters:
    """What `step` makes of the extremes of every cache of `graph`, which is float yet, over what `calibration` appends to it.

    CalibrationError for keys and values that are no numbers.
    """
    caches = [cache for one in caches_for(graph, form) if one.fault is None for cache in one.caches if _is_laid_out(cache)]
    values = list(dict.fromkeys(value for cache in caches for value in cache.new))
    if not caches:
        return {}
    segment = Segment(graph, graph.inputs, values, num_threads=calibration.num_threads, lower=True)
    extremes: dict[Cache, tuple[np.ndarray, np.ndarray]] = {}
    seen = 0
    for batch in calibration.batches:
        made = segment.run(batch)
        for cache in caches:
            rows = np.concatenate([_rows(cache, value, made[value]) for value in cache.new])
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
    return {cache.name: step.divide(low, high) for cache, (low, high) in extremes.items()}


def _is_laid_out(cache: Cache) -> bool:
    """Whether the axis of its heads is known."""
    return is_attention(cache.join) or (len(cache.axes) == 4 and cache.axis in (1, 2))


def _rows(cache: Cache, value: Value, array: np.ndarray) -> np.ndarray:
    """[tokens, heads, channels] of what is appended."""
    if array.ndim == 3:
        return np.asarray(array, np.float32).reshape(-1, num_heads(cache.join), cache.channels)
    tokens = 2 if is_attention(cache.join) else cache.axis
    return np.asarray(np.moveaxis(array, 3 - tokens, 2), np.float32).reshape(-1, array.shape[3 - tokens], cache.channels)
