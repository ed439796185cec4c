"""Reports tell what a loaded file holds in few bits, whoever stored it: format, bits, bytes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, load_from_string, numpy_helper

import qruntime
from qruntime.ir.narrow import pack
from tests.small_models import model_bytes, random

RNG = np.random.default_rng(2)
FLOAT = TensorProto.FLOAT


def blocks(n: int, k: int, bits: int, size: int) -> dict[str, np.ndarray]:
    count = -(-k // size)
    return {"q": RNG.integers(0, 256, (n, count, size * bits // 8), np.uint8), "s": np.ones((n, count), np.float32)}


def one_node(node, constants: dict[str, np.ndarray], k: int, n: int) -> qruntime.Model:
    proto = load_from_string(model_bytes([node], [("x", FLOAT, ["m", k])], [("y", FLOAT, ["m", n])], constants))
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return qruntime.load(proto.SerializeToString())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", [False, True])
def test_blocks_of_another_tool(bits: int, zero: bool) -> None:
    constants = blocks(6, 64, bits, 32)
    if zero:
        constants["z"] = np.full((6, -(-2 * bits // 8)), 3, np.uint8)
    attributes = {"K": 64, "N": 6, "bits": bits, "block_size": 32}
    node = helper.make_node("MatMulNBits", ["x", *constants], ["y"], name="low", domain="com.microsoft", **attributes)
    model = one_node(node, constants, 64, 6)
    (row,) = model.report.held
    size = sum(array.nbytes for array in constants.values())
    assert (row.name, row.op_type, row.numbers, row.bytes) == ("low", "MatMulNBits", 64 * 6, size)
    assert row.scheme == f"uint{bits} g32{' affine' if zero else ''}"
    assert row.bits == 8 * size / (64 * 6)
    assert not model.report.layers
    assert not model.report.skipped
    text = model.summary()
    assert f"{row.scheme}" in text
    assert f"1 weight stored by another tool: {size:,} bytes" in text
    assert "No layer is quantized." not in text
    assert model.quantize_dynamic().report.held == (row,), "a call that leaves it says so, too"


def test_tables_of_bitsandbytes() -> None:
    constants = {"q": RNG.integers(0, 256, 64 * 6 // 2, np.uint8), "s": np.ones(64 * 6 // 64, np.float32)}
    attributes = {"K": 64, "N": 6, "block_size": 64, "quant_type": 1}
    node = helper.make_node("MatMulBnb4", ["x", "q", "s"], ["y"], name="low", domain="com.microsoft", **attributes)
    (row,) = one_node(node, constants, 64, 6).report.held
    assert (row.scheme, row.numbers, row.bits) == ("nf4 g64", 384, 4 + 32 / 64)


def test_weights_behind_a_dequantization() -> None:
    """Those of one weight are told once; bits of a call of ours are in its row."""
    codes = RNG.integers(0, 16, (40, 6)).astype(np.uint8)
    q = helper.make_tensor("q", TensorProto.UINT4, codes.shape, pack(codes, 4).tobytes(), raw=True)
    scale = numpy_helper.from_array(np.ones((3, 6), np.float32), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["x", "w"], ["b"], name="second"),
        helper.make_node("Add", ["a", "b"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="third"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, ["m", 40])], [helper.make_tensor_value_info("y", FLOAT, ["m", 8])],
        [q, scale, numpy_helper.from_array(random(6, 8), "v")],
    )  # fmt: skip
    model = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString())
    (row,) = model.report.held
    assert (row.name, row.scheme, row.numbers, row.bytes) == ("first", "uint4 g16", 240, 120 + 72)
    made = model.quantize(scheme="W4A16-g16", only=["third"])
    assert made.report.held == (row,)
    (layer,) = made.report.layers
    assert layer.bits_per_weight == 8 * layer.bytes_after / 48


def test_attributes_that_mean_nothing_are_no_row() -> None:
    constants = blocks(6, 64, 4, 32)
    attributes = {"K": 64, "N": 6, "bits": 0, "block_size": 32}
    node = helper.make_node("MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", **attributes)
    assert one_node(node, constants, 64, 6).report.held == ()
