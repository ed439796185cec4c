"""Activations of schemes in fewer than 8 bits: what computes with them, and files that say so."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import qruntime
from qruntime import _kernels
from qruntime.ir import LayerMark
from qruntime.ir.marks import from_metadata, to_metadata
from qruntime.ops.linear import dynamic_quantized_linear
from qruntime.ops.registry import find
from qruntime.passes.pipeline import lowered
from tests.small_models import assert_same_bits, model_bytes, random, recurrent_bytes

FLOAT = onnx.TensorProto.FLOAT
LINEAR = ["W8A2", "W8A4", "W8A7", "W4A4-g32", "W3A3", "W2A2-g64", "W6A6-sym", "Wfp4A5-g16", "W8A4-g32"]


def two_readers(k: int = 75) -> qruntime.Model:
    nodes = [helper.make_node("MatMul", ["x", weight], [output]) for weight, output in (("w", "y"), ("v", "z"))]
    weights = {"w": random(k, 13), "v": random(k, 40, seed=1)}
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", k])], [("y", FLOAT, ["m", 13]), ("z", FLOAT, ["m", 40])], weights))


def bits_of(scheme: str) -> int:
    return int(scheme.split("A")[1][0])


@pytest.mark.parametrize("scheme", LINEAR)
@pytest.mark.parametrize("isa", _kernels.available_isas())
def test_rows_of_few_bits(scheme: str, isa: str, tmp_path: Path):
    """The bits of the definition, on every rung, row by row, from a file too."""
    before = _kernels.isa()
    _kernels.set_isa(isa)
    try:
        quantized, x = two_readers().quantize(scheme=scheme), random(6, 75, seed=4)
        outputs = quantized(x)
        for node, y in zip(quantized.graph.nodes, outputs, strict=True):
            stored = node.input(1).stored
            if stored.zero_point is None:
                stored = replace(stored, zero_point=np.zeros(stored.scale.shape, np.int8))
            assert_same_bits(y, dynamic_quantized_linear(x, stored, None, bits=bits_of(scheme)))
        (node,) = quantized.profile({"x": x}, repeat=1).nodes
        assert node.op_type == "MergedDynamicQuantizedLinear"
        for alone, together in zip(quantized(x[2:3]), outputs, strict=True):
            assert_same_bits(alone, together[2:3])
        quantized.save(tmp_path / "q.onnx")
        onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
        again = qruntime.load(tmp_path / "q.onnx")
        for one, other in zip(again(x), outputs, strict=True):
            assert_same_bits(one, other)
    finally:
        _kernels.set_isa(before)


def test_fewer_bits_lose_more():
    x, model = random(64, 75, seed=2), two_readers()
    expected = model.quantize(scheme="W8A16")(x)[0]
    errors = [np.abs(model.quantize(scheme=f"W8A{bits}")(x)[0] - expected).mean() for bits in range(2, 9)]
    for more, fewer in pairwise(errors):
        assert 1.5 < more / fewer < 3.5


def test_layers_of_different_bits_round_apart():
    mixed = two_readers().quantize(scheme="W8A8", overrides={"Linear": "W8A8"})
    second = mixed.graph.nodes[1]
    second.mark = second.mark._replace(codes="uint4")
    x = random(5, 75)
    first_alone, second_alone = two_readers().quantize(scheme="W8A8"), two_readers().quantize(scheme="W8A4")
    assert_same_bits(mixed(x)[0], first_alone(x)[0])
    assert_same_bits(mixed(x)[1], second_alone(x)[1])


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(op: str, tmp_path: Path):
    x = random(5, 3, 20, seed=5)
    model = qruntime.load(recurrent_bytes(op, 20, 24))
    outputs = {scheme: model.quantize(scheme=scheme) for scheme in ("W8A4", "W8A8")}
    quantized = outputs["W8A4"]
    (call,) = quantized._plan(tuple(quantized.graph.output_names)).nodes
    assert call.source == "native"
    y = quantized(x)[0]
    assert np.abs(y - outputs["W8A8"](x)[0]).max() > 1e-3
    quantized.save(tmp_path / "q.onnx")
    assert_same_bits(qruntime.load(tmp_path / "q.onnx")(x)[0], y)
    (node,) = lowered(qruntime.load(tmp_path / "q.onnx").graph).nodes
    spec = find("qruntime", f"DynamicQuantized{op}", 1)
    arrays = [x, *(None if value is None else value.data if value.stored is None else value.stored for value in node.inputs[1:])]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert attributes["bits"] == 4
    assert spec is not None
    arrays += [None] * (6 - len(arrays))
    for step in range(1 if op == "LSTM" else 5):  # each from the state that the kernel reached, which may be next to a tie
        arrays[0], arrays[5] = x[step : step + 1], None if op == "LSTM" else np.zeros_like(y[0]) if step == 0 else y[step - 1]
        np.testing.assert_allclose(y[step : step + 1], spec(*arrays, **attributes)[0], atol=1e-5)


def test_convolutions(tmp_path: Path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1])]
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["b", 6, "t"])], [("y", FLOAT, ["b", 5, "t"])], {"w": random(5, 6, 3)}))
    x = random(2, 6, 11)
    quantized = model.quantize(overrides={"Conv": "W8A4"})
    y = quantized(x)
    assert not np.array_equal(y, model.quantize(overrides={"Conv": "W8A8"})(x))
    assert_same_bits(quantized(x[1:]), y[1:])
    quantized.save(tmp_path / "q.onnx")
    assert_same_bits(qruntime.load(tmp_path / "q.onnx")(x), y)


def test_marks():
    """Files that say nothing of bits mean 8; formats that nobody knows make no mark."""
    mark = LayerMark("per_token", snr_db=3.5, codes="uint4")
    assert from_metadata(to_metadata(mark)) == mark
    assert "codes" not in next(iter(to_metadata(LayerMark("per_token")).values()))
    assert from_metadata({"qruntime.layer": '{"version": 1, "activations": "per_token", "snr_db": 2}'}) == LayerMark("per_token", snr_db=2)
    for codes in ("uint9", "int4", "nf4", "", "uint4 "):
        assert from_metadata({"qruntime.layer": f'{{"version": 1, "activations": "per_token", "codes": "{codes}"}}'}) is None
