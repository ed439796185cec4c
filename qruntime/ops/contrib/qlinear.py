"""Operators on quantized tensors: dequantize, compute in float, quantize. QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from qruntime.ir import Node
from qruntime.ops.checks import require_rank
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.pooling import sliding
from qruntime.ops.quantize_linear import requantized, saturated
from qruntime.ops.registry import NativeCall, operator
from qruntime.ops.windows import padded, reduce_windows, tap_counts, window

_UINT8 = 2
"""Code of the ONNX element type."""


def _real(q: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None) -> np.ndarray:
    _check_parameters(scale, zero_point)
    return standard("DequantizeLinear", q, scale.reshape(()), None if zero_point is None else zero_point.reshape(()))


def _codes(y: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, dtype: np.dtype) -> np.ndarray:
    _check_parameters(scale, zero_point)
    zero = np.zeros((), dtype) if zero_point is None else zero_point.reshape(())
    return standard("QuantizeLinear", y.astype(np.float32, copy=False), scale.reshape(()), zero)


def _check_parameters(scale: np.ndarray, zero_point: np.ndarray | None) -> None:
    if scale.size != 1 or (zero_point is not None and zero_point.size != 1):
        shapes = scale.shape, None if zero_point is None else zero_point.shape
        raise ValueError(f"scales and zero points must be one value each, got shapes {shapes}")


@operator("QuantizeLinear", domain=MICROSOFT)
def quantize_linear(x: np.ndarray, y_scale: np.ndarray, y_zero_point: np.ndarray | None = None, *, axis: int = 1) -> np.ndarray:
    """As the standard operator."""
    return standard("QuantizeLinear", x, y_scale, y_zero_point, axis=axis)


@operator("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(x: np.ndarray, x_scale: np.ndarray, x_zero_point: np.ndarray | None = None, *, axis: int = 1) -> np.ndarray:
    """As the standard operator."""
    return standard("DequantizeLinear", x, x_scale, x_zero_point, axis=axis)


@quantize_linear.native
def _quantize(node: Node) -> NativeCall:
    return NativeCall("quantize_linear", ints=[node.attr("axis", 1), 0 if node.input(2) else _UINT8])


@dequantize_linear.native
def _dequantize(node: Node) -> NativeCall:
    return NativeCall("dequantize_linear", ints=[node.attr("axis", 1), 0])


def constant_parameters(node: Node, scales: Sequence[int], zeros: Sequence[int]) -> tuple[list[np.float32] | None, list[int] | None]:
    """Scales and zero points among the inputs of `node`, an absent zero point as 0; None for those that kernels do not take.

    Kernels take constants of one value; scales that 255 times over are finite, and not 0.
    """
    given = [node.input(i) for i in scales]
    arrays = [None if value is None else value.data for value in given]
    if any(a is None or a.dtype != np.float32 or a.size != 1 for a in arrays):
        return None, None
    numbers = [np.float32(a.reshape(())) for a in arrays if a is not None]
    with np.errstate(over="ignore"):
        if not all(np.isfinite(number * np.float32(255)) and number != 0 for number in numbers):
            return None, None
    points = []
    for value in (node.input(i) for i in zeros):
        if value is not None and (value.data is None or value.data.size != 1 or value.data.dtype not in (np.uint8, np.int8)):
            return None, None
        points.append(0 if value is None or value.data is None else int(value.data.reshape(())))
    return numbers, points


def _register_binary(op: str, function: Callable[[np.ndarray, np.ndarray], np.ndarray], code: int) -> None:
    @operator(op, domain=MICROSOFT)
    def definition(
        a: np.ndarray,
        a_scale: np.ndarray,
        a_zero_point: np.ndarray | None,
        b: np.ndarray,
        b_scale: np.ndarray,
        b_zero_point: np.ndarray | None,
        c_scale: np.ndarray,
        c_zero_point: np.ndarray | None = None,
    ) -> np.ndarray:
        """Two quantized tensors, broadcast; all parameters are single values."""
        with np.errstate(over="ignore", invalid="ignore"):
            y = function(_real(a, a_scale, a_zero_point), _real(b, b_scale, b_zero_point))
        return _codes(y, c_scale, c_zero_point, a.dtype)

    @definition.native
    def _(node: Node) -> NativeCall | None:
        scales, zeros = constant_parameters(node, (1, 4, 6), (2, 5, 7))
        if scales is None or zeros is None:
            return None
        return NativeCall("qlinear_binary", ints=[code, *zeros], floats=list(map(float, scales)), inputs=[0, 3])


_register_binary("QLinearAdd", np.add, 0)
_register_binary("QLinearMul", np.multiply, 1)


@operator("QLinearSigmoid", domain=MICROSOFT)
def qlinear_sigmoid(
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray | None,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray | None = None,
) -> np.ndarray:
    """Sigmoid of a quantized tensor."""
    y = standard("Sigmoid", _real(x, x_scale, x_zero_point))
    return _codes(y, y_scale, y_zero_point, x.dtype)


@operator("QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_leaky_relu(
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray | None,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray | None = None,
    *,
    alpha: float = 0.01,
) -> np.ndarray:
    """LeakyRelu of a quantized tensor."""
    y = standard("LeakyRelu", _real(x, x_scale, x_zero_point), alpha=alpha)
    return _codes(y, y_scale, y_zero_point, x.dtype)


@operator("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray | None,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray,
    *,
    axis: int = -1,
    opset: int = 13,
) -> np.ndarray:
    """Softmax of a quantized tensor; before opset 13 over all axes from `axis` on together."""
    real = _real(x, x_scale, x_zero_point)
    if opset < 13:
        if not -x.ndim <= axis <= x.ndim:
            raise ValueError(f"axis {axis} is outside [{-x.ndim}, {x.ndim}]")
        first = axis + x.ndim if axis < 0 else axis
        rows = int(np.prod(x.shape[:first], dtype=np.int64))
        y = standard("Softmax", real.reshape(rows, x.size // rows if rows else 0), axis=-1).reshape(x.shape)
    else:
        y = standard("Softmax", real, axis=axis)
    return _codes(y, y_scale, y_zero_point, x.dtype)


def _centred(q: np.ndarray, zero_point: np.ndarray | None) -> np.ndarray:
    """Codes minus their zero point, int64."""
    return q.astype(np.int64) - (0 if zero_point is None else zero_point.reshape(()).astype(np.int64))


def _averaged(
    sums: np.ndarray,
    counts: np.ndarray,
    x_scale: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray | None,
    dtype: np.dtype,
) -> np.ndarray:
    """Codes of sums over counts: exact sums, one division and one multiplication in float32."""
    _check_parameters(x_scale, None)
    _check_parameters(y_scale, y_zero_point)
    zero = np.zeros((), dtype) if y_zero_point is None else y_zero_point.reshape(())
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean = sums.astype(np.float32) / counts.astype(np.float32)
        return saturated(mean * (x_scale.reshape(()) / y_scale.reshape(())), zero, dtype)


def _pooling_parameters(node: Node) -> tuple[float, list[int]] | None:
    """Scale of x over that of y and both zero points, where they are constants that the kernels take."""
    scales, zeros = constant_parameters(node, (1, 3), (2, 4))
    if scales is None or zeros is None:
        return None
    with np.errstate(over="ignore"):
        ratio = scales[0] / scales[1]
    return (float(ratio), zeros) if np.isfinite(ratio) else None


def _channels_first(x: np.ndarray, channels_last: int) -> np.ndarray:
    return np.moveaxis(x, -1, 1) if channels_last and x.ndim > 2 else x


def _channels_back(y: np.ndarray, channels_last: int) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(y, 1, -1)) if channels_last and y.ndim > 2 else y


@operator("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray | None,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """The standard AveragePool of a quantized tensor (N, C, *spatial), or (N, *spatial, C) with `channels_last`.

    With `ceil_mode` and `count_include_pad` a window that reaches beyond the padding is divided by what it covers of input and
    padding, as the standard says; ONNX Runtime's QLinearAveragePool divides by the size of the whole kernel.
    """
    centred = _channels_first(_centred(x, x_zero_point), channels_last)
    require_rank("X", centred, 3, -1)
    win = window(centred.shape[2:], kernel_shape, strides, None, pads, auto_pad, ceil_mode)
    counts = tap_counts(win, centred.shape[2:], bool(count_include_pad))
    sums = reduce_windows(np.add, padded(centred, win), win)
    y = _averaged(sums, np.maximum(counts, 1), x_scale, y_scale, y_zero_point, x.dtype)
    return _channels_back(y, channels_last)


@qlinear_average_pool.native
def _average_pool(node: Node) -> NativeCall | None:
    found = _pooling_parameters(node)
    call = sliding(node, "code_average_pool")
    if found is None or call is None or not node.attr("channels_last", 0):
        return None
    ratio, zeros = found
    return NativeCall(call.kernel, ints=[*call.ints, *zeros], floats=[ratio], inputs=[0])


@operator("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool(
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray | None,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray | None = None,
    *,
    channels_last: int = 0,
) -> np.ndarray:
    """GlobalAveragePool of a quantized tensor (N, C, *spatial), or (N, *spatial, C) with `channels_last`."""
    centred = _channels_first(_centred(x, x_zero_point), channels_last)
    require_rank("X", centred, 2, -1)
    count = np.asarray(math.prod(centred.shape[2:]))
    if not count:
        raise ValueError(f"no average of empty planes, X has shape {x.shape}")
    sums = centred.sum(axis=tuple(range(2, centred.ndim)), keepdims=True)
    return _channels_back(_averaged(sums, count, x_scale, y_scale, y_zero_point, x.dtype), channels_last)


@qlinear_global_average_pool.native
def _global_average_pool(node: Node) -> NativeCall | None:
    found = _pooling_parameters(node)
    if found is None or not node.attr("channels_last", 0):
        return None
    ratio, zeros = found
    return NativeCall("code_global_average_pool", ints=zeros, floats=[ratio], inputs=[0])


@operator("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(y_scale: np.ndarray, y_zero_point: np.ndarray, *tensors: np.ndarray, axis: int) -> np.ndarray:
    """Quantized tensors, each followed by its scale and zero point, joined along `axis`."""
    if not tensors or len(tensors) % 3:
        raise ValueError(f"needs triples of tensor, scale and zero point, got {len(tensors)} inputs")
    parts = [_real(*tensors[i : i + 3]) for i in range(0, len(tensors), 3)]
    return _codes(standard("Concat", *parts, axis=axis), y_scale, y_zero_point, tensors[0].dtype)


@operator("QLinearWhere", domain=MICROSOFT)
def qlinear_where(
    condition: np.ndarray,
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray,
    y: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray,
    z_scale: np.ndarray,
    z_zero_point: np.ndarray,
) -> np.ndarray:
    """x where `condition` holds, else y, broadcast; all are quantized tensors."""
    chosen = standard("Where", condition, _real(x, x_scale, x_zero_point), _real(y, y_scale, y_zero_point))
    return _codes(chosen, z_scale, z_zero_point, x.dtype)


@operator("QGemm", domain=MICROSOFT)
def qgemm(
    a: np.ndarray,
    a_scale: np.ndarray,
    a_zero_point: np.ndarray,
    b: np.ndarray,
    b_scale: np.ndarray,
    b_zero_point: np.ndarray,
    c: np.ndarray | None = None,
    y_scale: np.ndarray | None = None,
    y_zero_point: np.ndarray | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> np.ndarray:
    """Gemm of 8-bit matrices plus c int32 of scale alpha · a_scale · b_scale; float32, or quantized with y_scale.

    Parameters of b are single values or one for each of its N columns.
    """
    require_rank("A", a, 2)
    require_rank("B", b, 2)
    _check_parameters(a_scale, a_zero_point)
    left, right = a.T if transA else a, b.T if transB else b
    columns = right.shape[1]
    for name, value in (("b_scale", b_scale), ("b_zero_point", b_zero_point)):
        if value.ndim > 1 or value.size not in (1, columns):
            raise ValueError(f"{name} must have 1 or {columns} values, got shape {value.shape}")
    zero = b_zero_point.reshape(-1) if b_zero_point.size > 1 else b_zero_point.reshape(())
    total = standard("MatMulInteger", left, right, a_zero_point.reshape(()), zero)
    if c is not None:
        try:
            fits = np.broadcast_shapes(c.shape, total.shape) == total.shape
        except ValueError:
            fits = False
        if not fits or c.dtype != np.int32:
            raise ValueError(f"C must be int32 and broadcast to {total.shape}, got {c.dtype} of shape {c.shape}")
        total = total + c
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = np.float32(alpha) * a_scale.reshape(()) * b_scale.reshape(-1)
        if y_scale is None:
            return (total.astype(np.float32) * scale).astype(np.float32, copy=False)
        _check_parameters(y_scale, y_zero_point)
        zero_point = np.zeros((), a.dtype) if y_zero_point is None else y_zero_point.reshape(())
        return requantized(total, scale / y_scale.reshape(()), zero_point)


@operator("QLinearConv", domain=MICROSOFT)
def qlinear_conv(
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray,
    w: np.ndarray,
    w_scale: np.ndarray,
    w_zero_point: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray,
    b: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    channels_last: int = 0,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """The standard QLinearConv, with `channels_last` of x (N, *spatial, C) to (N, *spatial, M); W stays (M, C, *kernel)."""
    y = standard(
        "QLinearConv", _channels_first(x, channels_last), x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale,
        y_zero_point, b, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads,
        strides=strides,
    )  # fmt: skip
    return _channels_back(y, channels_last)
