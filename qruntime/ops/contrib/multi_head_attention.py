"""MultiHeadAttention and the form of it that decodes one token: projections come from outside, caches in two layouts."""

from __future__ import annotations

import numpy as np

from qruntime.ops.attention import split_heads
from qruntime.ops.checks import require_rank, require_shape, scalar
from qruntime.ops.contrib.attention import MASKED, attend, mask_bias
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.registry import operator


def _with_bias(bias: np.ndarray | None, parts: list[np.ndarray], num_heads: int, are_heads: list[bool]) -> list[np.ndarray]:
    """q, k and v [B, N, S, H], with their share of bias [Dq + Dk + Dv]; a cross-attention cache has it already."""
    if bias is None:
        return parts
    widths = [num_heads * part.shape[3] for part in parts]
    require_shape("bias", bias, (sum(widths),))
    pieces = np.split(bias, (widths[0], widths[0] + widths[1]))
    return [
        part if is_head else part + piece.reshape(num_heads, 1, part.shape[3])
        for part, piece, is_head in zip(parts, pieces, are_heads, strict=True)
    ]


def _projected(
    query: np.ndarray, key: np.ndarray | None, value: np.ndarray | None, bias: np.ndarray | None, num_heads: int
) -> list[np.ndarray]:
    """q, k and v [B, N, S, H] of any of the layouts, with their bias."""
    if num_heads < 1:
        raise ValueError(f"num_heads must be positive, got {num_heads}")
    if key is None and value is not None:
        raise ValueError("value needs a key")
    cached = False
    if key is None and query.ndim == 3:
        if query.shape[2] % 3:
            raise ValueError(f"a packed query must hold q, k and v of one width, got shape {query.shape}")
        parts = [split_heads(name, part, num_heads) for name, part in zip("qkv", np.split(query, 3, axis=2), strict=True)]
    elif key is None:
        require_shape("query", query, (*query.shape[:2], num_heads, 3, query.shape[4] if query.ndim == 5 else 0))
        parts = [query[:, :, :, i].transpose(0, 2, 1, 3) for i in range(3)]
    else:
        require_rank("query", query, 3)
        q = split_heads("query", query, num_heads)
        if value is None:
            require_shape("key", key, (*key.shape[:2], num_heads, 2, q.shape[3]))
            parts = [q, *(key[:, :, :, i].transpose(0, 2, 1, 3) for i in range(2))]
        elif key.ndim == 4 and value.ndim == 4:
            parts, cached = [q, key, value], True
        else:
            require_rank("key", key, 3)
            require_rank("value", value, 3)
            parts = [q, split_heads("key", key, num_heads), split_heads("value", value, num_heads)]
    return _with_bias(bias, parts, num_heads, [False, cached, cached])


