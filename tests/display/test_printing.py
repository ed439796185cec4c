"""The module tree, the tables of `summary()`, and the report behind them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.display.text import printable, table
from qruntime.quantization import default_dynamic_qconfig
from qruntime.quantization.report import QuantizedLayer, Report, SkippedLayer


def load(nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray], outputs: Sequence[str]) -> qruntime.Model:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    initializers = [numpy_helper.from_array(data, name) for name, data in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])
    model.ir_version = 8
    return qruntime.load(model.SerializeToString())


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reloaded(model: qruntime.Model, tmp_path) -> qruntime.Model:
    model.save(tmp_path / "m.onnx")
    return qruntime.load(tmp_path / "m.onnx")


def test_tree_of_paths() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="/encoder/layer.0/fc/MatMul"),
        helper.make_node("MatMul", ["p", "b"], ["q"], name="/encoder/layer.10/fc/MatMul"),
        helper.make_node("Gemm", ["q", "c"], ["y"], name="/head/Gemm", transB=1),
    ]
    model = load(nodes, {"a": weight(4, 6), "b": weight(6, 6), "c": weight(3, 6)}, ["y"])
    quantized = model.quantize_dynamic(exclude="encoder.layer.10")
    assert str(quantized) == (
        "Model(\n"
        "  (encoder): Module(\n"
        "    (layer): Module(\n"
        "      (0): Module(\n"
        "        (fc): DynamicQuantizedLinear(in_features=4, out_features=6, dtype=torch.qint8,"
        " qscheme=torch.per_tensor_affine)\n"
        "      )\n"
        "      (10): Module(\n"
        "        (fc): Linear(in_features=6, out_features=6)\n"
        "      )\n"
        "    )\n"
        "  )\n"
        "  (head): DynamicQuantizedLinear(in_features=6, out_features=3, dtype=torch.qint8,"
        " qscheme=torch.per_tensor_affine)\n"
        ")"
    )


def test_tree_of_a_sequential() -> None:
    """torch names its entries by the whole path: encoder.0 is /encoder/encoder.0, and encoder.2.1 /encoder/encoder.2/encoder.2.1."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="/encoder/encoder.0/MatMul"),
        helper.make_node("MatMul", ["p", "b"], ["y"], name="/encoder/encoder.2/encoder.2.1/MatMul"),
    ]
    model = load(nodes, {"a": weight(2, 2), "b": weight(2, 2, seed=1)}, ["y"])
    line = "Linear(in_features=2, out_features=2)"
    inner = f"    (2): Module(\n      (1): {line}\n    )\n"
    assert str(model) == f"Model(\n  (encoder): Module(\n    (0): {line}\n{inner}  )\n)"
    but_the_first = {"Linear": default_dynamic_qconfig, "encoder.0": None}
    for spec in ({"encoder.2"}, but_the_first):
        assert [layer.name for layer in model.quantize_dynamic(spec).report.layers] == [nodes[1].name]


def recurrent_nodes(names: Sequence[str], weights: Sequence[str]) -> list[onnx.NodeProto]:
    nodes, x = [], "x"
    for i, (name, of) in enumerate(zip(names, weights, strict=True)):
        nodes += [
            helper.make_node("GRU", [x, f"w{of}", f"r{of}"], [f"y{i}"], name=name, hidden_size=2),
            helper.make_node("Squeeze", [f"y{i}", "axis"], [f"x{i}"]),
        ]
        x = f"x{i}"
    return nodes


