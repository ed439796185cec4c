"""A model as a tree of modules in torch's manner: what `print(model)` shows, and a notebook."""

from __future__ import annotations

import html
from typing import Any

from qruntime.display.text import printable
from qruntime.ir import Graph, Node
from qruntime.ir.formats import FLOAT16
from qruntime.quantization.layers import CONVOLUTIONS, RECURRENT, is_transposed
from qruntime.quantization.report import dtype_of, scheme_of
from qruntime.quantization.selection import layer_kind, module_class, module_names, weight_shape

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

Module = dict[str, Any]
"""Name → nested Module, or the line of a layer."""


def tree(graph: Graph) -> str:
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
        for below, text in _projections(stack[0]) or [([], describe_layer(stack[0], num_layers=len(stack)) or "")]:
            _insert(root, [*names, *below], text)
    return "\n".join(["Model(", *_lines(root, 2), ")"]) if root else "Model()"


def html_tree(graph: Graph) -> str:
    """The tree for a notebook."""
    return f"<pre>{html.escape(tree(graph))}</pre>"


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
