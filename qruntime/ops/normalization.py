"""Normalizations, and Dropout beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from qruntime.ir import Node
from qruntime.ir.dtypes import numpy_dtype
from qruntime.ops.checks import normalize_axis, require_rank, require_shape
from qruntime.ops.precision import working_dtype
from qruntime.ops.registry import NativeCall, operator, versions


def _per_channel(value: np.ndarray, rank: int, dtype: np.dtype) -> np.ndarray:
    return value.astype(dtype, copy=False).reshape(-1, *(1,) * (rank - 2))


def _batch_normalization(
    x: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    epsilon: float,
) -> np.ndarray:
    require_rank("X", x, 1, -1)
    channels = x.shape[1] if x.ndim > 1 else 1
    wide = np.result_type(working_dtype(x.dtype), working_dtype(mean.dtype))
    for name, value in (("scale", scale), ("B", bias), ("mean", mean), ("var", variance)):
        require_shape(name, value, (channels,))
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = scale.astype(wide) / np.sqrt(variance.astype(wide) + wide.type(epsilon))
    if x.ndim == 1:
        return ((x.astype(wide) - mean.astype(wide)) * factor + bias.astype(wide)).astype(x.dtype)
    centred = x.astype(wide, copy=False) - _per_channel(mean, x.ndim, wide)
    centred *= _per_channel(factor, x.ndim, wide)
    centred += _per_channel(bias, x.ndim, wide)
    return centred.astype(x.dtype, copy=False)


@operator("BatchNormalization", since=14)
def batch_normalization(
    x: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> np.ndarray | tuple[np.ndarray, ...]:
    """X (N, C, …), the rest (C) → Y; in training mode with the statistics of X, and the running ones updated."""
    if not training_mode:
        return _batch_normalization(x, scale, bias, mean, variance, epsilon)
    require_rank("X", x, 2, -1)
    axes = (0, *range(2, x.ndim))
    wide = working_dtype(x.dtype)
    batch_mean = x.mean(axis=axes, dtype=wide)
    batch_variance = x.astype(wide, copy=False).var(axis=axes)
    y = _batch_normalization(x, scale, bias, batch_mean, batch_variance, epsilon)
    running_mean = mean.astype(wide) * momentum + batch_mean * (1 - momentum)
    running_variance = variance.astype(wide) * momentum + batch_variance * (1 - momentum)
    return y, running_mean.astype(mean.dtype), running_variance.astype(variance.dtype)


@operator("BatchNormalization", since=9)
def batch_normalization_9(
    x: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    num_outputs: int = 1,
) -> np.ndarray | tuple[np.ndarray, ...]:
    """Version 9: several outputs ask for the training mode; the saved statistics equal those of the batch."""
    if num_outputs == 1:
        return _batch_normalization(x, scale, bias, mean, variance, epsilon)
    y, running_mean, running_variance = batch_normalization.definition(
        x, scale, bias, mean, variance, epsilon=epsilon, momentum=momentum, training_mode=1
    )
    axes = (0, *range(2, x.ndim))
    wide = working_dtype(x.dtype)
    saved_mean = x.mean(axis=axes, dtype=wide).astype(x.dtype)
    saved_variance = x.astype(wide, copy=False).var(axis=axes).astype(x.dtype)
    return y, running_mean, running_variance, saved_mean, saved_variance


@operator("BatchNormalization", since=7)
def batch_normalization_7(
    x: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    num_outputs: int = 1,
) -> np.ndarray | tuple[np.ndarray, ...]:
    """Version 7: as 9, and with `spatial` 0 one set of parameters per activation instead of per channel."""
    if spatial:
        return batch_normalization_9.definition(x, scale, bias, mean, variance, epsilon=epsilon, momentum=momentum, num_outputs=num_outputs)
    if num_outputs != 1:
        raise ValueError("training mode needs spatial = 1")
    for name, value in (("scale", scale), ("B", bias), ("mean", mean), ("var", variance)):
        require_shape(name, value, x.shape[1:])
    wide = working_dtype(x.dtype)
    factor = scale.astype(wide) / np.sqrt(variance.astype(wide) + wide.type(epsilon))
    return ((x.astype(wide) - mean.astype(wide)) * factor + bias.astype(wide)).astype(x.dtype)


@operator("BatchNormalization", since=1)
def batch_normalization_1(
    x: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    *,
    consumed_inputs: Sequence[int] | None = None,
    epsilon: float = 1e-5,
    is_test: int = 0,
    momentum: float = 0.9,
    spatial: int = 1,
    num_outputs: int = 1,
) -> np.ndarray | tuple[np.ndarray, ...]:
    """Versions 1 and 6: as 7; training mode where `is_test` is 0 and the node has its further outputs."""
    return batch_normalization_7.definition(
        x, scale, bias, mean, variance, epsilon=epsilon, momentum=momentum, spatial=spatial,
        num_outputs=1 if is_test else num_outputs,
    )  # fmt: skip


def _batch_norm(node: Node) -> NativeCall | None:
    """Inference only: with one set of statistics a channel, and no output that training asks for."""
    if len(node.outputs) != 1 or node.attr("training_mode", 0) or not node.attr("spatial", 1):
        return None
    return NativeCall("batch_norm", floats=[node.attr("epsilon", 1e-5)])


for _spec in versions("BatchNormalization"):
    _spec.native(_batch_norm)


def _standardized(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.mean(centred * centred, axis=axes, keepdims=True)
    return centred / np.sqrt(variance + x.dtype.type(epsilon))


@operator("InstanceNormalization", since=1)
def instance_normalization(
    x: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    *,
    consumed_inputs: Sequence[int] | None = None,
    epsilon: float = 1e-5,
) -> np.ndarray:
    """X (N, C, *spatial) standardized per image and channel, times scale (C) plus B (C)."""
    require_rank("X", x, 3, -1)
    require_shape("scale", scale, (x.shape[1],))
    require_shape("B", bias, (x.shape[1],))
    wide = working_dtype(x.dtype)
    y = _standardized(x.astype(wide, copy=False), tuple(range(2, x.ndim)), epsilon)
    return (y * _per_channel(scale, x.ndim, wide) + _per_channel(bias, x.ndim, wide)).astype(x.dtype, copy=False)


@instance_normalization.native
def _instance_norm(node: Node) -> NativeCall:
    return NativeCall("group_norm", ints=[0, 0], floats=[node.attr("epsilon", 1e-5)])


def _grouped(x: np.ndarray, num_groups: int, epsilon: float, stash: np.dtype) -> np.ndarray:
    """X (N, C, …) standardized per image and group, in the dtype `stash`, shape (N, groups, elements)."""
    require_rank("X", x, 2, -1)
    if num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f"num_groups {num_groups} must divide the {x.shape[1]} channels of X {x.shape}")
    elements = x.shape[1] // num_groups * math.prod(x.shape[2:])
    return _standardized(x.reshape(x.shape[0], num_groups, elements).astype(stash, copy=False), (2,), epsilon)


@operator("GroupNormalization", since=18)
def group_normalization_18(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, *, num_groups: int, epsilon: float = 1e-5) -> np.ndarray:
    """Version 18: scale and bias have one value per group."""
    require_shape("scale", scale, (num_groups,))
    require_shape("bias", bias, (num_groups,))
    wide = working_dtype(x.dtype)
    y = _grouped(x, num_groups, epsilon, wide)
    y = y * scale.astype(wide).reshape(-1, 1) + bias.astype(wide).reshape(-1, 1)
    return y.reshape(x.shape).astype(x.dtype, copy=False)


def _stash_dtype(stash_type: int, dtype: np.dtype) -> np.dtype:
    stash = numpy_dtype(stash_type)
    if stash.kind not in "fV":
        raise ValueError(f"stash_type must name a floating type, got {stash}")
    return np.result_type(working_dtype(stash), working_dtype(dtype))


@operator("GroupNormalization", since=21)
def group_normalization(
    x: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> np.ndarray:
    """X (N, C, …) standardized per image and group of channels, times scale (C) plus bias (C)."""
    require_rank("X", x, 2, -1)
    require_shape("scale", scale, (x.shape[1],))
    require_shape("bias", bias, (x.shape[1],))
    wide = _stash_dtype(stash_type, x.dtype)
    y = _grouped(x, num_groups, epsilon, wide).reshape(x.shape)
    return (y * _per_channel(scale, x.ndim, wide) + _per_channel(bias, x.ndim, wide)).astype(x.dtype, copy=False)


def _group_norm(per_group: int) -> Callable[[Node], NativeCall | None]:
    def bind(node: Node) -> NativeCall | None:
        if node.attr("num_groups") < 1 or node.attr("stash_type", 1) != 1:
            return None
        return NativeCall("group_norm", ints=[node.attr("num_groups"), per_group], floats=[node.attr("epsilon", 1e-5)])

    return bind


group_normalization_18.native(_group_norm(1))
group_normalization.native(_group_norm(0))


def _check_suffix(name: str, value: np.ndarray | None, shape: tuple[int, ...]) -> None:
    if value is not None:
        try:
            fits = np.broadcast_shapes(value.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"{name} must broadcast to {shape}, got {value.shape}")


@operator("LayerNormalization", since=1)
def layer_normalization(
    x: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X standardized over the axes from `axis` on, times scale plus B; also mean and 1 / deviation."""
    axis = normalize_axis(axis, x.ndim)
    _check_suffix("Scale", scale, x.shape)
    _check_suffix("B", bias, x.shape)
    axes = tuple(range(axis, x.ndim))
    stash = _stash_dtype(stash_type, x.dtype)
    wide = x.astype(stash, copy=False)
    mean = wide.mean(axis=axes, keepdims=True)
    centred = wide - mean
    inverse = 1 / np.sqrt(np.mean(centred * centred, axis=axes, keepdims=True) + stash.type(epsilon))
    y = centred * inverse * scale.astype(stash)
    if bias is not None:
        y = y + bias.astype(stash)
    return y.astype(x.dtype, copy=False), mean, inverse


