"""A constant that is another one transposed stands in a file once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import qruntime
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

IDS = ("ids", onnx.TensorProto.INT64, ["n"])


def tied_bytes(table: np.ndarray, *nodes: onnx.NodeProto, rank: int = 2) -> bytes:
    """Rows of a table, and what the table makes of them."""
    nodes = (helper.make_node("Gather", ["table", "ids"], ["e"], name="rows"), *nodes)
    return model_bytes(nodes, [IDS], [("y", FLOAT, [None] * rank)], {"table": table})


def head(**attributes: object) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    return (
        helper.make_node("Transpose", ["table"], ["head"], **attributes),
        helper.make_node("MatMul", ["e", "head"], ["y"], name="scores"),
    )


@pytest.mark.parametrize("attributes", [{}, {"perm": [1, 0]}])
def test_a_table_that_also_scores_is_written_once(attributes: dict, tmp_path):
    table, ids = random(300, 16), np.int64([3, 0, 299])
    model = qruntime.load(tied_bytes(table, *head(**attributes)))
    path = tmp_path / "tied.onnx"
    model.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    assert table.nbytes < path.stat().st_size < table.nbytes + 1000
    again = qruntime.load(path)
    assert [node.op_type for node in again.graph.nodes] == ["Gather", "MatMul"]
    assert_same_bits(again(ids), model(ids))
    np.testing.assert_allclose(again(ids), table[ids] @ table.T, rtol=1e-5, atol=1e-5)
    again.save(path)  # and stays so
    assert path.stat().st_size < table.nbytes + 1000


def test_codes_of_the_layer_stand_beside_the_table(tmp_path):
    table, ids = random(300, 16), np.int64([3, 0, 299])
    quantized = qruntime.load(tied_bytes(table, *head())).quantize_dynamic()
    assert [layer.name for layer in quantized.report.layers] == ["scores"]
    quantized.save(tmp_path / "tied.onnx")
    assert table.nbytes * 5 / 4 < (tmp_path / "tied.onnx").stat().st_size < table.nbytes * 5 / 4 + 2000
    assert_same_bits(qruntime.load(tmp_path / "tied.onnx")(ids), quantized(ids))


@pytest.mark.parametrize("perm", [(0, 2, 1), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_every_order_of_axes(perm: tuple[int, ...], tmp_path):
    table, ids = random(12, 10, 14), np.int64([3, 11])
    nodes = [
        helper.make_node("Transpose", ["table"], ["turned"], perm=perm),
        helper.make_node("ReduceSum", ["e"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["turned", "sum"], ["y"]),
    ]
    model = qruntime.load(tied_bytes(table, *nodes, rank=3))
    model.save(tmp_path / "turned.onnx")
    assert (tmp_path / "turned.onnx").stat().st_size < table.nbytes + 1000
    assert_same_bits(qruntime.load(tmp_path / "turned.onnx")(ids), model(ids))
    np.testing.assert_allclose(model(ids), table.transpose(perm) * table[ids].sum(), rtol=1e-4)


def test_a_weight_that_stands_alone_stays_a_weight(tmp_path):
    """Nobody else reads what it was transposed from: other tools quantize initializers."""
    nodes = [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", 64])], [("y", FLOAT, None)], {"w": random(48, 64)}))
    model.save(tmp_path / "plain.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "plain.onnx").graph.node] == ["MatMul"]
