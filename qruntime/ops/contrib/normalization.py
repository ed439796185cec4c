"""Layer and RMS normalization with what is added before; the embeddings of BERT."""

from __future__ import annotations

import numpy as np

from qruntime.ops.checks import normalize_axis, require_rank, require_shape, scalar
from qruntime.ops.contrib.activations import biased
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.precision import working_dtype
from qruntime.ops.registry import operator


def simplified_layer_normalization(
    x: np.ndarray, scale: np.ndarray, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """x over its root mean square on the axes from `axis` on, times scale; also the inverse of that root."""
    axis = normalize_axis(axis, x.ndim)
    require_shape("scale", scale, x.shape[axis:])
    wide = x.astype(working_dtype(x.dtype), copy=False)
    square = np.mean(wide * wide, axis=tuple(range(axis, x.ndim)), keepdims=True)
    inverse = 1 / np.sqrt(square + wide.dtype.type(epsilon))
    return (wide * inverse * scale.astype(wide.dtype)).astype(x.dtype, copy=False), inverse


for _domain in ("", MICROSOFT):  # ONNX Runtime writes it into the standard domain
    operator("SimplifiedLayerNormalization", domain=_domain)(simplified_layer_normalization)


def _sum(x: np.ndarray, skip: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    require_rank("the input", x, 2, 3)
    if skip.shape not in (x.shape, (1, *x.shape[1:]), x.shape[1:]) or skip.dtype != x.dtype:
        raise ValueError(f"skip must be {x.dtype} of shape {x.shape}, got {skip.dtype} of shape {skip.shape}")
    return biased(x, bias) + skip


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    x: np.ndarray,
    skip: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[np.ndarray, ...]:
    """LayerNormalization of x + skip + bias [..., N]; mean; 1 / deviation; x + skip + bias."""
    total = _sum(x, skip, bias)
    require_shape("gamma", gamma, total.shape[-1:])
    require_shape("beta", beta, total.shape[-1:])
    return (*standard("LayerNormalization", total, gamma, beta, epsilon=epsilon), total)


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(
    x: np.ndarray, skip: np.ndarray, gamma: np.ndarray, bias: np.ndarray | None = None, *, epsilon: float = 1e-12
) -> tuple[np.ndarray, ...]:
    """RMS normalization of x + skip + bias [..., N]; an unused mean; 1 / root mean square; x + skip + bias."""
    total = _sum(x, skip, bias)
    y, inverse = simplified_layer_normalization(total, gamma, epsilon=epsilon)
    return y, np.zeros_like(inverse), inverse, total


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(
    input_ids: np.ndarray,
    segment_ids: np.ndarray | None,
    word_embedding: np.ndarray,
    position_embedding: np.ndarray,
    segment_embedding: np.ndarray | None,
    gamma: np.ndarray,
    beta: np.ndarray,
    mask: np.ndarray | None = None,
    position_ids: np.ndarray | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[np.ndarray, ...]:
    """Word, position and segment embeddings of ids [B, S], added and normalized [B, S, N]; mask index [B]; the sum."""
    require_rank("input_ids", input_ids, 2)
    batch, length = input_ids.shape
    if position_ids is None:
        position_ids = np.arange(length)[None]
    elif position_ids.shape not in ((1, length), (batch, length)):
        raise ValueError(f"position_ids must have the shape {(batch, length)}, got {position_ids.shape}")
    total = _rows("word", word_embedding, input_ids) + _rows("position", position_embedding, position_ids)
    require_shape("segment_ids", segment_ids, input_ids.shape)
    if segment_embedding is not None:  # without ids all belong to segment 0
        total = total + _rows("segment", segment_embedding, np.zeros_like(input_ids) if segment_ids is None else segment_ids)
    elif segment_ids is not None:
        raise ValueError("segment_ids need a segment_embedding")
    require_shape("mask", mask, input_ids.shape)
    counts = np.zeros(batch, np.int32) if mask is None else (mask == 1).sum(axis=1, dtype=np.int32)
    return standard("LayerNormalization", total, gamma, beta, epsilon=epsilon)[0], counts, total


def _rows(name: str, table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    require_rank(f"the {name} embedding", table, 2)
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < table.shape[0]:
        raise IndexError(f"{name} ids must lie in [0, {table.shape[0]}), got {ids.min()} to {ids.max()}")
    return table[ids.astype(np.int64)]


@operator("QEmbedLayerNormalization", domain=MICROSOFT)
def quantized_embed_layer_normalization(
    input_ids: np.ndarray,
    segment_ids: np.ndarray | None,
    word_embedding: np.ndarray,
    position_embedding: np.ndarray,
    segment_embedding: np.ndarray | None,
    gamma: np.ndarray,
    beta: np.ndarray,
    mask: np.ndarray | None,
    word_scale: np.ndarray,
    position_scale: np.ndarray,
    segment_scale: np.ndarray | None,
    gamma_scale: np.ndarray,
    beta_scale: np.ndarray,
    word_zero_point: np.ndarray,
    position_zero_point: np.ndarray,
    segment_zero_point: np.ndarray | None,
    gamma_zero_point: np.ndarray,
    beta_zero_point: np.ndarray,
    *,
    epsilon: float = 1e-12,
) -> tuple[np.ndarray, ...]:
    """EmbedLayerNormalization whose tables, gamma and beta are 8-bit codes with one scale and zero point each."""
    segment_group = (segment_ids, segment_embedding, segment_scale, segment_zero_point)
    if any(part is None for part in segment_group) and any(part is not None for part in segment_group):
        raise ValueError("segment_ids, segment_embedding, its scale and its zero point must all be given or all be absent")
    word = _dequantized_rows("word", word_embedding, word_scale, word_zero_point)
    position = _dequantized_rows("position", position_embedding, position_scale, position_zero_point)
    segment = None
    if segment_embedding is not None and segment_scale is not None and segment_zero_point is not None:
        segment = _dequantized_rows("segment", segment_embedding, segment_scale, segment_zero_point)
    return embed_layer_normalization(
        input_ids, segment_ids, word, position, segment,
        _dequantized_rows("gamma", gamma, gamma_scale, gamma_zero_point),
        _dequantized_rows("beta", beta, beta_scale, beta_zero_point), mask, epsilon=epsilon,
    )[:2]  # fmt: skip


def _dequantized_rows(name: str, codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    return standard("DequantizeLinear", codes, scalar(scale, f"the scale of {name}"), scalar(zero_point, f"the zero point of {name}"))
