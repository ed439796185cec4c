"""Layer and RMS normalization as one operator: scale and bias come last."""

from __future__ import annotations

from functools import partial

import numpy as np

from qruntime.ir import Node
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.quantization.sites.changes import ORDER, SCALE, SHIFT, Blocked, floats_of, give, replace
from qruntime.quantization.sites.tracing import Trace

PLACES: dict[tuple[str, str], tuple[int, int | None]] = {
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1, None),
    ("", "SimplifiedLayerNormalization"): (1, None),
    (MICROSOFT, "SimplifiedLayerNormalization"): (1, None),
    (MICROSOFT, "SkipLayerNormalization"): (2, 3),
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): (2, None),
}
"""Where the scale stands among the inputs, and where the bias does, None for an operator that has none."""


def norm(trace: Trace, node: Node) -> None:
    trace.roles.append("norm")
    if trace.kind == ORDER:
        raise Blocked(f"{node.label} gives its channels in the order of its input, which others read")
    at_scale, at_bias = PLACES[node.domain, node.op_type]
    labels = trace.channels(node)
    gamma = floats_of(node, at_scale)
    if gamma.shape != labels.shape:
        raise Blocked(f"{node.label} has a scale of shape {list(gamma.shape)}, need [{len(labels)}]")
    has_bias = at_bias is not None and node.input(at_bias) is not None
    if at_bias is not None and has_bias and floats_of(node, at_bias).shape != labels.shape:
        raise Blocked(f"the bias of {node.label} is not one number per channel")
    if trace.kind == SHIFT and at_bias is None:
        raise Blocked(f"{node.label} has no bias")
    trace.edits.append(
        partial(_edit, node, at_scale, at_bias if has_bias or trace.kind == SHIFT else None, trace.kind, trace.along(labels))
    )


def _edit(node: Node, at_scale: int, at_bias: int | None, kind: str, by: np.ndarray) -> None:
    if kind == SCALE:
        replace(node, at_scale, floats_of(node, at_scale) / by)
    if at_bias is None:
        return
    if node.input(at_bias) is None:
        gamma = node.input(at_scale)
        assert gamma is not None
        give(node, at_bias, f"{gamma.name}/bias", np.ascontiguousarray(-by, floats_of(node, at_scale).dtype))
    else:
        bias = floats_of(node, at_bias)
        replace(node, at_bias, bias / by if kind == SCALE else bias - by)