@pytest.mark.parametrize(
    ("names", "weights", "expected"),
    [
        (["/rnn/GRU", "/rnn/GRU_1"], "ab", ["(rnn): GRU(2, 2, num_layers=2)"]),
        (["/GRU", "/GRU_1", "/GRU_2"], "abc", ["(GRU): GRU(2, 2, num_layers=3)"]),
        (["/one/GRU", "/two/GRU"], "ab", ["(one): GRU(2, 2)", "(two): GRU(2, 2)"]),
        (["/rnn/GRU", "/rnn/GRU_1"], "aa", ["(rnn): GRU(2, 2)", "(rnn_1): GRU(2, 2)"]),  # one layer, called twice
    ],
)
def test_layers_of_one_recurrent_module_are_one_line(names: list[str], weights: str, expected: list[str]) -> None:
    constants = {f"w{of}": weight(1, 6, 2, seed=i) for i, of in enumerate("abc")}
    constants |= {f"r{of}": weight(1, 6, 2, seed=i + 3) for i, of in enumerate("abc")}
    model = load(recurrent_nodes(names, weights), {**constants, "axis": np.array([1])}, [f"x{len(names) - 1}"])
    assert str(model).splitlines()[1:-1] == [f"  {line}" for line in expected]


def test_tree_of_scopes_and_weight_names() -> None:
    first = helper.make_node("MatMul", ["x", "v0"], ["p"], name="node_MatMul_1")
    scopes = first.metadata_props.add()
    scopes.key, scopes.value = "pkg.torch.onnx.name_scopes", "['', 'layers.0', 'linear']"
    nodes = [
        first,
        helper.make_node("MatMul", ["p", "decoder.fc.weight"], ["q"]),
        helper.make_node("MatMul", ["q", "v1"], ["r"], name="node_linear_3"),
        helper.make_node("MatMul", ["r", "v2"], ["y"]),
    ]
    constants = {name: weight(2, 2, seed=i) for i, name in enumerate(("v0", "decoder.fc.weight", "v1", "v2"))}
    line = "Linear(in_features=2, out_features=2)"
    expected = (
        f"Model(\n  (layers): Module(\n    (0): {line}\n  )\n  (decoder): Module(\n    (fc): {line}\n  )\n"
        f"  (node_linear_3): {line}\n  (y): {line}\n)"
    )
    model = load(nodes, constants, ["y"])
    assert str(model) == expected
    quantized = "DynamicQuantizedLinear(in_features=2, out_features=2, dtype=torch.qint8, qscheme=torch.per_channel_affine)"
    assert str(model.quantize_dynamic(per_channel=True)) == expected.replace(line, quantized)


def test_layers_of_one_name_and_layers_inside_layers() -> None:
    names = ("/fc/MatMul", "/fc/MatMul_1", "/fc/inner/MatMul", "/MatMul")
    nodes = [
        helper.make_node("MatMul", [source, f"w{i}"], [target], name=name)
        for i, (name, source, target) in enumerate(zip(names, ("x", "a", "b", "c"), ("a", "b", "c", "y"), strict=True))
    ]
    text = str(load(nodes, {f"w{i}": weight(2, 2, seed=i) for i in range(4)}, ["y"]))
    assert [line.strip().partition(":")[0] for line in text.splitlines()] == [
        "Model(", "(fc)", "(fc_1)", "(fc)", "(inner)", ")", "(MatMul)", ")",
    ]  # fmt: skip


def test_tree_without_layers() -> None:
    assert str(load([helper.make_node("Neg", ["x"], ["y"])], {}, ["y"])) == "Model()"


