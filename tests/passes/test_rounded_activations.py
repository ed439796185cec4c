"""Limits, quantization and dequantization of activations, taken together where they are one rounding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.ir import clone
from qruntime.passes.pipeline import lowered
from qruntime.passes.rounded_activations import code_bounds
from tests.small_models import assert_same_bits, model_bytes, random

FLOAT, UINT8, INT8 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8
SCALE, ZERO = np.float32(0.25), np.uint8(5)


def model(nodes: list[onnx.NodeProto], opset: int = 17, outputs: list | None = None, **constants: np.ndarray) -> qruntime.Model:
    ends = {"scale": SCALE, "zero": ZERO} | constants
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", 6])], outputs or [("y", FLOAT, ["m", 6])], ends, opset=opset))


def pair(x: str = "x", y: str = "y", scale: str = "scale", zero: str = "zero", **attributes: int) -> list[onnx.NodeProto]:
    quantize = helper.make_node("QuantizeLinear", [x, scale, zero], ["codes"], **attributes)
    return [quantize, helper.make_node("DequantizeLinear", ["codes", scale, zero], [y], **attributes)]


def kinds(made: qruntime.Model) -> list[str]:
    return [node.op_type for node in lowered(clone(made.graph)).nodes]


def check(made: qruntime.Model, expected: list[str], most: int = 255, scale: np.ndarray = SCALE, zero: np.ndarray = ZERO) -> None:
    assert kinds(made) == expected
    x = random(4, 6) * np.float32(9)
    x[0, 0], x[1, 1] = np.inf, -np.inf
    shares = np.clip(np.rint(x / scale) + zero.astype(np.float32), 0, most) - zero.astype(np.float32)
    assert_same_bits(made(x), (shares * scale).astype(np.float32))


def clip(most: int, zero: np.ndarray = ZERO) -> dict[str, np.ndarray]:
    return dict(zip(("low", "high"), code_bounds(np.asarray(SCALE), np.asarray(zero), most), strict=True))


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_limit_to_fewer_codes(bits: int):
    most = 2**bits - 1
    zero = np.uint8(min(5, most))
    nodes = [helper.make_node("Clip", ["x", "low", "high"], ["limited"]), *pair("limited")]
    check(model(nodes, zero=zero, **clip(most, zero)), ["RoundToCodes"], most, zero=zero)
    low, high = (float(end) for end in clip(most, zero).values())
    nodes = [helper.make_node("Clip", ["x"], ["limited"], min=low, max=high), *pair("limited")]
    check(model(nodes, opset=10, zero=zero), ["RoundToCodes"], most, zero=zero)


def test_limits_of_channels():
    scale, zero = np.linspace(0.1, 0.9, 6, dtype=np.float32), np.arange(6, dtype=np.uint8)
    low, high = code_bounds(scale, zero, 15)
    nodes = [helper.make_node("Max", ["x", "low"], ["above"]), helper.make_node("Min", ["above", "high"], ["limited"])]
    check(model([*nodes, *pair("limited", axis=-1)], scale=scale, zero=zero, low=low, high=high), ["RoundToCodes"], 15, scale, zero)
    made = model([*nodes, *pair("limited", axis=1)], scale=scale, zero=zero, low=low, high=high)
    check(made, ["Max", "Min", "RoundToCodes"], 15, scale, zero)  # axis 1 is the last of two alone


def test_a_limit_to_something_else_stays():
    nodes = [helper.make_node("Clip", ["x", "low", "high"], ["limited"]), *pair("limited")]
    ends = clip(15)
    made = model(nodes, low=ends["low"], high=np.nextafter(ends["high"], np.float32(0)))
    assert kinds(made) == ["Clip", "RoundToCodes"]
    assert kinds(model(nodes, low=ends["low"] + np.float32(1), high=ends["high"])) == ["Clip", "RoundToCodes"]


def test_codes_that_are_read_stay_codes():
    outputs = [("y", FLOAT, ["m", 6]), ("codes", UINT8, ["m", 6])]
    nodes = [helper.make_node("Clip", ["x", "low", "high"], ["limited"]), *pair("limited")]
    made = model(nodes, outputs=outputs, **clip(15))
    assert sorted(kinds(made)) == ["DequantizeLinear", "QuantizeLinear"]
    y, codes = made(random(4, 6) * np.float32(9))
    assert codes.max() == 15
    assert_same_bits(y, (codes.astype(np.float32) - np.float32(ZERO)) * SCALE)
    assert sorted(kinds(model(pair(), outputs=outputs))) == ["DequantizeLinear", "QuantizeLinear"]


def test_what_is_no_rounding_stays():
    other = [*pair()[:1], helper.make_node("DequantizeLinear", ["codes", "other", "zero"], ["y"])]
    assert kinds(model(other, other=np.float32(0.5))) == ["QuantizeLinear", "DequantizeLinear"]
    assert kinds(model(pair(), zero=np.int8(3))) == ["QuantizeLinear", "DequantizeLinear"]
    for scale in (0, -1, np.inf, np.nan):
        assert kinds(model(pair(), scale=np.float32(scale))) == ["QuantizeLinear", "DequantizeLinear"]


def test_codes_that_are_codes_already_become_a_table():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "first", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "first", "zero"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]), *pair("c"),
    ]  # fmt: skip
    made = model(nodes, first=np.float32(0.125))
    assert kinds(made) == ["QuantizeLinear", "Flatten", "CodeTable", "DequantizeLinear"]
    x = random(4, 6) * np.float32(9)
    inner = (np.clip(np.rint(x / np.float32(0.125)) + 5, 0, 255) - 5) * np.float32(0.125)
    assert_same_bits(made(x), ((np.clip(np.rint(inner / SCALE) + 5, 0, 255) - 5) * SCALE).astype(np.float32))
