"""Kinds of layers, and what layers are called: by exporters, in reports, in printed trees."""

from __future__ import annotations

import re

from qruntime.errors import QuantizationError
from qruntime.ir import Node
from qruntime.ops.elementwise import is_packable
from qruntime.quantization.layers import CONVOLUTIONS, FORMS, form_of, layer_of, weights_of

KINDS: dict[str, tuple[str, ...]] = {
    kind: tuple(op for (domain, op), form in FORMS.items() if form.kind == kind and form.is_quantizable and not domain)
    for kind in dict.fromkeys(form.kind for form in FORMS.values())
}
"""Kinds of layers (torch's class names) and the ONNX operators they become."""

_KIND_OF = {op_type: kind for kind, op_types in KINDS.items() for op_type in op_types}

_CLASSES = {
    "NonDynamicallyQuantizableLinear": "Linear", "LinearReLU": "Linear", "LSTMCell": "LSTM", "GRUCell": "GRU",
    "RNNCell": "RNN", "EmbeddingBag": "Embedding",
}  # fmt: skip
"""Classes of torch that are of a kind of another name."""

EMBEDDINGS = ("quint8", "quint4x2")

# Node metadata of torch's dynamo exporter, each a Python list of strings: the modules around a node from the outermost,
# with their full paths, then the operator; and the classes of the same.
_NAME_SCOPES, _CLASS_HIERARCHY = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
_OF_RANK = re.compile(r"(Conv|ConvTranspose)[123]d")  # torch's classes, one for each number of spatial dims
_NUMBERED = re.compile(r"\w+(\.\d+)+")  # layer.0: an entry of torch's ModuleList
_MAX_DEPTH = 32  # of modules: names are the file's to choose


def kind_of(op_type: str) -> str | None:
    return _KIND_OF.get(op_type)


def weight_shape(node: Node) -> tuple[int, ...] | None:
    """Shape of a layer's weight (of W where there are several), quantized or not; None when it is no constant of its rank,
    or the operator has no quantized form."""
    layer = layer_of(node)
    weight = None if layer is None else layer.weights[0]
    if layer is None or weight is None or weight.shape is None:
        return None
    least, most = layer.form.ranks
    return weight.shape if least <= len(weight.shape) <= most else None


def is_kind(name: str) -> bool:
    """Whether `name` is a kind, an operator that is of one, or a torch class of convolutions (Conv2d)."""
    return name in KINDS or kind_of(name) is not None or _OF_RANK.fullmatch(name) is not None


def kinds_of(node: Node) -> set[str]:
    """What a node may be selected as: its operator type, its kind, and Conv1d, Conv2d or Conv3d by its weight."""
    form = form_of(node)
    kind = None if form is None else form.kind
    weight = node.input(1) if kind in CONVOLUTIONS else None
    shape = None if weight is None else weight.shape or (weight.type and weight.type.shape)
    of_rank = set() if shape is None else {f"{kind}{len(shape) - 2}d"}
    return {node.op_type, *([kind] if kind else []), *of_rank}


def layer_kind(node: Node) -> str | None:
    """Kind of a node that is a layer; of the many uses of Gather only rows picked from a table of weights."""
    form = form_of(node)
    kind = None if form is None else form.kind
    if kind != "Embedding" or not node.is_op("Gather"):
        return kind
    table = node.input(0)
    shape = None if table is None else table.shape
    if table is None or shape is None or len(shape) != 2 or node.attr("axis", 0) not in (0, -2) or shape[1] < 2:
        return None
    if table.stored is not None:
        return None if table.stored.is_bare else kind
    return kind if table.data is not None and is_packable(table.data.dtype) else None


def _noted(node: Node, key: str) -> list[str]:
    return re.findall(r"'([^']*)'", node.metadata.get(key, ""))


def _weight_name(node: Node) -> str:
    weight = next(iter(weights_of(node)), node.input(1))
    return "" if weight is None else weight.name.removesuffix("_dequantized").removesuffix("_quantized")


def module_class(node: Node) -> str:
    """Class of the innermost module around a node, as far as torch's dynamo exporter notes it; else empty."""
    classes = _noted(node, _CLASS_HIERARCHY)
    return classes[-2].rpartition(".")[2] if len(classes) > 1 else ""


def module_names(node: Node) -> list[str]:
    """Module names from the outermost to the layer itself, never empty.

    From the node's name when it is a path (/encoder/layer.0/fc/MatMul); else from the scopes that torch's
    dynamo exporter notes, whose node names say nothing (node_linear_3); else from the weight's name
    (encoder.layer.0.fc.weight); else the name of the node or of its output. Scopes end at the module that calls
    a function, as attention does for its projections: there the weight's name knows better, or the function's has to do.
    """
    scopes = _noted(node, _NAME_SCOPES)
    of_weight = _weight_name(node)
    if "/" in node.name:
        parts = [part for part in node.name.split("/") if part]
        if len(parts) > 1 and parts[-1].startswith(node.op_type):
            del parts[-1]
        # torch names an entry of a Sequential by the whole path of the Sequential: /encoder/encoder.0/MatMul is encoder.0.
        parts = [part.removeprefix(f"{above}.") for above, part in zip(["", *parts], parts, strict=False)]
        parts = [name for part in parts for name in (part.split(".") if _NUMBERED.fullmatch(part) else [part])]
    elif len(scopes) > 1 and of_weight.startswith(f"{scopes[-2]}.") and of_weight.endswith(".weight"):
        parts = of_weight.removesuffix(".weight").split(".")
    elif len(scopes) > 1:
        cls = module_class(node)
        is_module = not cls or is_kind(pattern_name(cls)) or cls.lower() == node.op_type.lower()
        parts = scopes[-2].split(".") if scopes[-2] and is_module else [*scopes[-2].split("."), scopes[-1]]
    elif not node.name and of_weight.endswith(".weight"):
        parts = of_weight.removesuffix(".weight").split(".")
    else:
        parts = [layer_name(node)]
    parts = [part for part in parts if part] or [node.op_type]
    return parts[:_MAX_DEPTH]


def layer_name(node: Node) -> str:
    """What reports call a node."""
    return node.name or (node.outputs[0].name if node.outputs else node.op_type)


def layer_paths(node: Node) -> list[str]:
    """Paths by which a layer may be selected: its name, the modules that the name tells of, those that print.

    Also the module that owns the weight (features.0.weight): of a name that tells of no modules (Conv_0), and where it lies
    in the one that the name tells of, as that of a projection of attention does.
    """
    modules, weight = module_names(node), _weight_name(node)
    paths = [node.name, node.name.rpartition("/")[0], "/".join(modules)]
    is_nameless = "/" not in node.name and not _noted(node, _NAME_SCOPES)
    if weight.endswith(".weight") and (is_nameless or weight.startswith(f"{'.'.join(modules)}.")):
        paths.append(weight.removesuffix(".weight"))
    return list(dict.fromkeys(path for path in paths if path))


def pattern_name(pattern: object) -> str:
    """Text of a pattern: a string, or a (torch) class by its name."""
    if isinstance(pattern, str):
        return _CLASSES.get(pattern, pattern)
    if isinstance(pattern, type):
        return _CLASSES.get(pattern.__name__, pattern.__name__)
    known = "names, globs such as 'encoder/*', operator types or kinds"
    raise QuantizationError(f"cannot select layers by {pattern!r}: use {known} {sorted(KINDS)}")
