"""Ranges of scales that leave the extremes of a group out where that loses less.

Of shares p of a range, the one at which the nearest codes of its weights lose least:

    p* = argmin over p of Σ_j c_j (w_j − ŵ_j(p))²      w clipped to [p · min, p · max] for the scale

c_j says how much column j counts: the square of its inputs, so that what is lost is that of the outputs as far as channels are apart.
"""

from __future__ import annotations

import numpy as np

from qruntime.quantization.grid import block_of, nearest_values
from qruntime.quantization.scheme import TENSOR, QArgs

SHARES = tuple(float(share) for share in np.linspace(1, 0.5, 26))


def clipped(weight: np.ndarray, args: QArgs, counts: np.ndarray) -> np.ndarray:
    """`weight` [N, K] float32 with every group within p* of its extremes: scales that cover it are the ones to take. Of shares that lose
    the same the largest. `counts` [K], not negative."""
    n, k = weight.shape
    size = block_of(args, k) or max(1, k)
    starts = np.arange(0, k, size)
    low = np.minimum(np.minimum.reduceat(weight, starts, axis=1), 0)
    high = np.maximum(np.maximum.reduceat(weight, starts, axis=1), 0)
    if args.granularity.kind == TENSOR:
        low, high = np.broadcast_to(low.min(), low.shape), np.broadcast_to(high.max(), high.shape)
    own = counts.astype(np.float32) / max(np.float32(counts.max(initial=0)), np.finfo(np.float32).tiny)
    owner = np.arange(k) // size
    least, best = np.full((n, len(starts)), np.inf), np.ones((n, len(starts)), np.float32)
    for share in map(np.float32, SHARES):
        tried = np.clip(weight, (share * low)[:, owner], (share * high)[:, owner])
        difference = nearest_values(tried, args) - weight
        lost = np.add.reduceat(difference * difference * own, starts, axis=1, dtype=np.float64)
        if args.granularity.kind == TENSOR:
            lost = np.broadcast_to(lost.sum(), lost.shape)
        better = lost < least
        least, best = np.where(better, lost, least), np.where(better, share, best)
    return np.clip(weight, (best * low)[:, owner], (best * high)[:, owner])
