"""LSTM, GRU and RNN against loops over every sequence, time step and unit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import qruntime
from qruntime.ops.recurrent import activation_functions, gru, lstm, rnn

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
OPERATORS = {"RNN": rnn, "GRU": gru, "LSTM": lstm}


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _cell(
    op: str,
    a: list[list[float]],
    h: list[float],
    c: list[float],
    r: np.ndarray,
    rb: np.ndarray,
    p: np.ndarray,
    options: dict[str, Any],
) -> tuple[list[float], list[float]]:
    """One step for one sequence. a[gate][unit] holds W x + Wb; every product is a Python sum."""
    n = len(h)
    clip = options.get("clip") or math.inf

    def bounded(v: float) -> float:
        return min(max(v, -clip), clip)

    def recurrent(gate: int, unit: int, state: list[float]) -> float:
        return sum(float(r[gate * n + unit, k]) * state[k] for k in range(n)) + float(rb[gate * n + unit])

    if op == "RNN":
        return [math.tanh(bounded(a[0][u] + recurrent(0, u, h))) for u in range(n)], c
    if op == "GRU":
        z = [_sigmoid(bounded(a[0][u] + recurrent(0, u, h))) for u in range(n)]
        reset = [_sigmoid(bounded(a[1][u] + recurrent(1, u, h))) for u in range(n)]
        if options.get("linear_before_reset"):
            candidate = [math.tanh(bounded(a[2][u] + reset[u] * recurrent(2, u, h))) for u in range(n)]
        else:
            gated = [reset[u] * h[u] for u in range(n)]
            candidate = [math.tanh(bounded(a[2][u] + recurrent(2, u, gated))) for u in range(n)]
        return [(1 - z[u]) * candidate[u] + z[u] * h[u] for u in range(n)], c
    new_h, new_c = [], []
    for u in range(n):
        i = _sigmoid(bounded(a[0][u] + recurrent(0, u, h) + float(p[u]) * c[u]))
        f = _sigmoid(bounded(a[2][u] + recurrent(2, u, h) + float(p[2 * n + u]) * c[u]))
        if options.get("input_forget"):
            f = 1 - i
        cell = f * c[u] + i * math.tanh(bounded(a[3][u] + recurrent(3, u, h)))
        o = _sigmoid(bounded(a[1][u] + recurrent(1, u, h) + float(p[n + u]) * cell))
        new_h.append(o * math.tanh(cell))
        new_c.append(cell)
    return new_h, new_c


def _loops(op: str, case: dict[str, Any]) -> tuple[np.ndarray, ...]:
    x, w, r, b, p, lengths = (case[name] for name in ("x", "w", "r", "b", "p", "lengths"))
    steps, batch, features = x.shape
    count, n, gates = w.shape[0], r.shape[2], GATES[op]
    y = np.zeros((steps, count, batch, n))
    last_h, last_c = np.zeros((count, batch, n)), np.zeros((count, batch, n))
    reverse = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[case["options"]["direction"]]
    for d in range(count):
        for s in range(batch):
            h, c = [float(v) for v in case["h0"][d, s]], [float(v) for v in case["c0"][d, s]]
            times = range(lengths[s])
            for t in reversed(times) if reverse[d] else times:
                a = [
                    [sum(float(w[d, g * n + u, k]) * float(x[t, s, k]) for k in range(features)) + float(b[d, g * n + u]) for u in range(n)]
                    for g in range(gates)
                ]
                h, c = _cell(op, a, h, c, r[d], b[d, gates * n :], p[d], case["options"])
                y[t, d, s] = h
            last_h[d, s], last_c[d, s] = h, c
    return (y, last_h, last_c) if op == "LSTM" else (y, last_h)


@st.composite
def _cases(draw: st.DrawFn, op: str) -> dict[str, Any]:
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    count = 2 if direction == "bidirectional" else 1
    steps, batch, features, n = (draw(st.integers(low, 4)) for low in (0, 0, 1, 1))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    gates = GATES[op]

    def array(*shape: int, present: bool = True) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32) if present else np.zeros(shape, np.float32)

    options: dict[str, Any] = {"direction": direction}
    if draw(st.booleans()):
        options["clip"] = draw(st.sampled_from([0.25, 1.0]))
    if op == "GRU":
        options["linear_before_reset"] = draw(st.integers(0, 1))
    if op == "LSTM":
        options["input_forget"] = draw(st.integers(0, 1))
    given_inputs = {name: draw(st.booleans()) for name in ("b", "lengths", "h0", "c0", "p")}
    lengths = [draw(st.integers(0, steps)) if given_inputs["lengths"] else steps for _ in range(batch)]
    return {
        "x": array(steps, batch, features),
        "w": array(count, gates * n, features),
        "r": array(count, gates * n, n),
        "b": array(count, 2 * gates * n, present=given_inputs["b"]),
        "h0": array(count, batch, n, present=given_inputs["h0"]),
        "c0": array(count, batch, n, present=given_inputs["c0"]),
        "p": array(count, 3 * n, present=given_inputs["p"]),
        "lengths": lengths,
        "options": options,
        "given": given_inputs,
        "layout": draw(st.integers(0, 1)),
    }


def _call(op: str, case: dict[str, Any]) -> tuple[np.ndarray, ...]:
    def batch_first(value: np.ndarray) -> np.ndarray:
        return value.swapaxes(0, 1) if case["layout"] else value

    present = case["given"]
    inputs = [
        batch_first(case["x"]),
        case["w"],
        case["r"],
        case["b"] if present["b"] else None,
        np.array(case["lengths"], np.int32) if present["lengths"] else None,
        batch_first(case["h0"]) if present["h0"] else None,
    ]
    if op == "LSTM":
        inputs += [batch_first(case["c0"]) if present["c0"] else None, case["p"] if present["p"] else None]
    y, *finals = OPERATORS[op](*inputs, layout=case["layout"], hidden_size=case["r"].shape[2], **case["options"])
    if case["layout"]:
        y = y.transpose(1, 2, 0, 3)
    return (y, *(batch_first(final) for final in finals))


@pytest.mark.parametrize("op", OPERATORS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_layer_equals_loops(op: str, data: st.DataObject) -> None:
    case = data.draw(_cases(op))
    if op != "LSTM":
        case["given"]["c0"] = case["given"]["p"] = False
    actual, expected = _call(op, case), _loops(op, case)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == np.float32
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


def test_alpha_and_beta_go_to_the_functions_that_take_them() -> None:
    names = ("Tanh", "Affine", "LeakyRelu")
    ((tanh, affine, leaky),) = activation_functions(names, names, 1, (2.0, 0.5), (3.0,), None)
    x = np.array([-4.0, 4.0], np.float32)
    np.testing.assert_array_equal(tanh(x), np.tanh(x))
    np.testing.assert_array_equal(affine(x), 2 * x + 3)
    np.testing.assert_array_equal(leaky(x), np.array([-2.0, 4.0], np.float32))


@pytest.mark.parametrize(
    ("change", "needed"),
    [
        ({"w": np.zeros((1, 7, 3), np.float32)}, r"W must have the shape \(1, 8, 3\)"),
        ({"r": np.zeros((2, 8, 2), np.float32)}, r"R must have the shape \(1, 8, 2\)"),
        ({"b": np.zeros((1, 8), np.float32)}, r"B must have the shape \(1, 16\)"),
        ({"p": np.zeros((1, 4), np.float32)}, r"P must have the shape \(1, 6\)"),
        ({"x": np.zeros((4, 3), np.float32)}, "X must have rank 3"),
        ({"sequence_lens": np.array([5, 1], np.int32)}, r"sequence_lens must lie in \[0, 4\]"),
        ({"sequence_lens": np.array([1], np.int32)}, r"sequence_lens must have the shape \(2,\)"),
        ({"initial_c": np.zeros((1, 2, 3), np.float32)}, r"initial_c must have the shape \(1, 2, 2\)"),
        ({"direction": "sideways"}, "direction must be one of"),
        ({"hidden_size": 3}, "hidden_size is 3"),
        ({"activations": ("Tanh", "Tanh")}, "activations must name 3"),
        ({"activations": ("Tanh", "Tanh", "Sinh")}, "unknown activation 'Sinh'"),
        ({"clip": -1.0}, "clip must not be negative"),
        ({"layout": 2}, "layout must be 0 or 1"),
    ],
)
def test_lstm_refuses(change: dict[str, Any], needed: str) -> None:
    arguments: dict[str, Any] = {
        "x": np.zeros((4, 2, 3), np.float32),
        "w": np.zeros((1, 8, 3), np.float32),
        "r": np.zeros((1, 8, 2), np.float32),
    }
    with pytest.raises(ValueError, match=needed):
        lstm(**{**arguments, **change})


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("forget", [0.0, 5.0, -5.0, -200.0])
def test_an_infinite_cell_without_peepholes_stays_infinite(forget: float, quantize: bool) -> None:
    """In the definition, in the kernel and in ONNX Runtime (there while σ(forget) does not round to 0), int8 or not."""
    hidden, rng = 3, np.random.default_rng(0)
    w, r = (rng.uniform(-0.1, 0.1, (1, 4 * hidden, n)).astype(np.float32) for n in (2, hidden))
    b = np.zeros((1, 8 * hidden), np.float32)
    b[0, 2 * hidden : 3 * hidden] = forget
    x, c = rng.standard_normal((2, 1, 2)).astype(np.float32), np.float32([[[np.inf, -np.inf, 1]]])
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "w", "r", "b", "", "", "c"], ["y", "", "c_last"], hidden_size=hidden)], "g",
        [info("x", 1, [2, 1, 2]), info("c", 1, [1, 1, hidden])], [info("y", 1, None), info("c_last", 1, None)],
        [numpy_helper.from_array(a, n) for a, n in ((w, "w"), (r, "r"), (b, "b"))],
    )  # fmt: skip
    model = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8).SerializeToString())
    if quantize:
        model = model.quantize_dynamic()
    actual = model.run({"x": x, "c": c})
    assert "not native" not in model.summary()
    y, _, last = lstm(x, w, r, b, None, None, c)
    np.testing.assert_array_equal(last[0, 0, :2], [np.inf, -np.inf])
    np.testing.assert_array_equal(np.sign(y[:, 0, 0, :2]), [[1, -1]] * 2)
    np.testing.assert_allclose(actual["c_last"], last, atol=0.02 if quantize else 1e-6)
    np.testing.assert_allclose(actual["y"], y, atol=0.02 if quantize else 1e-6)


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize(
    ("op", "gates", "attributes"),
    [
        (
            "LSTM", 4,
            {"activations": ["HardSigmoid", "Tanh", "ScaledTanh"], "activation_alpha": [0.25, 0.75], "activation_beta": [0.375, 0.5]},
        ),
        ("LSTM", 4, {"activations": ["Sigmoid", "Relu", "Softsign"], "clip": 1.5}),
        ("GRU", 3, {"activations": ["hardsigmoid", "LeakyRelu"], "activation_alpha": [0.25, 0.125], "linear_before_reset": 1}),
        ("GRU", 3, {"activations": ["Affine", "Elu"], "activation_alpha": [0.5, 0.75], "activation_beta": [0.25]}),
        ("RNN", 1, {"activations": ["ThresholdedRelu"], "activation_alpha": [0.03125]}),
        ("RNN", 1, {"activations": ["Softplus"]}),
    ],
)  # fmt: skip
def test_layers_with_other_activations_stay_native(op: str, gates: int, attributes: dict[str, Any], quantize: bool) -> None:
    """… with the results of the definition; an int8 layer meets it within the rounding of its own codes."""
    rng = np.random.default_rng(3)
    shapes = ((1, gates * 8, 5), (1, gates * 8, 8), (1, 2 * gates * 8))
    w, r, b = (rng.uniform(-0.5, 0.5, shape).astype(np.float32) for shape in shapes)
    x = rng.standard_normal((6, 3, 5)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w", "r", "b"], ["y"], hidden_size=8, **attributes)], "g",
        [helper.make_tensor_value_info("x", 1, [None, None, 5])], [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(a, n) for a, n in ((w, "w"), (r, "r"), (b, "b"))],
    )  # fmt: skip
    model = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8).SerializeToString())
    if quantize:
        model = model.quantize_dynamic()
    actual = model.run({"x": x})["y"]
    assert "not native" not in model.summary()
    expected = {"LSTM": lstm, "GRU": gru, "RNN": rnn}[op](x, w, r, b, **attributes)[0]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0.05 if quantize else 1e-5)