@operator("RMSNormalization", since=23)
def rms_normalization(x: np.ndarray, scale: np.ndarray, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> np.ndarray:
    """X over its root mean square on the axes from `axis` on, times scale."""
    axis = normalize_axis(axis, x.ndim)
    _check_suffix("scale", scale, x.shape)
    axes = tuple(range(axis, x.ndim))
    stash = _stash_dtype(stash_type, x.dtype)
    wide = x.astype(stash, copy=False)
    normalized = wide / np.sqrt(np.mean(wide * wide, axis=axes, keepdims=True) + stash.type(epsilon))
    # The function body casts before it scales.
    normalized = normalized.astype(x.dtype, copy=False)
    return (normalized.astype(stash) * scale.astype(stash)).astype(scale.dtype, copy=False)


@operator("LRN", since=1)
def lrn(x: np.ndarray, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> np.ndarray:
    """X (N, C, …) / (bias + alpha / size · sum of squares over `size` neighbouring channels) ** beta."""
    require_rank("X", x, 2, -1)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    wide = x.astype(working_dtype(x.dtype), copy=False)
    channels = x.shape[1]
    squares, sums = wide * wide, np.zeros_like(wide)
    before, after = (size - 1) // 2, size // 2
    for shift in range(-min(before, channels), min(after, channels) + 1):
        low, high = max(0, -shift), min(channels, channels - shift)
        if high > low:
            sums[:, low:high] += squares[:, low + shift : high + shift]
    divisor = (wide.dtype.type(bias) + wide.dtype.type(alpha / size) * sums) ** wide.dtype.type(beta)
    return (wide / divisor).astype(x.dtype, copy=False)


@lrn.native
def _(node: Node) -> NativeCall:
    floats = [node.attr("alpha", 1e-4), node.attr("beta", 0.75), node.attr("bias", 1.0)]
    return NativeCall("lrn", ints=[node.attr("size")], floats=floats)


@operator("MeanVarianceNormalization", since=9)
def mean_variance_normalization(x: np.ndarray, *, axes: Sequence[int] = (0, 2, 3)) -> np.ndarray:
    """(X - mean) / (deviation + 1e-9) over `axes`."""
    over = tuple(normalize_axis(axis, x.ndim) for axis in axes)
    wide = x.astype(working_dtype(x.dtype), copy=False)
    mean = wide.mean(axis=over, keepdims=True)
    variance = np.maximum((wide * wide).mean(axis=over, keepdims=True) - mean * mean, 0)
    return ((wide - mean) / (np.sqrt(variance) + wide.dtype.type(1e-9))).astype(x.dtype, copy=False)


def _dropout(x: np.ndarray, ratio: float, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must lie in [0, 1), got {ratio}")
    if ratio == 0:
        return x.copy(), np.ones(x.shape, np.bool_)
    # The draw that ONNX's own reference makes, so that a seed gives the same mask there and here.
    generator = np.random.RandomState(None if seed is None else seed % 2**32)
    mask = generator.uniform(0, 1.0, x.shape) >= ratio
    wide = working_dtype(x.dtype)
    return (mask * x.astype(wide) * wide.type(1 / (1 - ratio))).astype(x.dtype), mask


@operator("Dropout", since=12, deterministic=False)
def dropout(
    x: np.ndarray,
    ratio: np.ndarray | None = None,
    training_mode: np.ndarray | None = None,
    *,
    seed: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Identity, or in training mode random zeros and the rest scaled up; second output the mask (bool)."""
    for name, value in (("ratio", ratio), ("training_mode", training_mode)):
        if value is not None and value.size != 1:
            raise ValueError(f"{name} must be one value, got shape {value.shape}")
    if training_mode is None or not training_mode.item():
        return x, np.ones(x.shape, np.bool_)
    return _dropout(x, 0.5 if ratio is None else float(ratio.item()), seed)


@operator("Dropout", since=10)
def dropout_10(x: np.ndarray, *, ratio: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Versions 10 and 11: inference only; second output the mask (bool)."""
    return x, np.ones(x.shape, np.bool_)


@operator("Dropout", since=7)
def dropout_7(x: np.ndarray, *, ratio: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Versions 7 to 9: inference only; second output the mask in the type of X."""
    return x, np.ones(x.shape, x.dtype)


@operator("Dropout", since=1, deterministic=False)
def dropout_1(
    x: np.ndarray,
    *,
    consumed_inputs: Sequence[int] | None = None,
    is_test: int = 0,
    ratio: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Versions 1 and 6: inference whatever `is_test` says, as exporters left it at 0 by mistake."""
    return x, np.ones(x.shape, x.dtype)
