"""Attention of lowered graphs (domain qruntime): the chain MatMul, scale, mask, Softmax, MatMul as one node."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Node
from qruntime.ops.elementwise import rounded_once
from qruntime.ops.products import matmul
from qruntime.ops.registry import NativeCall, find, operator

LAYOUTS = {"BHSD": 0, "BHDS": 0, "BSR": 1, "BSHD": 2}
"""How heads lie, with the number that kernels/nodes/attention.c has for it. B and H may be absent (BHSD, BHDS)."""


def _heads(x: np.ndarray, layout: str, part: int) -> np.ndarray:
    """View as [B, H, S, D]; `part` chooses one of N in [B, S, N, H, D]."""
    if layout == "BHDS":
        return x.swapaxes(-1, -2)
    if layout == "BHSD":
        return x
    if x.ndim not in (4, 5):
        raise ValueError(f"Attention: layout BSHD needs [B, S, H, D] or [B, S, N, H, D], got {list(x.shape)}")
    return (x[:, :, part] if x.ndim == 5 else x).transpose(0, 2, 1, 3)


def _repeated(x: np.ndarray, expanded: np.ndarray | None, merged: np.ndarray | None, allowzero: int) -> np.ndarray:
    """Heads of x [B, H, S, D] as the two shapes repeat them, if they are there."""
    if expanded is None or merged is None:
        return x
    expand, reshape = find("", "Expand", 13), find("", "Reshape", 14)
    assert expand is not None
    assert reshape is not None
    return np.asarray(reshape(expand(x[:, :, None], expanded), merged, allowzero=allowzero))


def _heads_of_q(q: np.ndarray, k: np.ndarray) -> int:
    """For every head of k."""
    if q.ndim < 3 or k.ndim < 3 or q.shape[-3] % max(1, k.shape[-3]):
        raise ValueError(f"the heads of q [B, H, S, D] must be a multiple of those of k, got {list(q.shape)} and {list(k.shape)}")
    return max(1, q.shape[-3] // max(1, k.shape[-3]))


def _padded(mask: np.ndarray, keys: int) -> np.ndarray:
    """`mask` of fewer keys, with those behind them hidden."""
    missing = keys - mask.shape[-1]
    if missing < 0:
        raise ValueError(f"a mask of {mask.shape[-1]} keys is for no more than {keys}")
    hidden = np.full((*mask.shape[:-1], missing), False if mask.dtype == np.bool_ else -np.inf, mask.dtype)
    return np.concatenate([mask, hidden], axis=-1)


def _seen(shape: tuple[int, ...], lengths: np.ndarray | None, causal: int, causal_offset: int) -> np.ndarray | None:
    """Which keys are there, and not later than what sees them, for scores of that shape; None when all are."""
    queries, keys = shape[-2:]
    seen: np.ndarray | None = None
    offset: int | np.ndarray = keys - queries if causal_offset == -1 else causal_offset
    if lengths is not None:
        if lengths.shape != shape[:1]:
            raise ValueError(f"lengths must be [{shape[0]}], one for each batch, got {list(lengths.shape)}")
        per_batch = lengths.astype(np.int64).reshape(-1, *(1,) * (len(shape) - 1))
        seen, offset = np.arange(keys) < per_batch, per_batch - queries
    if causal:
        earlier = np.arange(keys) <= np.arange(queries)[:, None] + offset
        seen = earlier if seen is None else seen & earlier
    return seen


@operator("Attention", domain="qruntime")
@rounded_once
def fused_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    scale_tensor: np.ndarray | None = None,
    k_expanded: np.ndarray | None = None,
    k_merged: np.ndarray | None = None,
    v_expanded: np.ndarray | None = None,
    v_merged: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    *,
    scale: float = 1.0,
    fill: float = -np.inf,
    fill_adds: int = 0,
    q_layout: str = "BHSD",
    k_layout: str = "BHSD",
    v_layout: str = "BHSD",
    out_layout: str = "BHSD",
    parts: tuple[int, ...] = (0, 0, 0),
    kv_repeats: int = 1,
    allowzero: int = 0,
    causal: int = 0,
    causal_offset: int = -1,
    pads_mask: int = 0,
    nan_rows_to_zero: int = 0,
    in_int16: int = 0,
) -> np.ndarray:
    """softmax(q · kᵀ · scale · scale_tensor masked) · v, batch dims broadcast as MatMul broadcasts them.

    A float `mask` is added to the scores; where a bool one is false the score becomes `fill`, or with `fill_adds`
    `fill` is added to it. Every head of k and v serves `kv_repeats` heads of q (0: as many as there are); with shapes in
    `k_expanded` … `v_merged` keys and values [B, H, S, D] are first expanded from [B, H, 1, S, D] to the one and reshaped to the
    other (with `allowzero`), as exporters repeat them for groups of heads of q. Of batch b only the first lengths[b] keys are
    there, if that is given. With `causal` query i sees the keys j ≤ i + `causal_offset` (−1: as many keys as there are less
    queries). A mask of fewer keys hides the rest with `pads_mask`. A `scale` of NaN is 1 / √D. Weights that are NaN become 0 with
    `nan_rows_to_zero`, if that is 2 only those of a row that sees no key.
    With `in_int16` kernels may multiply 16-bit codes of q, k, weights and v, as kernels/attention_q16.h defines.
    """
    q = _heads(q, q_layout, parts[0])
    k = _heads(k, k_layout, parts[1])
    v = _heads(v, v_layout, parts[2])
    k, v = _repeated(k, k_expanded, k_merged, allowzero), _repeated(v, v_expanded, v_merged, allowzero)
    kv_repeats = kv_repeats or _heads_of_q(q, k)
    if kv_repeats != 1:
        k, v = (np.repeat(x, kv_repeats, axis=-3) for x in (k, v))
    if np.isnan(scale):
        scale = q.shape[-1] ** -0.5 if q.shape[-1] else 1.0
    scores = matmul(q, k.swapaxes(-1, -2)) * q.dtype.type(scale)
    if scale_tensor is not None:
        scores = scores * scale_tensor
    if mask is not None and pads_mask and mask.ndim and mask.shape[-1] not in (1, scores.shape[-1]):
        mask = _padded(mask, scores.shape[-1])
    if mask is not None:
        hidden = scores.dtype.type(fill) + (scores if fill_adds else 0)
        scores = np.where(mask, scores, hidden) if mask.dtype == np.bool_ else scores + mask
    seen = _seen(scores.shape, lengths, causal, causal_offset)
    if seen is not None:
        scores = np.where(seen, scores, scores.dtype.type(-np.inf))
    weights = find("", "Softmax", 13)(scores, axis=-1)  # type: ignore[misc]
    if nan_rows_to_zero:
        dead = np.isnan(weights) if nan_rows_to_zero == 1 else np.isneginf(scores).all(axis=-1, keepdims=True)
        weights = np.where(dead, weights.dtype.type(0), weights)
    y = matmul(weights, v)
    return y.transpose(0, 2, 1, 3) if out_layout == "BSHD" else y


@fused_attention.native
def _fused_attention(node: Node) -> NativeCall:
    layouts = [node.attr(f"{name}_layout", "BHSD") for name in ("q", "k", "v", "out")]
    parts = node.attr("parts", (0, 0, 0))
    ints = [int(layouts[1] == "BHDS"), *(LAYOUTS[layout] for layout in layouts), 0, 0, 0, 0, *parts, 0, 0, 0]
    defaults = {"causal": 0, "causal_offset": -1, "fill_adds": 0, "nan_rows_to_zero": 0, "in_int16": 0, "kv_repeats": 1}
    ints += [node.attr(name, default) for name, default in defaults.items()]
    return NativeCall("attention", ints=ints, floats=[node.attr("scale", 1.0), node.attr("fill", -np.inf)])
