"""Recurrent layers of float64 on every rung: against the numpy definitions, and every row alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime import _kernels
from qruntime.ops.recurrent import gru, lstm, rnn
from tests.small_models import model_bytes

DEFINITIONS = {"LSTM": lstm, "GRU": gru, "RNN": rnn}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
KINDS = [("LSTM", {}), ("LSTM", {"input_forget": 1}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {})]
NAMES = ["x", "w", "r", "b", "lengths", "h", "c", "p"]

# Sums of up to 80 products of numbers below 1, and functions whose slope is below 1: what a step rounds does not grow.
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


class Layer:
    def __init__(
        self,
        op: str,
        inputs: int,
        hidden: int,
        *,
        steps: int = 5,
        batch: int = 3,
        without: tuple[str, ...] = (),
        seed: int = 0,
        **attributes: Any,
    ):
        rng, self.op, self.attributes = np.random.default_rng(seed), op, {"hidden_size": hidden, **attributes}
        count, rows = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[op] * hidden
        bound = hidden**-0.5
        arrays = {
            "x": rng.uniform(-1, 1, (steps, batch, inputs)), "w": rng.uniform(-1, 1, (count, rows, inputs)),
            "r": rng.uniform(-bound, bound, (count, rows, hidden)), "b": rng.uniform(-1, 1, (count, 2 * rows)),
            "lengths": rng.integers(0, steps + 1, batch).astype(np.int32), "h": rng.uniform(-1, 1, (count, batch, hidden)),
            "c": rng.uniform(-1, 1, (count, batch, hidden)), "p": rng.uniform(-1, 1, (count, 3 * hidden)),
        }  # fmt: skip
        absent = set(without) | (set() if op == "LSTM" else {"c", "p"})
        self.arrays = {name: None if name in absent else array for name, array in arrays.items()}
        if attributes.get("layout"):
            for name in ("x", "h", "c"):
                if self.arrays[name] is not None:
                    self.arrays[name] = np.ascontiguousarray(self.arrays[name].swapaxes(0, 1))
        self.loaded: dict[int, qruntime.Model] = {}

    def defined(self) -> tuple[np.ndarray, ...]:
        keywords = {name: value for name, value in self.attributes.items() if name != "output_sequence"}
        return DEFINITIONS[self.op](*(self.arrays[name] for name in self._names()), **keywords)

    def _names(self) -> list[str]:
        return NAMES if self.op == "LSTM" else NAMES[:6]

    def model(self, threads: int) -> qruntime.Model:
        if threads not in self.loaded:
            used = [name if self.arrays[name] is not None else "" for name in self._names()]
            outputs = ["y", "y_h", "y_c"][: 3 if self.op == "LSTM" else 2]
            node = helper.make_node(self.op, used, outputs, **self.attributes)
            inputs = [
                (name, TensorProto.INT32 if name == "lengths" else TensorProto.DOUBLE, None) for name in used if name and name not in "wrbp"
            ]
            weights = {name: self.arrays[name] for name in used if name and name in "wrbp"}
            data = model_bytes([node], inputs, [(name, TensorProto.DOUBLE, None) for name in outputs], weights, opset=22)
            self.loaded[threads] = qruntime.load(data, threads=threads)
        return self.loaded[threads]

    def run(self, threads: int = 1, **changed: np.ndarray) -> list[np.ndarray]:
        feed = {name: array for name, array in (self.arrays | changed).items() if array is not None and name not in "wrbp"}
        outputs = self.model(threads).run(feed)
        assert "nodes: 1 native" in self.model(threads).summary(feed)
        return list(outputs.values())

    def check(self, threads: int = 1) -> None:
        for found, wanted in zip(self.run(threads), self.defined(), strict=True):
            assert (found.dtype, found.shape) == (np.float64, wanted.shape)
            np.testing.assert_allclose(found, wanted, **CLOSE)


def parts(layer: Layer, outputs: list[np.ndarray], row: int) -> list[np.ndarray]:
    y, *states = outputs
    first = bool(layer.attributes.get("layout"))
    return [y[row] if first else y[:, :, row], *(state[row] if first else state[:, row] for state in states)]


@pytest.mark.parametrize(("op", "variant"), KINDS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("layout", [0, 1])
def test_layers(rung: str, op: str, variant: dict[str, int], direction: str, layout: int) -> None:
    for without in [(), ("lengths",), ("b", "p"), ("h", "c", "lengths"), ("h", "c", "p", "b", "lengths")]:
        Layer(op, 5, 11, direction=direction, layout=layout, without=without, **variant).check()


@pytest.mark.parametrize(("op", "variant"), KINDS)
def test_sizes(rung: str, op: str, variant: dict[str, int]) -> None:
    for hidden in [*range(1, 11), 15, 16, 17, 31, 32, 33, 63, 64, 65, 80]:
        Layer(op, 1 + hidden % 7, hidden, batch=1 + hidden % 4, seed=hidden, **variant).check()
    for steps, batch, inputs in [(0, 3, 4), (3, 0, 4), (3, 2, 0), (1, 1, 300)]:
        Layer(op, inputs, 9, steps=steps, batch=batch, without=("lengths",), **variant).check()


@pytest.mark.parametrize(("op", "variant"), KINDS)
@pytest.mark.parametrize("clip", [0.25, 1.5])
def test_clip(rung: str, op: str, variant: dict[str, int], clip: float) -> None:
    Layer(op, 6, 19, clip=clip, **variant).check()


ACTIVATIONS: dict[str, list[tuple[list[str], dict[str, list[float]]]]] = {
    "LSTM": [
        (["HardSigmoid", "Tanh", "Softsign"], {}), (["Sigmoid", "Relu", "Elu"], {"activation_alpha": [0.5]}),
        (["Softsign", "ScaledTanh", "LeakyRelu"], {"activation_alpha": [0.75, 0.25], "activation_beta": [0.5]}),
        (["Sigmoid", "Softplus", "ThresholdedRelu"], {"activation_alpha": [0.5]}),
    ],
    "GRU": [(["HardSigmoid", "Tanh"], {}), (["Sigmoid", "Affine"], {"activation_alpha": [0.5], "activation_beta": [-0.25]})],
    "RNN": [(["Relu"], {}), (["Sigmoid"], {}), (["Softplus"], {})],
}  # fmt: skip


def each_choice() -> Iterator[Any]:
    for op, choices in ACTIVATIONS.items():
        yield from ((op, *choice) for choice in choices)


@pytest.mark.parametrize(("op", "names", "parameters"), list(each_choice()))
def test_activations(rung: str, op: str, names: list[str], parameters: dict[str, list[float]]) -> None:
    for variant in [variant for kind, variant in KINDS if kind == op]:
        for clip in ({}, {"clip": 0.75}):
            Layer(op, 4, 18, activations=names, **parameters, **variant, **clip).check()


def test_a_threshold_that_is_met_lets_through() -> None:
    """Recurrent layers give x from alpha on, the operator of that name above alpha."""
    layer = Layer("RNN", 1, 3, steps=1, without=("h", "lengths"), activations=["ThresholdedRelu"], activation_alpha=[0.5])
    layer.arrays["w"][:], layer.arrays["b"][:] = [[[1], [1], [1]]], 0
    for value, expected in ((0.5, 0.5), (np.nextafter(0.5, 0), 0.0)):
        layer.arrays["x"][:] = value
        np.testing.assert_array_equal(layer.run()[0], np.full((1, 1, 3, 3), expected))


@pytest.mark.parametrize(("op", "variant"), KINDS)
@pytest.mark.parametrize("layout", [0, 1])
def test_row_stands_alone(rung: str, op: str, variant: dict[str, int], layout: int) -> None:
    """A row gives the same bits alone, among others, with other threads and in a padded sequence."""
    layer = Layer(op, 6, 65, batch=17, direction="bidirectional", layout=layout, **variant)
    whole, lengths = layer.run(), layer.arrays["lengths"]
    for threads in (2, 3):
        for again, wanted in zip(layer.run(threads), whole, strict=True):
            np.testing.assert_array_equal(again, wanted)
    for row in range(17):
        alone = {}
        for name in ("x", "h", "c"):
            array = layer.arrays[name]
            alone[name] = None if array is None else array[row : row + 1] if layout else array[:, row : row + 1]
        length = int(lengths[row])
        alone["x"] = alone["x"][:, :length] if layout else alone["x"][:length]
        y, *states = parts(layer, layer.run(lengths=lengths[row : row + 1], **alone), 0)
        wanted_y, *wanted_states = parts(layer, whole, row)
        np.testing.assert_array_equal(y, wanted_y[:length])
        for state, wanted in zip(states, wanted_states, strict=True):
            np.testing.assert_array_equal(state, wanted)


@pytest.mark.parametrize(("op", "variant"), KINDS)
@pytest.mark.parametrize(("layout", "batch", "steps"), [(0, 1, 1500), (1, 3, 700), (1, 700, 3), (0, 700, 3)])
def test_long_sequences(op: str, variant: dict[str, int], layout: int, batch: int, steps: int) -> None:
    """More steps than a block holds: the same bits as piece by piece, in both directions, on any number of threads."""
    for direction in ("forward", "reverse"):
        layer = Layer(op, 2, 64, steps=steps, batch=batch, layout=layout, direction=direction, without=("lengths",), **variant)
        y, *states = layer.run()
        for found, wanted in zip(layer.run(3), (y, *states), strict=True):
            np.testing.assert_array_equal(found, wanted)
        axis, pieces = layout, {}
        halves = np.split(layer.arrays["x"], [steps // 3], axis=axis)
        carried = {name: layer.arrays[name] for name in ("h", "c")}
        for i in (1, 0) if direction == "reverse" else (0, 1):
            pieces[i], *piece_states = layer.run(x=halves[i], **carried)
            carried |= dict(zip(("h", "c"), piece_states, strict=False))
        np.testing.assert_array_equal(y, np.concatenate([pieces[0], pieces[1]], axis=axis))
        for state, wanted in zip(piece_states, states, strict=True):
            np.testing.assert_array_equal(state, wanted)


@pytest.mark.parametrize(("op", "variant"), KINDS)
def test_nan_stays_in_its_row(rung: str, op: str, variant: dict[str, int]) -> None:
    layer = Layer(op, 4, 19, without=("lengths",), clip=3.0, **variant)
    clean, x = layer.run()[0], layer.arrays["x"].copy()
    x[1, 1, 2] = np.nan
    dirty = layer.run(x=x)[0]
    np.testing.assert_array_equal(dirty[:, :, [0, 2]], clean[:, :, [0, 2]])
    np.testing.assert_array_equal(dirty[0], clean[0])
    assert np.isnan(dirty[1:, :, 1]).all()


def test_an_infinite_cell_stays_infinite(rung: str) -> None:
    """A forget gate is never 0, however small: 0 · ∞ would be NaN."""
    layer = Layer("LSTM", 2, 9, without=("lengths", "p"))
    layer.arrays["c"][:] = np.inf
    layer.arrays["b"][:] = -1e4
    layer.check()
    assert not any(np.isnan(output).any() for output in layer.run())


def test_odd_calls_are_declined() -> None:
    weights = [_kernels.PackedArray(np.zeros((2, 1 + k, 16))) for k in (3, 6)]  # LSTM of 3 inputs, 6 units: 24 columns
    x, ints = np.zeros((4, 2, 3)), [6, 0, 0, 0, 0, 255, 7, 0]

    def call(x: np.ndarray = x, rest: tuple[Any, ...] = (), ints: list[int] = ints, floats: Any = (np.inf,), packed: Any = weights) -> Any:
        return _kernels.call_node("lstm_f64", [x, *rest], ints=ints, floats=floats, packed=packed, num_outputs=3)

    assert call() is not None
    states = np.zeros((1, 2, 6))
    assert call(rest=(None, states, states, np.zeros((1, 18)))) is not None
    for odd in (x.astype(np.float32), x[0], x[:, :, :2]):
        assert call(np.ascontiguousarray(odd)) is None
    for at, value in [(0, 5), (0, 0), (0, -1), (0, 1 << 40), (1, 3), (1, 2), (2, 2)]:
        assert call(ints=[*ints[:at], value, *ints[at + 1 :]]) is None, (at, value)
    assert call(ints=ints[:5]) is None
    for floats in ((), (-1.0,), (np.nan,), (1.0, 2.0)):
        assert call(floats=floats) is None
    for packed in ((), weights[:1], weights[::-1], [*weights, *weights]):
        assert call(packed=packed) is None
    for lengths in ([5, 1], [-1, 2], [1], [1, 2, 3], [[1, 2]]):
        assert call(rest=(np.asarray(lengths, np.int32),)) is None
    for rest in [
        (None, states[:, :1]),
        (None, states.astype(np.float32)),
        (None, None, np.zeros((1, 2, 5))),
        (None, None, None, np.zeros((1, 17))),
    ]:
        assert call(rest=tuple(None if r is None else np.ascontiguousarray(r) for r in rest)) is None
    unary = [_kernels.UNARY[name] for name in ("sigmoid", "relu", "tanh")]
    assert call(ints=[*ints, *unary], floats=[np.inf] + [0.0] * 6) is not None
    assert call(ints=[*ints, *unary[:2]], floats=[np.inf] + [0.0] * 4) is None
    assert call(ints=[*ints, *unary[:2], 1000], floats=[np.inf] + [0.0] * 6) is None


def test_unread_outputs_stay_empty() -> None:
    weights = [_kernels.PackedArray(np.random.default_rng(k).standard_normal((2, 1 + k, 16))) for k in (3, 6)]
    x = np.random.default_rng(0).standard_normal((4, 2, 3))

    def run(wanted: int) -> list[np.ndarray]:
        return _kernels.call_node("lstm_f64", [x], ints=[6, 0, 0, 0, 0, 255, wanted, 0], floats=[np.inf], packed=weights, num_outputs=3)

    whole = run(7)
    for wanted in range(8):
        for i, output in enumerate(run(wanted)):
            assert output is None if not wanted >> i & 1 else np.array_equal(output, whole[i])