def _grown(name: str, past: np.ndarray | None, new: np.ndarray, buffered: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The present state and the rows of it in use [B, N, T, H].

    `buffered` is the number of tokens in `past` when that is a buffer which keeps its length; None: all of it.
    """
    if past is None:
        present = np.ascontiguousarray(new)
        return present, present
    require_rank(name, past, 4)
    require_shape(name, past, (*new.shape[:2], past.shape[2], new.shape[3]))
    if buffered is None:
        present = np.concatenate([past, new], axis=2)
        return present, present
    end = buffered + new.shape[2]
    if buffered < 0 or end > past.shape[2]:
        raise ValueError(f"{name} must have room for {end} tokens, got shape {past.shape} with {buffered} in use")
    present = past.copy()
    present[:, :, buffered:end] = new
    return present, present[:, :, :end]


def _beams(rows: np.ndarray, indirection: np.ndarray | None, beam_width: int, past: int) -> np.ndarray:
    """rows [B, N, T, H] in which every cached token comes from the beam that indirection [B / W, W, M] names."""
    if indirection is None:
        if beam_width > 1:
            raise ValueError(f"a beam_width of {beam_width} needs cache_indirection")
        return rows
    batch = rows.shape[0]
    if beam_width < 1 or batch % beam_width:
        raise ValueError(f"beam_width must divide the batch {batch}, got {beam_width}")
    require_rank("cache_indirection", indirection, 3)
    require_shape("cache_indirection", indirection, (batch // beam_width, beam_width, indirection.shape[2]))
    if indirection.shape[2] < past:
        raise ValueError(f"cache_indirection must reach over {past} tokens, got shape {indirection.shape}")
    source = indirection[:, :, :past].astype(np.int64)
    if source.size and not 0 <= int(source.min()) <= int(source.max()) < beam_width:
        raise ValueError(f"cache_indirection must lie in [0, {beam_width}), got {source.min()} to {source.max()}")
    origin = (np.arange(batch // beam_width)[:, None, None] * beam_width + source).reshape(batch, past)
    moved = rows.copy()
    moved[:, :, :past] = rows[origin, :, np.arange(past)].transpose(0, 2, 1, 3)
    return moved


@operator("MultiHeadAttention", domain=MICROSOFT, shape_inputs=(8,))
def multi_head_attention(
    query: np.ndarray,
    key: np.ndarray | None = None,
    value: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    key_padding_mask: np.ndarray | None = None,
    attention_bias: np.ndarray | None = None,
    past_key: np.ndarray | None = None,
    past_value: np.ndarray | None = None,
    past_sequence_length: np.ndarray | None = None,
    cache_indirection: np.ndarray | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = MASKED,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[np.ndarray, ...]:
    """query [B, S, D], key [B, T, D], value [B, T, Dv] → [B, S, Dv], the keys and values [B, N, T, H] it used, and the
    scores [B, N, S, T] that the softmax is of.

    Or query [B, S, N, 3, H] alone, or query and key [B, T, N, 2, H], or key and value [B, N, T, H] as a cache. With
    past_sequence_length the pasts are buffers that keep their length.
    """
    q, k, v = _projected(query, key, value, bias, num_heads)
    if (past_key is None) != (past_value is None):
        raise ValueError("past_key and past_value come together")
    buffered = None if past_sequence_length is None else int(scalar(past_sequence_length, "past_sequence_length"))
    if buffered is not None and past_key is None:
        raise ValueError("past_sequence_length needs past_key and past_value")
    cached = buffered if buffered is not None else 0 if past_key is None else past_key.shape[2] if past_key.ndim == 4 else 0
    present_key, keys = _grown("past_key", past_key, k, buffered)
    present_value, values = _grown("past_value", past_value, v, buffered)
    width = 1 if cache_indirection is None or cache_indirection.ndim != 3 else cache_indirection.shape[1]
    keys, values = (_beams(rows, cache_indirection, width, cached) for rows in (keys, values))
    mask = mask_bias(key_padding_mask, q.shape[0], q.shape[2], keys.shape[2], mask_filter_value)
    if unidirectional and q.shape[2] > 1 and keys.shape[2] != cached + q.shape[2]:
        raise ValueError(f"unidirectional needs as many new keys as queries, got {keys.shape[2] - cached} and {q.shape[2]}")
    causal = cached if unidirectional and q.shape[2] > 1 else None
    y, scores = attend(q, keys, values, mask, attention_bias, scale=scale, past=causal)
    return y, present_key, present_value, scores


@operator("DecoderMaskedMultiHeadAttention", domain=MICROSOFT, shape_inputs=(7,))
def decoder_masked_multi_head_attention(
    query: np.ndarray,
    key: np.ndarray | None = None,
    value: np.ndarray | None = None,
    mask_index: np.ndarray | None = None,
    attention_bias: np.ndarray | None = None,
    past_key: np.ndarray | None = None,
    past_value: np.ndarray | None = None,
    past_sequence_length: np.ndarray | None = None,
    beam_width: np.ndarray | None = None,
    cache_indirection: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = MASKED,
    output_qk: int = 0,
    past_present_share_buffer: int = 0,
    scale: float = 0.0,
) -> tuple[np.ndarray, ...]:
    """MultiHeadAttention of one new token: query [B, 1, D], alone with its packed key and value, with key and value
    [B, 1, D], or with a cross-attention cache [B, N, T, H].

    Further outputs are the present key and value and the scores [B, N, 1, T]. With past_present_share_buffer the pasts
    are buffers; cached tokens may lie with other beams of the same sequence, as cache_indirection says.
    """
    require_rank("query", query, 3)
    if query.shape[1] != 1:
        raise ValueError(f"query must hold one token of each sequence, got shape {query.shape}")
    if past_present_share_buffer and past_key is not None and past_sequence_length is None:
        raise ValueError("past_present_share_buffer needs past_sequence_length")
    if cache_indirection is not None:
        width = 1 if beam_width is None else int(scalar(beam_width, "beam_width"))
        require_rank("cache_indirection", cache_indirection, 3)
        require_shape("cache_indirection", cache_indirection, (cache_indirection.shape[0], width, cache_indirection.shape[2]))
    elif beam_width is not None and int(scalar(beam_width, "beam_width")) > 1:
        raise ValueError(f"a beam_width of {int(scalar(beam_width, 'beam_width'))} needs cache_indirection")
    shares = past_present_share_buffer and past_key is not None
    return multi_head_attention(
        query, key, value, bias, mask_index, attention_bias, past_key, past_value,
        past_sequence_length if shares else None, cache_indirection, num_heads=num_heads,
        mask_filter_value=mask_filter_value, scale=scale,
    )  # fmt: skip
