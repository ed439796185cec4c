"""Look-ups in quantized embedding tables (lowered graphs, domain qruntime)."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Node, StoredTensor
from qruntime.ops.checks import limit_shape, wrap_indices
from qruntime.ops.registry import NativeCall, operator


@operator("QuantizedEmbedding", domain="qruntime")
def quantized_embedding(codes: np.ndarray, scale: np.ndarray, offset: np.ndarray, indices: np.ndarray, *, bits: int = 8) -> np.ndarray:
    """Rows scale · q + offset, float32 [*indices, D]; codes uint8 [N, D], or with 4 bits [N, D/2]; scale, offset [N, 1].

    Of two 4-bit codes in a byte the low one belongs to column j, the high one to column j + D/2.
    """
    rows = wrap_indices(indices, codes.shape[0])
    limit_shape(indices.shape + codes.shape[1:])
    q = codes[rows]
    if bits == 4:
        q = np.concatenate([q & 15, q >> 4], axis=-1)
    return q.astype(np.float32) * scale[rows] + offset[rows]


@operator("StoredEmbedding", domain="qruntime")
def stored_embedding(table: StoredTensor, indices: np.ndarray) -> np.ndarray:
    """Rows of a table [N, D] of any stored form, [*indices, D]: those alone are decoded."""
    rows = wrap_indices(indices, table.shape[0])
    limit_shape((*indices.shape, table.shape[1]))
    return table.rows(rows.reshape(-1)).decoded().reshape(*indices.shape, table.shape[1])


@quantized_embedding.native
def _(node: Node) -> NativeCall:
    return NativeCall("embedding", ints=[node.attr("bits", 8)])