@pytest.mark.parametrize("name", ["/" * 5000 + "fc", "/a" * 5000, "\x1b[2J\n/fc/MatMul", "a.b" * 5000])
def test_tree_of_hostile_names(name: str) -> None:
    text = str(load([helper.make_node("MatMul", ["x", "w"], ["y"], name=name)], {"w": weight(2, 2)}, ["y"]))
    assert "Linear(in_features=2, out_features=2)" in text
    assert "\x1b" not in text
    assert len(text) < 10_000


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_recurrent_node_is_one_layer(kind: str, per_channel: bool, direction: str, tmp_path) -> None:
    count = 2 if direction == "bidirectional" else 1
    rows = GATES[kind] * 5
    node = helper.make_node(kind, ["x", "w", "r"], ["y"], name=f"/rnn/{kind}", hidden_size=5, direction=direction)
    model = load([node], {"w": weight(count, rows, 3), "r": 100 * weight(count, rows, 5)}, ["y"])
    quantized = model.quantize_dynamic(per_channel=per_channel)
    (layer,) = quantized.report.layers
    assert (layer.name, layer.op_type, layer.kind) == (f"/rnn/{kind}", kind, kind)
    assert layer.shape == (3, 5)
    assert layer.bytes_before == 4 * count * rows * (3 + 5)
    scales = count * 2 * (rows if per_channel else 1)
    assert layer.bytes_after == count * rows * (3 + 5) + 4 * scales
    assert 30 < layer.snr_db < 60
    assert not layer.shared
    suffix = {"reverse": ", reverse=True", "bidirectional": ", bidirectional=True"}.get(direction, "")
    assert f"(rnn): {kind}(3, 5{suffix})" in str(model)
    assert f"(rnn): DynamicQuantized{kind}(3, 5{suffix})" in str(quantized)
    again = reloaded(quantized, tmp_path)
    assert again.report.layers == (layer._replace(snr_db=pytest.approx(layer.snr_db, abs=0.01)),)
    assert str(again) == str(quantized)


def test_the_worse_weight_of_a_recurrent_node_counts() -> None:
    outliers = weight(1, 20, 5)
    outliers[0, 0, 0] = 40
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=5)
    snr = {}
    for name, w, r in (
        ("none", weight(1, 20, 5), weight(1, 20, 5)),
        ("w", outliers, weight(1, 20, 5)),
        ("r", weight(1, 20, 5), outliers),
    ):
        snr[name] = load([node], {"w": w, "r": r}, ["y"]).quantize_dynamic().report.layers[0].snr_db
    assert snr["w"] == snr["r"] < snr["none"]


def test_a_recurrent_node_is_quantized_whole_or_not_at_all() -> None:
    broken = weight(1, 20, 5)
    broken[0, 0, 0] = np.nan
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="lstm", hidden_size=5)
    quantized = load([node], {"w": weight(1, 20, 3), "r": broken}, ["y"]).quantize_dynamic()
    assert quantized.report.layers == ()
    assert [(s.name, s.reason) for s in quantized.report.skipped] == [("lstm", "the weight holds NaN or infinity")]
    assert [n.op_type for n in quantized.graph.nodes] == ["LSTM"]
    assert str(quantized) == "Model(\n  (lstm): LSTM(3, 5)\n)"


def test_shared_weights_count_once(tmp_path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="second"),
    ]
    quantized = load(nodes, {"w": weight(4, 4)}, ["y"]).quantize_dynamic()
    for model in (quantized, reloaded(quantized, tmp_path)):
        assert [(layer.name, layer.shared, layer.bytes_before) for layer in model.report.layers] == [
            ("first", False, 64),
            ("second", True, 0),
        ]
        assert model.report.bytes_after == 16 + 4
        (line,) = [line for line in model.summary().splitlines() if line.startswith("second")]
        assert line.count("shared") == 2


def test_gemm_reports_inputs_before_outputs(tmp_path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    quantized = load(nodes, {"w": weight(3, 7)}, ["y"]).quantize_dynamic(per_channel=True)
    for model in (quantized, reloaded(quantized, tmp_path)):
        assert model.report.layers[0].shape == (7, 3)
        assert "7×3" in model.summary()


def test_summary_groups_what_was_skipped() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "x"], ["b"], name="two"),
        helper.make_node("MatMul", ["b", "x"], ["c"], name="three"),
        helper.make_node("Gemm", ["c", "x"], ["y"], name="four"),
    ]
    text = load(nodes, {"w": weight(2, 2)}, ["y"]).quantize_dynamic(exclude="one").summary()
    assert "No layer is quantized." in text
    assert "4 candidates are left as float:" in text
    assert "  both inputs are computed: MatMul ×2, Gemm ×1 (first two)\n" in text
    assert "  excluded by exclude=: MatMul ×1 (one)\n" in text
    assert "nodes: " in text


