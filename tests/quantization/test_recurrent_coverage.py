"""Recurrent layers that torch's quantize_dynamic lacks or gets wrong: our results are causal and know no neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUT, HIDDEN, STEPS, BATCH = 7, 6, 9, 4

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn tanh": ("RNN", {}),
    "rnn relu": ("RNN", {"activations": ["Relu"]}),
    "rnn bidirectional": ("RNN", {"direction": "bidirectional"}),
    "lstm": ("LSTM", {}),
    "lstm biasless": ("LSTM", {"bias": False}),
    "lstm bidirectional": ("LSTM", {"direction": "bidirectional"}),
    "lstm reverse": ("LSTM", {"direction": "reverse"}),
    "lstm peepholes": ("LSTM", {"peepholes": True}),
    "lstm clip": ("LSTM", {"clip": 0.3}),
    "lstm input_forget": ("LSTM", {"input_forget": 1}),
    "lstm lengths": ("LSTM", {"lengths": True}),
    "lstm layout": ("LSTM", {"layout": 1}),
    "lstm softsign": ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Tanh"]}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "gru inner reset": ("GRU", {"linear_before_reset": 0}),
    "gru biasless": ("GRU", {"bias": False}),
    "gru lengths": ("GRU", {"lengths": True, "direction": "bidirectional"}),
    "gru layout": ("GRU", {"layout": 1}),
}


def recurrent(case: str) -> qruntime.Model:
    op, options = CASES[case]
    attributes = {k: v for k, v in options.items() if k not in ("bias", "peepholes", "lengths")}
    count = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[op] * HIDDEN
    weights = {"w": random(count, rows, INPUT), "r": random(count, rows, HIDDEN, seed=1)}
    inputs = ["x", "w", "r", "", "", "", "", ""]
    infos: list[Any] = [("x", FLOAT, ["a", "b", INPUT])]
    if options.get("bias", True):
        weights["b"], inputs[3] = random(count, 2 * rows, seed=2), "b"
    if options.get("lengths"):
        infos.append(("lengths", TensorProto.INT32, [None]))
        inputs[4] = "lengths"
    if options.get("peepholes"):
        weights["p"], inputs[7] = random(count, 3 * HIDDEN, seed=3), "p"
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node(op, inputs, ["y", "h"], name="rnn", hidden_size=HIDDEN, **attributes)
    return qruntime.load(model_bytes([node], infos, [("y", FLOAT, None), ("h", FLOAT, None)], weights))


def run(model: qruntime.Model, case: str, x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Y with time first and batch second, whatever the layout; x (T, N, I)."""
    batch_first = CASES[case][1].get("layout")
    feed = [x.swapaxes(0, 1) if batch_first else x, lengths][: len(model.inputs)]
    y = model(*feed)[0]
    return y.transpose(1, 0, 2, 3) if batch_first else y.swapaxes(1, 2)


LENGTHS = np.array([9, 4, 7, 1], np.int32)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["qint8", "float16"])
def test_close_to_float(case: str, dtype: str):
    model, x = recurrent(case), random(STEPS, BATCH, INPUT, seed=5)
    quantized = model.quantize_dynamic(dtype=dtype, strict=True)
    assert len(quantized.report.layers) == 1
    y, expected = run(quantized, case, x, LENGTHS), run(model, case, x, LENGTHS)
    scale = max(1, np.abs(expected).max())
    assert 0 < np.abs(y - expected).max() < (0.15 if dtype == "qint8" else 0.02) * scale


@pytest.mark.parametrize("case", CASES)
def test_no_row_knows_its_neighbours(case: str):
    model, x = recurrent(case).quantize_dynamic(), random(STEPS, BATCH, INPUT, seed=5)
    y = run(model, case, x, LENGTHS)
    loud = x.copy()
    loud[:, 1:] *= 100
    assert_same_bits(run(model, case, loud, LENGTHS)[:, 0], y[:, 0])
    assert_same_bits(run(model, case, x[:, :1], LENGTHS[:1])[:, 0], y[:, 0])


@pytest.mark.parametrize("case", [case for case, (_, options) in CASES.items() if "direction" not in options])
def test_no_step_knows_the_future(case: str):
    model, x = recurrent(case).quantize_dynamic(), random(STEPS, BATCH, INPUT, seed=5)
    later = x.copy()
    later[5:] *= 100
    assert_same_bits(run(model, case, later, LENGTHS)[:5], run(model, case, x, LENGTHS)[:5])


@pytest.mark.parametrize("case", ["lstm lengths", "gru lengths"])
def test_padding_has_no_say(case: str):
    x = random(STEPS, BATCH, INPUT, seed=5)
    inside = np.arange(STEPS)[:, None] < LENGTHS
    loud = np.where(inside[..., None], x, np.float32(1000))
    for arguments in ({}, {"engine": "fbgemm"}, {"engine": "onnxruntime"}):
        model = recurrent(case).quantize_dynamic(**arguments)
        y, expected = run(model, case, loud, LENGTHS), run(model, case, x, LENGTHS)
        assert_same_bits(y[inside], expected[inside])


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack", "onnxruntime"])
@pytest.mark.parametrize("case", ["lstm", "gru", "rnn tanh"])
def test_engines_per_tensor_know_both(case: str, engine: str):
    """What torch and ONNX Runtime do, reproduced: a loud neighbour and a loud future change what they have no part in."""
    model, x = recurrent(case).quantize_dynamic(engine=engine), random(STEPS, BATCH, INPUT, seed=5)
    y = run(model, case, x, LENGTHS)
    neighbour, future = x.copy(), x.copy()
    neighbour[:, 1:] *= 100
    future[5:] *= 100
    assert np.abs(run(model, case, neighbour, LENGTHS)[:, 0] - y[:, 0]).max() > 0.1
    assert np.abs(run(model, case, future, LENGTHS)[:5] - y[:5]).max() > 0.1


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack", "onnxruntime"])
@pytest.mark.parametrize("case", CASES)
def test_engines_cover_the_same_layers(case: str, engine: str, tmp_path):
    model, x = recurrent(case), random(STEPS, BATCH, INPUT, seed=5)
    quantized = model.quantize_dynamic(engine=engine)
    y, expected = run(quantized, case, x, LENGTHS), run(model, case, x, LENGTHS)
    assert 0 < np.abs(y - expected).max() < 0.3 * max(1, np.abs(expected).max())
    quantized.save(tmp_path / "q.onnx")
    assert_same_bits(run(qruntime.load(tmp_path / "q.onnx"), case, x, LENGTHS), y)
