"""Fast paths of LSTM, GRU and RNN, and their dynamically quantized forms (domain qruntime)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node, StoredTensor
from qruntime.ir.formats import Format
from qruntime.ops import engines, recurrent
from qruntime.ops.elementwise import is_packable, widen
from qruntime.ops.linear import quantize_rows
from qruntime.ops.low_bit_weights import pack_nbits, unpack_nbits
from qruntime.ops.products import matmul
from qruntime.ops.registry import NativeCall, OpSpec, Unpack, operator

_DEFAULT_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
_ACTIVATION_KERNELS = {
    "leakyrelu": "leaky_relu", "thresholdedrelu": "thresholded_relu", "scaledtanh": "scaled_tanh", "hardsigmoid": "hard_sigmoid",
}  # fmt: skip
"""Activation of a recurrent layer → elementwise kernel, where they do not have one name; p is alpha and q beta."""

Pack = Callable[[int, slice, np.ndarray | None], Any]
"""(direction, rows of the weight, bias) → packed weights."""


def _call(
    node: Node,
    op: str,
    hidden: int,
    bias: np.ndarray | None,
    pack_w: Pack,
    pack_r: Pack,
    inputs: list[int],
    real: type[np.float32] | type[np.float64] = np.float32,
) -> NativeCall:
    """The kernel call of one layer. See kernels/nodes/rnn.c and, of float64, rnn_f64.c."""
    direction = node.attr("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    variant = 0 if op == "RNN" else int(node.attr("input_forget" if op == "LSTM" else "linear_before_reset", 0) != 0)
    opcodes, parameters = _activations(node, op, count, real)
    packed: list[Any] = []
    for d in range(count):
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * hidden
        wb, rb = (None, None) if bias is None else (bias[d, :gates], bias[d, gates:])
        packed += _pack_direction(op, d, hidden, gates, wb, rb, bool(variant), pack_w, pack_r)
    wanted = sum(1 << i for i, output in enumerate(node.outputs) if output.is_read)
    clip = node.attr("clip") or math.inf
    mode, most = _kernels.RANGE[node.attr("range", "per_token")], (1 << node.attr("bits", 8)) - 1
    ints = [hidden, _kernels.DIRECTION[direction], node.attr("layout", 0), mode, mode, most, wanted, variant, *opcodes]
    kernel = op.lower() if real is np.float32 else f"{op.lower()}_f64"
    return NativeCall(kernel, ints=ints, floats=[clip, *parameters], packed=packed, inputs=inputs)


def _activations(node: Node, op: str, directions: int, real: type[np.float32] | type[np.float64]) -> tuple[list[int], list[float]]:
    """Opcodes, and two parameters of each for numbers `real`; none of them where all activations are the standard ones."""
    standard = _DEFAULT_ACTIVATIONS[op]
    named = recurrent.named_activations(
        node.attr("activations"), standard, directions, node.attr("activation_alpha"), node.attr("activation_beta")
    )
    if [name for name, _, _ in named] == standard * directions:
        return [], []
    opcodes, parameters = [], []
    for name, alpha, beta in named:
        opcodes.append(_kernels.UNARY[_ACTIVATION_KERNELS.get(name, name)])
        if name == "thresholdedrelu":  # the operator of that name is 0 at alpha, that of recurrent layers alpha
            alpha = float(np.nextafter(real(alpha), real(-np.inf)))
        parameters += [alpha, beta]
    return opcodes, parameters


def _pack_direction(
    op: str, d: int, hidden: int, gates: int, wb: np.ndarray | None, rb: np.ndarray | None, variant: bool, pack_w: Pack, pack_r: Pack
) -> list[Any]:
    everything = slice(0, gates)
    if op == "GRU" and variant:
        # The candidate's recurrent bias is scaled by the reset gate together with the recurrent product.
        both, inner = wb, None
        if wb is not None and rb is not None:
            both = np.concatenate([wb[: 2 * hidden] + rb[: 2 * hidden], wb[2 * hidden :]])
            inner = np.concatenate([np.zeros(2 * hidden, np.float32), rb[2 * hidden :]])
        return [pack_w(d, everything, both), pack_r(d, everything, inner)]
    both = None if wb is None or rb is None else wb + rb
    if op == "GRU":
        return [pack_w(d, everything, both), pack_r(d, slice(0, 2 * hidden), None), pack_r(d, slice(2 * hidden, gates), None)]
    return [pack_w(d, everything, both), pack_r(d, everything, None)]


def _bind_float(op: str, inputs: list[int]) -> Callable[[Node], NativeCall | None]:
    def bind(node: Node) -> NativeCall | None:
        w, r, b = (None if v is None else v.data for v in (node.input(1), node.input(2), node.input(3)))
        if w is None or r is None or (b is None and node.input(3) is not None):
            return None
        if all(v is None or v.dtype == np.float64 for v in (w, r, b)):
            hidden = _checked_hidden(node, op, w, r, b)
            return None if hidden is None else _call(node, op, hidden, b, _pack_doubles(w), _pack_doubles(r), inputs, np.float64)
        if not is_packable(w.dtype) or w.dtype != r.dtype or (b is not None and b.dtype != w.dtype):
            return None
        b = None if b is None else widen(b)
        hidden = _checked_hidden(node, op, w, r, b)
        if hidden is None:
            return None

        def pack(weight: np.ndarray) -> Pack:
            return lambda d, rows, bias: _kernels.PackedF32(weight[d, rows].T, bias)

        return _call(node, op, hidden, b, pack(w), pack(r), inputs)

    return bind


_PANEL = 16
"""Columns that lie together, as in kernels/nodes/rnn_f64.c."""


def _pack_doubles(weight: np.ndarray) -> Pack:
    def one(d: int, rows: slice, bias: np.ndarray | None) -> Any:
        n, k = weight[d, rows].shape
        padded = np.zeros((-(-n // _PANEL) * _PANEL, 1 + k))
        padded[:n, 0] = 0 if bias is None else bias
        padded[:n, 1:] = weight[d, rows]
        return _kernels.PackedArray(padded.reshape(-1, _PANEL, 1 + k).transpose(0, 2, 1), (weight[d, rows], bias))

    return one


def _checked_hidden(node: Node, op: str, w: np.ndarray | StoredTensor, r: np.ndarray | StoredTensor, b: np.ndarray | None) -> int | None:
    """Hidden size when all shapes agree; the definition reports what does not."""
    direction = node.attr("direction", "forward")
    if direction not in _kernels.DIRECTION or w.ndim != 3 or r.ndim != 3 or node.attr("layout", 0) not in (0, 1):
        return None
    count = 2 if direction == "bidirectional" else 1
    hidden = r.shape[2]
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * hidden
    fits = w.shape[:2] == (count, gates) and r.shape == (count, gates, hidden) and (b is None or b.shape == (count, 2 * gates))
    if not fits or node.attr("hidden_size", hidden) != hidden or hidden == 0:
        return None
    clip = node.attr("clip")
    return None if clip is not None and clip < 0 else hidden


# Inputs that the kernels take, as positions of the ONNX operator: X, sequence_lens, initial_h, initial_c, P.
recurrent.lstm.native(_bind_float("LSTM", [0, 4, 5, 6, 7]))
recurrent.gru.native(_bind_float("GRU", [0, 4, 5]))
recurrent.rnn.native(_bind_float("RNN", [0, 4, 5]))


class _IntegerProducts(recurrent.Products):
    """Exact sums over codes of rows, as in the kernels: a row's result is its own whatever stands beside it."""

    def __init__(self, w: list[engines.Weights], r: list[engines.Weights], range_: str, bits: int):
        self.weights, self.recurrent, self.range, self.bits = w, r, range_, bits

    def _product(self, x: np.ndarray, weights: engines.Weights) -> np.ndarray:
        rows = np.ascontiguousarray(x, np.float32).reshape((1, -1) if self.range == "per_tensor" else x.shape)
        codes, scale, zero_point = quantize_rows(rows, self.bits)
        total = matmul((codes.astype(np.float64) - zero_point).reshape(x.shape), weights.centred)
        return total.astype(np.float32) * (scale * weights.scale)

    def input(self, d: int, x: np.ndarray) -> np.ndarray:
        return self._product(x, self.weights[d])

    def hidden(self, d: int, h: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        return self._product(h, _some(self.recurrent[d], rows))


def _some(weights: engines.Weights, rows: slice) -> engines.Weights:
    centred, scale = weights
    return engines.Weights(centred[:, rows], scale if scale.size == 1 else scale[rows])


class _EngineProducts(recurrent.Products):
    """Integer products and biases as another runtime computes them, one scale for all rows that are running."""

    def __init__(self, w: list[engines.Weights], r: list[engines.Weights], b: np.ndarray | None, engine: str):
        self.weights, self.recurrent, self.engine = w, r, engine
        gates = 0 if b is None else b.shape[1] // 2
        self.wb = None if b is None else b[:, :gates]
        self.rb = None if b is None else b[:, gates:]

    def input(self, d: int, x: np.ndarray) -> np.ndarray:
        return engines.product(x, self.weights[d], None if self.wb is None else self.wb[d], self.engine)

    def hidden(self, d: int, h: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        return engines.product(h, _some(self.recurrent[d], rows), None if self.rb is None else self.rb[d, rows], self.engine)

    def blend(self, update: np.ndarray, candidate: np.ndarray, h: np.ndarray) -> np.ndarray:
        return (h - candidate) * update + candidate  # the order of torch


def _weights(stored: StoredTensor) -> list[engines.Weights]:
    return [engines.prepare(stored[d].transposed()) for d in range(stored.shape[0])]


def _register_quantized(op: str, definition: OpSpec, kernel_inputs: list[int]) -> None:
    @operator(f"DynamicQuantized{op}", domain="qruntime")
    def quantized(
        x: np.ndarray,
        w: StoredTensor,
        r: StoredTensor,
        b: np.ndarray | None = None,
        *rest: np.ndarray | None,
        activations: tuple[str, ...] | None = None,
        activation_alpha: tuple[float, ...] | None = None,
        activation_beta: tuple[float, ...] | None = None,
        clip: float | None = None,
        direction: str = "forward",
        hidden_size: int | None = None,
        input_forget: int = 0,
        linear_before_reset: int = 0,
        layout: int = 0,
        output_sequence: int = 0,
        range: str = "per_token",
        bits: int = 8,
        engine: str = "qruntime",
    ) -> Any:
        """The layer over int8 W and R [D, G·H, …] with a scale for each direction or row; X and h are rounded to `bits` bits."""
        if w.ndim != 3 or r.ndim != 3 or w.shape[0] != r.shape[0] or (b is not None and b.ndim != 2):
            raise ValueError(f"{op}: W and R must have rank 3 and B rank 2, got {w.shape}, {r.shape} and {None if b is None else b.shape}")
        keywords: dict[str, Any] = {
            "activations": activations, "activation_alpha": activation_alpha, "activation_beta": activation_beta,
            "clip": clip, "direction": direction, "hidden_size": hidden_size, "layout": layout,
        }  # fmt: skip
        if op == "LSTM":
            keywords["input_forget"] = input_forget
        if op == "GRU":
            keywords["linear_before_reset"] = linear_before_reset
        codes, shapes = (_weights(w), _weights(r)), (w.unpacked(), r.unpacked())
        if engine != "qruntime":
            return definition(x, *shapes, None, *rest, **keywords, products=_EngineProducts(*codes, b, engine))
        return definition(x, *shapes, b, *rest, **keywords, products=_IntegerProducts(*codes, range, bits))

    @quantized.native
    def _(node: Node) -> NativeCall | None:
        if node.attr("engine", "qruntime") != "qruntime":
            return None
        return _stored_call(node, op, _pack_codes, kernel_inputs)


def _unpack(w: StoredTensor, r: StoredTensor, each: int) -> dict[int, Unpack]:
    """Of W and of R, for directions of `each` packed weights: that of W, then those of R."""
    return {
        1: functools.partial(_unpacked, w.format, w.shape, each, slice(1)),
        2: functools.partial(_unpacked, r.format, r.shape, each, slice(1, each)),
    }


def _unpacked(form: Format, shape: tuple[int, ...], each: int, some: slice, packed: Sequence[Any]) -> np.ndarray:
    """Codes [D, rows, columns] of which every direction has `some` of its `each` packed weights, one behind the other."""
    codes = np.empty(shape, np.int8 if form.is_signed else np.uint8)
    for d, direction in enumerate(codes):
        first = 0
        for one in packed[d * each : (d + 1) * each][some]:
            rows = direction[first : first + one.shape[1]]
            if isinstance(one, _kernels.PackedNBits):
                rows[:] = unpack_nbits(one, form).T
            else:
                one.unpack_into(rows.T)
            first += one.shape[1]
    return codes


def _pack_codes(stored: StoredTensor) -> Pack:
    codes, scale, zero = stored.unpacked(), stored.scale, stored.zero_point
    assert isinstance(scale, np.ndarray) and isinstance(zero, np.ndarray)

    def one(d: int, rows: slice, bias: np.ndarray | None) -> Any:
        direction = d if scale.shape[0] != 1 else 0
        part = rows if scale.shape[1] != 1 else slice(None)
        name = stored.held, d, rows.start, rows.stop
        return _kernels.PackedQ8(codes[d, rows].T, scale[direction, part], zero[direction, part], bias, name)

    return one


def _register_stored(op: str, definition: OpSpec, kernel_inputs: list[int]) -> None:
    @operator(f"Stored{op}", domain="qruntime")
    @functools.wraps(definition.definition)
    def stored(x: np.ndarray, w: StoredTensor, r: StoredTensor, *rest: np.ndarray | None, **attributes: Any) -> Any:
        """The layer over the numbers that W and R [D, G·H, …] decode to."""
        return definition(x, w.decoded(), r.decoded(), *rest, **attributes)

    @stored.native
    def _(node: Node) -> NativeCall | None:
        return _stored_call(node, op, _pack_few_bits, kernel_inputs)


def _pack_few_bits(stored: StoredTensor) -> Pack:
    def one(d: int, rows: slice, bias: np.ndarray | None) -> Any:
        name = stored.held, d, rows.start, rows.stop
        return pack_nbits(stored[d].rows(np.arange(rows.start, rows.stop)).transposed(), bias, origin=name)

    return one


def _stored_call(node: Node, op: str, pack: Callable[[StoredTensor], Pack], kernel_inputs: list[int]) -> NativeCall | None:
    """The kernel call of a layer over stored weights, each of them packed by `pack`."""
    w, r = (None if v is None else v.stored for v in node.inputs[1:3])
    bias = node.input(3)
    b = None if bias is None else bias.data
    if w is None or r is None or (b is None and bias is not None) or (b is not None and not is_packable(b.dtype)):
        return None
    b = None if b is None else widen(b)
    hidden = _checked_hidden(node, op, w, r, b)
    if hidden is None:
        return None
    call = _call(node, op, hidden, b, pack(w), pack(r), kernel_inputs)
    if None not in call.packed:
        call.unpack = _unpack(w, r, len(call.packed) // w.shape[0])
    return call


_register_stored("LSTM", recurrent.lstm, [0, 4, 5, 6, 7])
_register_stored("GRU", recurrent.gru, [0, 4, 5])
_register_stored("RNN", recurrent.rnn, [0, 4, 5])
_register_quantized("LSTM", recurrent.lstm, [0, 4, 5, 6, 7])
_register_quantized("GRU", recurrent.gru, [0, 4, 5])
_register_quantized("RNN", recurrent.rnn, [0, 4, 5])
