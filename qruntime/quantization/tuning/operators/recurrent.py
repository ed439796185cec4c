"""LSTM, GRU and RNN, step by step as ops/recurrent.py defines them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qruntime.ir import Node
from qruntime.ops.recurrent import DIRECTIONS, named_activations

State = tuple[Any, ...]
Cell = Callable[[int, Any, State], State]
"""cell(direction, what the input adds to the gates [N, G · H], state): the next state, the hidden one first."""


def operators() -> dict[str, Callable[..., Any]]:
    import torch

    functional = torch.nn.functional
    activations: dict[str, Callable[[Any, float, float], Any]] = {
        "relu": lambda x, a, b: x.relu(),
        "tanh": lambda x, a, b: x.tanh(),
        "sigmoid": lambda x, a, b: x.sigmoid(),
        "affine": lambda x, a, b: a * x + b,
        "leakyrelu": lambda x, a, b: functional.leaky_relu(x, a),
        "thresholdedrelu": lambda x, a, b: torch.where(x >= a, x, torch.zeros_like(x)),
        "scaledtanh": lambda x, a, b: a * (b * x).tanh(),
        "hardsigmoid": lambda x, a, b: (a * x + b).clamp(0, 1),
        "elu": lambda x, a, b: functional.elu(x, a),
        "softsign": lambda x, a, b: functional.softsign(x),
        "softplus": lambda x, a, b: functional.softplus(x, threshold=80),
    }

    def functions(node: Node, defaults: Sequence[str], clipped: int) -> list[list[Callable[[Any], Any]]]:
        """Of each direction; the first `clipped` limit what they read."""
        directions, clip = len(DIRECTIONS[node.attr("direction", "forward")]), node.attr("clip")
        named = named_activations(
            node.attr("activations"), defaults, directions, node.attr("activation_alpha"), node.attr("activation_beta")
        )

        def bound(place: int, name: str, a: float, b: float) -> Callable[[Any], Any]:
            function = activations[name]
            if clip and place % len(defaults) < clipped:
                return lambda x: function(x.clamp(-clip, clip), a, b)
            return lambda x: function(x, a, b)

        made = [bound(place, *one) for place, one in enumerate(named)]
        return [made[i : i + len(defaults)] for i in range(0, len(made), len(defaults))]

    def turned(x: Any, lengths: Any) -> Any:
        """Steps of x [T, N, …] from the end of each sequence to its beginning; what lies behind it stays."""
        if lengths is None:
            return x.flip(0)
        steps = torch.arange(x.shape[0])[:, None]
        source = torch.where(steps < lengths, lengths - 1 - steps, steps)
        return x[source, torch.arange(x.shape[1])]

    def scan(node: Node, gates: Any, cell: Cell, states: Sequence[Any], lengths: Any) -> tuple[Any, ...]:
        """`gates` [D, T, N, G · H], states [D, N, H] → Y and the last states in the layout of the node."""
        ys, finals = [], []
        for d, is_reverse in enumerate(DIRECTIONS[node.attr("direction", "forward")]):
            own, state, outputs = turned(gates[d], lengths) if is_reverse else gates[d], tuple(one[d] for one in states), []
            for t in range(own.shape[0]):
                new = cell(d, own[t], state)
                if lengths is None:
                    state = new
                    outputs.append(state[0])
                else:
                    inside = (t < lengths)[:, None]
                    state = tuple(torch.where(inside, a, b) for a, b in zip(new, state))
                    outputs.append(torch.where(inside, state[0], torch.zeros_like(state[0])))
            y = torch.stack(outputs) if outputs else own.new_zeros((0, *state[0].shape))
            ys.append(turned(y, lengths) if is_reverse else y)
            finals.append(state)
        y, last = torch.stack(ys, 1), [torch.stack(each) for each in zip(*finals)]
        if node.attr("layout", 0):
            return y.permute(2, 0, 1, 3), *(one.transpose(0, 1) for one in last)
        return y, *last

    def prepared(node: Node, x: Any, w: Any, r: Any, b: Any, states: Sequence[Any], rounding: Any) -> tuple[Any, Any, list[Any]]:
        """What the input adds to the gates [D, T, N, G · H], both biases [D, G · H], and first states [D, N, H]."""
        is_batch_first = node.attr("layout", 0)
        x = x.transpose(0, 1) if is_batch_first else x
        empty = x.new_zeros((r.shape[0], x.shape[1], r.shape[2]))
        given = [empty if one is None else one.transpose(0, 1) if is_batch_first else one for one in states]
        rows = x if rounding is None else rounding(x)
        biases = (x.new_zeros(r.shape[:2]),) * 2 if b is None else b.chunk(2, 1)
        return rows @ w.mT[:, None], biases, given

    def products(r: Any, rounding: Any) -> Callable[..., Any]:
        """h [N, H] against rows of R."""

        def product(d: int, h: Any, rows: slice = slice(None)) -> Any:
            return (h if rounding is None else rounding(h)) @ r[d, rows].T

        return product

    def rnn(node: Node, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None, rounding: Any = None) -> Any:
        gates, (of_x, of_h), states = prepared(node, x, w, r, b, (h,), rounding)
        own, hidden = functions(node, ("Tanh",), 1), products(r, rounding)

        def cell(d: int, gate: Any, state: State) -> State:
            return (own[d][0](gate + hidden(d, state[0])),)

        return scan(node, gates + (of_x + of_h)[:, None, None], cell, states, lengths)

    def gru(node: Node, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None, rounding: Any = None) -> Any:
        gates, (of_x, of_h), states = prepared(node, x, w, r, b, (h,), rounding)
        own, hidden, n = functions(node, ("Sigmoid", "Tanh"), 2), products(r, rounding), r.shape[2]
        both, last = slice(2 * n), slice(2 * n, 3 * n)
        within = torch.cat((of_h[:, both], torch.zeros_like(of_h[:, last])), 1)

        def cell(d: int, gate: Any, state: State) -> State:
            (h,), (f, g) = state, own[d]
            update, reset = f(gate[:, both] + hidden(d, h, both)).chunk(2, 1)
            if node.attr("linear_before_reset", 0):
                candidate = g(gate[:, last] + reset * (hidden(d, h, last) + of_h[d, last]))
            else:
                candidate = g(gate[:, last] + hidden(d, reset * h, last) + of_h[d, last])
            return ((1 - update) * candidate + update * h,)

        return scan(node, gates + (of_x + within)[:, None, None], cell, states, lengths)

    def lstm(
        node: Node, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None, c: Any = None, p: Any = None,
        rounding: Any = None,
    ) -> Any:  # fmt: skip
        gates, (of_x, of_h), states = prepared(node, x, w, r, b, (h, c), rounding)
        own, hidden = functions(node, ("Sigmoid", "Tanh", "Tanh"), 2), products(r, rounding)

        def cell(d: int, gate: Any, state: State) -> State:
            (h, c), (f, g, of_cell) = state, own[d]
            i, o, forget, new = (gate + hidden(d, h)).chunk(4, 1)
            of_i, of_o, of_forget = (0, 0, 0) if p is None else p[d].chunk(3)
            i = f(i + of_i * c)
            kept = 1 - i if node.attr("input_forget", 0) else f(forget + of_forget * c)
            c = kept * c + i * g(new)
            return f(o + of_o * c) * of_cell(c), c

        return scan(node, gates + (of_x + of_h)[:, None, None], cell, states, lengths)

    return {"RNN": rnn, "GRU": gru, "LSTM": lstm}
