"""AttnLSTM: an LSTM that sees at every step what Bahdanau's attention made of its last one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ops.checks import limit_shape, require_rank, require_shape
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.products import matmul
from qruntime.ops.recurrent import Activation, State, activation_functions, lstm_cell, prepare, scan_direction
from qruntime.ops.registry import operator


class _Memory:
    """One direction's attention over memory [B, T, depth]: softmax(v · tanh(keys + query)) · values."""

    def __init__(
        self, memory: np.ndarray, lengths: np.ndarray, query: np.ndarray, key: np.ndarray, v: np.ndarray, layer: np.ndarray | None
    ):
        self.values, self.lengths = memory, lengths
        self.keys = matmul(memory, key)
        self.query, self.v, self.layer = query, v, layer

    def attend(self, h: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The attention state of hidden states h [n, H] that belong to `rows` of the batch."""
        made = []
        for state, row in zip(h, rows, strict=True):
            count = self.lengths[row]
            scores = matmul(np.tanh(self.keys[row, :count] + matmul(state, self.query)), self.v)
            powers = np.exp(scores - scores.max())
            context = matmul(powers / powers.sum(), self.values[row, :count])
            made.append(context if self.layer is None else matmul(np.concatenate([state, context]), self.layer))
        return np.stack(made)


@operator("AttnLSTM", domain=MICROSOFT)
def attention_lstm(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray | None = None,
    sequence_lens: np.ndarray | None = None,
    initial_h: np.ndarray | None = None,
    initial_c: np.ndarray | None = None,
    p: np.ndarray | None = None,
    query_weight: np.ndarray | None = None,
    memory_weight: np.ndarray | None = None,
    v: np.ndarray | None = None,
    memory: np.ndarray | None = None,
    memory_seq_lens: np.ndarray | None = None,
    layer_weight: np.ndarray | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> tuple[np.ndarray, ...]:
    """X [T, B, I] beside the attention state [B, A], W [D, 4H, I + A], the rest as in LSTM → Y [T, D, B, H], Y_h, Y_c [D, B, H].

    memory [B, M, depth], query_weight [D, H, a], memory_weight [D, depth, a], v [D, a]. The attention state is the context
    [depth], or with layer_weight [D, H + depth, A] what that makes of h and the context.
    """
    if query_weight is None or memory_weight is None or v is None or memory is None:
        raise ValueError("QW, MW, V and M, the attention's weights and memory, must all be given")
    for name, value in (("X", x), ("W", w), ("R", r), ("QW", query_weight), ("MW", memory_weight), ("M", memory)):
        require_rank(name, value, 3)
    require_rank("V", v, 2)
    inputs, hidden, depth, size = x.shape[2], r.shape[2], memory.shape[2], v.shape[1]
    count = 2 if direction == "bidirectional" else 1
    require_shape("QW", query_weight, (count, hidden, size))
    require_shape("MW", memory_weight, (count, depth, size))
    require_shape("V", v, (count, size))
    require_shape("M", memory, (x.shape[1], memory.shape[1], depth))
    width = depth
    if layer_weight is not None:
        require_rank("AW", layer_weight, 3)
        width = layer_weight.shape[2]
        require_shape("AW", layer_weight, (count, hidden + depth, width))
    require_shape("W", w, (count, 4 * hidden, inputs + width))
    limit_shape((x.shape[1], memory.shape[1], size), "the keys")
    lengths = np.full(x.shape[1], memory.shape[1]) if memory_seq_lens is None else memory_seq_lens
    require_shape("memory_seq_lens", lengths, (x.shape[1],))
    if lengths.size and not 1 <= int(lengths.min()) <= int(lengths.max()) <= memory.shape[1]:
        raise ValueError(f"memory_seq_lens must lie in [1, {memory.shape[1]}], got {lengths.min()} to {lengths.max()}")
    layer = prepare(4, x, w[:, :, :inputs], r, b, sequence_lens, initial_h, direction, hidden_size, 0, None)
    functions = activation_functions(activations, ("Sigmoid", "Tanh", "Tanh"), count, activation_alpha, activation_beta, clip, 2)
    require_shape("initial_c", initial_c, layer.h0.shape)
    require_shape("P", p, (count, 3 * hidden))
    dtype = layer.h0.dtype
    p = None if p is None else p.astype(dtype)
    cells = np.zeros_like(layer.h0) if initial_c is None else initial_c.astype(dtype)
    ys, states = [], []
    for d, own in enumerate(functions):
        remembered = _Memory(
            memory.astype(dtype), lengths, query_weight[d].astype(dtype), memory_weight[d].astype(dtype), v[d].astype(dtype),
            None if layer_weight is None else layer_weight[d].astype(dtype),
        )  # fmt: skip
        recurrent, attended = r[d].astype(dtype), w[d, :, inputs:].astype(dtype)

        def step(
            gates: np.ndarray,
            state: State,
            own: list[Activation] = own,
            remembered: _Memory = remembered,
            recurrent: np.ndarray = recurrent,
            attended: np.ndarray = attended,
            peepholes: np.ndarray | None = None if p is None else p[d],
        ) -> State:
            before, cell, attention, rows = state
            gates = gates + matmul(before, recurrent.T) + matmul(attention, attended.T)
            after, cell = lstm_cell(gates, cell, own, peepholes, input_forget)
            return after, cell, remembered.attend(after, rows), rows

        start = (layer.h0[d], cells[d], np.zeros((x.shape[1], width), dtype), np.arange(x.shape[1]))
        y, state = scan_direction(layer, d, layer.wb[d] + layer.rb[d], start, step)
        ys.append(y)
        states.append(state)
    outputs = (np.stack(ys, axis=1), *(np.stack([state[i] for state in states]) for i in range(2)))
    return tuple(value.astype(x.dtype, copy=False) for value in outputs)
