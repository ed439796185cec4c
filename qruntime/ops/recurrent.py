"""Recurrent layers: LSTM, GRU and RNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from qruntime.ops.checks import limit_shape, require_rank, require_shape
from qruntime.ops.precision import working_dtype
from qruntime.ops.products import matmul
from qruntime.ops.registry import operator

Activation = Callable[[np.ndarray], np.ndarray]

DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


# exp and tanh in float64: numpy's own float32 versions differ from CPU to CPU, and where a hidden state is
# rounded to codes at every step the last bit may decide.


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """Positive however small x is: a gate of 0 would make NaN of an infinite cell."""
    most = int(np.log(np.finfo(x.dtype).max))
    return 1 / (1 + np.exp(np.minimum(-x, most), dtype=np.float64).astype(x.dtype))


def _tanh(x: np.ndarray) -> np.ndarray:
    return np.tanh(x, dtype=np.float64).astype(x.dtype)


def _elu(x: np.ndarray, alpha: float) -> np.ndarray:
    return np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))).astype(x.dtype)


# Name in lower case → function of (x, alpha, beta), default alpha, default beta; None: takes no such value.
_ACTIVATIONS: dict[str, tuple[Callable[[np.ndarray, float, float], np.ndarray], float | None, float | None]] = {
    "relu": (lambda x, a, b: np.maximum(x, 0), None, None),
    "tanh": (lambda x, a, b: _tanh(x), None, None),
    "sigmoid": (lambda x, a, b: _sigmoid(x), None, None),
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, b: np.where(x >= 0, x, a * x).astype(x.dtype), 0.01, None),
    "thresholdedrelu": (lambda x, a, b: np.where(x >= a, x, 0).astype(x.dtype), 1.0, None),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), 0.2, 0.5),
    "elu": (lambda x, a, b: _elu(x, a), 1.0, None),
    "softsign": (lambda x, a, b: x / (1 + np.abs(x)), None, None),
    "softplus": (lambda x, a, b: np.logaddexp(x, x.dtype.type(0)), None, None),
}


def named_activations(
    names: Sequence[str] | None,
    defaults: Sequence[str],
    directions: int,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
) -> list[tuple[str, float, float]]:
    """What `activations`, `activation_alpha` and `activation_beta` name: name in lower case, alpha, beta.

    The values of alpha and beta go in order to the functions that take one. Raises ValueError for an
    unknown name or a wrong count.
    """
    names = list(names) if names else list(defaults) * directions
    if len(names) != len(defaults) * directions:
        raise ValueError(f"activations must name {len(defaults) * directions} functions, got {names}")
    alpha_values, beta_values = iter(alphas or ()), iter(betas or ())
    found = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise ValueError(f"unknown activation {name!r}; known are {', '.join(_ACTIVATIONS)}")
        _, alpha, beta = _ACTIVATIONS[name.lower()]
        a = 0.0 if alpha is None else float(next(alpha_values, alpha))
        b = 0.0 if beta is None else float(next(beta_values, beta))
        found.append((name.lower(), a, b))
    return found


def activation_functions(
    names: Sequence[str] | None,
    defaults: Sequence[str],
    directions: int,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
    clip: float | None,
    gates: int | None = None,
) -> list[list[Activation]]:
    """Per direction the functions of `named_activations`; the first `gates` of them (default: all) clip their argument."""
    if clip is not None and not clip >= 0:
        raise ValueError(f"clip must not be negative, got {clip}")
    functions: list[Activation] = []
    for position, (name, a, b) in enumerate(named_activations(names, defaults, directions, alphas, betas)):
        clips = gates is None or position % len(defaults) < gates
        functions.append(_bind(_ACTIVATIONS[name][0], a, b, clip if clips else None))
    return [functions[i : i + len(defaults)] for i in range(0, len(functions), len(defaults))]


def _bind(function: Callable[[np.ndarray, float, float], np.ndarray], alpha: float, beta: float, clip: float | None) -> Activation:
    if clip:  # ONNX Runtime too reads 0 as "no clipping"
        return lambda x: function(np.clip(x, -clip, clip), alpha, beta)
    return lambda x: function(x, alpha, beta)


class Products:
    """How a layer multiplies with its weights W (D, G · H, I) and R (D, G · H, H)."""

    def __init__(self, w: np.ndarray, r: np.ndarray):
        self.w, self.r = w, r

    def input(self, d: int, x: np.ndarray) -> np.ndarray:
        """x (rows, I) of direction `d` → (rows, G · H)."""
        return matmul(x, self.w[d].T)

    def hidden(self, d: int, h: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """h (N, H) against the `rows` of R."""
        return matmul(h, self.r[d, rows].T)

    def blend(self, update: np.ndarray, candidate: np.ndarray, h: np.ndarray) -> np.ndarray:
        """The next hidden state of a GRU."""
        return (1 - update) * candidate + update * h


class Layer(NamedTuple):
    """Checked inputs of a recurrent layer, time first, in the working dtype, absent ones filled with zeros."""

    x: np.ndarray  # (T, N, input)
    wb: np.ndarray  # (D, G · H)
    rb: np.ndarray  # (D, G · H)
    lengths: np.ndarray | None  # (N); None when every sequence is T long
    h0: np.ndarray  # (D, N, H)
    reverse: tuple[bool, ...]
    hidden: int
    dtype: np.dtype
    batch_first: bool
    products: Products


def prepare(
    gates: int,
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray | None,
    sequence_lens: np.ndarray | None,
    initial_h: np.ndarray | None,
    direction: str,
    hidden_size: int | None,
    layout: int,
    products: Products | None,
) -> Layer:
    """Check the shapes of a recurrent layer; ValueError says which one does not fit."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    if layout not in (0, 1):
        raise ValueError(f"layout must be 0 or 1, got {layout}")
    for name, value in (("X", x), ("W", w), ("R", r)):
        require_rank(name, value, 3)
    reverse = DIRECTIONS[direction]
    count, hidden = len(reverse), r.shape[2]
    if hidden_size is not None and hidden_size != hidden:
        raise ValueError(f"hidden_size is {hidden_size} but R has the shape {r.shape}")
    dtype = x.dtype
    wide = working_dtype(dtype)
    if layout:
        x = x.swapaxes(0, 1)
        initial_h = None if initial_h is None else initial_h.swapaxes(0, 1)
    steps, batch, features = x.shape
    require_shape("W", w, (count, gates * hidden, features))
    require_shape("R", r, (count, gates * hidden, hidden))
    require_shape("B", b, (count, 2 * gates * hidden))
    require_shape("initial_h", initial_h, (count, batch, hidden))
    require_shape("sequence_lens", sequence_lens, (batch,))
    limit_shape((steps, batch, gates * hidden), "the gates")
    lengths = None
    if sequence_lens is not None:
        lengths = sequence_lens.astype(np.int64)
        if batch and (lengths.min() < 0 or lengths.max() > steps):
            raise ValueError(f"sequence_lens must lie in [0, {steps}], got {lengths.min()} to {lengths.max()}")
        if np.all(lengths == steps):
            lengths = None
    biases = np.zeros((count, 2 * gates * hidden), wide) if b is None else b.astype(wide)
    h0 = np.zeros((count, batch, hidden), wide) if initial_h is None else initial_h.astype(wide)
    wb, rb = biases[:, : gates * hidden], biases[:, gates * hidden :]
    if products is None:
        products = Products(w.astype(wide, copy=False), r.astype(wide, copy=False))
    return Layer(
        x.astype(wide, copy=False), wb, rb, lengths, h0, reverse, hidden, dtype, bool(layout), products,
    )  # fmt: skip


