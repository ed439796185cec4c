"""What slides over an image: convolutions and poolings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from qruntime.ir import Node
from qruntime.ops.convolution import transposed_output
from qruntime.ops.windows import Window, tap_counts, window


def operators() -> dict[str, Callable[..., Any]]:
    import torch

    functional = torch.nn.functional

    def window_of(node: Node, x: Any, kernel: tuple[int, ...]) -> Window:
        strides, dilations, pads = (node.attr(name) for name in ("strides", "dilations", "pads"))
        return window(x.shape[2:], kernel, strides, dilations, pads, node.attr("auto_pad", "NOTSET"), node.attr("ceil_mode", 0))

    def padded(x: Any, win: Window, fill: float = 0.0) -> Any:
        """Exactly what the windows reach."""
        each: list[int] = []
        for size, begin, out, stride, extent in zip(x.shape[2:], win.begin, win.output, win.strides, win.extents):
            each = [begin, (out - 1) * stride + extent - size - begin, *each]
        return functional.pad(x, each, value=fill) if any(each) else x

    def windows(x: Any, win: Window) -> Any:
        """Of a padded x (N, C, *spatial) the views (N, C, *output, *kernel)."""
        for axis, (extent, stride) in enumerate(zip(win.extents, win.strides), 2):
            x = x.unfold(axis, extent, stride)
        taps = (..., *(slice(None, None, dilation) for dilation in win.dilations))
        return x[taps]

    def rounded_conv(x: Any, w: Any, win: Window, group: int, rounding: Callable[[Any], Any]) -> Any:
        """What a window covers in the channels of a group is a row, as in ops/quantized_convolution.py."""
        rank = len(win.kernel)
        seen = windows(padded(x, win), win).unflatten(1, (group, -1))  # N, group, channels, *output, *kernel
        rows = seen.movedim(2, 2 + rank).flatten(2 + rank)
        y = torch.einsum("ng...k,gmk->ngm...", rounding(rows), w.reshape(group, w.shape[0] // group, -1))
        return y.flatten(1, 2)

    def conv(node: Node, x: Any, w: Any, bias: Any = None, rounding: Callable[[Any], Any] | None = None) -> Any:
        win, group, rank = window_of(node, x, w.shape[2:]), node.attr("group", 1), w.ndim - 2
        if rounding is not None:
            y = rounded_conv(x, w, win, group, rounding)
            return y if bias is None else y + bias.reshape(-1, *(1,) * rank)
        function = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
        if win.begin == win.end and not node.attr("auto_pad", "NOTSET").startswith("SAME"):
            return function(x, w, bias, win.strides, win.begin, win.dilations, group)
        return function(padded(x, win), w, bias, win.strides, 0, win.dilations, group)

    def conv_transpose(node: Node, x: Any, w: Any, bias: Any = None) -> Any:
        rank = w.ndim - 2
        begin, wanted = transposed_output(
            x.shape[2:], w.shape[2:], node.attr("strides"), node.attr("dilations"), node.attr("pads"), node.attr("auto_pad", "NOTSET"),
            node.attr("output_padding"), node.attr("output_shape"),
        )  # fmt: skip
        function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
        ones = (1,) * rank
        y = function(x, w, None, node.attr("strides", ones), 0, 0, node.attr("group", 1), node.attr("dilations", ones))
        each: list[int] = []
        for size, first, length in zip(y.shape[2:], begin, wanted):
            each = [-first, length + first - size, *each]
        y = functional.pad(y, each) if any(each) else y
        return y if bias is None else y + bias.reshape(-1, *ones)

    def max_pool(node: Node, x: Any) -> Any:
        win = window_of(node, x, node.attr("kernel_shape"))
        function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(win.kernel) - 1]
        return function(padded(x, win, -math.inf), win.kernel, win.strides, 0, win.dilations)

    def average_pool(node: Node, x: Any) -> Any:
        win = window_of(node, x, node.attr("kernel_shape"))
        counts = torch.from_numpy(tap_counts(win, x.shape[2:], bool(node.attr("count_include_pad", 0)))).clamp(min=1)
        return windows(padded(x, win), win).flatten(2 + len(win.kernel)).sum(-1) / counts.to(x.dtype)

    return {
        "Conv": conv,
        "ConvTranspose": conv_transpose,
        "MaxPool": max_pool,
        "AveragePool": average_pool,
        "GlobalAveragePool": lambda node, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
        "GlobalMaxPool": lambda node, x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    }
