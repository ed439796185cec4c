"""How models print: a module tree in torch's manner, and the tables of `summary()`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from qruntime.ir import Graph, Node
from qruntime.ir.formats import FLOAT16
from qruntime.quantization.layers import CONVOLUTIONS, RECURRENT, is_transposed
from qruntime.quantization.ranges import FLOOR_DB
from qruntime.quantization.reasons import Stored
from qruntime.quantization.report import QuantizedLayer, Report, dtype_of, scheme_of
from qruntime.quantization.selection import (
    layer_kind,
    module_class,
    module_names,
    weight_shape,
)

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

Module = dict[str, Any]
"""Name → nested Module, or the line of a layer."""


def tree(graph: Graph, report: Report) -> str:
    """Modules rebuilt from what exporters write about nodes, quantized layers as torch prints them."""
    stacks: list[list[Node]] = []
    for node in graph.walk_nodes():
        if stacks and _is_stacked(stacks[-1][-1], node):
            stacks[-1].append(node)
        elif describe_layer(node) is not None:
            stacks.append([node])
    root: Module = {}
    for stack in stacks:
        names = module_names(stack[0])
        for below, text in (_projections(stack[0]) or [([], describe_layer(stack[0], num_layers=len(stack)) or "")]):
            _insert(root, [*names, *below], text)
    return "\n".join(["Model(", *_lines(root, 2), ")"]) if root else "Model()"


def _is_stacked(below: Node, node: Node) -> bool:
    """Whether a recurrent node is the next layer of the module that `below` is of: ONNX has one node for each layer."""
    if not node.is_op(*RECURRENT) or not below.is_op(node.op_type) or below.input(1) is node.input(1):
        return False
    shape, shape_below = weight_shape(node), weight_shape(below)
    if shape is None or shape_below is None or shape[2] != shape[0] * shape[1] // _GATES[node.op_type]:
        return False
    names, names_below = module_names(node), module_names(below)
    at_root = len(names) == len(names_below) == 1 and names[0].startswith(node.op_type) and names_below[0].startswith(node.op_type)
    return (
        (names == names_below or at_root)
        and shape[:2] == shape_below[:2]
        and node.attr("direction") == below.attr("direction")
        and _element_type(node) == _element_type(below)
    )


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


def describe_layer(node: Node, num_layers: int = 1) -> str | None:
    """One line for a node with weights or an activation that is a module of its own, None for the others."""
    kind = layer_kind(node)
    if kind in CONVOLUTIONS:
        return _describe_convolution(node, kind)
    if node.is_op("Relu") and (node.name.count("/") > 1 or module_class(node) == "ReLU"):
        return "ReLU()"
    shape = None if kind is None else weight_shape(node)
    if kind is None or shape is None:
        return None
    if kind == "Embedding":
        return _describe_embedding(node, shape)
    prefix, scheme = _element_type(node)
    if kind == "Linear":
        k, n = shape[::-1] if is_transposed(node) else shape
        return f"{prefix}Linear(in_features={k}, out_features={n}{scheme})"
    layers = f", num_layers={num_layers}" if num_layers > 1 else ""
    direction = {"bidirectional": ", bidirectional=True", "reverse": ", reverse=True"}.get(node.attr("direction"), "")
    return f"{prefix}{kind}({shape[2]}, {shape[1] // _GATES[kind]}{layers}{direction})"


def _projections(node: Node) -> list[tuple[list[str], str]]:
    """Names and lines of the layers that an Attention of another optimiser is made of: their weights lie side by side in one."""
    shape = weight_shape(node) if node.op_type == "Attention" else None
    if shape is None:
        return []
    sizes = node.attr("qkv_hidden_sizes") or (shape[1] // 3,) * 3
    if len(sizes) != 3 or sum(sizes) != shape[1]:
        return []
    prefix, scheme = _element_type(node)
    return [
        ([name], f"{prefix}Linear(in_features={shape[0]}, out_features={n}{scheme})")
        for name, n in zip(("query", "key", "value"), sizes, strict=True)
    ]


def _describe_convolution(node: Node, kind: str) -> str | None:
    shape = weight_shape(node)
    if shape is None or not 3 <= len(shape) <= 5:
        return None
    spatial, groups = len(shape) - 2, node.attr("group", 1)
    outputs, inputs = (shape[0], shape[1] * groups) if kind == "Conv" else (shape[1] * groups, shape[0])
    pads = tuple(node.attr("pads", ())) or (0,) * (2 * spatial)
    strides, dilations = tuple(node.attr("strides", (1,) * spatial)), tuple(node.attr("dilations", (1,) * spatial))
    quantized, scheme = _element_type(node)
    text = f"{quantized}{kind}{spatial}d({inputs}, {outputs}, kernel_size={shape[2:]}, stride={strides}"
    if any(pads):
        text += f", padding={pads[:spatial] if pads[:spatial] == pads[spatial:] else pads}"
    if any(d != 1 for d in dilations):
        text += f", dilation={dilations}"
    text += f", groups={groups}" if groups != 1 else ""
    return text + ("" if node.input(2) is not None else ", bias=False") + scheme + ")"


def _element_type(node: Node) -> tuple[str, str]:
    """Prefix of the class and end of the arguments that say how a weight is stored; both empty for float32."""
    weight = node.input(1)
    if node.mark is None or weight is None or weight.stored is None:
        return "", ""
    if weight.stored.format is FLOAT16:
        return "DynamicQuantized", ", dtype=torch.float16"
    return "DynamicQuantized", f", dtype=torch.qint8, qscheme=torch.{scheme_of([weight.stored])}"


def _describe_embedding(node: Node, shape: tuple[int, ...]) -> str:
    table = node.input(0)
    rows, columns = shape
    if node.mark is None or table is None or table.stored is None:
        return f"Embedding({rows}, {columns})"
    stored = dtype_of([table.stored])
    scheme = f"torch.{scheme_of([table.stored])}"
    return f"QuantizedEmbedding(num_embeddings={rows}, embedding_dim={columns}, dtype=torch.{stored}, qscheme={scheme})"


def summary(graph: Graph, report: Report, planned: Sequence[Any]) -> str:
    """Tables: quantized layers, skipped candidates, and how nodes run here."""
    said = (quantized_lines, reason_lines, source_lines, kept_lines, skipped_lines, slower_lines, idle_lines)
    return "\n".join([*(line for lines in said for line in lines(report)), "", *node_lines(planned)])


def quantized_lines(report: Report) -> list[str]:
    """The table of quantized layers and their total."""
    if not report.layers:
        return ["No layer is quantized."]
    count = f"{len(report.layers)} layer{'s' if len(report.layers) > 1 else ''}"
    ratio = report.bytes_before / max(1, report.bytes_after)
    total = f"{count}: {report.bytes_before:,} → {report.bytes_after:,} bytes ({ratio:.2f}× smaller)"
    return [*layer_table(report.layers), "", total]


def layer_table(layers: Sequence[QuantizedLayer]) -> list[str]:
    rows = [("layer", "kind", "shape", "scheme", "bytes", "bytes now", "SNR dB")]
    for layer in layers:
        shape = "×".join(map(str, layer.shape))
        before, after = ("shared", "shared") if layer.shared else (f"{layer.bytes_before:,}", f"{layer.bytes_after:,}")
        snr = "exact" if layer.snr_db == math.inf else "?" if layer.snr_db != layer.snr_db else f"{layer.snr_db:.1f}"
        rows.append((layer.name, layer.kind, shape, layer.scheme, before, after, snr))
    return table(rows, left=range(4))


def reason_lines(report: Report) -> list[str]:
    """Layers that are stored otherwise than was preferred, one line for each way."""
    ways = {
        "per_channel_affine": f"one scale per channel, as one for the tensor holds less than {FLOOR_DB:.0f} dB of a channel",
        "float16": "weights that float16 does not reach",
    }
    lines = []
    for scheme, way in ways.items():
        named = [layer for layer in report.layers if layer.reason and layer.scheme == scheme]
        if named:
            layers, first = (f"{len(named)} layers have", "first ") if len(named) > 1 else ("1 layer has", "")
            lines += ["", f"{layers} {way} ({first}{printable(named[0].name)}: {printable(named[0].reason)})"]
    return lines


def skipped_lines(report: Report) -> list[str]:
    """Candidates left alone, one line for each reason."""
    lines = []
    for is_stored, left in ((False, "left as float"), (True, "left as stored before")):
        groups = {why: found for why, found in report.skipped_by_reason().items() if isinstance(why, Stored) is is_stored}
        count = sum(map(len, groups.values()))
        if not count:
            continue
        lines += ["", f"{count} candidate{'s are' if count > 1 else ' is'} {left}:"]
        for reason, layers in groups.items():
            counted = Counter(layer.op_type for layer in layers)
            ops = ", ".join(f"{op} ×{n}" for op, n in counted.most_common())
            first = printable(layers[0].name)
            lines.append(f"  {printable(reason, limit=200)}: {ops} ({'first ' if len(layers) > 1 else ''}{first})")
    return lines


def source_lines(report: Report) -> list[str]:
    """Layers whose codes were made from other codes."""
    lines = []
    for source in dict.fromkeys(layer.source for layer in report.layers if layer.source != "float"):
        names = [layer.name for layer in report.layers if layer.source == source]
        layers = f"{len(names)} layers are" if len(names) > 1 else "1 layer is"
        which = f"first {printable(names[0])}" if len(names) > 1 else printable(names[0])
        lines += ["", f"{layers} quantized from {printable(source)} ({which}): what the weights had lost stays lost"]
    return lines


def kept_lines(report: Report) -> list[str]:
    """Layers of earlier calls that the last call left as they were."""
    if not report.kept:
        return []
    count, first = len(report.kept), printable(report.kept[0])
    return ["", f"{count} layer{'s were' if count > 1 else ' was'} quantized before and left so ({'first ' if count > 1 else ''}{first})"]


def slower_lines(report: Report) -> list[str]:
    """Quantized layers that int8 should not make faster."""
    if not report.slower:
        return []
    count, first = len(report.slower), printable(report.slower[0])
    layers = f"{count} quantized layers are" if count > 1 else "1 quantized layer is"
    which = f"first {first}" if count > 1 else first
    return ["", f"{layers} too small for int8 to be faster than float ({which}); faster_only=True leaves such layers float"]


def idle_lines(report: Report) -> list[str]:
    """Names and kinds that were asked for and are not in the model."""
    if not report.idle:
        return []
    return [f"nothing in the model is selected by: {', '.join(printable(repr(pattern)) for pattern in report.idle)}"]


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
