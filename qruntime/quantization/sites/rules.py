"""What every operator does with a change of its channels; one that is not here takes on none."""

from __future__ import annotations

from qruntime.ir import Node
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.quantization.sites import attention, elementwise, linears, movement, norms, tables
from qruntime.quantization.sites.tracing import Rule, Rules, Trace


def _matmul(trace: Trace, node: Node) -> None:
    weight = node.input(1)
    rule = linears.linear if weight is not None and weight.is_constant else attention.values
    rule(trace, node)


def _gather(trace: Trace, node: Node) -> None:
    table = node.input(0)
    rule = tables.rows if table is not None and table.is_constant else movement.cut
    rule(trace, node)


_STANDARD: dict[str, Rule] = {
    # What makes the tensor.
    "MatMul": _matmul,
    "Gemm": linears.linear,
    "Gather": _gather,
    # What it goes through.
    "Concat": movement.concat,
    "Dropout": movement.hand_on,
    "Expand": movement.expand,
    "Flatten": movement.reshape,
    "Identity": movement.hand_on,
    "Reshape": movement.reshape,
    "Slice": movement.cut,
    "Split": movement.split,
    "Squeeze": movement.squeeze,
    "Transpose": movement.transpose,
    "Unsqueeze": movement.squeeze,
}

RULES: Rules = {
    **{("", op_type): rule for op_type, rule in _STANDARD.items()},
    **dict.fromkeys(norms.PLACES, norms.norm),
    **dict.fromkeys(attention.OPERATORS, attention.whole),
    **{("", op_type): elementwise.arithmetic for op_type in elementwise.ARITHMETIC},
    **{("", op_type): elementwise.activation for op_type in (*elementwise.HOMOGENEOUS, *elementwise.OTHERS)},
    **{(MICROSOFT, op_type): elementwise.activation for op_type in elementwise.CONTRIB},
    **{(MICROSOFT, op_type): linears.linear for op_type in ("FusedMatMul", "TransposeMatMul", "FusedGemm", "GemmFastGelu")},
    (MICROSOFT, "Attention"): attention.with_projection,
    (MICROSOFT, "Gelu"): elementwise.activation,
}