State = tuple[np.ndarray, ...]
Step = Callable[[np.ndarray, State], State]


def scan_direction(layer: Layer, d: int, bias: np.ndarray, state: State, step: Step) -> tuple[np.ndarray, State]:
    """Run one direction: Y (T, N, H), zero behind the end of a sequence, and the last valid state.

    `step(gates, state)` gets the projected input of a time step plus `bias`, (N, G · H), and returns the
    next state; its first array is the hidden one.
    """
    steps, batch, features = layer.x.shape
    y = np.zeros((steps, batch, layer.hidden), layer.x.dtype)
    if layer.lengths is None:
        projected = layer.products.input(d, layer.x.reshape(steps * batch, features)).reshape(steps, batch, bias.size) + bias
        for t in reversed(range(steps)) if layer.reverse[d] else range(steps):
            state = step(projected[t], state)
            y[t] = state[0]
        return y, state
    # Only what belongs to a sequence is read: padding has no say in a scale.
    inside = np.arange(steps)[:, None] < layer.lengths
    projected = np.zeros((steps, batch, bias.size), layer.x.dtype)
    projected[inside] = layer.products.input(d, layer.x[inside]) + bias
    state = tuple(value.copy() for value in state)
    for t in range(steps):
        active = np.flatnonzero(t < layer.lengths)
        if not active.size:
            break
        # A reversed sequence starts at its own end, so rows read different time steps.
        at = layer.lengths[active] - 1 - t if layer.reverse[d] else t
        for value, new in zip(state, step(projected[at, active], tuple(v[active] for v in state)), strict=True):
            value[active] = new
        y[at, active] = state[0][active]
    return y, state


