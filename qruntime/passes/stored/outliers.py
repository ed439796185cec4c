"""`ReplaceOutliers(real, gaps, values)`: a few numbers in place of what codes say, a call of a function of ours.

    y = x, but at position Σ gaps[0 … i], counted row after row:  values[i]

Gaps are uint16, uint32 or int64, values float16 or float32.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qruntime.ir import Node, StoredTensor, TypeInfo, Value, constant
from qruntime.ir.outliers import Outliers
from qruntime.passes.rewriting import QRUNTIME
from qruntime.passes.stored.function_bodies import LEAST_OPSET

NAME = "ReplaceOutliers"
_FLOAT = 1


def read(node: Node) -> StoredTensor | None:
    """None for a call that does not say what it should."""
    real, gaps, values = (node.input(i) for i in range(3))
    stored = None if real is None else real.stored
    if stored is None or gaps is None or gaps.data is None or values is None or values.data is None:
        return None
    outliers = Outliers(gaps.data, values.data)
    if stored.is_bare or stored.outliers is not None or stored.dtype != np.float32 or not outliers.fits(stored.shape):
        return None
    return replace(stored, outliers=outliers)


def write(name: str, real: Value, outliers: Outliers, shape: tuple[int, ...], version: int, nodes: list[Node]) -> Value | None:
    """A call over the float32 numbers `real` of that shape, which joins `nodes`; None where the opset cannot."""
    if version < LEAST_OPSET:
        return None
    rows = outliers.row_major(shape)
    inputs = [real, constant(f"{name}_outlier_gaps", rows.gaps), constant(f"{name}_outliers", rows.values)]
    output = Value(f"{name}_dequantized", TypeInfo("tensor", _FLOAT, shape))
    nodes.append(Node(NAME, inputs, [output], {}, domain=QRUNTIME, version=1))
    return output
