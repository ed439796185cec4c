"""Linear layers: MatMul and Gemm with constant weights, and what folds into their epilogue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qruntime.ir import Graph, Node, StoredTensor, Value, constant, stored_constant
from qruntime.ir.formats import FP4, INT8
from qruntime.ops.elementwise import is_narrow_float, is_packable, narrow
from qruntime.ops.engines import ENGINES
from qruntime.ops.low_bit_weights import fits_quantized_activations
from qruntime.passes.activations import activation_in
from qruntime.passes.element_types import narrow_results
from qruntime.passes.rewriting import QRUNTIME, Builder, Skip, as_attribute, only_reader, splice, trace

_LINEAR = ("Linear", "DynamicQuantizedLinear", "ClusteredLinear")
_CONVOLUTIONS = ("Conv", "ConvTranspose", "DynamicQuantizedConv")
_BLOCKED = ("BlockedConv", "BlockedConvTranspose", "BlockedQuantizedConv")
_ADDING = (*_LINEAR, *_BLOCKED)
"""Layers whose epilogue adds a residual."""

_OF_IMAGES = (*_BLOCKED, "BlockedMaxPool", "BlockedAveragePool", "BlockedGlobalAveragePool")
_BIAS, _RESIDUAL, _ADDEND = 2, 3, 4
_BROADCASTS = 8
"""The opset from which on arithmetic operators broadcast, Sum too."""


def lower_linear(graph: Graph) -> None:
    """MatMul(x, W), Gemm(x, W, C)  →  Linear or DynamicQuantizedLinear (x, W[K, N], …, bias)."""
    scaled: dict[tuple[Value, float], np.ndarray] = {}
    columns: dict[tuple[Value, float, bool], Value] = {}
    for nested in graph.walk_graphs():
        lowered: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            if not node.is_op("MatMul", "Gemm"):
                continue
            made = _lower(node, scaled, columns)
            if isinstance(made, Skip):
                trace(f"lower_linear declines at {node.label}: {made}")
                continue
            builder, output = made
            nested.replace_uses(node.outputs[0], output)
            lowered[node] = builder.nodes
        splice(nested, lowered)


def _lower(
    node: Node, scaled: dict[tuple[Value, float], np.ndarray], columns: dict[tuple[Value, float, bool], Value]
) -> Skip | tuple[Builder, Value]:
    """`scaled` and `columns` hold the weights that an alpha multiplied or that were turned, for other layers that read the same."""
    x, weight = node.input(0), node.input(1)
    if x is None or weight is None:
        return Skip("an input is missing")
    shape = weight.shape
    if shape is None:
        return Skip("the weight is computed at run time")
    if len(shape) != 2:
        return Skip(f"the weight has rank {len(shape)}, need 2")
    transposed, alpha = False, 1.0
    bias: np.ndarray | Skip | None = None
    if node.op_type == "Gemm":
        if node.attr("transA", 0):
            return Skip("the left-hand side is transposed")
        transposed, alpha = bool(node.attr("transB", 0)), float(node.attr("alpha", 1.0))
        bias = _gemm_bias(node, shape[0 if transposed else 1])
    data = weight.data
    if isinstance(bias, Skip) and data is not None:
        return bias  # the kernel of Gemm does it all
    builder = Builder(node, max(node.version, _BROADCASTS))
    bias_value = constant(f"{weight.name}/bias", bias) if isinstance(bias, np.ndarray) else None
    if data is None:
        rows = row_attributes(node) if multiplies_codes(node) else _static_rows(x, weight, transposed)
        codes = weight.stored if rows is None or is_grouped(weight) else int8_codes(weight)
        if codes is None:
            return Skip("the codes are none of the kernel")
        key = (weight, alpha, transposed)
        if key not in columns:
            codes = codes.transposed() if transposed else codes
            columns[key] = stored_constant(weight.name, codes.scaled(alpha) if alpha != 1.0 else codes)
        if rows is None:
            product = builder.Linear(x, columns[key], bias_value, None, activation="none")
            return builder, _add_bias(builder, product, node, weight) if isinstance(bias, Skip) else product
        product = builder.DynamicQuantizedLinear(x, columns[key], bias_value, None, activation="none", **rows, **engine_attribute(node))
        return builder, _add_bias(builder, product, node, weight) if isinstance(bias, Skip) else product
    if not is_packable(data.dtype):
        return Skip(f"the weight is {data.dtype}, need float32 or narrower")
    if alpha != 1.0:
        if is_narrow_float(data.dtype):
            return Skip(f"alpha · W would be rounded to {data.dtype}")
        if (weight, alpha) not in scaled:
            scaled[weight, alpha] = data * np.float32(alpha)
        data = scaled[weight, alpha]
    matrix = data.T if transposed else data
    kernel = weight if matrix is weight.data else constant(weight.name, matrix)
    return builder, builder.Linear(x, kernel, bias_value, None, activation="none")


def _add_bias(builder: Builder, product: Value, node: Node, weight: Value) -> Value:
    """product + beta · C for whatever C broadcasts: as Sum, since an Add would be taken for one of a residual."""
    c, beta = node.input(2), node.attr("beta", 1.0)
    if beta == 0:
        return product
    if beta != 1:
        assert weight.stored is not None
        c = builder.standard("Mul", c, constant(f"{node.name}/beta", narrow(np.float32(beta), weight.stored.dtype)))
    return builder.standard("Sum", product, c)


def is_grouped(weight: Value) -> bool:
    """Whether a stored weight is one for kernels of few bits or of groups, with the arithmetic of our own engine."""
    stored = weight.stored
    if stored is None or (stored.format is INT8 and not stored.block):
        return False
    return stored.format.is_integer or stored.format is FP4


def multiplies_codes(node: Node) -> bool:
    """Whether a layer multiplies integers that its activations become at every run."""
    return node.mark is not None and node.mark.multiplies_codes


def _static_rows(x: Value, weight: Value, transposed: bool) -> dict[str, Any] | None:
    """What a lowered node says of activations that stand for codes of one scale, over weights of few bits that take codes."""
    node, stored = x.producer, weight.stored
    if node is None or not node.is_op("RoundToCodes", domain=QRUNTIME) or stored is None or not is_grouped(weight):
        return None
    if not fits_quantized_activations(stored.transposed() if transposed else stored):
        return None
    scale, zero_point = (None if value is None else value.data for value in node.inputs[1:3])
    assert scale is not None
    assert zero_point is not None
    if not scale.size:
        return None
    one, zero, most = scale.reshape(-1)[0], zero_point.reshape(-1)[0], node.attr("most", 255)
    if (scale != one).any() or (zero_point != zero).any() or one < np.finfo(np.float32).tiny or zero > most:
        return None
    return {"range": "static", "bits": int(most).bit_length(), "scale": float(one), "zero_point": int(zero)}


def row_attributes(node: Node) -> dict[str, Any]:
    """What a lowered node of such a layer says of its activations."""
    assert node.mark is not None
    bits = {} if node.mark.bits == 8 else {"bits": node.mark.bits}
    return {"range": node.mark.activations, **bits}


def int8_codes(weight: Value) -> StoredTensor | None:
    """What a dynamic int8 kernel reads of a stored weight; None when that is no int8 with scales of float."""
    stored = weight.stored
    if stored is None or stored.format is not INT8 or not stored.is_plain or stored.offset is not None or stored.block:
        return None
    if not isinstance(stored.scale, np.ndarray):
        return None
    zero_point = np.zeros(stored.scale.shape, np.int8) if stored.zero_point is None else stored.zero_point
    return replace(stored, scale=stored.scale.astype(np.float32, copy=False), zero_point=zero_point, dtype=np.dtype(np.float32))


def engine_attribute(node: Node) -> dict[str, str]:
    """The attribute of a lowered node that computes as another runtime does."""
    return {"engine": node.mark.engine} if node.mark is not None and node.mark.engine in ENGINES else {}


def _gemm_bias(node: Node, n: int) -> np.ndarray | Skip | None:
    c = node.input(2)
    if c is None:
        return None
    if c.data is None:
        return Skip("the bias is computed at run time")
    data = c.data
    if data.ndim > 2 or data.size not in (1, n) or (data.ndim == 2 and data.shape[0] != 1):
        return Skip(f"the bias has shape {list(data.shape)}, need [{n}]")
    beta = np.float32(node.attr("beta", 1.0))
    return np.full(n, (data * beta).reshape(-1), np.float32)


def fuse_epilogues(graph: Graph) -> None:
    """Linear followed by Add(constant vector), Add(addend), an activation, Add(residual)  →  one node, in that order; a convolution
    and an activation  →  one node. Narrow floats are rounded after each of them, so there they stay apart.

    Layers with quantized activations take no addend. Where the results of two layers are added, as those of a layer and of a
    branch of low rank beside it, the one that can take the other as an addend does, of two such the one with fewer inputs."""
    is_narrow = narrow_results(graph)
    for nested in graph.walk_graphs():
        gone: list[Node] = []
        pixels = _single_pixels(nested)
        for node in nested.nodes:
            if is_narrow(node.outputs[0]):
                continue
            if node.is_op(*_CONVOLUTIONS, domain=QRUNTIME):
                weight = node.input(1)
                if weight is not None and weight.data is not None and is_narrow_float(weight.data.dtype):
                    continue
                user = only_reader(nested, node)
                if user is not None and _absorb_activation(node, user):
                    _drop(nested, user, node.outputs[0])
                    gone.append(user)
                continue
            if not node.is_op(*_ADDING, domain=QRUNTIME):
                continue
            while True:
                user = only_reader(nested, node)
                own = node.outputs[0]
                if user is not None and user.is_op("Reshape") and user.input(0) is own:
                    own, user = user.outputs[0], only_reader(nested, user)
                    if user is None or not _absorb_activation(node, user):
                        break
                elif user is None or not _absorb(node, user, pixels):
                    break
                _drop(nested, user, own)
                gone.append(user)
        if gone:
            dropped = set(gone)
            nested.nodes = [n for n in nested.nodes if n not in dropped]
            nested.sort()  # a residual may be made after the linear layer it is added to


def _drop(graph: Graph, node: Node, instead: Value) -> None:
    graph.replace_uses(node.outputs[0], instead)
    for index in range(len(node.inputs)):
        node.set_input(index, None)
    node.graph = None


def _absorb(node: Node, user: Node, pixels: set[Value]) -> bool:
    if not user.is_op("Add"):
        return _absorb_activation(node, user)
    other = user.input(1) if user.input(0) is node.outputs[0] else user.input(0)
    if other is None or other is node.outputs[0]:
        return False
    if node.is_op(*_BLOCKED, domain=QRUNTIME):
        return _is_image(other) and (other in pixels) == (node.outputs[0] in pixels) and _absorb_residual(node, other)
    if other.data is not None:
        return node.attr("activation") == "none" and _absorb_bias(node, other.data)
    return keeps_activation_shape(other) and not _is_better_sum(other, node) and _absorb_residual(node, other)


def _is_image(value: Value) -> bool:
    """Whether what is added to an image in blocks is very likely one as well."""
    node = value.producer
    return node is not None and (node.is_op(*_OF_IMAGES, domain=QRUNTIME) or node.is_op("Add", "Concat", "Mul", "Relu", "Slice", "Split"))


def _single_pixels(graph: Graph) -> set[Value]:
    """Images in blocks that have one number for each channel: means of all pixels, and what is made of such alone."""
    found: set[Value] = set()
    for node in graph.nodes:
        read = [v for v in node.inputs if v is not None and not v.is_constant]
        if node.is_op("BlockedGlobalAveragePool", domain=QRUNTIME) or (read and found.issuperset(read)):
            found.update(node.outputs)
    return found


def _is_better_sum(other: Value, node: Node) -> bool:
    """Whether what makes `other` should add the result of `node` to its own rather than the other way round."""
    rival = other.producer
    if rival is None or rival.graph is None or not rival.is_op("Linear", domain=QRUNTIME) or only_reader(rival.graph, rival) is None:
        return False
    if rival.attr("activation") != "none" or rival.input(_RESIDUAL) is not None:
        return False
    return not node.is_op("Linear", domain=QRUNTIME) or _num_inputs(rival) < _num_inputs(node)


def _num_inputs(node: Node) -> int:
    """K of a layer."""
    weight = node.input(1)
    assert weight is not None and weight.shape is not None
    return weight.shape[0]


def _absorb_residual(node: Node, other: Value) -> bool:
    while len(node.inputs) <= _RESIDUAL:
        node.append_input(None)
    if node.input(_RESIDUAL) is not None and not _make_addend(node):
        return False
    node.set_input(_RESIDUAL, other)
    return True


def _make_addend(node: Node) -> bool:
    """Turn the residual into an addend, which is the same as long as there is no activation; False where it cannot be one."""
    residual = node.input(_RESIDUAL)
    if not node.is_op("Linear", *_BLOCKED, domain=QRUNTIME) or node.attr("activation") != "none" or node.input(_ADDEND) is not None:
        return False
    while len(node.inputs) <= _ADDEND:
        node.append_input(None)
    node.set_input(_ADDEND, residual)
    node.set_input(_RESIDUAL, None)
    return True


def _absorb_activation(node: Node, user: Node) -> bool:
    found = activation_in(user)
    if node.attr("activation") != "none" or found is None:
        return False
    if node.is_op(*_ADDING, domain=QRUNTIME) and node.input(_RESIDUAL) is not None and not _make_addend(node):
        return False
    node.attributes["activation"] = as_attribute(found.name)
    if found.parameters:
        node.attributes["parameters"] = as_attribute(found.parameters)
    return True


def _absorb_bias(node: Node, data: np.ndarray) -> bool:
    weight = node.input(1)
    assert weight is not None and weight.shape is not None
    n = weight.shape[1]
    if data.dtype != np.float32 or data.ndim > 1 or data.size not in (1, n):
        return False
    vector = np.full(n, data.reshape(-1), np.float32)
    before = node.input(_BIAS)
    if before is not None:
        assert before.data is not None
        vector = before.data + vector
    node.set_input(_BIAS, constant(f"{weight.name}/bias", vector))
    return True


def keeps_activation_shape(value: Value) -> bool:
    """Whether a residual very likely has the shape of the layer's output.

    A wrong guess costs speed only: the kernel declines what does not fit and the definition broadcasts.
    """
    node = value.producer
    if node is None:
        return False
    if node.is_op(*_LINEAR, "QLinearMatMul", "LayerNormalization", "RMSNormalization", domain=QRUNTIME):
        return True
    return node.is_op("LayerNormalization", "Add", "RMSNormalization", "Relu")
