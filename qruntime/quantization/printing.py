"""How models print: a module tree in torch's manner, and the tables of `summary()`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from qruntime.ir import Graph, Node
from qruntime.passes.weights import DYNAMIC, quantized_weight
from qruntime.quantization.report import QuantizedLayer, Report
from qruntime.quantization.selection import kind_of

Module = dict[str, Any]
"""Name → nested Module, or the line of a layer."""

_NAME_SCOPES = "pkg.torch.onnx.name_scopes"  # node metadata of torch's dynamo exporter: a Python list of strings


def tree(graph: Graph, report: Report) -> str:
    """Modules rebuilt from what exporters write about nodes, quantized layers as torch prints them."""
    root: Module = {}
    for node in graph.walk_nodes():
        text = describe_layer(node)
        if text is not None:
            _insert(root, module_names(node), text)
    return "\n".join(["Model(", *_lines(root, 2), ")"]) if root else "Model()"


def _insert(root: Module, names: list[str], text: str) -> None:
    branch = root
    for name in names[:-1]:
        below = branch.setdefault(name, {})
        if isinstance(below, str):  # a layer of this name exists; its child stands beside it
            below = branch.setdefault(f"{name}/", {})
        branch = below
    leaf = names[-1]
    taken = 0
    while leaf in branch:
        taken += 1
        leaf = f"{names[-1]}_{taken}"
    branch[leaf] = text


def _lines(branch: Module, indent: int) -> list[str]:
    lines = []
    margin = " " * indent
    for name, below in branch.items():
        shown = printable(name.rstrip("/"))
        if isinstance(below, str):
            lines.append(f"{margin}({shown}): {below}")
        else:
            lines += [f"{margin}({shown}): Module(", *_lines(below, indent + 2), f"{margin})"]
    return lines


_MAX_DEPTH = 32  # of printed modules: names are the file's to choose


def module_names(node: Node) -> list[str]:
    """Module names from the outermost to the layer itself, never empty.

    From the node's name when it is a path (/encoder/layer.0/fc/MatMul); else from the scopes that torch's
    dynamo exporter notes, whose node names say nothing (node_linear_3); else from the weight's name
    (encoder.layer.0.fc.weight); else the name of the node or of its output.
    """
    scopes = re.findall(r"'([^']*)'", node.metadata.get(_NAME_SCOPES, ""))
    weight = node.input(1)
    of_weight = "" if weight is None else weight.name.removesuffix("_dequantized")
    if "/" in node.name:
        parts = [part for part in node.name.split("/") if part]
        if len(parts) > 1 and parts[-1].startswith(node.op_type):
            del parts[-1]
        parts = [name for part in parts for name in (part.split(".") if _NUMBERED.fullmatch(part) else [part])]
    elif len(scopes) > 1 and scopes[-2]:  # modules with their full paths, then the operator
        parts = scopes[-2].split(".")
    elif not node.name and of_weight.endswith(".weight"):
        parts = of_weight.removesuffix(".weight").split(".")
    else:
        parts = [node.name or node.outputs[0].name]
    parts = [part for part in parts if part] or [node.op_type]
    return parts[:_MAX_DEPTH]


_NUMBERED = re.compile(r"\w+(\.\d+)+")  # layer.0: an entry of torch's ModuleList


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
    direction = {"bidirectional": ", bidirectional=True", "reverse": ", reverse=True"}.get(node.attr("direction"), "")
    return f"{prefix}{kind}({shape[2]}, {shape[1] // gates}{direction})"


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
    weight = quantized_weight(node.input(1))
    return weight is not None and weight.axis is not None


def summary(graph: Graph, report: Report, planned: Sequence[Any]) -> str:
    """Tables: quantized layers, skipped candidates, and how nodes run here."""
    return "\n".join([*quantized_lines(report), *skipped_lines(report), "", *node_lines(planned)])


def quantized_lines(report: Report) -> list[str]:
    """The table of quantized layers and their total."""
    if not report.layers:
        return ["No layer is quantized."]
    count = f"{len(report.layers)} layer{'s' if len(report.layers) > 1 else ''}"
    ratio = report.bytes_before / max(1, report.bytes_after)
    total = f"{count}: {report.bytes_before:,} → {report.bytes_after:,} bytes ({ratio:.2f}× smaller)"
    return [*layer_table(report.layers), "", total]


def layer_table(layers: Sequence[QuantizedLayer]) -> list[str]:
    rows = [("layer", "kind", "shape", "scheme", "bytes", "int8 bytes", "SNR dB")]
    for layer in layers:
        shape = "×".join(map(str, layer.shape))
        before, after = ("shared", "shared") if layer.shared else (f"{layer.bytes_before:,}", f"{layer.bytes_after:,}")
        snr = "exact" if layer.snr_db == math.inf else "?" if layer.snr_db != layer.snr_db else f"{layer.snr_db:.1f}"
        rows.append((layer.name, layer.kind, shape, layer.scheme, before, after, snr))
    return table(rows, left=range(4))


def skipped_lines(report: Report) -> list[str]:
    """Candidates left alone, one line for each reason."""
    if not report.skipped:
        return []
    lines = ["", f"{len(report.skipped)} candidate{'s are' if len(report.skipped) > 1 else ' is'} left as float:"]
    for reason, layers in report.skipped_by_reason().items():
        counted = Counter(layer.op_type for layer in layers)
        ops = ", ".join(f"{op} ×{n}" for op, n in counted.most_common())
        first = printable(layers[0].name)
        lines.append(f"  {reason}: {ops} ({'first ' if len(layers) > 1 else ''}{first})")
    return lines


def node_lines(planned: Sequence[Any]) -> list[str]:
    """How many nodes run natively, by their numpy definition or by onnx.reference, and which are not native."""
    sources = Counter(call.source for call in planned)
    counted = ", ".join(f"{sources[s]} {s}" for s in ("native", "numpy", "reference") if sources[s])
    lines = [f"nodes: {counted or 'none'}"]
    slow = Counter(call.node.op_type for call in planned if call.source != "native")
    if slow:
        lines.append("  not native: " + ", ".join(f"{printable(op)} ×{n}" for op, n in slow.most_common()))
    return lines


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Lines of columns, those in `left` aligned to the left and the others to the right, a rule under the first row."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    cells.insert(1, ["─" * width for width in widths])
    return [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def printable(text: str, limit: int = 100) -> str:
    """`text` without control characters, as a model's names must not drive the terminal; cut in its middle at `limit`."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[-(limit // 2 - 1) :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
