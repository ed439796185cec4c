"""How models print: a module tree in torch's manner, and the tables of `summary()`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from qruntime.ir import Graph, Node
from qruntime.passes.weights import DYNAMIC
from qruntime.quantization.report import Report
from qruntime.quantization.selection import kind_of


def tree(graph: Graph, report: Report) -> str:
    """Modules rebuilt from node names, quantized layers as torch prints them."""
    root: dict[str, Any] = {}
    for node in graph.walk_nodes():
        text = describe_layer(node)
        if text is None:
            continue
        path = [part for part in node.name.split("/") if part]
        if len(path) > 1 and path[-1].startswith(node.op_type):
            path = path[:-1]
        branch = root
        for part in (path or [node.outputs[0].name])[:-1]:
            below = branch.setdefault(part, {})
            branch = below if isinstance(below, dict) else branch
        leaf = (path or [node.outputs[0].name])[-1]
        while leaf in branch:
            leaf += "_"
        branch[leaf] = text
    return "\n".join(["Model(", *_lines(root, 2), ")"])


def _lines(branch: dict[str, Any], indent: int) -> list[str]:
    lines = []
    for name, below in branch.items():
        if isinstance(below, str):
            lines.append(f"{' ' * indent}({name}): {below}")
        else:
            lines += [f"{' ' * indent}({name}): Module(", *_lines(below, indent + 2), f"{' ' * indent})"]
    return lines


def describe_layer(node: Node) -> str | None:
    """One line for a node with weights, None for the others."""
    kind = None if node.domain else kind_of(node.op_type)
    if kind is None:
        return None
    shape = _weight_shape(node)
    if shape is None:
        return None
    quantized = DYNAMIC in node.metadata
    if kind == "Linear":
        transposed = node.op_type == "Gemm" and bool(node.attr("transB", 0))
        k, n = (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])
        if not quantized:
            return f"Linear(in_features={k}, out_features={n})"
        scheme = "torch.per_channel_affine" if _is_per_channel(node) else "torch.per_tensor_affine"
        return f"DynamicQuantizedLinear(in_features={k}, out_features={n}, dtype=torch.qint8, qscheme={scheme})"
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    prefix = "DynamicQuantized" if quantized else ""
    bidirectional = ", bidirectional=True" if node.attr("direction") == "bidirectional" else ""
    return f"{prefix}{kind}({shape[2]}, {shape[1] // gates}{bidirectional})"


def _weight_shape(node: Node) -> tuple[int, ...] | None:
    weight = node.input(1)
    if weight is None:
        return None
    if weight.data is not None:
        shape = weight.data.shape
    elif DYNAMIC in node.metadata and weight.type is not None and weight.type.shape is not None:
        shape = tuple(d if isinstance(d, int) else 0 for d in weight.type.shape)
    else:
        return None
    return shape if len(shape) == (3 if node.is_op("LSTM", "GRU", "RNN") else 2) else None


def _is_per_channel(node: Node) -> bool:
    weight = node.input(1)
    producer = None if weight is None else weight.producer
    return producer is not None and producer.is_op("DequantizeLinear") and producer.attr("axis") is not None


def summary(graph: Graph, report: Report, planned: Sequence[Any]) -> str:
    """Tables: quantized layers, skipped candidates, and how nodes run here."""
    lines = []
    if report.layers:
        rows = [("layer", "kind", "shape", "scheme", "bytes", "int8 bytes", "SNR dB")]
        for layer in report.layers:
            shape = "×".join(map(str, layer.shape))
            after = "shared" if layer.shared else f"{layer.bytes_after:,}"
            rows.append((layer.name, layer.kind, shape, layer.scheme, f"{layer.bytes_before:,}", after, f"{layer.snr_db:.1f}"))
        lines += [*table(rows), ""]
        ratio = report.bytes_before / max(1, report.bytes_after)
        lines.append(f"{len(report.layers)} weights: {report.bytes_before:,} → {report.bytes_after:,} bytes ({ratio:.2f}× smaller)")
    else:
        lines.append("No layer is quantized.")
    if report.skipped:
        lines += ["", f"{len(report.skipped)} candidates are left as they were:"]
        counted = Counter((s.op_type, s.reason) for s in report.skipped)
        for (op_type, reason), count in counted.items():
            first = next(s.name for s in report.skipped if (s.op_type, s.reason) == (op_type, reason))
            lines.append(f"  {op_type} ×{count} (first {first!r}): {reason}")
    sources = Counter(call.source for call in planned)
    lines += ["", "nodes: " + ", ".join(f"{sources[s]} {s}" for s in ("native", "numpy", "reference") if sources[s])]
    slow = Counter(call.node.op_type for call in planned if call.source != "native")
    if slow:
        lines.append("  not native: " + ", ".join(f"{op} ×{n}" for op, n in slow.most_common()))
    return "\n".join(lines)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of left-aligned columns, numbers to the right, a rule under the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for index, row in enumerate(rows):
        cells = [cell.ljust(w) if i < 4 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
        if index == 0:
            lines.append("  ".join("─" * w for w in widths))
    return lines
