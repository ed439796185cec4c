"""Look-ups in quantized embedding tables, which are stored as Gather and plain arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.passes.rewriting import Rewrite, Skip, rewrite_graph


class FuseEmbedding(Rewrite):
    """Cast(codes[ids]) · scale[ids] + offset[ids]  →  QuantizedEmbedding"""

    bits = 8

    def pattern(self, op: Any, codes: Any, scale: Any, offset: Any, ids: Any) -> Any:
        return self.scaled(op, op.Cast(op.Gather(codes, ids, name="look_up"), to=1), scale, offset, ids)

    def scaled(self, op: Any, rows: Any, scale: Any, offset: Any, ids: Any) -> Any:
        return op.Add(op.Mul(rows, op.Gather(scale, ids, name="scales")), op.Gather(offset, ids, name="offsets"))

    def check(self, codes: Value, scale: Value, offset: Value, ids: Value, **named: Any) -> Skip | None:
        table = codes.data
        if table is None or table.dtype != np.uint8 or table.ndim != 2:
            return Skip("the codes are no uint8 table")
        for value in (scale, offset):
            if value.data is None or value.data.dtype != np.float32 or value.data.shape != (table.shape[0], 1):
                return Skip(f"{value.name} is no float32 constant with one entry for each row")
        gathers = [node for node in named.values() if isinstance(node, Node) and node.is_op("Gather")]
        if any(node.attr("axis", 0) not in (0, -2) for node in gathers):
            return Skip("not the rows are looked up")
        return None

    def replace(self, op: Any, codes: Value, scale: Value, offset: Value, ids: Value, **named: Any) -> Value:
        return op.QuantizedEmbedding(codes, scale, offset, ids, bits=self.bits)


class FuseHalfByteEmbedding(FuseEmbedding):
    """The same with two codes to a byte, taken apart by Floor(byte / 16)  →  QuantizedEmbedding(bits=4)"""

    needs = "Floor"
    bits = 4

    def pattern(self, op: Any, codes: Any, scale: Any, offset: Any, ids: Any) -> Any:
        pairs = op.Cast(op.Gather(codes, ids, name="look_up"), to=1)
        high = op.Floor(op.Mul(pairs, 1 / 16))
        rows = op.Concat(op.Sub(pairs, op.Mul(high, 16)), high, axis=-1)
        return self.scaled(op, rows, scale, offset, ids)


def fuse_embeddings(graph: Graph) -> None:
    rewrite_graph(graph, [FuseEmbedding(), FuseHalfByteEmbedding()])
