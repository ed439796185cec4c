"""Files that earlier versions saved load to the same bits; `saved/make.py` says what they hold."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import qruntime
from tests.quantization.saved.make import HERE, feed

NAMES = sorted(path.stem for path in HERE.glob("*.onnx"))
RECURRENT = ("lstm", "gru", "rnn")


@pytest.fixture(scope="module")
def outputs():
    with np.load(HERE / "outputs.npz") as held:
        return dict(held)


@pytest.mark.parametrize("name", NAMES)
def test_they_compute_what_they_did(name: str, outputs, tmp_path):
    model = qruntime.load(HERE / f"{name}.onnx")
    (y,) = model.run(feed(model)).values()
    if name.startswith(RECURRENT):  # activations in vector code differ between instruction sets
        np.testing.assert_allclose(y, outputs[name], rtol=0, atol=2e-5)
    elif "float16" in name or "few_bits" in name:
        np.testing.assert_allclose(y, outputs[name], rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(y, outputs[name])
    assert len(model.report.layers) == {"linear": 4}.get(name.split("_")[0], 1)
    model.save(tmp_path / "again.onnx")
    onnx.checker.check_model(str(tmp_path / "again.onnx"), full_check=True)
    again = qruntime.load(tmp_path / "again.onnx")
    assert again.report == model.report
    np.testing.assert_array_equal(next(iter(again.run(feed(again)).values())), y)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_their_codes_is_computed_at_run_time(name: str):
    """Every dequantization is read into the weight."""
    graph = qruntime.load(HERE / f"{name}.onnx").graph
    assert [node.op_type for node in graph.nodes if node.op_type in ("DequantizeLinear", "Sub", "Mul", "Concat", "Cast")] == []
    assert all(node.mark is not None and node.input(1 - node.is_op("Gather")).stored is not None for node in graph.nodes)
