"""Sequences of different lengths, side by side in one tensor."""

from __future__ import annotations

import itertools

import numpy as np

from qruntime.ops.checks import require_rank


def sequence_starts(name: str, cumulative: np.ndarray, tokens: int, shortest: int) -> list[int]:
    """Where every sequence begins, and the end of the last, of `cumulative` [B + 1].

    Raises ValueError unless they grow from 0 to `tokens` by `shortest` at least.
    """
    require_rank(name, cumulative, 1)
    starts = [int(start) for start in cumulative]
    grows = all(after - before >= shortest for before, after in itertools.pairwise(starts))
    if len(starts) < 2 or starts[0] != 0 or starts[-1] != tokens or not grows:
        raise ValueError(f"{name} must grow from 0 to {tokens} by {shortest} at least, got {starts}")
    return starts