def _gather(layer: Layer, ys: list[np.ndarray], states: list[State]) -> tuple[np.ndarray, ...]:
    """Outputs Y, Y_h (and Y_c) of all directions in the layout and dtype asked for."""
    y = np.stack(ys, axis=1)
    finals = [np.stack(values) for values in zip(*states, strict=True)]
    if layer.batch_first:
        y = np.ascontiguousarray(y.transpose(2, 0, 1, 3))
        finals = [np.ascontiguousarray(final.swapaxes(0, 1)) for final in finals]
    return tuple(value.astype(layer.dtype, copy=False) for value in (y, *finals))


@operator("RNN", since=1)
def rnn(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray | None = None,
    sequence_lens: np.ndarray | None = None,
    initial_h: np.ndarray | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    output_sequence: int = 0,
    products: Products | None = None,
) -> tuple[np.ndarray, ...]:
    """X (T, N, I), W (D, H, I), R (D, H, H), B (D, 2H) → Y (T, D, N, H), Y_h (D, N, H).

    With layout 1 the batch comes first: X (N, T, I), Y (N, T, D, H), Y_h and initial_h (N, D, H).
    """
    layer = prepare(1, x, w, r, b, sequence_lens, initial_h, direction, hidden_size, layout, products)
    functions = activation_functions(activations, ("Tanh",), len(layer.reverse), activation_alpha, activation_beta, clip)
    ys, states = [], []
    for d, (f,) in enumerate(functions):

        def step(gates: np.ndarray, state: State, d: int = d, f: Activation = f) -> State:
            return (f(gates + layer.products.hidden(d, state[0])),)

        y, state = scan_direction(layer, d, layer.wb[d] + layer.rb[d], (layer.h0[d],), step)
        ys.append(y)
        states.append(state)
    return _gather(layer, ys, states)


