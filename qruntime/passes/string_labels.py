"""Classifiers whose labels are strings: kernels give the places of classes, and strings are looked up behind them."""

from __future__ import annotations

from qruntime.ir import Attribute, AttributeType, Graph, Node, Value
from qruntime.passes.rewriting import QRUNTIME, as_attribute, splice

DOMAIN = "ai.onnx.ml"
STRINGS = "classlabels_strings"
INTEGERS = {"TreeEnsembleClassifier": "classlabels_int64s", "LinearClassifier": "classlabels_ints", "SVMClassifier": "classlabels_ints"}
"""Operator → its attribute of integer labels."""


def look_up_string_labels(graph: Graph) -> None:
    """Classifier(classlabels_strings=…)  →  StringLabels(Classifier(classlabels_int64s=0 …))"""
    for nested in graph.walk_graphs():
        lowered: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            labels = node.attr(STRINGS, ())
            # Of a single class the label also tells whether there is a hit: no place can stand for that.
            if node.domain != DOMAIN or node.op_type not in INTEGERS or len(labels) < 2 or node.attr(INTEGERS[node.op_type]):
                continue
            attributes = {name: value for name, value in node.attributes.items() if name != STRINGS}
            attributes[INTEGERS[node.op_type]] = as_attribute(tuple(range(len(labels))))
            outputs = [Value(f"{output.name}/places", output.type) for output in node.outputs]
            outputs[0].type = None
            name = node.name or node.outputs[0].name
            classifier = Node(node.op_type, node.inputs, outputs, attributes, domain=DOMAIN, version=node.version, name=name)
            found = Value(f"{node.outputs[0].name}/labels", node.outputs[0].type)
            strings = {"labels": Attribute(AttributeType.STRINGS, tuple(labels))}
            look_up = Node("StringLabels", [outputs[0]], [found], strings, domain=QRUNTIME, version=1, name=name)
            for old, new in zip(node.outputs, (found, *outputs[1:])):
                nested.replace_uses(old, new)
            lowered[node] = [classifier, look_up]
        splice(nested, lowered)
