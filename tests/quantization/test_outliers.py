"""Numbers of stored tensors that stand apart from their codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import qruntime
from qruntime.errors import QRuntimeError
from qruntime.ir import StoredTensor, clone
from qruntime.ir.outliers import Outliers
from qruntime.ir.stored import stack
from qruntime.quantization.grid import nearest
from qruntime.quantization.scheme import parse
from tests.small_models import assert_same_bits, model_bytes, random

FLOAT = onnx.TensorProto.FLOAT


def tensor(scheme: str = "W3A16-g16-bilevel", n: int = 37, k: int = 75, share: float = 0.02, seed: int = 0) -> StoredTensor:
    """A weight [N, K] a share of which stands apart, with the values of another matrix."""
    args = parse(scheme).weights
    assert args is not None
    mask = np.random.default_rng(seed).random((n, k)) < share
    return replace(nearest(random(n, k, seed=seed), args).stored, outliers=Outliers.where(mask, random(n, k, seed=seed + 1)))


def model(stored: StoredTensor, opset: int = 17, second: StoredTensor | None = None) -> qruntime.Model:
    """x · Wᵀ by a MatMul, and by a Gemm, of the same weight or a `second`."""
    n, k = stored.shape
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Gemm", ["x", "v"], ["z"], transB=1)]
    weights = {"w": np.zeros((k, n), np.float32), "v": np.zeros((n, k), np.float32)}
    outputs = [("y", FLOAT, ["m", n]), ("z", FLOAT, ["m", n])]
    made = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", k])], outputs, weights, opset=opset))
    for node, one in zip(made.graph.nodes, (stored.transposed(), second or stored), strict=True):
        weight = node.input(1)
        assert weight is not None
        weight.data, weight.stored = None, one
    return made


def test_positions_and_values_come_back():
    mask = np.random.default_rng(3).random((200, 300)) < 0.01
    numbers = random(200, 300, seed=4)
    made = Outliers.where(mask, numbers)
    assert made is not None
    assert (made.gaps.dtype, made.values.dtype, made.nbytes) == (np.uint16, np.float16, 4 * mask.sum())
    real = np.zeros((200, 300), np.float32)
    made.put_into(real)
    np.testing.assert_array_equal(real, np.where(mask, numbers.astype(np.float16), 0))
    assert made.fits((200, 300))
    assert Outliers.where(mask & False, numbers) is None


def test_what_float16_or_uint16_cannot_hold_takes_wider_ones():
    far = Outliers.of(np.array([3, 70000, 5 << 32]), np.array([1, 3e5, -2], np.float32))
    assert (far.gaps.dtype, far.values.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(far.positions(), [3, 70000, 5 << 32])
    assert Outliers.of(np.array([3]), np.array([1e-5], np.float32)).values.dtype == np.float32
    near = Outliers.of(np.array([0, 70000]), np.array([0, 65504], np.float32))
    assert (near.gaps.dtype, near.values.dtype) == (np.uint32, np.float16)


@pytest.mark.parametrize("scheme", ["W3A16-g16-bilevel", "W4A16", "Wnf4A16-g32", "W8A16"])
def test_they_come_along(scheme: str):
    made = tensor(scheme)
    assert made.outliers is not None
    real, picked = made.decoded(), np.array([5, 36, 5, 0])
    assert np.count_nonzero(real != replace(made, outliers=None).decoded()) == made.outliers.count
    np.testing.assert_array_equal(made.transposed().decoded(), real.T)
    np.testing.assert_array_equal(made.transposed().transposed().decoded(), real)
    np.testing.assert_array_equal(made.rows(picked).decoded(), real[picked])
    np.testing.assert_allclose(made.scaled(0.3).decoded(), real * np.float32(0.3), rtol=1e-5, atol=1e-7)
    other, none = tensor(scheme, seed=7), replace(tensor(scheme, seed=9), outliers=None)
    both = stack([made, other, none])
    assert both is not None
    np.testing.assert_array_equal(both.decoded(), np.stack([real, other.decoded(), none.decoded()]))
    np.testing.assert_array_equal(both[1].decoded(), other.decoded())
    assert both[2].outliers is None
    assert made.nbytes == sum(array.nbytes for array in made.arrays())
    if not made.block:
        np.testing.assert_array_equal(made.reshaped(37, 25, 3).decoded(), real.reshape(37, 25, 3))
        np.testing.assert_array_equal(made.transposed().transposed().reshaped(37, 3, 25).decoded(), real.reshape(37, 3, 25))


@pytest.mark.parametrize("scheme", ["W3A16-g16-bilevel", "W4A16-g32", "W8A16", "Wfp4A16-g32"])
@pytest.mark.parametrize("opset", [19, 25])  # the reference has no older DequantizeLinear
def test_files_hold_them(scheme: str, opset: int, tmp_path: Path):
    made, x = tensor(scheme), random(5, 75, seed=3)
    saved, path = model(made, opset), tmp_path / "q.onnx"
    outputs = saved(x)
    saved.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    again = qruntime.load(path)
    assert [node.op_type for node in again.graph.nodes] == ["MatMul", "Gemm"]
    expected = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})
    for i, one in enumerate((made.transposed(), made)):
        read = again.graph.nodes[i].input(1).stored
        np.testing.assert_array_equal(read.decoded(), one.decoded())
        assert read.nbytes == one.nbytes
        assert_same_bits(again(x)[i], outputs[i])
        np.testing.assert_allclose(outputs[i], expected[i], atol=2e-5 * np.abs(expected[i]).max())


def test_layers_run_packed_and_hold_them_once(tmp_path: Path):
    """With the bits of a run from the file, and saved with those that were there before."""
    made, other, x = tensor("W3A16-g16-bilevel", n=96, k=160), tensor("W4A16-g32", n=96, k=160, seed=5), random(5, 160, seed=3)
    ran = model(made, second=other)
    ran.save(tmp_path / "before.onnx")
    outputs = ran(x)
    assert [call.kernel for call in ran._tried({"x": x}).as_run()] == ["linear_nbits", "linear_nbits"]
    for one, y in zip((made, other), outputs, strict=True):
        assert one.held.memory is None
        np.testing.assert_allclose(y, x @ one.decoded().T, atol=1e-4)
    ran.save(tmp_path / "after.onnx")
    assert (tmp_path / "after.onnx").read_bytes() == (tmp_path / "before.onnx").read_bytes()
    for y, again in zip(outputs, qruntime.load(tmp_path / "after.onnx")(x), strict=True):
        assert_same_bits(again, y)


def test_bits_on_disk(tmp_path: Path):
    """Four bytes for each, in float16."""
    made = tensor("W3A16-g16-bilevel", n=512, k=1024)
    assert made.outliers is not None
    saved = model(made, second=tensor("W3A16-g16-bilevel", n=512, k=1024, seed=5))
    saved.save(tmp_path / "q.onnx")
    bits = 3 + 6 / 16 + 64 / 256 + 32 * made.outliers.count / made.size
    assert 8 * made.nbytes / made.size == pytest.approx(bits, rel=1e-4)
    assert (tmp_path / "q.onnx").stat().st_size * 8 / (2 * made.size) == pytest.approx(bits, rel=0.02)


def test_a_file_of_an_old_opset_cannot_hold_them(tmp_path: Path):
    with pytest.raises(QRuntimeError, match="opset 12 has no operators; export the model with opset 13"):
        model(tensor("W8A16"), opset=12).save(tmp_path / "q.onnx")


def test_a_clone_and_a_table_have_them():
    table = tensor("W4A16-g16")
    node = helper.make_node("Gather", ["table", "ids"], ["y"])
    data = model_bytes(
        [node], [("ids", onnx.TensorProto.INT64, ["n"])], [("y", FLOAT, ["n", 75])], {"table": np.zeros((37, 75), np.float32)}
    )
    made = qruntime.load(data)
    value = made.graph.nodes[0].input(0)
    assert value is not None
    value.data, value.stored = None, table
    rows = np.array([36, 0, 4, -37, 4])
    np.testing.assert_array_equal(made(rows), table.decoded()[rows])
    copied = clone(made.graph).nodes[0].input(0)
    assert copied is not None
    assert copied.stored is table


def edited(path: Path, **arrays: Any) -> bytes:
    """The file with other constants in place of those whose name ends so."""
    proto = onnx.load(path)
    for i, tensor in enumerate(proto.graph.initializer):
        for end, change in arrays.items():
            if tensor.name.endswith(end):
                made = numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name)
                proto.graph.initializer[i].CopyFrom(made)
    return proto.SerializeToString()


@pytest.mark.parametrize(
    "change",
    [
        {"outlier_gaps": lambda gaps: np.zeros_like(gaps)},
        {"outlier_gaps": lambda gaps: np.full_like(gaps, 65535)},
        {"outlier_gaps": lambda gaps: -gaps.astype(np.int64)},
        {"outlier_gaps": lambda gaps: np.full(gaps.shape, 1 << 62, np.int64)},
        {"outlier_gaps": lambda gaps: gaps[1:]},
        {"outlier_gaps": lambda gaps: gaps.astype(np.int16)},
        {"_outliers": lambda values: values * np.float16(np.nan)},
        {"_outliers": lambda values: values.astype(np.float64)},
        {"_outliers": lambda values: values[:, None]},
        {"scale_offset": lambda offset: offset * np.float16(np.inf)},
        {"scale_offset": lambda offset: np.concatenate([offset, offset])},
        {"scale_scale": lambda scale: scale[:1]},
        {"scale_quantized": lambda codes: codes[:4]},
        {"scale_quantized": lambda codes: codes.astype(np.int8)},
        {"point_offset": lambda offset: offset.astype(np.float64)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_hostile_files_are_refused(change: dict[str, Any], tmp_path: Path):
    made = model(tensor())
    made.save(tmp_path / "q.onnx")
    with pytest.raises(QRuntimeError):
        qruntime.load(edited(tmp_path / "q.onnx", **change))(random(2, 75))
