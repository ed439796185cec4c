"""Normalizations and mixes with gates, as recent language models have them around their layers."""

from __future__ import annotations

import math

import numpy as np

from qruntime.ops.checks import require_rank, require_shape
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.products import matmul
from qruntime.ops.registry import operator


def _rms(x: np.ndarray, epsilon: float) -> np.ndarray:
    """float32 x over its root mean square along the last axis."""
    wide = x.astype(np.float32)
    with np.errstate(over="ignore"):
        return wide / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + np.float32(epsilon))


@operator("GatedRMSNorm", domain=MICROSOFT)
def gated_rms_norm(x: np.ndarray, scale: np.ndarray, gate: np.ndarray, *, activation: str = "silu", epsilon: float = 1e-5) -> np.ndarray:
    """RMS normalization of every C values of x [..., H · C] times scale [C], times silu(gate) or sigmoid(gate)."""
    require_rank("X", x, 1, -1)
    require_rank("scale", scale, 1)
    require_shape("gate", gate, x.shape)
    if not scale.size or x.shape[-1] % scale.size or activation not in ("silu", "swish", "sigmoid"):
        raise ValueError(
            f"the last dimension must be a multiple of the length of scale and activation silu, swish or sigmoid, "
            f"got {x.shape}, {scale.shape} and {activation!r}"
        )
    normal = (_rms(x.reshape(*x.shape[:-1], -1, scale.size), epsilon) * scale.astype(np.float32)).reshape(x.shape)
    wide = gate.astype(np.float32)
    opened = standard("Sigmoid", wide)
    return (normal * (opened if activation == "sigmoid" else wide * opened)).astype(x.dtype)


