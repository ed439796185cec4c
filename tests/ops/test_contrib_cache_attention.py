"""Attention over caches: the forms that ONNX Runtime runs on no CPU, and inputs that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.errors import QRuntimeError
from tests.ops.one_node import RNG, close, floats, run
from tests.ops.test_contrib import attend, heads

SIZE = 8


def int32(*values):
    return np.array(values, np.int32)


def rms(x, weight, epsilon):
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * weight


def gqa(q, k, v, *further, batch=2, length=3, outputs=1, **attributes):
    lengths, total = int32(*[length - 1] * batch), np.array(length, np.int32)
    sizes = {"num_heads": 4, "kv_num_heads": 2}
    return run("GroupQueryAttention", [q, k, v, None, None, lengths, total, *further], outputs=outputs, **sizes, **attributes)


def grouped(x):
    """Each of two key heads for two query heads."""
    return np.repeat(heads(x, 2), 2, axis=1)


def test_queries_and_keys_are_normalized_by_head():
    q, k, v, a, b = floats(2, 3, 4 * SIZE), floats(2, 3, 2 * SIZE), floats(2, 3, 2 * SIZE), floats(SIZE), floats(SIZE)
    found = gqa(q, k, v, *[None] * 7, a, b, q_norm_epsilon=1e-2, qk_norm_epsilon=1e-3)
    causal = np.where(np.tri(3, dtype=bool), 0, -np.inf)
    close(found, attend(rms(heads(q, 4), a, 1e-2), rms(grouped(k), b, 1e-3), grouped(v), causal), atol=1e-5)
    with pytest.raises(QRuntimeError, match="both be given or both be absent"):
        gqa(q, k, v, *[None] * 7, a)


def test_a_row_does_not_depend_on_the_lengths_of_others():
    q, k, v = floats(3, 4, 4 * SIZE), floats(3, 4, 2 * SIZE), floats(3, 4, 2 * SIZE)
    sizes = {"num_heads": 4, "kv_num_heads": 2}

    def one(row, lengths, total):
        return run("GroupQueryAttention", [q[row], k[row], v[row], None, None, lengths, total], **sizes)

    together = one(slice(None), int32(3, 1, 2), np.array(4, np.int32))
    alone = run("GroupQueryAttention", [q[1:2, :2], k[1:2, :2], v[1:2, :2], None, None, int32(1), np.array(2, np.int32)], **sizes)
    assert np.array_equal(together[1:2, :2], alone)
    assert not together[1, 2:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({5: int32(4, 3)}, r"seqlens_k \+ 1 must lie in \[1, 4\]"),
        ({5: int32(-1, 3)}, r"seqlens_k \+ 1 must lie in \[1, 4\]"),
        ({5: int32(3)}, "seqlens_k must have the shape"),
        ({1: floats(2, 1, 3 * SIZE)}, "key must have the shape"),
        ({1: None}, "key and value must both"),
        ({3: None}, "past_key"),
        ({3: floats(2, 2, 3, SIZE + 1)}, "past_key must have the shape"),
        ({3: floats(2, 2, 1, SIZE), 4: floats(2, 2, 1, SIZE)}, "must hold 3 tokens"),
        ({7: None}, "do_rotary needs"),
        ({7: floats(3, 4)}, "must have one shape|positions must lie"),
        ({9: np.array([[9], [0]])}, r"positions must lie in \[0, 9\)"),
        ({10: floats(1, 1, 1, 3)}, "attention_bias must broadcast"),
        ({11: floats(3)}, "head_sink must have the shape"),
    ],
)
def test_group_query_attention_says_what_does_not_fit(change, message):
    inputs = [
        floats(2, 1, 4 * SIZE), floats(2, 1, 2 * SIZE), floats(2, 1, 2 * SIZE), floats(2, 2, 3, SIZE), floats(2, 2, 3, SIZE),
        int32(3, 3), np.array(4, np.int32), floats(9, 4), floats(9, 4), None, None, None,
    ]  # fmt: skip
    for position, value in change.items():
        inputs[position] = value
    with pytest.raises(QRuntimeError, match=message):
        run("GroupQueryAttention", inputs, num_heads=4, kv_num_heads=2, do_rotary=1)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"num_heads": 3}, "multiple of kv_num_heads"),
        ({"qk_output": 3}, "qk_output must be"),
        ({"causal": 0, "local_window_size": 2}, "local_window_size"),
        ({"sliding_window_cache": 1}, "local_window_size above 0"),
        ({"k_quant_type": "PER_TENSOR"}, "k_scale"),
        ({"k_quant_type": "PER_ROW"}, "k_quant_type must be"),
    ],
)
def test_group_query_attention_says_what_attribute_is_wrong(attributes, message):
    q, k, v, past = floats(1, 1, 4 * SIZE), floats(1, 1, 2 * SIZE), floats(1, 1, 2 * SIZE), floats(1, 2, 3, SIZE)
    with pytest.raises(QRuntimeError, match=message):
        run(
            "GroupQueryAttention", [q, k, v, past, past, int32(3), np.array(4, np.int32)],
            **{"num_heads": 4, "kv_num_heads": 2, **attributes},
        )  # fmt: skip


def test_window_forgets_many_tokens_at_a_time():
    """Capacity 5, window 3: when a sixth token comes, the first three go."""
    sizes = {"num_heads": 2, "kv_num_heads": 2, "sliding_window_cache": 1, "local_window_size": 3}
    tokens = floats(9, 3, 2 * SIZE)
    key = value = np.zeros((1, 2, 5, SIZE), np.float32)
    for n, (q, k, v) in enumerate(tokens):
        lengths, total = int32(n), np.array(n + 1, np.int32)
        y, key, value = run(
            "GroupQueryAttention", [q[None, None], k[None, None], v[None, None], key, value, lengths, total], outputs=3, **sizes
        )
        seen = tokens[max(0, n - 2) : n + 1]
        expected = attend(heads(q[None, None], 2), heads(seen[None, :, 1], 2), heads(seen[None, :, 2], 2))
        close(y, expected, atol=1e-5)
        kept = {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 3, 6: 4, 7: 5, 8: 3}[n]
        close(key[0, :, :kept], heads(tokens[None, n + 1 - kept : n + 1, 1], 2)[0])


def test_caches_of_codes_round_to_even_and_saturate():
    sizes = {"num_heads": 1, "kv_num_heads": 1, "k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR"}
    k = np.array([[[0.5, 1.5, -0.5, 2.5, 200.0, -200.0, np.inf, 0.0]]], np.float32)
    empty, one = np.zeros((1, 1, 2, 8), np.int8), np.ones(1, np.float32)
    zero = np.zeros_like(k)
    inputs = [zero, k, zero, empty, empty, int32(0), np.array(1, np.int32), *[None] * 5, one, one]
    _, key, _ = run("GroupQueryAttention", inputs, outputs=3, kv_cache_bit_width=8, **sizes)
    assert key[0, 0, 0].tolist() == [0, 2, 0, 2, 127, -128, 127, 0]
    empty = np.zeros((1, 1, 2, 4), np.uint8)
    inputs[3] = inputs[4] = empty
    _, key, _ = run("GroupQueryAttention", inputs, outputs=3, kv_cache_bit_width=4, **sizes)
    assert key[0, 0, 0].tolist() == [0xA8, 0xA8, 0x0F, 0x8F]


def test_one_token_with_its_projections_packed_and_beams():
    past, beams = floats(4, 2, 5, SIZE), np.array([[[0, 0, 1, 0, 0], [1, 0, 1, 0, 0]], [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]]], np.int32)
    packed, values = floats(4, 1, 6 * SIZE), floats(4, 2, 5, SIZE)
    y, key, value = run(
        "DecoderMaskedMultiHeadAttention",
        [packed, None, None, None, None, past, values, int32(3), int32(2), beams], outputs=3, num_heads=2, past_present_share_buffer=1,
    )  # fmt: skip
    q, k, v = (heads(part, 2) for part in np.split(packed, 3, axis=2))
    for row in range(4):
        source = [2 * (row // 2) + beam for beam in beams.reshape(4, 5)[row, :3]]
        keys = np.concatenate([past[source, :, range(3)].transpose(1, 0, 2), k[row]], axis=1)
        all_values = np.concatenate([values[source, :, range(3)].transpose(1, 0, 2), v[row]], axis=1)
        close(y[row : row + 1], attend(q[row : row + 1], keys[None], all_values[None]), atol=1e-5)
    close(key[:, :, 3:4], k)
    close(value[:, :, 4], values[:, :, 4])
    with pytest.raises(QRuntimeError, match=r"cache_indirection must lie in \[0, 2\)"):
        run(
            "DecoderMaskedMultiHeadAttention", [packed, None, None, None, None, past, values, int32(3), int32(2), beams + 1],
            num_heads=2, past_present_share_buffer=1,
        )  # fmt: skip
    with pytest.raises(QRuntimeError, match="room for 6 tokens"):
        run(
            "DecoderMaskedMultiHeadAttention", [packed, None, None, None, None, past, values, int32(5)],
            num_heads=2, past_present_share_buffer=1,
        )  # fmt: skip


def test_sparse_attention_of_sequences_of_different_lengths():
    """Blocks of 16: the third sees the first and itself."""
    rows, columns = int32(0, 1, 3, 5)[None], int32(0, 0, 1, 0, 2)[None]
    q, k, v = floats(2, 40, 2 * SIZE), floats(2, 40, 2 * SIZE), floats(2, 40, 2 * SIZE)
    cache = floats(2, 2, 48, SIZE)
    lengths = int32(40, 35)
    y, key, _ = run(
        "SparseAttention", [q, k, v, cache, cache, rows, columns, int32(40), lengths], outputs=3, num_heads=2, kv_num_heads=2,
        sparse_block_size=16,
    )  # fmt: skip
    seen = np.tri(40, dtype=bool)
    seen[32:, 16:32] = False
    for b, length in enumerate(lengths):
        part = [heads(x[b : b + 1, :length], 2) for x in (q, k, v)]
        close(y[b : b + 1, :length], attend(*part, np.where(seen[:length, :length], 0, -np.inf)), atol=1e-5)
        close(key[b, :, :length], heads(k[b : b + 1, :length], 2)[0])
        close(key[b, :, length:], cache[b, :, length:])
    wrong = {6: columns + 1}, {5: rows[:, ::-1].copy()}, {7: int32(49)}
    for change, message in zip(wrong, ("block_col_indices", "block_row_indices", "total_sequence"), strict=True):
        inputs = [q, k, v, cache, cache, rows, columns, int32(40), lengths]
        for position, value in change.items():
            inputs[position] = value
        with pytest.raises(QRuntimeError, match=message):
            run("SparseAttention", inputs, num_heads=2, kv_num_heads=2, sparse_block_size=16)


def test_masks_of_one_column_hide_nothing():
    x, w, b = floats(2, 3, 8), floats(8, 24), floats(24)
    free = run("Attention", [x, w, b], num_heads=2)
    for mask in (np.zeros((2, 1), np.int32), np.zeros((1, 1), np.int32)):
        assert np.array_equal(run("Attention", [x, w, b, mask], num_heads=2), free)


def test_scores_of_multi_head_attention_and_what_it_refuses():
    q, k, v = floats(2, 3, 16), floats(2, 3, 16), floats(2, 3, 16)
    scores = run("MultiHeadAttention", [q, k, v], outputs=4, num_heads=2, scale=0.5)[3]
    close(scores, heads(q, 2) @ heads(k, 2).swapaxes(2, 3) * 0.5, atol=1e-5)
    with pytest.raises(QRuntimeError, match="as many new keys as queries"):
        run("MultiHeadAttention", [q, k[:, :2], v[:, :2]], num_heads=2, unidirectional=1)
    with pytest.raises(QRuntimeError, match="needs past_key"):
        run("MultiHeadAttention", [q, k, v, None, None, None, None, None, int32(1)], num_heads=2)


def recurrence(q, k, v, growth, rate, scale):
    """Heads [H, T, ·] of one sequence, written as the paper has it."""
    state, outputs, states = np.zeros((q.shape[0], q.shape[2], v.shape[2])), [], []
    for t in range(q.shape[1]):
        state = growth[:, t, :, None] * state
        error = v[:, t] - np.einsum("hk,hkv->hv", k[:, t], state)
        state = state + rate[:, t, None, None] * np.einsum("hk,hv->hkv", k[:, t], error)
        outputs.append(scale * np.einsum("hk,hkv->hv", q[:, t], state))
        states.append(state)
    return np.stack(outputs, axis=1), np.stack(states)


def test_linear_attention_keeps_the_last_states():
    q, k, v = floats(1, 4, 2 * SIZE), floats(1, 4, 2 * SIZE) * 0.3, floats(1, 4, 6)
    decay, beta = -np.abs(floats(1, 4, 2)), RNG.random((1, 4, 2)).astype(np.float32)
    y, window = run("LinearAttention", [q, k, v, None, decay, beta], outputs=2, q_num_heads=2, kv_num_heads=2, state_window=6, scale=0.5)
    growth = np.exp(decay[0].T.astype(np.float64))[:, :, None]
    expected, states = recurrence(*(heads(x, 2)[0].astype(np.float64) for x in (q, k, v)), growth, beta[0].T, 0.5)
    close(y, expected.transpose(1, 0, 2).reshape(1, 4, 6), atol=1e-5)
    assert not window[:2].any()
    close(window[2:, 0], states, atol=1e-5)
    for attributes, message in (
        ({"update_rule": "other"}, "update_rule must be"), ({"state_window": 9}, "state_window must lie"),
        ({"kv_num_heads": 4}, "must divide"),
    ):  # fmt: skip
        with pytest.raises(QRuntimeError, match=message):
            run("LinearAttention", [q, k, v, None, decay, beta], **{"q_num_heads": 2, "kv_num_heads": 2, **attributes})
    with pytest.raises(QRuntimeError, match="needs decay"):
        run("LinearAttention", [q, k, v, None, None, beta], q_num_heads=2, kv_num_heads=2)


@pytest.mark.parametrize(
    ("starts", "message"), [([0, 3, 2, 4], "must grow"), ([0, 5], "must grow from 0 to 4"), ([1, 4], "must grow"), ([0], "must grow")]
)
def test_packed_sequences_must_cover_the_tokens(starts, message):
    x = floats(4, 2, 4)
    with pytest.raises(QRuntimeError, match=message):
        run("GatedDeltaNet", [x, x, x, int32(*starts)], update_rule="linear")


def test_a_window_needs_room():
    q, past = floats(1, 1, 2 * SIZE), floats(1, 2, 2, SIZE)
    with pytest.raises(QRuntimeError, match="must hold a window of 3 tokens, it has room for 2"):
        run(
            "GroupQueryAttention", [q, q, q, past, past, int32(3), np.array(4, np.int32)], num_heads=2, kv_num_heads=2,
            sliding_window_cache=1, local_window_size=3,
        )  # fmt: skip
