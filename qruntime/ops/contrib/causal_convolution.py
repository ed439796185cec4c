"""Causal depthwise convolutions that carry what they have seen from one call to the next."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qruntime.ops.checks import limit_shape, require_rank, require_shape
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.contrib.ragged import sequence_starts
from qruntime.ops.precision import working_dtype
from qruntime.ops.registry import operator

_LARGEST_WINDOW = 8


def _activated(y: np.ndarray, activation: str) -> np.ndarray:
    if activation not in ("none", "silu", "swish"):
        raise ValueError(f"activation must be none, silu or swish, got {activation!r}")
    return y if activation == "none" else y * standard("Sigmoid", y)


def _convolved(history: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, dilation: int, activation: str) -> np.ndarray:
    """history [N, C, …, L + reach], weight [C, …, k] → [N, C, …, L]: causal along the last axis, padded evenly along others."""
    wide = working_dtype(history.dtype)
    taps, spatial = weight.astype(wide), weight.shape[1:]
    length = history.shape[-1] - (spatial[-1] - 1) * dilation
    around = [((k - 1) // 2, k // 2) for k in spatial[:-1]]
    padded = np.pad(history.astype(wide, copy=False), ((0, 0), (0, 0), *around, (0, 0)))
    y = np.zeros((*history.shape[:-1], length), wide)
    for tap in np.ndindex(spatial):
        around_it = (slice(t, t + n) for t, n in zip(tap[:-1], history.shape[2:-1], strict=True))
        part: tuple[Any, ...] = (..., *around_it, slice(tap[-1] * dilation, tap[-1] * dilation + length))
        place: tuple[Any, ...] = (slice(None), *tap)
        y += taps[place].reshape(-1, *(1,) * len(spatial)) * padded[part]
    if bias is not None:
        y += bias.astype(wide).reshape(-1, *(1,) * len(spatial))
    return _activated(y, activation).astype(history.dtype, copy=False)


@operator("CausalConvWithState", domain=MICROSOFT)
def causal_conv_with_state(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    past_state: np.ndarray | None = None,
    *,
    activation: str = "none",
    channels_last: int = 0,
    dilation: int = 1,
    input_channel_offset: int = 0,
    input_channels: int = 0,
    ndim: int = 1,
    state_channels_last: int = -1,
    state_length: int = 0,
    state_update_capacity: int = 0,
    state_window: int = 0,
    num_outputs: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Depthwise convolution of x [N, C, …, L] with weight [C, 1, …, k], causal along the last axis, and the last
    (k - 1) · dilation positions of what it has seen [N, C, …, reach].

    With channels_last x is [N, L, *C] and the state [N, reach, *C]. With state_window W the state has a leading axis: the
    states after each of the last W positions.
    """
    extended = (input_channel_offset, input_channels, state_length, state_update_capacity)
    if any(extended) or state_channels_last not in (-1, channels_last) or num_outputs > 2:
        raise ValueError(
            "input_channel_offset, input_channels, state_length, state_update_capacity and a state of another layout are not supported"
        )
    if ndim not in (1, 2, 3) or dilation < 1 or not 0 <= state_window <= _LARGEST_WINDOW or (channels_last and ndim != 1):
        raise ValueError(
            f"needs ndim 1, 2 or 3 (1 with channels_last), a positive dilation and state_window in [0, {_LARGEST_WINDOW}], "
            f"got ndim={ndim}, dilation={dilation} and state_window={state_window}"
        )
    trailing = x.shape[2:]
    if channels_last:
        require_rank("input", x, 3, -1)
        x = x.reshape(*x.shape[:2], math.prod(trailing)).swapaxes(1, 2)
    require_rank("input", x, ndim + 2)
    require_rank("weight", weight, ndim + 2)
    require_shape("weight", weight, (x.shape[1], 1, *weight.shape[2:]))
    require_shape("bias", bias, (x.shape[1],))
    if min(weight.shape[2:]) < 1:
        raise ValueError(f"the kernel must have at least one tap, got weight of shape {weight.shape}")
    reach = (weight.shape[-1] - 1) * dilation
    slot = limit_shape((*x.shape[:-1], reach), "the state")
    shown = (x.shape[0], reach, *trailing) if channels_last else slot
    require_shape("past_state", past_state, (state_window, *shown) if state_window else shown)
    past = np.zeros(slot, x.dtype)
    if past_state is not None:
        last = past_state[-1] if state_window else past_state
        past = last.reshape(x.shape[0], reach, x.shape[1]).swapaxes(1, 2) if channels_last else last
    history = np.concatenate([past.astype(x.dtype, copy=False), x], axis=-1)
    y = _convolved(history, weight[:, 0], bias, dilation, activation)
    states = np.zeros((max(state_window, 1), *slot), x.dtype)
    for i in range(len(states)):
        end = history.shape[-1] - (len(states) - 1 - i)
        if end - reach > 0 or i == len(states) - 1:
            states[i] = history[..., end - reach : end]
    if channels_last:
        y = y.swapaxes(1, 2).reshape(y.shape[0], y.shape[2], *trailing)
        states = states.swapaxes(2, 3).reshape(len(states), *shown)
    return np.ascontiguousarray(y), np.ascontiguousarray(states if state_window else states[0])


