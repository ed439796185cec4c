"""Weights beyond 2 GB, in a sparse file: nothing of them may be read that is not used."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
from tests.small_models import FLOAT

ROWS, COLUMNS = 330_000, 2048  # 2.7 GB of float32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    size = ROWS * COLUMNS * 4
    with open(tmp_path / "model.onnx.data", "wb") as file:
        file.truncate(size)
        file.seek(size - COLUMNS * 4)
        file.write(np.arange(COLUMNS, dtype=np.float32).tobytes())
    if (tmp_path / "model.onnx.data").stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no sparse files")
    table = TensorProto(name="table", data_type=FLOAT, dims=[ROWS, COLUMNS], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "model.onnx.data", "offset": "0", "length": str(size)}.items():
        table.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "big",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", COLUMNS])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    return tmp_path / "model.onnx"


def test_a_table_of_more_than_2_gb(path: Path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = qruntime.load(path)
    y = model([0, ROWS - 1, -1])
    assert not y[0].any()
    np.testing.assert_array_equal(y[1], np.arange(COLUMNS))
    np.testing.assert_array_equal(y[2], y[1])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    with pytest.raises(qruntime.RunError, match=str(ROWS)):
        model([ROWS])
