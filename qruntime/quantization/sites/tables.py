"""Rows of a table of embeddings make the tensor: its columns take on every change."""

from __future__ import annotations

from functools import partial

import numpy as np

from qruntime.ir import Node
from qruntime.quantization.sites.changes import ORDER, SCALE, Blocked, floats_of, replace
from qruntime.quantization.sites.tracing import Trace


def rows(trace: Trace, node: Node) -> None:
    """Gather of a constant."""
    labels, table = trace.channels(node), floats_of(node, 0)
    if table.ndim != 2 or node.attr("axis", 0) not in (0, -2) or table.shape[1] != len(labels):
        raise Blocked(f"{node.label} takes no rows of {len(labels)} channels from a table")
    trace.roles.append("table")
    by = trace.sources(labels) if trace.kind == ORDER else trace.along(labels)
    trace.edits.append(partial(_edit, node, trace.kind, by))


def _edit(node: Node, kind: str, by: np.ndarray) -> None:
    table = floats_of(node, 0)
    replace(node, 0, table[:, by] if kind == ORDER else table / by if kind == SCALE else table - by)
