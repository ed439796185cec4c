"""Operators of com.microsoft against formulas of their own; expected values do not come from qruntime."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qruntime.errors import QRuntimeError
from tests.ops.one_node import RNG, close, floats, run


def phi(x):
    return np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x.astype(np.float64))


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_gelu_family():
    x, b = floats(2, 3, 8), floats(8)
    close(run("Gelu", [x]), x * phi(x))
    close(run("BiasGelu", [x, b]), (x + b) * phi(x + b))
    close(run("FastGelu", [x]), tanh_gelu(x.astype(np.float64)))
    close(run("FastGelu", [x, b], constants=[1]), tanh_gelu((x + b).astype(np.float64)))
    close(run("QuickGelu", [x]), x / (1 + np.exp(-1.702 * x)))
    close(run("QuickGelu", [x], alpha=1.0), x / (1 + np.exp(-x)))


def normal(x, scale, bias, epsilon):
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale + bias


def rms(x, scale, epsilon):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


@pytest.mark.parametrize("skip_shape", [(2, 3, 8), (1, 3, 8), (3, 8)])
def test_skip_normalization(skip_shape):
    x, skip, gamma, beta, bias = floats(2, 3, 8), floats(*skip_shape), floats(8), floats(8), floats(8)
    total = x + bias + skip
    found = run("SkipLayerNormalization", [x, skip, gamma, beta, bias], outputs=4, epsilon=1e-3)
    close(found[0], normal(total, gamma, beta, 1e-3))
    close(found[1], total.mean(-1, keepdims=True))
    close(found[3], total)
    found = run("SkipSimplifiedLayerNormalization", [x, skip, gamma, bias], outputs=1, epsilon=1e-3)
    close(found, rms(total, gamma, 1e-3))


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_simplified_layer_normalization(domain):
    x, scale = floats(2, 3, 8), floats(8)
    close(run("SimplifiedLayerNormalization", [x, scale], domain=domain, epsilon=1e-3), rms(x, scale, 1e-3))
    y, inverse = run("SimplifiedLayerNormalization", [x, scale], domain=domain, epsilon=1e-3, outputs=2)
    close(y, rms(x, scale, 1e-3))
    close(inverse, 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3))


def test_embeddings():
    ids = np.array([[1, 0, 3], [2, 2, 0]], np.int32)
    words, places, segments, gamma, beta = floats(4, 8), floats(5, 8), floats(2, 8), floats(8), floats(8)
    mask = np.array([[1, 1, 0], [1, 0, 0]], np.int32)
    y, counts, total = run("EmbedLayerNormalization", [ids, ids % 2, words, places, segments, gamma, beta, mask], outputs=3, epsilon=1e-3)
    expected = words[ids] + places[:3] + segments[ids % 2]
    close(total, expected)
    close(y, normal(expected, gamma, beta, 1e-3))
    assert counts.tolist() == [2, 1]
    first = run("EmbedLayerNormalization", [ids, None, words, places, segments, gamma, beta], outputs=3)[2]
    close(first, words[ids] + places[:3] + segments[0])
    with pytest.raises(QRuntimeError, match="word ids"):
        run("EmbedLayerNormalization", [ids + 2, None, words, places, None, gamma, beta])
    with pytest.raises(QRuntimeError, match="segment_ids need"):
        run("EmbedLayerNormalization", [ids, ids % 2, words, places, None, gamma, beta])


@pytest.mark.parametrize("constants", [(), (1,)])
def test_fused_matmul(constants):
    a, b = floats(2, 3, 4), floats(2, 4, 5)
    expected = 0.5 * (a @ b)
    close(run("FusedMatMul", [a, b], constants=constants, alpha=0.5), expected)
    turned = b.swapaxes(1, 2).copy()
    close(run("FusedMatMul", [a, turned], constants=constants, alpha=0.5, transB=1), expected)
    close(run("FusedMatMul", [a.swapaxes(1, 2).copy(), b], constants=constants, alpha=0.5, transA=1), expected)
    rows_first = a.transpose(1, 0, 2).copy()
    close(run("FusedMatMul", [rows_first, b], constants=constants, alpha=0.5, transBatchA=1), expected)


def test_fused_gemm_and_conv():
    a, b, c = floats(3, 4), floats(4, 5), floats(5)
    y = 0.5 * (a @ b) + c
    close(run("FusedGemm", [a, b, c], constants=[1, 2], alpha=0.5, activation="Relu"), np.maximum(y, 0))
    leaky = run("FusedGemm", [a, b, c], alpha=0.5, activation="LeakyRelu", activation_alpha=0.25)
    close(leaky, np.where(y > 0, y, 0.25 * y))
    x, w, z = floats(1, 2, 3, 3), floats(4, 2, 1, 1), floats(1, 4, 3, 3)
    y = np.einsum("nchw,fc->nfhw", x, w[:, :, 0, 0]) + z
    close(run("FusedConv", [x, w, None, z], constants=[1], activation="Relu"), np.maximum(y, 0))
    clipped = run("FusedConv", [x, w, None, z], constants=[1], activation="Clip", activation_params=[-0.5, 0.5])
    close(clipped, np.clip(y, -0.5, 0.5))
    with pytest.raises(QRuntimeError, match="Nonsense"):
        run("FusedGemm", [a, b, c], activation="Nonsense")


def dynamic_matmul(x, w, scale, zero):
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = np.float32((high - low) / 255)
    zero_point = np.rint(-low / step)
    codes = np.clip(np.rint(x / step) + zero_point, 0, 255)
    real = (w.astype(np.float64) - zero) * scale
    return ((codes - zero_point) * step) @ real, step * np.abs(real).sum(0).max()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("constants", [(), (1, 2, 3, 4)])
def test_dynamic_quantize_matmul(dtype, columns, constants):
    info = np.iinfo(dtype)
    x, bias = floats(2, 5, 16), floats(6)
    w = RNG.integers(info.min, info.max + 1, (16, 6)).astype(dtype)
    scale = np.abs(floats(6)) if columns else np.float32(0.03)
    zero = RNG.integers(-3, 4, 6 if columns else ()) + (128 if dtype == np.uint8 else 0)
    found = run("DynamicQuantizeMatMul", [x, w, scale, zero.astype(dtype), bias], constants=constants)
    expected, one_code = dynamic_matmul(x, w, scale, zero)
    close(found, expected + bias, atol=float(one_code), rtol=0)
    assert np.abs(found - expected - bias).mean() < one_code / 50  # seldom does any code differ at all


def test_matmul_integer_to_float():
    a, b = RNG.integers(0, 256, (3, 8)).astype(np.uint8), RNG.integers(-128, 128, (8, 4)).astype(np.int8)
    scale, zero, bias = np.abs(floats(4)), RNG.integers(-5, 5, 4).astype(np.int8), floats(4)
    found = run("MatMulIntegerToFloat", [a, b, np.float32(0.5), scale, np.array(7, np.uint8), zero, bias])
    expected = (a.astype(np.float64) - 7) @ (b.astype(np.float64) - zero) * 0.5 * scale + bias
    close(found, expected, atol=1e-3)
    with pytest.raises(QRuntimeError, match="b_scale"):
        run("MatMulIntegerToFloat", [a, b, np.float32(0.5), scale[:3]])


def lstm(x, w, r, b, h, c):
    """One direction with gates in the order i, o, f, c; w [I, 4H], r [H, 4H]."""
    n = h.shape[1]
    ys = []
    for step in x:
        g = step @ w + h @ r + b[: 4 * n] + b[4 * n :]
        i, o, f = (1 / (1 + np.exp(-g[:, j * n : (j + 1) * n])) for j in range(3))
        c = f * c + i * np.tanh(g[:, 3 * n :])
        h = o * np.tanh(c)
        ys.append(h)
    return np.stack(ys), h, c


LSTM_CONSTANTS = (1, 2, 3, 8, 9, 10, 11)


def lstm_inputs(dtype, per_channel, directions=2, features=6, hidden=5):
    info = np.iinfo(dtype)
    shape = (directions, 4 * hidden) if per_channel else (directions,)
    x = floats(4, 3, features)
    w = RNG.integers(info.min, info.max + 1, (directions, features, 4 * hidden)).astype(dtype)
    r = RNG.integers(info.min, info.max + 1, (directions, hidden, 4 * hidden)).astype(dtype)
    middle = 128 if dtype == np.uint8 else 0
    parameters = []
    for _ in range(2):
        parameters.append((0.002 + 0.002 * RNG.random(shape)).astype(np.float32))
        parameters.append((middle + RNG.integers(-4, 5, shape)).astype(dtype))
    b, h, c = floats(directions, 8 * hidden), np.tanh(floats(directions, 3, hidden)), floats(directions, 3, hidden)
    return [x, w, r, b, None, h, c, None, *parameters]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("constants", [(), LSTM_CONSTANTS])
def test_dynamic_quantize_lstm(dtype, per_channel, constants):
    inputs = lstm_inputs(dtype, per_channel)
    y, h, c = run("DynamicQuantizeLSTM", inputs, constants=constants, outputs=3, direction="bidirectional", hidden_size=5)
    x, w, r, b, _, h0, c0, _, ws, wz, rs, rz = inputs
    for d in range(2):
        real = [(q[d].astype(np.float64) - z[d]) * s[d] for q, s, z in ((w, ws, wz.astype(int)), (r, rs, rz.astype(int)))]
        expected = lstm(x[::-1] if d else x, *real, b[d], h0[d], c0[d])
        close(y[:, d], expected[0][::-1] if d else expected[0], atol=0.03)
        close(h[d], expected[1], atol=0.03)
        close(c[d], expected[2], atol=0.06)


@pytest.mark.parametrize("constants", [(), LSTM_CONSTANTS])
@pytest.mark.parametrize("position", [1, 2, 3, 8, 9, 10, 11])
def test_dynamic_quantize_lstm_refuses_lengths_that_do_not_fit(position, constants):
    inputs = lstm_inputs(np.int8, per_channel=True)
    inputs[position] = np.ascontiguousarray(inputs[position][..., :-1])
    with pytest.raises(QRuntimeError, match="LSTM"):
        run("DynamicQuantizeLSTM", inputs, constants=constants, outputs=3, direction="bidirectional", hidden_size=5)


def nbits(q, scales, zero, bits, k, block):
    """The weight [N, K], code by code."""
    n = len(scales)
    weight = np.zeros((n, k))
    flat = q.reshape(n, -1)
    for row in range(n):
        for column in range(k):
            bit = column * bits
            code = (int(flat[row, bit // 8]) >> (bit % 8)) & ((1 << bits) - 1)
            weight[row, column] = (code - zero[row, column // block]) * scales[row, column // block]
    return weight


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("k", "block"), [(64, 32), (40, 16)])
@pytest.mark.parametrize("zero_points", ["none", "packed", "float"])
@pytest.mark.parametrize("constants", [(), (1, 2, 3, 5)])
def test_matmul_nbits(bits, k, block, zero_points, constants):
    n, blocks = 5, -(-k // block)
    a, bias = floats(2, 3, k), floats(n)
    q = RNG.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8)
    scales = np.abs(floats(n, blocks))
    zero = np.full((n, blocks), 1 << (bits - 1))
    given = None
    if zero_points == "packed":
        zero = RNG.integers(0, 1 << bits, (n, blocks))
        per_byte = 8 // bits
        padded = np.zeros((n, -(-blocks // per_byte) * per_byte), np.int64)
        padded[:, :blocks] = zero
        given = sum(padded[:, i::per_byte] << (i * bits) for i in range(per_byte)).astype(np.uint8)
    elif zero_points == "float":
        given = floats(n, blocks)
        zero = given
    inputs = [a, q, scales, given, None, bias]
    fixed = [i for i in constants if inputs[i] is not None]
    found = run("MatMulNBits", inputs, constants=fixed, K=k, N=n, bits=bits, block_size=block)
    expected = a.astype(np.float64) @ nbits(q, scales, zero, bits, k, block).T + bias
    close(found, expected, atol=1e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize("constants", [(), (1, 2)])
@pytest.mark.parametrize("change", [{"K": 65}, {"N": 6}, {"bits": 3}, {"block_size": 48}, {"K": 0}, {"N": 2**40}, {"K": 2**62}])
def test_matmul_nbits_refuses_sizes_that_do_not_fit(change, constants):
    sizes = {"K": 64, "N": 5, "bits": 4, "block_size": 32, **change}
    with pytest.raises(QRuntimeError, match="MatMulNBits"):
        run("MatMulNBits", [floats(2, 64), np.zeros((5, 2, 16), np.uint8), floats(5, 2)], constants=constants, **sizes)


def heads(x, count):
    return x.reshape(*x.shape[:2], count, -1).transpose(0, 2, 1, 3)


def attend(q, k, v, bias=0.0, scale=None):
    scores = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale) + bias
    y = softmax(scores) @ v
    return y.transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1)


ENDS = np.array([3, 5], np.int32)
RAW = (np.arange(5) < ENDS[:, None]).astype(np.int32)


@pytest.mark.parametrize("constants", [(), (1, 2)])
@pytest.mark.parametrize("mask", [None, RAW, ENDS, np.concatenate([ENDS, [0, 0]]).astype(np.int32), np.repeat(RAW[:, None], 5, 1)])
@pytest.mark.parametrize("causal", [0, 1])
def test_packed_attention(mask, causal, constants):
    x, w, b = floats(2, 5, 8), floats(8, 24), floats(24)
    found = run("Attention", [x, w, b, mask], constants=constants, num_heads=2, unidirectional=causal)
    q, k, v = (heads(part, 2) for part in np.split(x @ w + b, 3, axis=2))
    bias = np.zeros((2, 1, 5, 5)) if mask is None else np.where(RAW, 0, -10000.0)[:, None, None]
    bias = bias + np.where(np.triu(np.ones((5, 5)), 1) * causal, -np.inf, 0)
    close(found, attend(q, k, v, bias), atol=1e-5)


def test_packed_attention_with_a_past():
    x, w, b, past = floats(2, 5, 8), floats(8, 24), floats(24), floats(2, 2, 2, 3, 4)
    found, present = run("Attention", [x, w, b, None, past], constants=[1, 2], outputs=2, num_heads=2, unidirectional=1)
    q, k, v = (heads(part, 2) for part in np.split(x @ w + b, 3, axis=2))
    k, v = np.concatenate([past[0], k], 2), np.concatenate([past[1], v], 2)
    close(present, np.stack([k, v]))
    close(found, attend(q, k, v, np.where(np.triu(np.ones((5, 8)), 4), -np.inf, 0)), atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "attributes"),
    [
        (np.ones((2, 4), np.int32), {"num_heads": 2}),
        (None, {"num_heads": 3}),
        (None, {"num_heads": 0}),
        (None, {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 9]}),
        (None, {"num_heads": 2, "qkv_hidden_sizes": [32, -16, 8]}),
    ],
)
def test_packed_attention_refuses_what_does_not_fit(mask, attributes):
    with pytest.raises(QRuntimeError, match="Attention"):
        run("Attention", [floats(2, 5, 8), floats(8, 24), floats(24), mask], constants=[1, 2], **attributes)


@pytest.mark.parametrize("columns", [False, True])
def test_qattention(columns):
    x, w = RNG.integers(0, 256, (2, 5, 8)).astype(np.uint8), RNG.integers(-128, 128, (8, 24)).astype(np.int8)
    b, scale = floats(24), 0.001 + np.abs(floats(24)) * 0.001 if columns else np.float32(0.002)
    zero = RNG.integers(-5, 5, 24 if columns else ()).astype(np.int8)
    found = run("QAttention", [x, w, b, np.float32(0.02), scale, RAW, np.array(120, np.uint8), zero], num_heads=2)
    projected = (x.astype(np.float64) - 120) @ (w.astype(np.float64) - zero) * 0.02 * scale + b
    q, k, v = (heads(part, 2) for part in np.split(projected, 3, axis=2))
    close(found, attend(q, k, v, np.where(RAW, 0, -10000.0)[:, None, None]), atol=1e-4)
    with pytest.raises(QRuntimeError, match="b_scale"):
        run("QAttention", [x, w, b, np.float32(0.02), np.ones(23, np.float32)], num_heads=2)


def test_multi_head_attention():
    q, k, v, b = floats(2, 5, 8), floats(2, 7, 8), floats(2, 7, 8), floats(24)
    split = (heads(q, 2), heads(k, 2), heads(v, 2))
    close(run("MultiHeadAttention", [q, k, v], num_heads=2), attend(*split), atol=1e-5)
    biased = (heads(x + piece, 2) for x, piece in zip((q, k, v), np.split(b, 3), strict=True))
    close(run("MultiHeadAttention", [q, k, v, b], constants=[3], num_heads=2), attend(*biased), atol=1e-5)
    seen = (np.arange(7) < np.array([[4], [7]])).astype(np.int32)
    masked = attend(*split, np.where(seen, 0, -10000.0)[:, None, None], scale=0.3)
    close(run("MultiHeadAttention", [q, k, v, None, seen], num_heads=2, scale=0.3), masked, atol=1e-5)
    added = floats(2, 2, 5, 7)
    close(run("MultiHeadAttention", [q, k, v, None, None, added], num_heads=2), attend(*split, added), atol=1e-5)
    packed = floats(2, 5, 2, 3, 4)
    parts = (packed[:, :, :, i].transpose(0, 2, 1, 3) for i in range(3))
    close(run("MultiHeadAttention", [packed], num_heads=2), attend(*parts), atol=1e-5)
    with pytest.raises(QRuntimeError, match="MultiHeadAttention"):
        run("MultiHeadAttention", [q, k, v, None, np.ones((2, 6), np.int32)], num_heads=2)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved):
    x, positions = floats(2, 5, 24), np.array([[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]])
    angles = np.arange(8)[:, None] * np.array([1.0, 0.3])
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    inputs = [x, positions, cos, sin]
    found = run("RotaryEmbedding", inputs, num_heads=3, rotary_embedding_dim=4, interleaved=interleaved)
    expected = x.reshape(2, 5, 3, 8).copy()
    for j in range(2):
        first, second = (2 * j, 2 * j + 1) if interleaved else (j, j + 2)
        z = (expected[..., first] + 1j * expected[..., second]) * np.exp(1j * angles[positions][:, :, None, j])
        expected[..., first], expected[..., second] = z.real, z.imag
    close(found, expected.reshape(x.shape))
    with pytest.raises(QRuntimeError, match="positions must lie"):
        run("RotaryEmbedding", [x, positions + 1, cos, sin], num_heads=3, rotary_embedding_dim=4)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_qlinear_operators(dtype):
    info = np.iinfo(dtype)
    zero = np.array(3, dtype)

    def codes(*shape):
        return RNG.integers(info.min, info.max + 1, shape).astype(dtype)

    def real(q, scale):
        return (q.astype(np.float64) - 3) * scale

    def check(found, y, scale):
        assert found.dtype == dtype
        expected = np.clip(np.rint(y / scale) + 3, info.min, info.max)
        # At a tie float32 and float64 may part, by one code.
        at_tie = np.abs(y / scale - np.floor(y / scale) - 0.5) < 1e-3
        difference = np.abs(found.astype(int) - expected)
        assert not difference[~at_tie].any()
        assert difference.max() <= 1

    s = np.float32
    a, b = codes(3, 4), codes(4)
    pair = [a, s(0.1), zero, b, s(0.2), zero]
    check(run("QLinearAdd", [*pair, s(0.3), zero]), real(a, 0.1) + real(b, 0.2), 0.3)
    check(run("QLinearMul", [*pair, s(3), zero]), real(a, 0.1) * real(b, 0.2), 3)
    check(run("QLinearSigmoid", [a, s(0.05), zero, s(0.01), zero]), 1 / (1 + np.exp(-real(a, 0.05))), 0.01)
    leaky = np.where(real(a, 0.1) > 0, real(a, 0.1), 0.5 * real(a, 0.1))
    check(run("QLinearLeakyRelu", [a, s(0.1), zero, s(0.1), zero], alpha=0.5), leaky, 0.1)
    check(run("QLinearSoftmax", [a, s(0.05), zero, s(0.01), zero], axis=-1, opset=13), softmax(real(a, 0.05)), 0.01)
    joined = np.concatenate([real(a, 0.1), real(a, 0.2)], 1)
    check(run("QLinearConcat", [s(0.2), zero, a, s(0.1), zero, a, s(0.2), zero], axis=1), joined, 0.2)
    x = codes(1, 4, 4, 2)
    pooled = real(x, 0.1).reshape(1, 2, 2, 2, 2, 2).mean((2, 4))
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], "channels_last": 1}
    check(run("QLinearAveragePool", [x, s(0.1), zero, s(0.13), zero], **pool), pooled, 0.13)
    # Of the last window 2 of 3 positions lie in the input and its padding, which the standard's AveragePool divides by.
    line, wide = codes(1, 1, 5), {"kernel_shape": [3], "strides": [2], "pads": [1, 0], "ceil_mode": 1, "count_include_pad": 1}
    v = real(line, 0.1)[0, 0]
    means = np.reshape([v[:2].sum() / 3, v[1:4].mean(), v[3:].mean()], (1, 1, 3))
    check(run("QLinearAveragePool", [line, s(0.1), zero, s(0.13), zero], **wide), means, 0.13)
    mean = real(x, 0.1).mean((1, 2), keepdims=True)
    check(run("QLinearGlobalAveragePool", [x, s(0.1), zero, s(0.13), zero], channels_last=1), mean, 0.13)
    with pytest.raises(QRuntimeError, match="one value each"):
        run("QLinearAdd", [a, np.ones(2, np.float32), zero, b, s(0.2), zero, s(0.3), zero])


def test_inverse_and_trilu():
    x = floats(2, 3, 3) + 3 * np.eye(3, dtype=np.float32)
    close(run("Inverse", [x]) @ x, np.broadcast_to(np.eye(3), x.shape), atol=1e-5)
    assert np.array_equal(run("Trilu", [x, np.array(1)], upper=0), np.tril(x, 1))
    with pytest.raises(QRuntimeError, match="Inverse"):
        run("Inverse", [np.zeros((2, 2), np.float32)])