def test_report_is_data() -> None:
    def layer(name: str, snr: float, shared: bool = False) -> QuantizedLayer:
        return QuantizedLayer(name, "MatMul", "Linear", (2, 2), "per_tensor_affine", 16, 9, snr, shared)

    layers = (layer("a", 30), layer("b", 10), layer("c", math.nan), layer("d", 5, shared=True), layer("e", math.inf))
    report = Report(layers, (SkippedLayer("f", "Gemm", "why"), SkippedLayer("g", "MatMul", "why")))
    assert [found.name for found in report.worst(9)] == ["b", "a", "e"]
    assert [found.name for found in report.worst(1)] == ["b"]
    assert {reason: [s.name for s in group] for reason, group in report.skipped_by_reason().items()} == {"why": ["f", "g"]}
    assert report.bytes_before == 80
    assert report.bytes_after == 45


def test_an_unreadable_snr_in_a_file_is_unknown(tmp_path) -> None:
    quantized = load([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(2, 2)}, ["y"]).quantize_dynamic()
    quantized.save(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    for node in model.graph.node:
        for entry in node.metadata_props:
            entry.value = re.sub(r'"snr_db": [\d.]+', '"snr_db": "high"', entry.value)
    buffer = io.BytesIO(model.SerializeToString())
    again = qruntime.load(buffer)
    assert math.isnan(again.report.layers[0].snr_db)
    assert again.summary().splitlines()[2].endswith("?")


def test_table() -> None:
    assert table([("name", "n"), ("a", "100"), ("long\n", "1")]) == [
        "name      n",
        "──────  ───",
        "a       100",
        "long\\n    1",
    ]


def test_printable() -> None:
    assert printable("größe ×2") == "größe ×2"
    assert printable("a\x1b\u202e\ud800") == "a\\x1b\\u202e\\ud800"
    assert len(printable("x" * 1000)) == 100


@pytest.mark.parametrize(("attributes", "sizes"), [({}, (8, 8, 8)), ({"qkv_hidden_sizes": [6, 6, 12]}, (6, 6, 12))])
def test_a_fused_attention_prints_the_projections_that_it_holds(attributes: dict[str, list[int]], sizes: tuple[int, ...]) -> None:
    node = helper.make_node(
        "Attention", ["x", "w", "b"], ["y"], name="/layer.0/self/Attention", domain="com.microsoft", num_heads=2, **attributes
    )
    model, scheme = load([node], {"w": weight(16, 24), "b": weight(24)}, ["y"]), ", dtype=torch.qint8, qscheme=torch.per_tensor_affine"
    for printed, start, end in ((model, "", ""), (model.quantize_dynamic(), "DynamicQuantized", scheme)):
        lines = [
            f"({name}): {start}Linear(in_features=16, out_features={n}{end})"
            for name, n in zip(("query", "key", "value"), sizes, strict=True)
        ]
        assert [line.strip() for line in str(printed).splitlines() if "Linear" in line] == lines
    assert [layer.shape for layer in model.quantize_dynamic().report.layers] == [(16, 24)]


def test_convolutions_and_activations_print_as_modules() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="/conv/Conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["c"], name="/act/Relu"),
        helper.make_node("Conv", ["c", "v"], ["y"], name="/depthwise/Conv", group=4, dilations=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    text = str(load(nodes, {"w": weight(4, 3, 3, 3), "b": weight(4), "v": weight(4, 1, 3, 3)}, ["z"]))
    assert text == (
        "Model(\n"
        "  (conv): Conv2d(3, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))\n"
        "  (act): ReLU()\n"
        "  (depthwise): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(0, 0, 1, 1), dilation=(2, 2),"
        " groups=4, bias=False)\n"
        ")"
    )