@operator("VarlenCausalConvWithState", domain=MICROSOFT)
def varlen_causal_conv_with_state(
    x: np.ndarray,
    weight: np.ndarray,
    cumulative_sequence_length: np.ndarray,
    bias: np.ndarray | None,
    initial_state: np.ndarray,
    capture_count: np.ndarray | None = None,
    kernel_delta: np.ndarray | None = None,
    previous_mask: np.ndarray | None = None,
    *,
    activation: str = "none",
    delta_offset: int = 0,
    dilation: int = 1,
    group_size: int = 1,
    state_update_capacity: int = 0,
) -> tuple[np.ndarray, ...]:
    """Sequences side by side: x [T, C], weight [C, 1, k], initial_state [B, C, reach] → [T, C], the state after each
    sequence, and its first tokens [B, capacity, C], as many as capture_count [B] says, with zeros behind them.

    Sequence b holds the tokens from entry b of cumulative_sequence_length [B + 1] up to the next.
    """
    if kernel_delta is not None or previous_mask is not None:
        raise ValueError("kernel_delta and previous_mask must be absent: weights that change from token to token are not supported")
    require_rank("input", x, 2)
    require_rank("weight", weight, 3)
    require_shape("weight", weight, (x.shape[1], 1, weight.shape[2]))
    require_shape("bias", bias, (x.shape[1],))
    if weight.shape[2] < 1 or dilation < 1 or not 0 <= state_update_capacity <= _LARGEST_WINDOW:
        raise ValueError(
            f"needs a tap, a positive dilation and state_update_capacity in [0, {_LARGEST_WINDOW}], "
            f"got weight {weight.shape}, dilation {dilation} and {state_update_capacity}"
        )
    starts = sequence_starts("cumulative_sequence_length", cumulative_sequence_length, x.shape[0], 1)
    batch, reach = len(starts) - 1, (weight.shape[2] - 1) * dilation
    require_shape("initial_state", initial_state, (batch, x.shape[1], reach))
    if (capture_count is not None) != (state_update_capacity > 0):
        raise ValueError("capture_count must be given exactly when state_update_capacity is positive")
    require_shape("capture_count", capture_count, (batch,))
    y, final = np.empty_like(x), np.empty_like(initial_state)
    updates = np.zeros((batch, state_update_capacity, x.shape[1]), x.dtype)
    for b in range(batch):
        tokens = x[starts[b] : starts[b + 1]]
        history = np.concatenate([initial_state[b], tokens.T.astype(initial_state.dtype, copy=False)], axis=1)
        y[starts[b] : starts[b + 1]] = _convolved(history[None], weight[:, 0], bias, dilation, activation)[0].T
        final[b] = history[:, history.shape[1] - reach :]
        if capture_count is not None:
            count = min(max(int(capture_count[b]), 0), state_update_capacity, len(tokens))
            updates[b, :count] = tokens[:count]
    return y, final, updates
