"""Sums over axes: reductions, softmax, normalization."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from qruntime.ir import Node


def operators() -> dict[str, Callable[..., Any]]:
    import torch

    functional = torch.nn.functional

    def reduction(function: Callable[[Any, tuple[int, ...]], Any]) -> Callable[..., Any]:
        """`function` of a tensor and axes, which it keeps with one entry each."""

        def reduce(node: Node, x: Any, axes: Any = None) -> Any:
            axes = node.attr("axes") if axes is None else axes
            if not axes and node.attr("noop_with_empty_axes", 0):
                return function(x, ())
            over = tuple(axis % x.ndim for axis in axes) if axes else tuple(range(x.ndim))
            y = function(x, over) if over else x
            return y if node.attr("keepdims", 1) else y.squeeze(over)

        return reduce

    def total(x: Any, axes: tuple[int, ...]) -> Any:
        return x.sum(axes, keepdim=True) if axes else x

    def product(x: Any, axes: tuple[int, ...]) -> Any:
        for axis in axes:
            x = x.prod(axis, keepdim=True)
        return x

    def flat(function: Callable[..., Any]) -> Callable[..., Any]:
        """Softmax and its logarithm: over an axis, before opset 13 over all from one on."""

        def softmax(node: Node, x: Any) -> Any:
            if node.version >= 13:
                return function(x, dim=node.attr("axis", -1))
            axis = node.attr("axis", 1) % max(x.ndim, 1)
            return function(x.reshape(math.prod(x.shape[:axis]), -1), dim=1).reshape(x.shape)

        return softmax

    def standardized(x: Any, axes: tuple[int, ...], epsilon: float) -> Any:
        centred = x - x.mean(axes, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)

    def layer_norm(node: Node, x: Any, scale: Any, bias: Any = None) -> Any:
        axis = node.attr("axis", -1) % x.ndim
        if scale.shape == x.shape[axis:]:
            return functional.layer_norm(x, x.shape[axis:], scale, bias, node.attr("epsilon", 1e-5))
        y = standardized(x, tuple(range(axis, x.ndim)), node.attr("epsilon", 1e-5)) * scale
        return y if bias is None else y + bias

    def rms_norm(node: Node, x: Any, scale: Any) -> Any:
        axes = tuple(range(node.attr("axis", -1) % x.ndim, x.ndim))
        return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + node.attr("epsilon", 1e-5)) * scale

    def skip_layer_norm(node: Node, x: Any, skip: Any, scale: Any, shift: Any = None, bias: Any = None) -> Any:
        x = x + skip if bias is None else x + skip + bias
        return functional.layer_norm(x, x.shape[-1:], scale, shift, node.attr("epsilon", 1e-12)), None, None, x

    def skip_rms_norm(node: Node, x: Any, skip: Any, scale: Any, bias: Any = None) -> Any:
        x = x + skip if bias is None else x + skip + bias
        return rms_norm(node, x, scale), None, None, x

    def channels(values: Any, x: Any) -> Any:
        return values.reshape(-1, *(1,) * (x.ndim - 2))

    def batch_norm(node: Node, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
        if node.attr("training_mode", 0):
            raise ValueError("statistics of the batch have no gradient here; export the model for inference")
        factor = scale * torch.rsqrt(variance + node.attr("epsilon", 1e-5))
        return (x - channels(mean, x)) * channels(factor, x) + channels(bias, x)

    def instance_norm(node: Node, x: Any, scale: Any, bias: Any) -> Any:
        return standardized(x, tuple(range(2, x.ndim)), node.attr("epsilon", 1e-5)) * channels(scale, x) + channels(bias, x)

    def group_norm(node: Node, x: Any, scale: Any, bias: Any) -> Any:
        groups, size = node.attr("num_groups"), x.shape[1]
        if node.version < 21:
            scale, bias = (one.repeat_interleave(size // groups) for one in (scale, bias))
        return functional.group_norm(x, groups, scale, bias, node.attr("epsilon", 1e-5))

    def mean_variance(node: Node, x: Any) -> Any:
        axes = tuple(node.attr("axes", (0, 2, 3)))
        return (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True).sqrt() + 1e-9)

    def lp_norm(node: Node, x: Any) -> Any:
        length = torch.linalg.vector_norm(x, node.attr("p", 2), node.attr("axis", -1), keepdim=True)
        return x / torch.where(length == 0, torch.ones_like(length), length)

    def cumulative(node: Node, x: Any, axis: Any) -> Any:
        axis = int(axis)
        turned = x.flip(axis) if node.attr("reverse", 0) else x
        y = turned.cumsum(axis) - turned if node.attr("exclusive", 0) else turned.cumsum(axis)
        return y.flip(axis) if node.attr("reverse", 0) else y

    return {
        "ReduceSum": reduction(total),
        "ReduceMean": reduction(lambda x, axes: x.mean(axes, keepdim=True) if axes else x),
        "ReduceMax": reduction(lambda x, axes: x.amax(axes, keepdim=True) if axes else x),
        "ReduceMin": reduction(lambda x, axes: x.amin(axes, keepdim=True) if axes else x),
        "ReduceProd": reduction(product),
        "ReduceL1": reduction(lambda x, axes: total(x.abs(), axes)),
        "ReduceL2": reduction(lambda x, axes: total(x.square(), axes).sqrt()),
        "ReduceSumSquare": reduction(lambda x, axes: total(x.square(), axes)),
        "ReduceLogSum": reduction(lambda x, axes: total(x, axes).log()),
        "ReduceLogSumExp": reduction(lambda x, axes: torch.logsumexp(x, axes, keepdim=True) if axes else x),
        "CumSum": cumulative,
        "Softmax": flat(torch.softmax),
        "LogSoftmax": flat(torch.log_softmax),
        "LayerNormalization": layer_norm,
        "RMSNormalization": rms_norm,
        "SimplifiedLayerNormalization": rms_norm,
        "com.microsoft/SkipLayerNormalization": skip_layer_norm,
        "com.microsoft/SkipSimplifiedLayerNormalization": skip_rms_norm,
        "BatchNormalization": batch_norm,
        "InstanceNormalization": instance_norm,
        "GroupNormalization": group_norm,
        "MeanVarianceNormalization": mean_variance,
        "LpNormalization": lp_norm,
    }
