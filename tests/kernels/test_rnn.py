"""Recurrent nodes against the equations of the ONNX specification in float64, on every rung."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qruntime import _kernels

Array = np.ndarray
EPS = float(np.finfo(np.float32).eps)
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
FLOAT, PER_TOKEN, PER_TENSOR = -1, 0, 1
LAYER_KINDS = [("lstm", 0), ("lstm", 1), ("gru", 0), ("gru", 1), ("rnn", 0)]
FEW_KINDS = [("lstm", 0), ("gru", 0), ("gru", 1), ("rnn", 0)]


# ---------------------------------------------------------------------------------- definition in numpy


def sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


STANDARD = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh"), "rnn": ("tanh",)}
# Kernel → p, q and the function in float64. None has a slope above 1, so that layers do not amplify what is rounded.
ACTIVATIONS: dict[str, tuple[float, float, Callable[[Array], Array]]] = {
    "sigmoid": (0, 0, sigmoid),
    "tanh": (0, 0, np.tanh),
    "relu": (0, 0, lambda x: np.maximum(x, 0)),
    "hard_sigmoid": (0.2, 0.5, lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    "softsign": (0, 0, lambda x: x / (1 + np.abs(x))),
    "softplus": (0, 0, lambda x: np.logaddexp(x, 0)),
    "leaky_relu": (0.25, 0, lambda x: np.where(x < 0, 0.25 * x, x)),
    "elu": (0.75, 0, lambda x: np.where(x < 0, 0.75 * np.expm1(np.minimum(x, 0)), x)),
    "affine": (0.5, -0.25, lambda x: 0.5 * x - 0.25),
    "scaled_tanh": (0.75, 0.5, lambda x: 0.75 * np.tanh(0.5 * x)),
}
OTHERS = {
    "lstm": [("hard_sigmoid", "tanh", "softsign"), ("sigmoid", "relu", "elu"), ("softsign", "scaled_tanh", "leaky_relu")],
    "gru": [("hard_sigmoid", "tanh"), ("sigmoid", "affine")],
    "rnn": [("relu",), ("softplus",)],
}  # fmt: skip


def quantize(rows: Array, mode: int) -> tuple[Array, Array]:
    """(q − zero_point, scale) of float32 rows, one operation after the other as the contract of the int8 GEMM says."""
    axis = 1 if mode == PER_TOKEN else None
    lo = np.minimum(0, rows.min(axis, keepdims=True, initial=0)).astype(np.float32)
    hi = np.maximum(0, rows.max(axis, keepdims=True, initial=0)).astype(np.float32)
    scale = ((hi.astype(np.float64) - lo) / 255).astype(np.float32)
    scale = np.where(scale == 0, np.float32(1), np.maximum(scale, np.finfo(np.float32).tiny))
    zero_point = np.clip(np.rint(-lo / scale), 0, 255)
    q = np.clip(np.rint(rows * (np.float32(1) / scale)) + zero_point, 0, 255)
    return (q - zero_point).astype(np.float64), scale.astype(np.float64)


@dataclass
class Layer:
    """A layer with ONNX-shaped weights W [D, G·H, I], R [D, G·H, H], B [D, 2·G·H]."""

    op: str
    inputs: int
    hidden: int
    direction: int = 0
    layout: int = 0
    variant: int = 0
    clip: float = float("inf")
    mode: int = FLOAT
    per_channel: bool = True
    peepholes: bool = False
    activations: tuple[str, ...] = ()  # for each direction; none: the standard ones
    seed: int = 0
    W: Array = field(init=False)
    R: Array = field(init=False)
    B: Array = field(init=False)
    P: Array | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        rows = GATES[self.op] * self.hidden
        bound = 1 / np.sqrt(self.hidden)
        self.W = rng.uniform(-1, 1, (self.directions, rows, self.inputs)).astype(np.float32)
        self.R = rng.uniform(-bound, bound, (self.directions, rows, self.hidden)).astype(np.float32)
        self.B = rng.uniform(-bound, bound, (self.directions, 2 * rows)).astype(np.float32)
        if self.peepholes:
            self.P = rng.uniform(-1, 1, (self.directions, 3 * self.hidden)).astype(np.float32)
        if self.mode != FLOAT:
            self.Wq, self.Ws = self._to_int8(self.W)
            self.Rq, self.Rs = self._to_int8(self.R)

    def _to_int8(self, w: Array) -> tuple[Array, Array]:
        largest = np.abs(w).max(axis=2 if self.per_channel else (1, 2), keepdims=True, initial=0)
        scale = np.broadcast_to(np.where(largest == 0, 1, largest / 127), (*w.shape[:2], 1)).astype(np.float32)
        return np.clip(np.rint(w / scale), -128, 127).astype(np.int8), scale[:, :, 0]

    @property
    def directions(self) -> int:
        return 2 if self.direction == 2 else 1

    @property
    def splits(self) -> bool:
        return self.op == "gru" and not self.variant

    def biases(self, d: int) -> tuple[Array, Array]:
        """What goes with W and with R."""
        wb, rb = np.split(self.B[d], 2)
        kept = np.zeros_like(rb)
        if self.op == "gru" and self.variant:
            kept[2 * self.hidden :] = rb[2 * self.hidden :]
        return wb + (rb - kept), kept

    def packed(self) -> list[Any]:
        result = []
        for d in range(self.directions):
            wb, rb = self.biases(d)
            parts = [slice(0, 2 * self.hidden), slice(2 * self.hidden, None)] if self.splits else [slice(None)]
            if self.mode == FLOAT:
                result.append(_kernels.PackedF32(self.W[d].T, wb))
                result += [_kernels.PackedF32(self.R[d, p].T, rb[p]) for p in parts]
            else:
                result.append(_kernels.PackedQ8(self.Wq[d].T, self.Ws[d], None, wb))
                result += [_kernels.PackedQ8(self.Rq[d, p].T, self.Rs[d, p], None, rb[p]) for p in parts]
        return result

    def call(self, x: Array, lengths: Any = None, h: Any = None, c: Any = None, wanted: int = 7,
             threads: int = 1, packed: list[Any] | None = None) -> list[Array] | None:  # fmt: skip
        inputs = [x, None if lengths is None else np.asarray(lengths, np.int32), h]
        if self.op == "lstm":
            inputs += [c, self.P]
        mode = max(self.mode, PER_TOKEN)
        ints = [self.hidden, self.direction, self.layout, mode, mode, 255, wanted, self.variant]
        ints += [_kernels.UNARY[name] for name in self.activations]
        floats = [self.clip, *(value for name in self.activations for value in ACTIVATIONS[name][:2])]
        return _kernels.call_node(self.op, inputs, ints=ints, floats=floats, packed=packed or self.packed(),
                         num_outputs=3 if self.op == "lstm" else 2, num_threads=threads)  # fmt: skip

    def run(self, x: Array, *args: Any, **kwargs: Any) -> list[Array]:
        outputs = self.call(x, *args, **kwargs)
        assert outputs is not None, "the node declined"
        return outputs

    # The definition, time-major.

    def _product(self, a: Array, weight: str, d: int, rows: slice) -> Array:
        if self.mode == FLOAT:
            return a.astype(np.float64) @ getattr(self, weight)[d, rows].T.astype(np.float64)
        q, scale = quantize(a.astype(np.float32), self.mode)
        w, s = getattr(self, weight + "q")[d, rows], getattr(self, weight + "s")[d, rows]
        return (q @ w.T.astype(np.float64)) * scale * s.astype(np.float64)

    def _step(self, d: int, gx: Array, h: Array, c: Array) -> tuple[Array, Array]:
        n, every = self.hidden, slice(None)
        rb = self.biases(d)[1].astype(np.float64)
        names = self.activations or STANDARD[self.op] * self.directions
        each = len(STANDARD[self.op])
        first, second, third = (ACTIVATIONS[names[d * each + min(i, each - 1)]][2] for i in range(3))

        def limit(v: Array) -> Array:
            return np.clip(v, -self.clip, self.clip)

        if self.op == "rnn":
            gates = limit(gx + self._product(h, "R", d, every))
            return first(gates), c
        if self.op == "gru":
            zr = slice(0, 2 * n)
            z, r = np.split(first(limit(gx[:, zr] + self._product(h, "R", d, zr))), 2, axis=1)
            last = slice(2 * n, None)
            if self.variant:
                candidate = gx[:, last] + r * (self._product(h, "R", d, last) + rb[last])
            else:
                candidate = gx[:, last] + self._product(r * h, "R", d, last)
            return (1 - z) * second(limit(candidate)) + z * h, c
        i, o, f, g = np.split(gx + self._product(h, "R", d, every), 4, axis=1)
        pi, po, pf = np.zeros((3, n)) if self.P is None else np.split(self.P[d].astype(np.float64), 3)
        i = first(limit(i + pi * c))
        f = 1 - i if self.variant else first(limit(f + pf * c))
        c = f * c + i * second(limit(g))
        return first(limit(o + po * c)) * third(c), c

    def define(self, x: Array, lengths: Any = None, h: Any = None, c: Any = None, forced: Array | None = None) -> list[Array]:
        """Y, Y_h, Y_c in float64. `forced`, a Y, gives the hidden state that each next step starts from."""
        if self.layout:
            x = x.transpose(1, 0, 2)
            h, c = (None if s is None else s.transpose(1, 0, 2) for s in (h, c))
            forced = None if forced is None else forced.transpose(1, 2, 0, 3)
        steps, batch, _ = x.shape
        lengths = np.full(batch, steps) if lengths is None else np.asarray(lengths)
        shape = (self.directions, batch, self.hidden)
        states = [np.zeros(shape) if s is None else s.astype(np.float64) for s in (h, c)]
        y = np.zeros((steps, *shape))
        for d in range(self.directions):
            reverse = self.direction == 1 or d == 1
            product = self._product(x.reshape(steps * batch, self.inputs), "W", d, slice(None))
            gx = product.reshape(steps, batch, GATES[self.op] * self.hidden) + self.biases(d)[0]
            for t in reversed(range(steps)) if reverse else range(steps):
                running = np.flatnonzero(t < lengths)
                if not running.size:
                    continue
                span = slice(running[0], running[-1] + 1)
                new = self._step(d, gx[t, span], states[0][d, span], states[1][d, span])
                for state, value in zip(states, new, strict=True):
                    state[d, running] = value[running - running[0]]
                y[t, d, running] = states[0][d, running]
                if forced is not None:
                    states[0][d, running] = forced[t, d, running]
        if self.layout:
            y, states = y.transpose(2, 0, 1, 3), [s.transpose(1, 0, 2) for s in states]
        return [y, *states] if self.op == "lstm" else [y, states[0]]

    def data(self, steps: int, batch: int, seed: int = 1, states: bool = True) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        x = rng.uniform(-1, 1, (steps, batch, self.inputs)).astype(np.float32)
        h, c = rng.uniform(-1, 1, (2, self.directions, batch, self.hidden)).astype(np.float32)
        if self.layout:
            x, h, c = (np.ascontiguousarray(a.transpose(1, 0, 2)) for a in (x, h, c))
        return {"x": x, "h": h if states else None, "c": c if states and self.op == "lstm" else None}


def check_float(layer: Layer, steps: int, lengths: Any = None, threads: int = 1, **data: Any) -> list[Array]:
    """Every step adds the rounding of a product over I + H and of the gates; the layers here do not amplify it."""
    found = layer.run(lengths=lengths, threads=threads, **data)
    wanted = layer.define(lengths=lengths, **data)
    bound = 8 * EPS * np.sqrt(layer.inputs + layer.hidden + 16) * (steps + 1)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == np.float32
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)
    return found


def check_quantized(layer: Layer, lengths: Any = None, threads: int = 1, **data: Any) -> None:
    """Each step is emulated from the hidden state it really had, so that both quantize the same bits."""
    found = layer.run(lengths=lengths, threads=threads, **data)
    y, *_ = layer.define(lengths=lengths, **data, forced=found[0])
    assert found[0].shape == y.shape
    error = np.abs(found[0] - y)
    tight = 64 * EPS
    if not layer.splits:
        assert error.max(initial=0) <= tight
        return
    # r ⊙ h is not seen from outside: a last bit of r may turn one of its elements to the next level.
    worst = error.max(axis=-1, initial=0)
    level = 2 / 255 * np.abs(layer.R).max(initial=0)
    assert worst.max(initial=0) <= tight + 2 * level
    assert np.count_nonzero(worst > tight) <= max(2, worst.size // 8)


# ------------------------------------------------------------------------------------------------ floats


@pytest.mark.parametrize(("op", "variant"), LAYER_KINDS)
@pytest.mark.parametrize("direction", [0, 1, 2])
@pytest.mark.parametrize("layout", [0, 1])
def test_float(rung: str, op: str, variant: int, direction: int, layout: int) -> None:
    layer = Layer(op, 5, 11, direction, layout, variant)
    check_float(layer, 6, **layer.data(6, 3))
    check_float(layer, 6, **layer.data(6, 3, states=False))


@pytest.mark.parametrize(("op", "variant"), FEW_KINDS)
@pytest.mark.parametrize("hidden", [*range(1, 41), 64, 256])
def test_hidden_sizes(rung: str, op: str, variant: int, hidden: int) -> None:
    layer = Layer(op, 3, hidden, variant=variant, seed=hidden)
    check_float(layer, 3, **layer.data(3, 2))


@pytest.mark.parametrize(("op", "variant"), FEW_KINDS)
@pytest.mark.parametrize("direction", [0, 1, 2])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("lengths", [[0, 4, 2, 1], [2, 0, 0, 0], [0, 0, 0, 0], [4, 4, 4, 4], [1, 0, 3, 0]])
def test_lengths(rung: str, op: str, variant: int, direction: int, layout: int, lengths: list[int]) -> None:
    layer = Layer(op, 3, 9, direction, layout, variant)
    data = layer.data(4, 4)
    y, y_h, *_ = check_float(layer, 4, lengths=lengths, **data)
    if layout:
        y, y_h = y.transpose(1, 2, 0, 3), y_h.transpose(1, 0, 2)
        data["h"] = data["h"].transpose(1, 0, 2)
    for b, length in enumerate(lengths):
        assert not y[length:, :, b].any()
        for d in range(layer.directions):
            last = 0 if direction == 1 or d == 1 else length - 1
            assert np.array_equal(y_h[d, b], y[last, d, b] if length else data["h"][d, b])


@pytest.mark.parametrize("clip", [0.0, 0.25, 1.5])
@pytest.mark.parametrize(("op", "variant"), LAYER_KINDS)
@pytest.mark.parametrize("direction", [0, 2])
def test_clip_and_peepholes(rung: str, op: str, variant: int, direction: int, clip: float) -> None:
    layer = Layer(op, 4, 13, direction, variant=variant, clip=clip, peepholes=op == "lstm")
    check_float(layer, 5, **layer.data(5, 2))
    layer.clip = float("inf")
    check_float(layer, 5, **layer.data(5, 2))


@pytest.mark.parametrize(("op", "variant"), FEW_KINDS)
@pytest.mark.parametrize("mode", [FLOAT, PER_TOKEN])
@pytest.mark.parametrize("layout", [0, 1])
def test_empty(rung: str, op: str, variant: int, mode: int, layout: int) -> None:
    layer = Layer(op, 3, 7, 2, layout, variant, mode=mode)
    for steps, batch in [(0, 3), (4, 0), (0, 0)]:
        data = layer.data(steps, batch)
        found = layer.run(**data)
        for a, b in zip(found, layer.define(**data), strict=True):
            assert a.shape == b.shape
        assert np.array_equal(found[1], data["h"])


@pytest.mark.parametrize(("op", "variant"), LAYER_KINDS)
@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(0, 5), batch=st.integers(0, 9), inputs=st.integers(0, 9), hidden=st.integers(1, 35),
    direction=st.integers(0, 2), layout=st.integers(0, 1), threads=st.integers(1, 3), states=st.booleans(),
    mode=st.sampled_from([FLOAT, PER_TOKEN, PER_TENSOR]), seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_any_shape(
    op: str, variant: int, steps: int, batch: int, inputs: int, hidden: int, direction: int, layout: int,
    threads: int, states: bool, mode: int, seed: int, data: st.DataObject,
) -> None:  # fmt: skip
    layer = Layer(op, inputs, hidden, direction, layout, variant, mode=mode, seed=seed)
    feeds = layer.data(steps, batch, seed + 1, states)
    lengths = data.draw(st.none() | st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    if mode == FLOAT:
        check_float(layer, steps, lengths=lengths, threads=threads, **feeds)
    else:
        check_quantized(layer, lengths=lengths, threads=threads, **feeds)


@pytest.mark.parametrize(("op", "variant"), LAYER_KINDS)
@pytest.mark.parametrize("mode", [FLOAT, PER_TOKEN, PER_TENSOR])
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_threads_share_a_step(rung: str, op: str, variant: int, mode: int, batch: int) -> None:
    """Large enough for threads to split the columns of one step, or the rows of a batch."""
    layer = Layer(op, 40, 700 if op == "rnn" else 390, variant=variant, mode=mode)
    data, packed, lengths = layer.data(3, batch), layer.packed(), [3, 1, 2, 3, 0, 3, 3, 2, 1][:batch]
    alone = layer.run(lengths=lengths, packed=packed, **data)
    for threads in (2, 3):
        for a, b in zip(layer.run(lengths=lengths, packed=packed, threads=threads, **data), alone, strict=True):
            assert np.array_equal(a, b)


def other_layers(mode: int = FLOAT, **options: Any) -> Iterator[Layer]:
    """Layers with activations of all kinds, another one in the second direction."""
    for op, variant in LAYER_KINDS:
        for i, names in enumerate(OTHERS[op]):
            both = (*names, *OTHERS[op][i - 1])
            direction = i % 3
            yield Layer(op, 6, 21, direction, variant=variant, mode=mode, activations=both if direction == 2 else names, **options)
            yield Layer(op, 6, 21, 2, 1, variant, mode=mode, activations=both, **options)


@pytest.mark.parametrize("clip", [0.75, float("inf")])
def test_other_activations(rung: str, clip: float) -> None:
    for layer in other_layers(clip=clip):
        check_float(layer, 5, **layer.data(5, 3))
        check_float(layer, 5, lengths=[2, 0, 5], **layer.data(5, 3))
    for names in OTHERS["lstm"]:
        layer = Layer("lstm", 4, 13, activations=names, peepholes=True, clip=clip)
        check_float(layer, 5, **layer.data(5, 2))


@pytest.mark.parametrize("mode", [FLOAT, PER_TOKEN])
def test_rows_stand_alone_with_other_activations(rung: str, mode: int) -> None:
    for layer in other_layers(mode):
        if mode != FLOAT:
            check_quantized(layer, **layer.data(4, 3))
        data, packed = layer.data(4, 9), layer.packed()
        whole = layer.run(**data, packed=packed)
        for threads in (2, 3):
            for a, b in zip(whole, layer.run(**data, threads=threads, packed=packed), strict=True):
                assert np.array_equal(a, b)
        for b in (0, 4, 8):
            pick = (slice(b, b + 1),) if layer.layout else (slice(None), slice(b, b + 1))
            alone = {name: None if a is None else np.ascontiguousarray(a[pick]) for name, a in data.items()}
            found = layer.run(**alone, packed=packed)
            for a, wanted in zip(rows_of(layer, found, 0), rows_of(layer, whole, b), strict=True):
                assert np.array_equal(a, wanted)


# ------------------------------------------------------------------------------------------------ int8


@pytest.mark.parametrize(("op", "variant"), LAYER_KINDS)
@pytest.mark.parametrize("direction", [0, 1, 2])
@pytest.mark.parametrize("mode", [PER_TOKEN, PER_TENSOR])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantized(rung: str, op: str, variant: int, direction: int, mode: int, per_channel: bool) -> None:
    for layout, hidden in [(0, 21), (1, 40)]:
        layer = Layer(op, 10, hidden, direction, layout, variant, mode=mode, per_channel=per_channel)
        check_quantized(layer, **layer.data(6, 4))
        check_quantized(layer, lengths=[3, 0, 6, 1], **layer.data(6, 4))


@pytest.mark.parametrize(("op", "variant"), [("lstm", 0), ("gru", 1), ("rnn", 0)])
@pytest.mark.parametrize("layout", [0, 1])
def test_per_tensor_range_spans_blocks_and_threads(op: str, variant: int, layout: int) -> None:
    """One range for all of X, though it holds more steps than a block; one for all rows of h, whatever the threads."""
    hidden = 256 if op == "rnn" else 64
    layer = Layer(op, 3, hidden, layout=layout, variant=variant, mode=PER_TENSOR)
    check_quantized(layer, **layer.data(150, 12))
    data, packed = layer.data(9, 32), layer.packed()
    for a, b in zip(layer.run(**data, packed=packed), layer.run(**data, threads=3, packed=packed), strict=True):
        assert np.array_equal(a, b)


# ---------------------------------------------------------------------------------------- independence


def rows_of(layer: Layer, outputs: list[Array], b: int) -> list[Array]:
    y, *states = outputs
    return [y[b] if layer.layout else y[:, :, b], *(s[b] if layer.layout else s[:, b] for s in states)]


@pytest.mark.parametrize(("op", "variant"), FEW_KINDS)
@pytest.mark.parametrize("mode", [FLOAT, PER_TOKEN])
@pytest.mark.parametrize("layout", [0, 1])
def test_row_stands_alone(rung: str, op: str, variant: int, mode: int, layout: int) -> None:
    """A row gives the same bits alone, among others, with other threads and in a padded sequence."""
    batch, steps = 17, 5
    layer = Layer(op, 6, 37, 2, layout, variant, mode=mode)
    data = layer.data(steps, batch)
    lengths = np.random.default_rng(0).integers(0, steps + 1, batch)
    packed = layer.packed()
    whole = layer.run(**data, lengths=lengths, packed=packed)
    for threads in (2, 3):
        for a, b in zip(whole, layer.run(**data, lengths=lengths, threads=threads, packed=packed), strict=True):
            assert np.array_equal(a, b)
    rows = slice(None), slice(None)
    for b in range(batch):
        pick = (slice(b, b + 1), *rows) if layout else (slice(None), slice(b, b + 1), slice(None))
        alone = {name: None if a is None else a[pick] for name, a in data.items()}
        length = lengths[b]
        alone["x"] = alone["x"][:, :length] if layout else alone["x"][:length]
        y, *states = rows_of(layer, layer.run(**alone, packed=packed), 0)
        wanted_y, *wanted_states = rows_of(layer, whole, b)
        assert np.array_equal(y, wanted_y[:length])
        for a, wanted in zip(states, wanted_states, strict=True):
            assert np.array_equal(a, wanted)


@pytest.mark.parametrize(("op", "variant"), FEW_KINDS)
@pytest.mark.parametrize("mode", [FLOAT, PER_TOKEN])
@pytest.mark.parametrize("threads", [2, 3])
def test_threads(rung: str, op: str, variant: int, mode: int, threads: int) -> None:
    layer = Layer(op, 6, 64, 0, 0, variant, mode=mode)
    data, packed = layer.data(9, 32), layer.packed()
    for a, b in zip(layer.run(**data, packed=packed), layer.run(**data, threads=threads, packed=packed), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(("op", "variant"), FEW_KINDS)
@pytest.mark.parametrize("mode", [FLOAT, PER_TOKEN])
@pytest.mark.parametrize(("layout", "batch", "steps"), [(0, 1, 1500), (1, 3, 700), (1, 700, 3), (0, 700, 3)])
def test_long_sequences(op: str, variant: int, mode: int, layout: int, batch: int, steps: int) -> None:
    """More steps than one block holds: the same bits as piece by piece, in both directions."""
    hidden = 256 if op == "rnn" else 64
    cut = steps // 3
    for direction in (0, 1):
        layer = Layer(op, 2, hidden, direction, layout, variant, mode=mode)
        data, packed = layer.data(steps, batch), layer.packed()
        y, *states = layer.run(**data, packed=packed)
        axis = 1 if layout else 0
        pieces = np.split(data.pop("x"), [cut], axis=axis)
        order = (1, 0) if direction else (0, 1)
        found = {}
        for i in order:
            found[i], *piece_states = layer.run(x=pieces[i], packed=packed, **data)
            data = dict(zip(("h", "c"), piece_states, strict=False))
        assert np.array_equal(y, np.concatenate([found[0], found[1]], axis=axis))
        for a, b in zip(states, piece_states, strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize(("op", "variant"), LAYER_KINDS)
@pytest.mark.parametrize("mode", [FLOAT, PER_TOKEN])
def test_nan_stays_in_its_row(rung: str, op: str, variant: int, mode: int) -> None:
    layer = Layer(op, 4, 19, variant=variant, mode=mode, clip=3.0)
    data = layer.data(4, 3)
    clean = layer.run(**data)[0]
    data["x"][1, 1, 2] = np.nan
    dirty = layer.run(**data)[0]
    assert np.array_equal(dirty[:, :, [0, 2]], clean[:, :, [0, 2]])
    assert np.array_equal(dirty[0], clean[0])
    assert np.isnan(dirty[1:, :, 1]).all()


@pytest.mark.parametrize(("op", "variant"), LAYER_KINDS)
def test_large_inputs_saturate(rung: str, op: str, variant: int) -> None:
    layer = Layer(op, 4, 19, variant=variant, clip=30.0)
    data = layer.data(3, 5)
    layer.W[:] = np.abs(layer.W)  # products of infinities must not meet in inf − inf
    for value in (1e4, -1e4, 3e38, -3e38, np.inf, -np.inf):
        data["x"][:] = value
        y, *states = layer.run(**data)
        assert all(np.isfinite(a).all() for a in (y, *states))
        assert np.abs(y).max() <= max(1, 30 * (op == "rnn"))


# --------------------------------------------------------------------------------------- odd arguments


def test_unwanted_outputs_stay_empty() -> None:
    layer = Layer("lstm", 3, 6, 2)
    data = layer.data(4, 2)
    whole = layer.run(**data)
    for wanted in range(8):
        found = layer.run(**data, wanted=wanted)
        for i in range(3):
            assert found[i] is None if not wanted >> i & 1 else np.array_equal(found[i], whole[i])


def test_declines_what_does_not_fit() -> None:
    layer = Layer("lstm", 3, 6, peepholes=True)
    data = layer.data(4, 2)
    x, h, c = data["x"], data["h"], data["c"]
    assert layer.call(x, h=h, c=c) is not None
    assert layer.call(x[:, :, :2], h=h, c=c) is None
    assert layer.call(x[0], h=h, c=c) is None
    assert layer.call(x.astype(np.float64), h=h, c=c) is None
    assert layer.call(x, h=h[:, :1], c=c) is None
    assert layer.call(x, h=h, c=c[:, :, :5]) is None
    assert layer.call(x, h=h.astype(np.float64), c=c) is None
    for lengths in ([5, 1], [-1, 2], [1], [1, 2, 3], [[1, 2]]):
        assert layer.call(x, lengths, h, c) is None
    layer.P = layer.P[:, :17]
    assert layer.call(x, h=h, c=c) is None
    layer.P = None
    packed = layer.packed()
    for attribute, value in [("hidden", 5), ("hidden", 0), ("hidden", -1), ("direction", 3), ("direction", 2),
                             ("layout", 2), ("clip", -1.0), ("clip", float("nan"))]:  # fmt: skip
        before = getattr(layer, attribute)
        setattr(layer, attribute, value)
        assert layer.call(x, packed=packed) is None, attribute
        setattr(layer, attribute, before)
    assert layer.call(x, packed=packed[:1]) is None
    for names in (("relu",), ("relu", "tanh"), ("relu",) * 6):
        layer.activations = names
        assert layer.call(x, packed=packed) is None, names
    layer.activations = ()
    assert layer.call(x, packed=packed[::-1]) is None
    gru = Layer("gru", 3, 6)
    assert gru.call(x, packed=Layer("gru", 3, 6, variant=1).packed()) is None