@operator("GRU", since=1)
def gru(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray | None = None,
    sequence_lens: np.ndarray | None = None,
    initial_h: np.ndarray | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_sequence: int = 0,
    products: Products | None = None,
) -> tuple[np.ndarray, ...]:
    """X (T, N, I), W (D, 3H, I), R (D, 3H, H), B (D, 6H), gates z, r, h → Y (T, D, N, H), Y_h (D, N, H).

    With layout 1 the batch comes first, as in RNN.
    """
    layer = prepare(3, x, w, r, b, sequence_lens, initial_h, direction, hidden_size, layout, products)
    functions = activation_functions(activations, ("Sigmoid", "Tanh"), len(layer.reverse), activation_alpha, activation_beta, clip)
    n = layer.hidden
    ys, states = [], []
    for d, (f, g) in enumerate(functions):
        bias = layer.wb[d].copy()
        bias[: 2 * n] += layer.rb[d, : 2 * n]
        candidate_bias = layer.rb[d, 2 * n :]

        def step(
            gates: np.ndarray,
            state: State,
            f: Activation = f,
            g: Activation = g,
            d: int = d,
            candidate_bias: np.ndarray = candidate_bias,
        ) -> State:
            (h,) = state
            both = f(gates[:, : 2 * n] + layer.products.hidden(d, h, slice(0, 2 * n)))
            update, reset = both[:, :n], both[:, n:]
            inner = layer.products.hidden(d, h if linear_before_reset else reset * h, slice(2 * n, 3 * n))
            if linear_before_reset:
                candidate = g(gates[:, 2 * n :] + reset * (inner + candidate_bias))
            else:
                candidate = g(gates[:, 2 * n :] + inner + candidate_bias)
            return (layer.products.blend(update, candidate, h),)

        y, state = scan_direction(layer, d, bias, (layer.h0[d],), step)
        ys.append(y)
        states.append(state)
    return _gather(layer, ys, states)


def lstm_cell(
    gates: np.ndarray, cell: np.ndarray, functions: Sequence[Activation], peepholes: np.ndarray | None, input_forget: int
) -> State:
    """`gates` (N, 4H) i, o, f, c and the cell state (N, H) → hidden and cell state after the step; peepholes (3H) of i, o, f.

    A layer without peepholes does not have zeros for them: those would make NaN of an infinite cell.
    """
    f, g, h = functions
    n = cell.shape[1]

    def gate(position: int, cell: np.ndarray) -> np.ndarray:
        own = slice(position * n, (position + 1) * n)
        return f(gates[:, own] if peepholes is None else gates[:, own] + peepholes[own] * cell)

    i = gate(0, cell)
    forget = 1 - i if input_forget else gate(2, cell)
    cell = forget * cell + i * g(gates[:, 3 * n :])
    return gate(1, cell) * h(cell), cell


@operator("LSTM", since=1)
def lstm(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray | None = None,
    sequence_lens: np.ndarray | None = None,
    initial_h: np.ndarray | None = None,
    initial_c: np.ndarray | None = None,
    p: np.ndarray | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
    products: Products | None = None,
) -> tuple[np.ndarray, ...]:
    """X (T, N, I), W (D, 4H, I), R (D, 4H, H), B (D, 8H), gates i, o, f, c; peepholes P (D, 3H) of i, o, f.

    Returns Y (T, D, N, H), Y_h (D, N, H), Y_c (D, N, H). With layout 1 the batch comes first, as in RNN.
    """
    layer = prepare(4, x, w, r, b, sequence_lens, initial_h, direction, hidden_size, layout, products)
    # `clip` bounds the gates but not the cell state on its way to the hidden one, as in ONNX Runtime.
    functions = activation_functions(
        activations, ("Sigmoid", "Tanh", "Tanh"), len(layer.reverse), activation_alpha, activation_beta, clip, 2
    )
    n, count = layer.hidden, len(layer.reverse)
    if initial_c is None:
        c0 = np.zeros_like(layer.h0)
    else:
        c0 = initial_c.swapaxes(0, 1) if layout and initial_c.ndim == 3 else initial_c
        require_shape("initial_c", c0, layer.h0.shape)
        c0 = c0.astype(layer.h0.dtype)
    require_shape("P", p, (count, 3 * n))
    p = None if p is None else p.astype(layer.h0.dtype)
    ys, states = [], []
    for d, own in enumerate(functions):

        def step(
            gates: np.ndarray,
            state: State,
            d: int = d,
            own: list[Activation] = own,
            peepholes: np.ndarray | None = None if p is None else p[d],
        ) -> State:
            hidden, cell = state
            return lstm_cell(gates + layer.products.hidden(d, hidden), cell, own, peepholes, input_forget)

        y, state = scan_direction(layer, d, layer.wb[d] + layer.rb[d], (layer.h0[d], c0[d]), step)
        ys.append(y)
        states.append(state)
    return _gather(layer, ys, states)
