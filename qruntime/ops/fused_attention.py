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
    nan_rows_to_zero: int = 0,
    in_int16: int = 0,
) -> np.ndarray:
    """softmax(q · kᵀ · scale · scale_tensor masked) · v, batch dims broadcast as MatMul broadcasts them.

    A float `mask` is added to the scores; where a bool one is false the score becomes `fill`, or with `fill_adds`
    `fill` is added to it. Every head of k and v serves `kv_repeats` heads of q; with shapes in `k_expanded` … `v_merged`
    keys and values [B, H, S, D] are first expanded from [B, H, 1, S, D] to the one and reshaped to the other (with `allowzero`), as
    exporters repeat them for groups of heads of q. Weights that are NaN become 0 with `nan_rows_to_zero`.
    With `in_int16` kernels may multiply 16-bit codes of q, k, weights and v, as kernels/attention_q16.h defines.
    """
    q = _heads(q, q_layout, parts[0])
    k = _heads(k, k_layout, parts[1])
    v = _heads(v, v_layout, parts[2])
    k, v = _repeated(k, k_expanded, k_merged, allowzero), _repeated(v, v_expanded, v_merged, allowzero)
    if kv_repeats != 1:
        k, v = (np.repeat(x, kv_repeats, axis=-3) for x in (k, v))
    scores = matmul(q, k.swapaxes(-1, -2)) * q.dtype.type(scale)
    if scale_tensor is not None:
        scores = scores * scale_tensor
    if mask is not None:
        hidden = scores.dtype.type(fill) + (scores if fill_adds else 0)
        scores = np.where(mask, scores, hidden) if mask.dtype == np.bool_ else scores + mask
    weights = find("", "Softmax", 13)(scores, axis=-1)  # type: ignore[misc]
    if nan_rows_to_zero:
        weights = np.where(np.isnan(weights), weights.dtype.type(0), weights)
    y = matmul(weights, v)
    return y.transpose(0, 2, 1, 3) if out_layout == "BSHD" else y


@fused_attention.native
def _fused_attention(node: Node) -> NativeCall:
    layouts = [node.attr(f"{name}_layout", "BHSD") for name in ("q", "k", "v", "out")]
    parts = node.attr("parts", (0, 0, 0))
    ints = [int(layouts[1] == "BHDS"), *(LAYOUTS[layout] for layout in layouts), 0, 0, 0, 0, *parts, 0, 0, 0]
    ints += [0, 0, node.attr("fill_adds", 0), node.attr("nan_rows_to_zero", 0), node.attr("in_int16", 0), node.attr("kv_repeats", 1)]
    return NativeCall("attention", ints=ints, floats=[node.attr("scale", 1.0), node.attr("fill", -np.inf)])
