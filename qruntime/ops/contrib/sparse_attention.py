"""SparseAttention: causal attention over the blocks of keys that a mask of blocks names."""

from __future__ import annotations

import math

import numpy as np

from qruntime.ops.attention import masked_softmax
from qruntime.ops.checks import limit_shape, require_rank, require_shape, scalar
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.contrib.group_query_attention import split_projections
from qruntime.ops.contrib.rotary import check_caches, check_positions, rotated
from qruntime.ops.precision import working_dtype
from qruntime.ops.products import matmul
from qruntime.ops.registry import operator


def _block_masks(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Which blocks of keys a block of queries sees, bool [layouts, blocks, blocks], of row ends and column indices (CSR)."""
    require_rank("block_row_indices", rows, 2)
    require_rank("block_col_indices", columns, 2)
    if rows.shape[1] < 2 or rows.shape[0] < 1 or columns.shape[0] != rows.shape[0]:
        raise ValueError(
            f"block_row_indices [layouts, blocks + 1] and block_col_indices [layouts, entries] do not fit: {rows.shape} and {columns.shape}"
        )
    layouts, blocks = rows.shape[0], rows.shape[1] - 1
    seen = np.zeros(limit_shape((layouts, blocks, blocks), "the mask of blocks"), bool)
    for layout in range(layouts):
        ends = rows[layout].astype(np.int64)
        if ends[0] != 0 or np.any(np.diff(ends) < 0) or ends[-1] > columns.shape[1]:
            raise ValueError(f"block_row_indices must grow from 0 to at most {columns.shape[1]}, got {ends.tolist()}")
        for block in range(blocks):
            entries = columns[layout, ends[block] : ends[block + 1]]
            if entries.size and not 0 <= int(entries.min()) <= int(entries.max()) < blocks:
                raise ValueError(f"block_col_indices must lie in [0, {blocks}), got {entries.tolist()}")
            seen[layout, block, entries] = True
    return seen


@operator("SparseAttention", domain=MICROSOFT)
def sparse_attention(
    query: np.ndarray,
    key: np.ndarray | None,
    value: np.ndarray | None,
    past_key: np.ndarray,
    past_value: np.ndarray,
    block_row_indices: np.ndarray,
    block_col_indices: np.ndarray,
    total_sequence_length: np.ndarray,
    key_total_sequence_lengths: np.ndarray,
    cos_cache: np.ndarray | None = None,
    sin_cache: np.ndarray | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    sparse_block_size: int,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
) -> tuple[np.ndarray, ...]:
    """query [B, S, N · H], key and value [B, S, Nk · H] (or all packed in query) over caches [B, Nk, C, H] that keep their
    length → [B, S, N · H] and the caches with the new tokens.

    key_total_sequence_lengths [B] counts the tokens of each sequence with the new ones; rows behind them are zeros.
    Head n sees the blocks of layout n modulo the number of layouts.
    """
    q, k, v = split_projections(query, key, value, num_heads, kv_num_heads)
    batch, _, length, size = q.shape
    for name, past in (("past_key", past_key), ("past_value", past_value)):
        require_rank(name, past, 4)
        require_shape(name, past, (batch, kv_num_heads, past_key.shape[2], size))
    if k.shape[2] != length or sparse_block_size < 1:
        raise ValueError(
            f"needs as many keys as queries and a positive sparse_block_size, got {k.shape[2]}, {length} and {sparse_block_size}"
        )
    seen = _block_masks(block_row_indices, block_col_indices)
    capacity = min(past_key.shape[2], seen.shape[1] * sparse_block_size)
    total = int(scalar(total_sequence_length, "total_sequence_length"))
    totals = key_total_sequence_lengths.reshape(-1).astype(np.int64)
    require_shape("key_total_sequence_lengths", totals, (batch,))
    new = np.minimum(totals, length)
    if not length <= total <= capacity or np.any((totals < 1) | (totals > total)):
        raise ValueError(
            f"total_sequence_length must lie in [{length}, {capacity}] and key_total_sequence_lengths in [1, {total}], "
            f"got {total} and {totals.tolist()}"
        )
    if do_rotary:
        if cos_cache is None or sin_cache is None:
            raise ValueError("do_rotary needs cos_cache and sin_cache")
        check_caches(cos_cache, sin_cache, size)
        step = np.arange(length)
        positions = np.where(step < new[:, None], (totals - new)[:, None] + step, 0)
        check_positions(positions, cos_cache.shape[0])
        cos, sin = (cache[positions][:, None] for cache in (cos_cache, sin_cache))
        q, k = (rotated(x, cos, sin, rotary_interleaved) for x in (q, k))
    present_key, present_value = past_key.copy(), past_value.copy()
    wide = working_dtype(q.dtype)
    factor = wide.type(scale or 1 / math.sqrt(max(size, 1)))
    y = np.zeros(q.shape, q.dtype)
    for b in range(batch):
        first, last, count = int(totals[b] - new[b]), int(totals[b]), int(new[b])
        present_key[b, :, first:last], present_value[b, :, first:last] = k[b, :, :count], v[b, :, :count]
        rows, columns = np.arange(first, last), np.arange(last)
        allowed = seen[:, rows[:, None] // sparse_block_size, columns // sparse_block_size] & (columns <= rows[:, None])
        for head in range(num_heads):
            group = head // (num_heads // kv_num_heads)
            scores = matmul(q[b, head, :count].astype(wide), present_key[b, group, :last].astype(wide).T) * factor
            weights = masked_softmax(np.where(allowed[head % len(seen)], scores, wide.type(-np.inf)))
            y[b, head, :count] = matmul(weights, present_value[b, group, :last].astype(wide))
    output = np.ascontiguousarray(y.transpose(0, 2, 1, 3)).reshape(batch, length, num_heads * size)
    return output, present_key, present_value
