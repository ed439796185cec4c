"""Attention over caches, rotary embeddings, and recurrences that stand for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from contrib_cases.case import Case, Rng, draws, floats, maybe, pick, starts

SIZE = 16


def _rows(new: np.ndarray, resident: np.ndarray, heads_first: bool = True) -> Callable[[int, tuple[int, ...]], np.ndarray]:
    """Rows of the output that belong to tokens, and rows of the caches that are filled."""

    def specified(output: int, shape: tuple[int, ...]) -> np.ndarray:
        mask = np.zeros(shape, bool)
        for b in range(shape[0]):
            if output == 0:
                mask[b, : new[b]] = True
            elif output < 3:
                mask[b, :, : resident[b]] = True
            else:
                mask[b, :, : new[b], : resident[b]] = True
        return mask

    return specified


@draws("GroupQueryAttention")
def _(r: Rng, n: int) -> Case:
    """Prompts, single tokens and further chunks; caches that grow and buffers."""
    mode = ("prompt", "decode", "more")[n % 3]
    batch = 1 if mode == "more" else int(r.integers(1, 4))
    kv_heads = int(r.integers(1, 3))
    heads = kv_heads * int(r.integers(1, 4))
    length = {"prompt": int(r.integers(1, 6)), "decode": 1, "more": int(r.integers(2, 5))}[mode]
    past = 0 if mode == "prompt" else int(r.integers(1, 7))
    total = past + length
    lengths = np.full(batch, total)
    if mode != "more" and r.random() < 0.6:
        lengths = r.integers(1, total + 1, batch)
        lengths[0] = total
    buffered = r.random() < 0.5
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads}
    q, k, v = (floats(r, batch, length, count * SIZE) for count in (heads, kv_heads, kv_heads))
    if r.random() < 0.3:
        q, k, v = np.concatenate([q, k, v], axis=-1), None, None
    caches = [None, None]
    if past or buffered:
        caches = [floats(r, batch, kv_heads, total + 3 if buffered else past, SIZE) for _ in range(2)]
    angles: list[Any] = [None, None, None]
    if r.random() < 0.6:
        attributes |= {"do_rotary": 1, "rotary_interleaved": int(r.integers(0, 2))}
        positions = np.maximum(0, lengths - length)[:, None] + np.arange(length)
        angles = [floats(r, 20, SIZE // 2), floats(r, 20, SIZE // 2), maybe(r, positions)]
    bias = maybe(r, floats(r, pick(r, 1, batch), pick(r, 1, heads), length, total))
    sink = maybe(r, floats(r, heads), 0.3)
    if sink is None:
        attributes["smooth_softmax"] = int(r.integers(0, 2))
    attributes |= pick(r, {}, {"softcap": 2.0}) | pick(r, {}, {"scale": 0.3})
    attributes |= pick(r, {}, {"causal": 0}, {"local_window_size": int(r.integers(1, 5))})
    shown = pick(r, 0, 1, 2)
    inputs = [q, k, v, *caches, (lengths - 1).astype(np.int32), np.array(total, np.int32), *angles, bias, sink]
    specified = _rows(np.minimum(length, lengths), lengths)
    return Case(inputs, attributes | {"qk_output": shown}, outputs=4 if shown else 3, specified=specified)


@draws("GroupQueryAttention")
def _(r: Rng, n: int) -> Case:
    """Quantized caches, right-padded chunks and windows."""
    kind = ("int8", "int4", "padded", "window", "padded window")[n % 5]
    batch, kv_heads = int(r.integers(1, 4)), int(r.integers(1, 3))
    heads = kv_heads * int(r.integers(1, 3))
    length = int(r.integers(1, 5))
    past = r.integers(0, 6, batch)
    padded, window = "padded" in kind, "window" in kind
    if padded:
        new = r.integers(0, length + 1, batch)
        past = np.where(new == 0, past + 1, past)
    else:
        length = 1 if batch > 1 and n % 2 else length
        past = past + 1 if length == 1 else past if batch == 1 else np.zeros(batch, np.int64)
        new = np.full(batch, length)
    lengths = past + new
    total = max(int(lengths.max()), int(past.max()) + length if padded and not window else length)
    capacity = total + length + 2
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads}
    resident = lengths
    if window:
        size = int(r.integers(2, 4))
        capacity = size + int(r.integers(0, 3))
        slack = capacity - size + 1
        resident = np.where(lengths <= capacity, lengths, lengths - slack * -(-(lengths - capacity) // slack))
        attributes |= {"sliding_window_cache": 1, "local_window_size": size}
    shape = (batch, kv_heads, capacity, SIZE)
    caches: list[Any] = [floats(r, *shape) for _ in range(2)]
    scales: list[Any] = [None, None]
    if kind.startswith("int"):
        bits = int(kind[3:])
        step, form = 0.03 if bits == 8 else 0.4, pick(r, "PER_TENSOR", "PER_CHANNEL")
        scales = [((r.random((1, kv_heads, 1, SIZE) if form == "PER_CHANNEL" else 1) + 0.3) * step).astype(np.float32) for _ in range(2)]
        caches = [
            r.integers(-128, 128, shape).astype(np.int8) if bits == 8 else r.integers(0, 256, (*shape[:3], SIZE // 2)).astype(np.uint8)
            for _ in range(2)
        ]
        attributes |= {"k_quant_type": form, "v_quant_type": form, "kv_cache_bit_width": bits}
    angles: list[Any] = [None, None]
    if r.random() < 0.5:
        attributes["do_rotary"] = 1
        angles = [floats(r, 30, SIZE // 2), floats(r, 30, SIZE // 2)]
    q, k, v = (floats(r, batch, length, count * SIZE) for count in (heads, kv_heads, kv_heads))
    ends, counts = (lengths - 1).astype(np.int32), new.astype(np.int32) if padded else None
    inputs = [q, k, v, *caches, ends, np.array(total, np.int32), *angles, None, None, None, *scales, None, None, counts]
    return Case(inputs, attributes, outputs=3, specified=_rows(new, resident))


@draws("MultiHeadAttention")
def _(r: Rng, n: int) -> Case:
    batch, length, heads, size = int(r.integers(1, 4)), int(r.integers(1, 4)), int(r.integers(1, 4)), 8
    cached, cross = (int(r.integers(1, 4)) if n % 3 == 1 else 0), n % 3 == 2
    keys = length if cached else int(r.integers(1, 5))
    total = keys + cached
    q = floats(r, batch, length, heads * size)
    shape = (batch, heads, keys, size) if cross else (batch, keys, heads * size)
    k, v = floats(r, *shape), floats(r, *shape)
    mask = pick(
        r, None, r.integers(1, total + 1, batch).astype(np.int32), (r.random((batch, total)) < 0.7).astype(np.int32),
        (r.random((batch, length, total)) < 0.7).astype(np.int32),
    )  # fmt: skip
    bias = maybe(r, floats(r, pick(r, 1, batch), pick(r, 1, heads), length, total))
    caches = [floats(r, batch, heads, cached, size) if cached else None for _ in range(2)]
    attributes = {"num_heads": heads, "mask_filter_value": -50.0} | pick(r, {}, {"scale": 0.3})
    if keys == length:
        attributes["unidirectional"] = int(r.integers(0, 2))
    return Case([q, k, v, maybe(r, floats(r, 3 * heads * size)), mask, bias, *caches], attributes, outputs=4)


@draws("DecoderMaskedMultiHeadAttention")
def _(r: Rng, n: int) -> Case:
    beams, heads, size, past = pick(r, 1, 2), 2, 8, int(r.integers(0, 5))
    batch, total = 2 * beams, past + 1
    attributes = {"num_heads": heads, "mask_filter_value": -50.0, "output_qk": 1} | pick(r, {}, {"scale": 0.3})
    mask = (r.random((batch, total)) < 0.7).astype(np.int32)
    q, k, v = (floats(r, batch, 1, heads * size) for _ in range(3))
    caches = [floats(r, batch, heads, past + 3, size) for _ in range(2)]
    origin = r.integers(0, beams, (2, beams, past + 3)).astype(np.int32) if beams > 1 else None
    # One bias for all: with beams ONNX Runtime takes the bias of the beam that a token came from.
    bias = floats(r, 1, 1, 1, total)
    width = np.array([beams], np.int32)
    projection = maybe(r, floats(r, 3 * heads * size))
    inputs = [q, k, v, mask, bias, *caches, np.array([past], np.int32), width, origin, projection]
    return Case(inputs, attributes | {"past_present_share_buffer": 1}, outputs=4)


@draws("SparseAttention")
def _(r: Rng, n: int) -> Case:
    batch, kv_heads, block, blocks, layouts = int(r.integers(1, 3)), int(r.integers(1, 3)), 16, 3, pick(r, 1, 2)
    heads = 2 * kv_heads
    length, total = (1, int(r.integers(2, 45))) if n % 2 else (int(r.integers(1, 30)),) * 2
    seen = np.tril(r.random((layouts, blocks, blocks)) < 0.6) | np.eye(blocks, dtype=bool)
    rows = np.concatenate([np.zeros((layouts, 1), np.int64), seen.sum(axis=2).cumsum(axis=1)], axis=1)
    columns = np.full((layouts, rows.max()), -1)
    for layout in range(layouts):
        columns[layout, : rows[layout, -1]] = np.nonzero(seen[layout])[1]
    q, k, v = (floats(r, batch, length, count * SIZE) for count in (heads, kv_heads, kv_heads))
    caches = [floats(r, batch, kv_heads, block * blocks, SIZE) for _ in range(2)]
    attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "sparse_block_size": block, "do_rotary": int(r.integers(0, 2))}
    inputs = [
        q, k, v, *caches, rows.astype(np.int32), columns.astype(np.int32), np.array([total], np.int32),
        np.full(batch, total, np.int32), floats(r, 48, SIZE // 2), floats(r, 48, SIZE // 2),
    ]  # fmt: skip
    lengths = np.full(batch, total)
    return Case(inputs, attributes, outputs=3, specified=_rows(np.full(batch, length), lengths), shared={1: 3, 2: 4})


def _rotary(r: Rng, n: int) -> tuple[np.ndarray, list[np.ndarray], dict[str, Any], int]:
    heads, length, half = int(r.integers(1, 4)), int(r.integers(1, 5)), pick(r, 4, 8)
    x = floats(r, 2, heads, length, SIZE) if n % 2 else floats(r, 2, length, heads * SIZE)
    attributes = {"interleaved": int(r.integers(0, 2)), "num_heads": heads}
    if half == 4:
        attributes["rotary_embedding_dim"] = 8
    return x, [floats(r, 9, half), floats(r, 9, half)], attributes, length


@draws("RotaryEmbedding")
def _(r: Rng, n: int) -> Case:
    x, caches, attributes, length = _rotary(r, n)
    positions = pick(r, r.integers(0, 9, (2, length)), np.array([int(r.integers(0, 9 - length))]))
    return Case([x, positions, *caches], attributes)


@draws("MRotaryEmbedding")
def _(r: Rng, n: int) -> Case:
    x, caches, attributes, length = _rotary(r, n)
    third = caches[0].shape[1] // 3
    sections = [caches[0].shape[1] - 2 * third, third, third]
    attributes |= {"mrope_section": sections, "mrope_layout": int(r.integers(0, 2))}
    return Case([x, r.integers(0, 9, (3, 2, length)), *caches], attributes)


@draws("LinearAttention")
def _(r: Rng, n: int) -> Case:
    rule = ("linear", "gated", "delta", "gated_delta")[n % 4]
    q_heads, kv_heads = pick(r, (1, 1), (4, 2), (2, 2), (2, 4))
    batch, length, size, v_size = int(r.integers(1, 3)), int(r.integers(1, 5)), 8, 4
    inputs = [
        floats(r, batch, length, q_heads * size), floats(r, batch, length, kv_heads * size) * np.float32(0.3),
        floats(r, batch, length, kv_heads * v_size), maybe(r, floats(r, batch, kv_heads, size, v_size)),
        -np.abs(floats(r, batch, length, kv_heads * pick(r, 1, size))) if "gated" in rule else None,
        r.random((batch, length, pick(r, 1, kv_heads))).astype(np.float32) if "delta" in rule else None,
    ]  # fmt: skip
    return Case(inputs, {"q_num_heads": q_heads, "kv_num_heads": kv_heads, "update_rule": rule}, outputs=2)


@draws("GatedDeltaNet")
def _(r: Rng, n: int) -> Case:
    rule = ("linear", "gated", "delta", "gated_delta")[n % 4]
    lengths = r.integers(1, 5, int(r.integers(1, 4)))
    tokens, q_heads, size, v_size = int(lengths.sum()), pick(r, 1, 2), 8, 4
    heads = q_heads * pick(r, 1, 2)
    attributes: dict[str, Any] = {"update_rule": rule, "qk_l2_norm": int(r.integers(0, 2))}
    decay = beta = rates = shift = None
    if "gated" in rule:
        decay = -np.abs(floats(r, tokens, heads, *pick(r, (), (size,))))
        attributes["gate_activation"] = pick(r, "none", "softplus", "sigmoid")
        if attributes["gate_activation"] != "none":
            rates, shift = floats(r, heads), floats(r, heads)
    if "delta" in rule:
        beta = r.random((tokens, heads)).astype(np.float32)
        attributes["beta_activation"] = pick(r, "none", "sigmoid")
    q, k, v = floats(r, tokens, q_heads, size), floats(r, tokens, q_heads, size) * np.float32(0.3), floats(r, tokens, heads, v_size)
    state = floats(r, len(lengths), heads, v_size, size)
    if r.random() < 0.3:
        q, k, v = np.concatenate([part.reshape(tokens, -1) for part in (q, k, v)], axis=1), None, None
    return Case([q, k, v, starts(lengths), decay, beta, state, rates, shift], attributes, outputs=2)


@draws("LinearAttentionGate")
def _(r: Rng, n: int) -> Case:
    return Case([floats(r, 2, 3, 4), floats(r, 4), floats(r, 4), floats(r, 2, 3, 4)], {}, outputs=2)


@draws("AttnLSTM")
def _(r: Rng, n: int) -> Case:
    steps, batch, hidden, depth, memory, size = int(r.integers(1, 5)), int(r.integers(1, 4)), 4, 5, 6, 3
    direction = ("forward", "reverse", "bidirectional")[n % 3]
    count = 2 if direction == "bidirectional" else 1
    layered = bool(r.integers(0, 2))
    width = 2 if layered else depth
    attributes = {"direction": direction, "hidden_size": hidden} | pick(r, {}, {"input_forget": 1}, {"clip": 0.4})
    shapes = [
        (steps, batch, 3), (count, 4 * hidden, 3 + width), (count, 4 * hidden, hidden), (count, 8 * hidden), None,
        (count, batch, hidden), (count, batch, hidden), (count, 3 * hidden), (count, hidden, size), (count, depth, size),
        (count, size), (batch, memory, depth), None, (count, hidden + depth, width),
    ]  # fmt: skip
    inputs: list[Any] = [None if shape is None else floats(r, *shape) * np.float32(0.5) for shape in shapes]
    inputs[4], inputs[12] = (r.integers(1, most + 1, batch).astype(np.int32) for most in (steps, memory))
    for optional in (3, 4, 5, 6, 7, 12):
        inputs[optional] = maybe(r, inputs[optional])
    return Case(inputs if layered else inputs[:13], attributes, outputs=3)
