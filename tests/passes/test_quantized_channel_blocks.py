"""Quantized convolutions in islands of channels in blocks: which are in them, and that results keep their bits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import qruntime
from qruntime.ir import clone
from qruntime.passes import pipeline
from qruntime.passes.channel_blocks import keep_channel_blocks
from qruntime.runtime.plan import Planner
from tests.kernels.native_call import same_bits
from tests.passes.lowering import reasons
from tests.passes.test_channel_blocks import C, X, conv, image, loaded, relu

pytestmark = pytest.mark.usefixtures("rung")


def lowered_ops(model: qruntime.Model, x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Operators of the lowered graph, once it gives the bits that it gives without blocks."""
    graph = pipeline.lowered(clone(model.graph))
    graph.check()
    plan = Planner(graph, num_threads=2).plan()
    got = plan.executable.run([x])
    assert {call.source for call in plan.as_run()} == {"native"}
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "LOWERED", [one for one in pipeline.LOWERED if one is not keep_channel_blocks])
        plain = pipeline.lowered(clone(model.graph))
    assert not any("Block" in node.op_type for node in plain.walk_nodes())
    for one, other in zip(got, Planner(plain, num_threads=1).plan().executable.run([x]), strict=True):
        same_bits(one, other)
    return Counter(node.op_type for node in graph.walk_nodes())


def quantized(nodes, x, outputs=("y",)) -> qruntime.Model:
    return loaded(nodes, x, C, outputs).quantize_dynamic({"Conv"}, per_channel=True)


def test_a_residual_block_is_one_island(monkeypatch) -> None:
    nodes = [
        conv("x", "w0", "a"), relu("a", "b"), conv("b", "w1", "c"), ("Add", ["c", "b"], ["d"], {}), relu("d", "e"),
        conv("e", "w2", "f", strides=[2, 2]), conv("e", "one", "g", pads=[0] * 4, strides=[2, 2]), ("Add", ["f", "g"], ["h"], {}),
        relu("h", "i"), ("MaxPool", ["i"], ["y"], {"kernel_shape": [2, 2]}),
    ]  # fmt: skip
    ops = lowered_ops(quantized(nodes, X), X, monkeypatch)
    assert ops == {"BlockChannels": 1, "BlockedQuantizedConv": 4, "BlockedMaxPool": 1, "UnblockChannels": 1}


@pytest.mark.parametrize(("op", "attributes"), [("LeakyRelu", {"alpha": 0.25}), ("Tanh", {}), ("HardSwish", {})])
def test_activations_and_residuals(op, attributes, monkeypatch) -> None:
    nodes = [
        conv("x", "w0", "a"), (op, ["a"], ["b"], attributes), conv("b", "w1", "c"), (op, ["c"], ["d"], attributes),
        ("Add", ["d", "b"], ["e"], {}), conv("e", "w2", "f"), ("Add", ["e", "f"], ["y"], {}),
    ]  # fmt: skip
    ops = lowered_ops(quantized(nodes, X), X, monkeypatch)
    assert ops["BlockedQuantizedConv"] == 3
    assert sum(ops.values()) == 3 + 2 + ops[op] + ops["Add"]
    assert ops[op] == 0


def test_float_and_quantized_convolutions_share_an_island() -> None:
    """Depthwise ones stay float."""
    nodes = [conv("x", "w0", "a"), relu("a", "b"), conv("b", "depthwise", "c", group=32), conv("c", "one", "y", pads=[0] * 4)]
    graph = pipeline.lowered(clone(quantized(nodes, X).graph))
    assert Counter(n.op_type for n in graph.nodes) == {
        "BlockChannels": 1, "BlockedQuantizedConv": 2, "BlockedConv": 1, "UnblockChannels": 1,
    }  # fmt: skip


def test_an_image_of_few_channels_is_read_as_it_is(monkeypatch) -> None:
    x = image(2, 3, 11, 10)
    nodes = [conv("x", "first", "a", strides=[2, 2]), relu("a", "b"), conv("b", "w1", "y")]
    assert lowered_ops(quantized(nodes, x), x, monkeypatch) == {"BlockedQuantizedConv": 2, "UnblockChannels": 1}


@pytest.mark.parametrize("name", ["w0", "first"])
def test_what_was_packed_is_saved_again(name, tmp_path) -> None:
    x = X if name == "w0" else image(2, 3, 9, 8)
    model = quantized([conv("x", name, "a"), relu("a", "b"), conv("b", "w1", "y")], x)
    before = [node.input(1).stored.unpacked().copy() for node in model.graph.nodes if node.op_type == "Conv"]
    y = model(x)
    model.save(tmp_path / "q.onnx")
    again = qruntime.load(tmp_path / "q.onnx")
    for node, codes in zip([n for n in again.graph.nodes if n.op_type == "Conv"], before, strict=True):
        same_bits(np.asarray(node.input(1).stored.unpacked()), codes)
    same_bits(again(x), y)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (conv("h", "few", "y"), "4 outputs fill too little of a block"),
        (conv("h", "grouped", "y", group=2), "2 groups"),
        (conv("h", "w1", "y", pads=[1]), "an attribute does not fit the weight"),
    ],
)
def test_reasons_to_decline(last, reason, capsys, monkeypatch) -> None:
    monkeypatch.setenv("QRUNTIME_TRACE", "passes")
    model = quantized([conv("x", "w0", "h"), last], X)
    capsys.readouterr()
    graph = pipeline.lowered(clone(model.graph))
    said = [line for line in reasons(capsys) if line.startswith("keep_channel_blocks")]
    assert any(line.endswith(f": {reason}") for line in said), said
    assert [node.op_type for node in graph.nodes if "Conv" in node.op_type] == ["BlockedQuantizedConv", "DynamicQuantizedConv"]


def test_one_range_for_all_of_the_input_is_declined(capsys, monkeypatch) -> None:
    monkeypatch.setenv("QRUNTIME_TRACE", "passes")
    model = loaded([conv("x", "w0", "h"), conv("h", "w1", "y")], X, C).quantize_dynamic({"Conv"}, activation="per_tensor")
    capsys.readouterr()
    graph = pipeline.lowered(clone(model.graph))
    assert sum("one range for all of its input" in line for line in reasons(capsys)) == 2
    assert [node.op_type for node in graph.nodes] == ["DynamicQuantizedConv"] * 2


def test_narrow_floats_are_left() -> None:
    x = X.astype(np.float16)
    constants = {name: value.astype(np.float16) for name, value in C.items()}
    model = loaded([conv("x", "w0", "h"), conv("h", "w1", "y")], x, constants).quantize_dynamic({"Conv"})
    graph = pipeline.lowered(clone(model.graph))
    assert [node.op_type for node in graph.nodes] == ["DynamicQuantizedConv"] * 2
    assert model(x).dtype == np.float16
