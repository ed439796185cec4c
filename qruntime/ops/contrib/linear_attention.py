"""Attention as a recurrence over a state: LinearAttention, GatedDeltaNet, and the gates that feed them."""

from __future__ import annotations

import math

import numpy as np

from qruntime.ops.attention import split_heads
from qruntime.ops.checks import limit_shape, require_rank, require_shape
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.contrib.ragged import sequence_starts
from qruntime.ops.products import matmul
from qruntime.ops.registry import operator

_RULES = ("linear", "gated", "delta", "gated_delta")
_LARGEST_WINDOW = 8


def _step(
    state: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    growth: np.ndarray | None,
    rate: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One token of one sequence: the next state [H, dk, dv], what q [H, dk] reads of it, and what was added at k.

    `growth` [H, dk or 1] multiplies the state first; `rate` [H, 1] is the share of the error at k that is corrected.
    """
    if growth is not None:
        state = state * growth[:, :, None]
    if rate is not None:
        v = rate * (v - matmul(k[:, None], state)[:, 0])
    state = state + k[:, :, None] * v[:, None]
    return state, matmul(q[:, None], state)[:, 0], v


def _check_rule(update_rule: str, decay: np.ndarray | None, beta: np.ndarray | None) -> None:
    if update_rule not in _RULES:
        raise ValueError(f"update_rule must be one of {', '.join(_RULES)}, got {update_rule!r}")
    for name, given, needed in (("decay", decay, "gated" in update_rule), ("beta", beta, "delta" in update_rule)):
        if needed and given is None:
            raise ValueError(f"update_rule {update_rule} needs {name}")


@operator("LinearAttention", domain=MICROSOFT)
def linear_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    past_state: np.ndarray | None = None,
    decay: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    chunk_size: int = 64,
    scale: float = 0.0,
    state_window: int = 0,
    update_rule: str = "gated_delta",
) -> tuple[np.ndarray, np.ndarray]:
    """query [B, T, Hq · dk], key [B, T, Hk · dk], value [B, T, Hkv · dv] → [B, T, max(Hq, Hkv) · dv] and the state after
    the last token [B, Hkv, dk, dv], or with state_window W after each of the last W tokens [W, B, Hkv, dk, dv].

    decay [B, T, Hkv or Hkv · dk] in log space, beta [B, T, Hkv or 1]. Of the numbers of heads one divides the other.
    """
    _check_rule(update_rule, decay, beta)
    for name, given in (("query", query), ("key", key), ("value", value)):
        require_rank(name, given, 3)
    q = split_heads("query", query, q_num_heads)
    batch, _, steps, size = q.shape
    if not size or key.shape[2] % size or key.shape[:2] != query.shape[:2]:
        raise ValueError(f"key must be [{batch}, {steps}, heads · {size}], got {key.shape}")
    k = split_heads("key", key, key.shape[2] // size)
    v = split_heads("value", value, kv_num_heads)
    heads = max(q_num_heads, kv_num_heads)
    counts = (q_num_heads, k.shape[1], kv_num_heads)
    if any(heads % count for count in counts) or kv_num_heads % k.shape[1] or v.shape[2] != steps or v.shape[0] != batch:
        raise ValueError(
            f"query, key and value must agree in batch and length and their {counts} heads divide each other, "
            f"got {query.shape}, {key.shape} and {value.shape}"
        )
    if not 0 <= state_window <= _LARGEST_WINDOW:
        raise ValueError(f"state_window must lie in [0, {_LARGEST_WINDOW}], got {state_window}")
    shape = limit_shape((batch, kv_num_heads, size, v.shape[3]), "the state")
    require_shape("past_state", past_state, (state_window, *shape) if state_window else shape)
    state = np.zeros(shape, np.float32)
    if past_state is not None:
        state[:] = past_state[-1] if state_window else past_state
    growth = _growth(decay, (batch, steps), kv_num_heads, size) if "gated" in update_rule else None
    rate = _rate(beta, (batch, steps), kv_num_heads) if "delta" in update_rule else None
    window = np.zeros((max(state_window, 1), *shape), np.float32)
    # One state per value head; heads of queries that share one read it in turn.
    shared = max(q_num_heads // kv_num_heads, 1)
    ks = np.repeat(k, kv_num_heads // k.shape[1], axis=1).astype(np.float32)
    qs = np.repeat(q, kv_num_heads // q_num_heads, axis=1) if kv_num_heads > q_num_heads else q
    qs = qs.astype(np.float32).reshape(batch, kv_num_heads, shared, steps, size)
    vs = v.astype(np.float32)
    factor = np.float32(scale or 1 / math.sqrt(size))
    y = np.empty((batch, steps, heads, v.shape[3]), np.float32)
    for b in range(batch):
        for t in range(steps):
            grown = None if growth is None else growth[b, t]
            corrected = None if rate is None else rate[b, t]
            state[b], _, _ = _step(state[b], qs[b, :, 0, t], ks[b, :, t], vs[b, :, t], grown, corrected)
            y[b, t] = factor * matmul(qs[b, :, :, t], state[b]).reshape(heads, -1)
            slot = len(window) - steps + t
            if slot >= 0:
                window[slot, b] = state[b]
    if not steps:
        window[-1] = state
    present = window if state_window else window[0]
    dtype = query.dtype if past_state is None else past_state.dtype
    return y.reshape(batch, steps, -1).astype(query.dtype), present.astype(dtype)


def _growth(decay: np.ndarray | None, rows: tuple[int, ...], heads: int, size: int) -> np.ndarray:
    """exp(decay) as [*rows, heads, size or 1]."""
    assert decay is not None
    if decay.shape not in ((*rows, heads), (*rows, heads * size)):
        raise ValueError(f"decay must have the shape {(*rows, heads)} or {(*rows, heads * size)}, got {decay.shape}")
    return np.exp(decay.astype(np.float32)).reshape(*rows, heads, -1)


def _rate(beta: np.ndarray | None, rows: tuple[int, ...], heads: int) -> np.ndarray:
    """beta as [*rows, heads, 1]."""
    assert beta is not None
    if beta.shape not in ((*rows, heads), (*rows, 1)):
        raise ValueError(f"beta must have the shape {(*rows, heads)} or {(*rows, 1)}, got {beta.shape}")
    return np.broadcast_to(beta.astype(np.float32)[..., None], (*rows, heads, 1))


@operator("LinearAttentionGate", domain=MICROSOFT)
def linear_attention_gate(
    a: np.ndarray, dt_bias: np.ndarray, decay_scale: np.ndarray, b: np.ndarray | None = None, *, num_outputs: int = 1
) -> tuple[np.ndarray | None, ...]:
    """decay_scale · softplus(a + dt_bias) of a [B, T, H] and vectors [H]; sigmoid(b)."""
    require_rank("a", a, 3)
    require_shape("dt_bias", dt_bias, a.shape[-1:])
    require_shape("decay_scale", decay_scale, a.shape[-1:])
    require_shape("b", b, a.shape)
    if b is None and num_outputs > 1:
        raise ValueError("the output beta needs the input b")
    decay = decay_scale * np.logaddexp(np.float32(0), a.astype(np.float32) + dt_bias)
    beta = None if b is None else standard("Sigmoid", b.astype(np.float32)).astype(a.dtype)
    return decay.astype(a.dtype), beta


_GATES = {"none": "none", "softplus": "softplus", "qwen": "softplus", "sigmoid": "sigmoid", "kda": "sigmoid"}


@operator("GatedDeltaNet", domain=MICROSOFT)
def gated_delta_net(
    query: np.ndarray,
    key: np.ndarray | None = None,
    value: np.ndarray | None = None,
    cu_seqlens: np.ndarray | None = None,
    decay: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    initial_state: np.ndarray | None = None,
    a_log: np.ndarray | None = None,
    dt_bias: np.ndarray | None = None,
    capture_count: np.ndarray | None = None,
    state_update_active: np.ndarray | None = None,
    *,
    beta_activation: str = "none",
    chunk_size: int = 64,
    gate_activation: str = "none",
    gate_lower_bound: float = -5.0,
    qk_l2_norm: int = 0,
    scale: float = 0.0,
    state_update_capacity: int = 0,
    update_rule: str = "gated_delta",
) -> tuple[np.ndarray | None, ...]:
    """Sequences side by side: query [T, Hq, dk], key [T, Hq, dk], value [T, Hv, dv], or all packed in query → [T, Hv, dv],
    the state after each sequence [B, Hv, dv, dk] float32, and what its first tokens changed.

    cu_seqlens [B + 1] says where the sequences begin; without it they are equally long and initial_state [B, …] says how
    many there are. decay [T, Hv] or [T, Hv, dk] and beta [T, Hv] may come before their activation.
    """
    _check_rule(update_rule, decay, beta)
    if not 0 <= state_update_capacity <= _LARGEST_WINDOW or (capture_count is None) != (state_update_capacity == 0):
        raise ValueError(
            f"state_update_capacity must lie in [0, {_LARGEST_WINDOW}] and capture_count come exactly when it is not 0, "
            f"got {state_update_capacity}"
        )
    if gate_activation not in _GATES or beta_activation not in ("none", "sigmoid"):
        raise ValueError(
            f"gate_activation must be one of {', '.join(_GATES)} and beta_activation none or sigmoid, "
            f"got {gate_activation!r} and {beta_activation!r}"
        )
    q, k, v = _token_major(query, key, value, initial_state)
    tokens, q_heads, size = q.shape
    heads = v.shape[1]
    starts = _starts(cu_seqlens, initial_state, tokens)
    state_shape = limit_shape((len(starts) - 1, heads, v.shape[2], size), "the state")
    require_shape("initial_state", initial_state, state_shape)
    if qk_l2_norm:
        q, k = (x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + np.float32(1e-6)) for x in (q, k))
    growth = rate = None
    if "gated" in update_rule:
        growth = _gate(decay, _GATES[gate_activation], a_log, dt_bias, gate_lower_bound, (tokens, heads), size)
    if "delta" in update_rule:
        assert beta is not None
        flat = beta.reshape(tokens, -1) if beta.ndim >= 1 and beta.size == tokens * heads else beta
        rate = _rate(flat, (tokens,), heads)
        rate = standard("Sigmoid", rate) if beta_activation == "sigmoid" else rate
    record = _Record(len(starts) - 1, state_update_capacity, capture_count, state_update_active)
    single_keys = k
    q, k = (np.repeat(x, heads // q_heads, axis=1) for x in (q, k))
    factor = np.float32(scale or 1 / math.sqrt(max(size, 1)))
    y = np.zeros((tokens, heads, v.shape[2]), np.float32)
    final = np.zeros(state_shape, np.float32)
    for b in range(len(starts) - 1):
        state = np.zeros((heads, size, v.shape[2]), np.float32) if initial_state is None else initial_state[b].swapaxes(1, 2)
        for t in range(starts[b], starts[b + 1]):
            grown = None if growth is None else growth[t]
            state, read, added = _step(state, q[t], k[t], v[t], grown, None if rate is None else rate[t])
            y[t] = factor * read
            record.take(b, t - starts[b], np.ones((heads, 1), np.float32) if grown is None else grown, single_keys[t], added)
        final[b] = state.swapaxes(1, 2)
    return y.astype(query.dtype), final, record.packed()


class _Record:
    """What the first tokens of every sequence did to its state: a factor, and the product of a key and what was added."""

    def __init__(self, batch: int, capacity: int, counts: np.ndarray | None, active: np.ndarray | None):
        require_shape("capture_count", counts, (batch,))
        if active is not None and active.size != 1:
            raise ValueError(f"state_update_active must be one value, got shape {active.shape}")
        on = active is None or bool(active.reshape(()))
        self.counts = [0] * batch if counts is None or not on else [min(max(int(n), 0), capacity) for n in counts]
        self.batch, self.capacity = batch, capacity
        self.parts: list[np.ndarray] = []

    def take(self, b: int, position: int, *parts: np.ndarray) -> None:
        if not self.parts:
            self.parts = [np.zeros((self.batch, self.capacity, part.size), np.float32) for part in parts]
        if position < self.counts[b]:
            for kept, part in zip(self.parts, parts, strict=True):
                kept[b, position] = part.reshape(-1)

    def packed(self) -> np.ndarray | None:
        """[B, capacity · (factors + keys + sums)]: all factors first, then all keys, then all that was added."""
        if not self.capacity:
            return None
        return np.concatenate([part.reshape(self.batch, -1) for part in self.parts], axis=1)


def _token_major(
    query: np.ndarray, key: np.ndarray | None, value: np.ndarray | None, state: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 q, k [T, Hq, dk] and v [T, Hv, dv]."""
    if (key is None) != (value is None):
        raise ValueError("key and value must both be given or both be packed in query")
    if key is None or value is None:
        require_rank("the packed query", query, 2)
        if state is None or state.ndim != 4:
            raise ValueError("a packed query needs initial_state [B, heads, dv, dk], which says how it is divided")
        _, heads, v_size, size = state.shape
        rest = query.shape[1] - heads * v_size
        if not size or rest <= 0 or rest % (2 * size):
            raise ValueError(f"{query.shape[1]} values do not hold queries and keys of {size} beside {heads} values of {v_size}")
        ends = (rest // 2, rest)
        parts = [query[:, : ends[0]], query[:, ends[0] : ends[1]], query[:, ends[1] :]]
        shapes = ((-1, size), (-1, size), (heads, v_size))
        q, k, v = (part.reshape(len(query), *shape) for part, shape in zip(parts, shapes, strict=True))
    else:
        for name, given in (("query", query), ("key", key), ("value", value)):
            require_rank(name, given, 3)
        q, k, v = query, key, value
    if k.shape != q.shape or v.shape[0] != q.shape[0] or not q.shape[1] or v.shape[1] % q.shape[1] or not v.shape[1]:
        raise ValueError(f"query and key must agree and value have a multiple of their heads, got {q.shape}, {k.shape} and {v.shape}")
    return q.astype(np.float32), k.astype(np.float32), v.astype(np.float32)


def _starts(cu_seqlens: np.ndarray | None, state: np.ndarray | None, tokens: int) -> list[int]:
    """Where every sequence begins, and the end of the last."""
    if cu_seqlens is None:
        if state is None or state.ndim != 4 or not state.shape[0] or tokens % state.shape[0]:
            raise ValueError(f"without cu_seqlens initial_state must say how {tokens} tokens divide into equal sequences")
        return [i * (tokens // state.shape[0]) for i in range(state.shape[0] + 1)]
    return sequence_starts("cu_seqlens", cu_seqlens, tokens, 0)


def _gate(
    decay: np.ndarray | None,
    activation: str,
    a_log: np.ndarray | None,
    dt_bias: np.ndarray | None,
    lower_bound: float,
    rows: tuple[int, int],
    size: int,
) -> np.ndarray:
    """What the state is multiplied with, [T, H, dk or 1]."""
    assert decay is not None
    tokens, heads = rows
    if decay.size not in (tokens * heads, tokens * heads * size) or decay.shape[:1] != (tokens,):
        raise ValueError(f"decay must have the shape {(tokens, heads)} or {(tokens, heads, size)}, got {decay.shape}")
    raw = decay.astype(np.float32).reshape(tokens, heads, -1)
    if activation == "none":
        return np.exp(raw)
    if a_log is None or dt_bias is None:
        raise ValueError(f"gate_activation {activation} needs a_log and dt_bias")
    require_shape("a_log", a_log, (heads,))
    if dt_bias.size not in (heads, heads * size):
        raise ValueError(f"dt_bias must have {heads} or {heads} × {size} values, got shape {dt_bias.shape}")
    shifted = raw + dt_bias.reshape(heads, -1)
    rate = np.exp(a_log.astype(np.float32))[:, None]
    if activation == "softplus":
        return np.exp(-rate * np.logaddexp(np.float32(0), shifted))
    return np.exp(np.float32(lower_bound) * standard("Sigmoid", rate * shifted))
