"""FusedConv (Conv, a tensor that is added, an activation) and ConvTransposeWithDynamicPads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ops.checks import integers, require_shape
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.contrib.fused_matmul import activated
from qruntime.ops.registry import operator


@operator("FusedConv", domain=MICROSOFT)
def fused_conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    z: np.ndarray | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """activation(Conv(X, W, B) + Z)"""
    y = standard(
        "Conv", x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads,
        strides=strides,
    )  # fmt: skip
    if z is not None:
        require_shape("Z", z, y.shape)
        y = y + z
    return activated(y, activation, *activation_params[:3])


@operator("ConvTransposeWithDynamicPads", domain=MICROSOFT, shape_inputs=(2,))
def conv_transpose_with_dynamic_pads(
    x: np.ndarray,
    w: np.ndarray,
    pads: np.ndarray | None = None,
    b: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """ConvTranspose whose pads are an input: [2 · spatial rank]."""
    return standard(
        "ConvTranspose", x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape,
        output_padding=output_padding, pads=None if pads is None else integers(pads, "Pads"), strides=strides,
    )  # fmt: skip
