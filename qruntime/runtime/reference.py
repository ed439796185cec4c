"""The last resort: one node at a time on `onnx.reference`, imported when first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qruntime.ir import AttributeType, Node


def has(node: Node) -> bool:
    """True when onnx.reference implements this operator (nodes with subgraphs excepted)."""
    if node.subgraphs:
        return False
    try:
        from onnx.reference.ops import _op_list, aionnx_preview_training, aionnxml
    except ImportError:
        return False
    loaders = {"": _op_list.load_op, "ai.onnx.ml": aionnxml.load_op, "ai.onnx.preview.training": aionnx_preview_training.load_op}
    load = loaders.get(node.domain)
    if load is None:
        return False
    try:
        load(node.domain, node.op_type, node.version)
    except Exception:
        return False
    return True


def definition(node: Node) -> Callable[..., Any]:
    """A callable over the inputs of `node` that evaluates it with onnx.reference."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    names_in = ["" if v is None else f"i{i}" for i, v in enumerate(node.inputs)]
    names_out = [f"o{i}" for i in range(len(node.outputs))]
    proto = onnx.helper.make_node(node.op_type, names_in, names_out, domain=node.domain)
    for name, attribute in node.attributes.items():
        value = attribute.value
        if attribute.type is AttributeType.TENSOR:
            value = onnx.numpy_helper.from_array(np.asarray(value))
        proto.attribute.append(onnx.helper.make_attribute(name, value, attr_type=int(attribute.type)))
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [onnx.ValueInfoProto(name=n) for n in names_in if n],
        [onnx.ValueInfoProto(name=n) for n in names_out],
    )
    opsets = [onnx.helper.make_opsetid(node.domain, node.version)]
    evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))

    def call(*values: Any) -> Any:
        feed = {name: value for name, value in zip(names_in, values) if name}
        results = evaluator.run(None, feed)
        return tuple(results)

    return call