def _branches(name: str, x: np.ndarray, num_branches: int) -> np.ndarray:
    """x [..., C, H] of grouped or, with a number of branches, flattened [..., C · H] input."""
    require_rank(name, x, 2 if not num_branches else 1, -1)
    if num_branches < 0 or (num_branches and x.shape[-1] % num_branches):
        raise ValueError(f"num_branches must divide the last dimension of {name} {x.shape}, got {num_branches}")
    return x.reshape(*x.shape[:-1], num_branches, x.shape[-1] // num_branches) if num_branches else x


@operator("BranchwiseRMSNorm", domain=MICROSOFT)
def branchwise_rms_norm(x: np.ndarray, scale: np.ndarray | None = None, *, epsilon: float = 1e-5, num_branches: int = 0) -> np.ndarray:
    """RMS normalization of every branch of x [..., C, H], or [..., C · H] with num_branches, times scale [C · H], [C, H] or [H]."""
    grouped = _branches("X", x, num_branches)
    y = _rms(grouped, epsilon)
    if scale is not None:
        branches, size = grouped.shape[-2:]
        if scale.shape not in ((branches * size,), (branches, size), (size,)):
            raise ValueError(f"scale must have the shape {(branches * size,)}, {(branches, size)} or {(size,)}, got {scale.shape}")
        wide = scale.astype(np.float32)
        y = y * (wide if scale.shape == (size,) else wide.reshape(branches, size))
    return y.reshape(x.shape).astype(x.dtype)


@operator("ScaledSiLU", domain=MICROSOFT)
def scaled_silu(x: np.ndarray, scale: np.ndarray | None = None, *, alpha: float = 1.0) -> np.ndarray:
    """z · sigmoid(z) of z = scale · x (or alpha · x), each step rounded to the type of x."""
    if scale is not None and scale.size != 1:
        raise ValueError(f"scale must be one value, got shape {scale.shape}")
    factor = np.float32(alpha) if scale is None else scale.reshape(()).astype(np.float32)
    z = np.asarray(x.astype(np.float32) * factor).astype(x.dtype).astype(np.float32)
    opened = standard("Sigmoid", z).astype(x.dtype).astype(np.float32)
    return np.asarray(z * opened).astype(x.dtype)


@operator("GatedAdd", domain=MICROSOFT)
def gated_add(x: np.ndarray, y: np.ndarray, gate: np.ndarray, gate_weight: np.ndarray | None = None) -> np.ndarray:
    """x + y · gate, of x and y [..., C] and gate [..., 1]; the product is rounded before the sum."""
    if gate_weight is not None:
        raise ValueError("gate_weight must be absent: a gate that is projected here is not supported")
    require_rank("X", x, 1, -1)
    require_shape("Y", y, x.shape)
    require_shape("gate", gate, (*x.shape[:-1], 1))
    return x + y * gate


@operator("HyperConnectionPreMix", domain=MICROSOFT)
def hyper_connection_pre_mix(
    streams: np.ndarray, pre_mix: np.ndarray, *, num_branches: int = 0, reduction_scale: float = 1.0
) -> np.ndarray:
    """reduction_scale · Σ over the branches of streams [..., C, H] (flat with num_branches) times pre_mix, one gate per
    branch or per value."""
    grouped = _branches("streams", streams, num_branches)
    gates = _gates("pre_mix", pre_mix, grouped.shape)
    total = (grouped.astype(np.float32) * gates).sum(axis=-2)
    return (np.float32(reduction_scale) * total).astype(streams.dtype)


def _gates(name: str, mix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32 gates that broadcast against branches of `shape` [..., C, H]."""
    *lead, branches, size = shape
    allowed = ((*lead, branches), (*lead, branches, 1), tuple(shape), (*lead, branches * size))
    if mix.shape not in allowed:
        raise ValueError(f"{name} must have one of the shapes {', '.join(map(str, allowed))}, got {mix.shape}")
    wide = mix.astype(np.float32)
    return wide.reshape(*lead, branches, -1)


@operator("HyperConnectionPostMix", domain=MICROSOFT)
def hyper_connection_post_mix(
    streams: np.ndarray,
    block_output: np.ndarray,
    post_mix: np.ndarray,
    stream_mix: np.ndarray | None = None,
    *,
    num_branches: int = 0,
) -> np.ndarray:
    """Branch k of streams [..., C, H] (flat with num_branches) becomes Σ stream_mix[c, k] · branch c + post_mix[k] ·
    block_output [..., H]; stream_mix [..., C, C] is the identity where absent."""
    grouped = _branches("streams", streams, num_branches)
    *lead, branches, size = grouped.shape
    require_shape("block_output", block_output, (*lead, size))
    require_shape("stream_mix", stream_mix, (*lead, branches, branches))
    gates = _gates("post_mix", post_mix, grouped.shape)
    mixed = grouped.astype(np.float32)
    if stream_mix is not None:
        mixed = matmul(stream_mix.astype(np.float32).swapaxes(-1, -2), mixed)
    return (mixed + gates * block_output.astype(np.float32)[..., None, :]).reshape(streams.shape).astype(streams.dtype)


@operator("EngramGate", domain=MICROSOFT)
def engram_gate(
    key: np.ndarray,
    query: np.ndarray,
    value: np.ndarray,
    key_norm_scale: np.ndarray,
    query_norm_scale: np.ndarray,
    conv_norm_scale: np.ndarray | None = None,
    *,
    epsilon: float = 1e-5,
    num_outputs: int = 1,
) -> tuple[np.ndarray | None, ...]:
    """value [B, S, H] times a gate in (0, 1) of every connection, [B, S, M, H], and that normalized.

    The gate is the sigmoid of the signed root of the product of the normalized key and query [B, S, M, H] over √H; the
    scales are [M, H].
    """
    require_rank("key", key, 4)
    require_shape("query", query, key.shape)
    require_shape("value", value, (*key.shape[:2], key.shape[3]))
    for name, scale in (("key_norm_scale", key_norm_scale), ("query_norm_scale", query_norm_scale), ("conv_norm_scale", conv_norm_scale)):
        require_shape(name, scale, key.shape[2:])
    if num_outputs > 1 and conv_norm_scale is None:
        raise ValueError("the normalized output needs conv_norm_scale")
    left, right = (_rms(x, epsilon) * scale.astype(np.float32) for x, scale in ((key, key_norm_scale), (query, query_norm_scale)))
    dot = (left * right).sum(axis=-1, keepdims=True) / np.float32(math.sqrt(max(key.shape[3], 1)))
    gate = standard("Sigmoid", np.sign(dot) * np.sqrt(np.maximum(np.abs(dot), np.float32(1e-6))))
    gated = gate * value.astype(np.float32)[:, :, None]
    normal = None if conv_norm_scale is None else (_rms(gated, epsilon) * conv_norm_scale.astype(np.float32)).astype(key.dtype)
    return gated.astype(key.dtype), normal
