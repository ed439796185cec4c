"""Weights and tables of few bits, and 8-bit operators: what their bytes mean, and bytes that do not fit."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from qruntime.errors import QRuntimeError
from tests.ops.one_node import RNG, close, floats, run

NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302, 0.2461123, 0.33791524,
    0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip


@pytest.mark.parametrize("transposed", [1, 0])
def test_bitsandbytes_weights(transposed):
    """The first of two codes lies in the high half of a byte; blocks run over the flat weight."""
    codes, largest = RNG.integers(0, 16, 5 * 7), RNG.random(3).astype(np.float32)
    padded = np.append(codes, 0)
    data = (padded[0::2] << 4 | padded[1::2]).astype(np.uint8)
    weight = (np.array(NF4)[codes] * np.repeat(largest, 16)[:35]).reshape(5, 7)
    a = floats(2, 7 if transposed else 5)
    found = run("MatMulBnb4", [a, data, largest], K=7, N=5, block_size=16, quant_type=1, transB=transposed, constants=(1, 2))
    close(found, a @ (weight.T if transposed else weight), atol=1e-5)
    fp4 = run("MatMulBnb4", [np.eye(16, dtype=np.float32), np.arange(0, 16, 2, dtype=np.uint8) * 17 + 1, np.ones(1, np.float32)], K=16, N=1,
              block_size=16, quant_type=0)  # fmt: skip
    close(fp4[:8, 0], [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4])
    close(fp4[8:, 0], -fp4[:8, 0])
    for change, message in (
        ({"K": 0}, "K and N above 0"), ({"block_size": 24}, "power of two"), ({"K": 9}, "bytes"), ({"quant_type": 2}, "FP4"),
    ):  # fmt: skip
        with pytest.raises(QRuntimeError, match=message):
            run("MatMulBnb4", [a, data, largest], **{"K": 7, "N": 5, "block_size": 16, "quant_type": 1, **change})


@pytest.mark.parametrize(("kind", "length"), [(0, 32), (1, 32), (2, 64)])
def test_weights_in_one_blob(kind, length):
    rows, columns = length + 9, 3
    codes = RNG.integers(0, 16, (columns, 2, length))
    scale, zero = RNG.random((columns, 2)).astype(np.float32), RNG.integers(0, 16, (columns, 2)) if kind == 1 else np.full((columns, 2), 8)
    blob = b""
    for column, block in np.ndindex(columns, 2):
        blob += struct.pack("<f", scale[column, block]) + (bytes([zero[column, block]]) if kind == 1 else b"")
        for half in codes[column, block].reshape(-1, 2, 16):
            blob += (half[0] | half[1] << 4).astype(np.uint8).tobytes()
    weight = ((codes - zero[:, :, None]) * scale[:, :, None]).reshape(columns, -1)[:, :rows].T
    a = floats(2, rows)
    inputs = [a, np.frombuffer(blob, np.uint8), np.array([rows, columns])]
    close(run("MatMulFpQ4", inputs, blk_quant_type=kind), a @ weight, atol=1e-4)
    with pytest.raises(QRuntimeError, match="bytes"):
        run("MatMulFpQ4", [a, inputs[1][1:], inputs[2]], blk_quant_type=kind)
    with pytest.raises(QRuntimeError, match="positive dimensions"):
        run("MatMulFpQ4", [*inputs[:2], np.array([-rows, columns])], blk_quant_type=kind)


def test_table_in_blocks():
    codes, scale = RNG.integers(0, 4, (5, 32)), RNG.random((5, 2)).astype(np.float32)
    data = (codes.reshape(5, 8, 4) << np.array([0, 2, 4, 6])).sum(axis=2).astype(np.uint8)
    table = (codes - 2) * np.repeat(scale, 16, axis=1)
    found = run("GatherBlockQuantized", [data, np.array([[4, -5], [5, 1]]), scale], bits=2, block_size=16)
    close(found[0], table[[4, 0]])
    assert not found[1, 0].any(), "an index that is out of range gives zeros"
    close(found[1, 1], table[1])
    for inputs, attributes, message in (
        ([data, np.array([0]), scale[:, :1]], {"bits": 2}, "scales must have the shape"),
        ([data, np.array([0]), scale], {"bits": 3}, "bits 2, 4 or 8"),
        ([data, np.array([0]), scale, data], {"bits": 2}, "zero_points must have the shape"),
        ([data, np.array([0]), scale], {"bits": 2, "gather_axis": 1}, "gather_axis 0"),
        ([data, np.array([0.5]), scale], {"bits": 2}, "indices must be integers"),
    ):
        with pytest.raises(QRuntimeError, match=message):
            run("GatherBlockQuantized", inputs, **{"block_size": 16, **attributes})


def test_packed_rows():
    half = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    row = np.concatenate([half, np.arange(16, dtype=np.uint8) * 16 + 3])
    expected = 0.5 * (np.concatenate([np.full(16, 3), np.arange(16)]) - 8)
    close(run("GatherPacked", [row[None], np.array([0])], K=32, packed_type=2, output_dtype=1)[0], expected)
    for attributes, message in (
        ({"packed_type": 16}, "IQ2_XXS"), ({"packed_type": 5}, "packed_type must be one of"), ({"K": 33}, "multiple of 32"),
        ({"K": 64}, r"uint8 \[rows, 36\]"), ({"output_dtype": 6}, "output_dtype"),
    ):  # fmt: skip
        with pytest.raises(QRuntimeError, match=message):
            run("GatherPacked", [row[None], np.array([0])], **{"K": 32, "packed_type": 2, "output_dtype": 1, **attributes})


def test_quantized_gemm_does_not_saturate_on_the_way():
    """255 · 127 twice is more than 16 bits hold."""
    a, b, one, zero = np.full((1, 4), 255, np.uint8), np.full((4, 1), 127, np.int8), np.float32(1), np.uint8(0)
    assert run("QGemm", [a, one, zero, b, one, np.int8(0)]).item() == 4 * 255 * 127
    bias = np.array([[-7]], np.int32)
    assert run("QGemm", [a, one, zero, b, one, np.int8(0), bias, np.float32(2000), np.uint8(3)]).item() == 68
    wrong = {4: np.ones(3, np.float32)}, {6: np.ones((2, 1), np.int32)}, {1: np.ones(2, np.float32)}
    for change, message in zip(wrong, ("b_scale", "C must be", "one value"), strict=True):
        inputs = [a, one, zero, b, one, np.int8(0)] + [None] * (6 in change)
        for position, value in change.items():
            inputs[position] = value
        with pytest.raises(QRuntimeError, match=message):
            run("QGemm", inputs)


def test_quantized_embeddings_need_all_of_a_segment():
    table, vector, one, zero = np.zeros((4, 8), np.uint8), np.ones(8, np.uint8), np.float32(1), np.uint8(0)
    ids = np.zeros((2, 3), np.int32)
    inputs = [ids, None, table, table, None, vector, vector, None, one, one, None, one, one, zero, zero, None, zero, zero]
    assert run("QEmbedLayerNormalization", inputs).shape == (2, 3, 8)
    inputs[1] = ids
    with pytest.raises(QRuntimeError, match="all be given or all be absent"):
        run("QEmbedLayerNormalization", inputs)
    inputs[1], inputs[0] = None, ids - 1
    with pytest.raises(QRuntimeError, match="word ids must lie"):
        run("QEmbedLayerNormalization", inputs)
