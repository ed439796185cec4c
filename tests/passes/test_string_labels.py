"""Classifiers with string labels run in the kernel, and the strings are looked up behind it."""

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime


def classifier(labels: list[str]) -> qruntime.Model:
    """The first label where x <= 0, else the last one."""
    node = helper.make_node(
        "TreeEnsembleClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", classlabels_strings=labels,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0], nodes_values=[0.0, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        class_treeids=[0, 0], class_nodeids=[1, 2], class_ids=[0, len(labels) - 1], class_weights=[1.0, 1.0],
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, ["n"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, None),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return qruntime.load(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


@pytest.mark.parametrize("labels", [["ant", "bee"], ["ant", "", "ü"]])
def test_labels(labels):
    model = classifier(labels)
    out = model.run({"x": np.array([[-1], [0], [1], [np.nan]], np.float32)})
    assert out["label"].dtype == object
    assert out["label"].tolist() == [labels[0], labels[0], labels[-1], labels[-1]]
    assert "tree_ensemble" in str(model.profile({"x": np.zeros((1, 1), np.float32)}))


def test_the_saved_model_keeps_its_strings(tmp_path):
    model = classifier(["ant", "bee"])
    model.run({"x": np.zeros((1, 1), np.float32)})
    model.save(tmp_path / "m.onnx")
    assert [n.op_type for n in qruntime.load(tmp_path / "m.onnx").graph.nodes] == ["TreeEnsembleClassifier"]


def test_one_label_stays_as_it_is():
    assert classifier(["only"]).run({"x": np.zeros((2, 1), np.float32)})["label"].tolist() == ["only", "only"]


def test_hostile_trees_are_reported_with_the_name_of_the_node():
    model = classifier(["ant", "bee"])
    node = model.graph.nodes[0]
    node.attributes["nodes_truenodeids"] = node.attributes["nodes_truenodeids"]._replace(value=(0, 0, 0))
    with pytest.raises(qruntime.RunError, match=r"TreeEnsembleClassifier 'label'.*cycle"):
        model.run({"x": np.zeros((1, 1), np.float32)})
