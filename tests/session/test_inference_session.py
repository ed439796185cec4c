"""The face of ONNX Runtime: what is asked under its names is what a Model answers."""

from __future__ import annotations

import enum
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
import qruntime as onnxruntime
from qruntime.session import options
from tests.small_models import FLOAT, assert_same_bits, encoder_bytes, linear_bytes, model_bytes, random


@pytest.fixture(autouse=True)
def _nothing_was_said_yet(monkeypatch):
    monkeypatch.setattr(options, "_said", set())


def two_outputs() -> bytes:
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["a", "b"], ["product"])]
    outputs = [("sum", FLOAT, ["n", 3]), ("product", FLOAT, None)]
    return model_bytes(nodes, [("a", FLOAT, ["n", 3]), ("b", FLOAT, [1, 3])], outputs)


A, B = random(2, 3), random(1, 3, seed=1)


def test_run_gives_a_list_in_the_order_asked_for():
    session = onnxruntime.InferenceSession(two_outputs())
    total, product = session.run(None, {"a": A, "b": B})
    assert_same_bits(total, A + B)
    assert_same_bits(product, A * B)
    for names in ([], ["sum", "product"]):
        assert len(session.run(names, {"b": B, "a": A})) == 2
    assert_same_bits(session.run(["product"], {"a": A, "b": B})[0], A * B)
    (first, second) = session.run(["product", "sum"], {"a": A, "b": B})
    assert_same_bits(first, A * B)
    assert_same_bits(second, A + B)
    (wrapped,) = session.run_with_ort_values(["sum"], {"a": onnxruntime.OrtValue.ortvalue_from_numpy(A), "b": B})
    assert_same_bits(wrapped.numpy(), A + B)


def test_signatures_are_spelled_as_there():
    session = onnxruntime.InferenceSession(two_outputs(), providers=["CPUExecutionProvider"])
    assert [tuple(one) for one in session.get_inputs()] == [
        ("a", "tensor(float)", ["n", 3]),
        ("b", "tensor(float)", [1, 3]),
    ]
    assert [(one.name, one.type, one.shape) for one in session.get_outputs()] == [
        ("sum", "tensor(float)", ["n", 3]),
        ("product", "tensor(float)", []),
    ]
    assert session.get_providers() == onnxruntime.get_available_providers() == ["CPUExecutionProvider"]
    assert onnxruntime.get_device() == "CPU"


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (helper.make_tensor_type_proto(TensorProto.DOUBLE, []), "tensor(double)"),
        (helper.make_tensor_type_proto(TensorProto.FLOAT16, []), "tensor(float16)"),
        (helper.make_tensor_type_proto(TensorProto.STRING, []), "tensor(string)"),
        (helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.INT64, [])), "seq(tensor(int64))"),
        (
            helper.make_optional_type_proto(helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, []))),
            "optional(seq(tensor(float)))",
        ),
    ],
)
def test_names_of_types(declared: onnx.TypeProto, text: str):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_value_info("x", declared)],
        [helper.make_value_info("y", declared)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    assert [one.type for one in (*session.get_inputs(), *session.get_outputs())] == [text, text]


def test_what_a_file_says_of_itself():
    proto = onnx.load_from_string(two_outputs())
    proto.producer_name, proto.model_version, proto.doc_string = "someone", 7, "what it is for"
    proto.graph.doc_string = "of the graph"
    helper.set_model_props(proto, {"labels": "a,b"})
    meta = onnxruntime.InferenceSession(proto.SerializeToString()).get_modelmeta()
    assert (meta.producer_name, meta.version, meta.description) == ("someone", 7, "what it is for")
    assert (meta.graph_name, meta.graph_description) == (proto.graph.name, "of the graph")
    assert meta.custom_metadata_map == {"labels": "a,b"}


def test_errors_are_the_package_s():
    session = onnxruntime.InferenceSession(two_outputs())
    with pytest.raises(ValueError, match="missing input 'b'"):
        session.run(None, {"a": A})
    with pytest.raises(qruntime.InputError, match="unknown output 'nope'"):
        session.run(["nope"], {"a": A, "b": B})
    with pytest.raises(qruntime.InputError, match="needs float32"):
        session.run(None, {"a": A.astype(np.float64), "b": B})
    with pytest.raises(OSError, match="no-such-file"):
        onnxruntime.InferenceSession("no-such-file.onnx")
    run_options = onnxruntime.RunOptions()
    run_options.terminate = True
    with pytest.raises(qruntime.RunError, match="terminate"):
        session.run(None, {"a": A, "b": B}, run_options)


def test_a_quantized_model_makes_a_session():
    model = qruntime.load(linear_bytes(64, 32)).quantize_dynamic()
    session = onnxruntime.InferenceSession(model)
    x = random(3, 64)
    assert_same_bits(session.run(None, {session.get_inputs()[0].name: x})[0], model(x))
    assert session.model is model


def test_the_number_of_threads_is_heeded():
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(encoder_bytes(), chosen)
    assert session.model.threads == 1
    assert session.get_session_options() is chosen
    assert onnxruntime.InferenceSession(encoder_bytes()).model.threads == qruntime.load(encoder_bytes()).threads


def test_what_has_no_meaning_is_said_once():
    chosen = onnxruntime.SessionOptions()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        chosen.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        chosen.log_severity_level = 3
        chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
        assert chosen.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.warns(UserWarning, match=r"SessionOptions\.new_fashion"):
        chosen.new_fashion = 1
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            onnxruntime.InferenceSession(two_outputs(), providers=[("CUDAExecutionProvider", {"device_id": 0})])
    assert ["CUDAExecutionProvider" in str(warning.message) for warning in said] == [True]
    assert said[0].filename == __file__
    chosen.optimized_model_filepath = "optimized.onnx"
    with pytest.warns(UserWarning, match="optimized_model_filepath"):
        onnxruntime.InferenceSession(two_outputs(), chosen)
    with pytest.warns(UserWarning, match="'strange'"):
        onnxruntime.InferenceSession(two_outputs(), strange=True)


def test_bindings():
    session = onnxruntime.InferenceSession(two_outputs())
    binding = session.io_binding()
    binding.bind_cpu_input("a", A)
    binding.bind_input("b", "cpu", 0, np.float32, B.shape, B.ctypes.data)
    into = np.zeros((2, 3), np.float32)
    binding.bind_output("product", "cpu", 0, np.float32, into.shape, into.ctypes.data)
    binding.bind_output("sum")
    session.run_with_iobinding(binding)
    assert_same_bits(into, A * B)
    product, total = binding.copy_outputs_to_cpu()
    assert_same_bits(product, A * B)
    assert_same_bits(total, A + B)
    assert [value.data_type() for value in binding.get_outputs()] == ["tensor(float)"] * 2
    fed = onnxruntime.OrtValue.ortvalue_from_numpy(A.copy())
    place = onnxruntime.OrtValue.ortvalue_from_shape_and_type([2, 3], np.float32)
    binding.clear_binding_outputs()
    binding.bind_ortvalue_input("a", fed)
    binding.bind_ortvalue_output("sum", place)
    fed.update_inplace(A + 1)
    session.run_with_iobinding(binding)
    assert_same_bits(place.numpy(), (A + 1) + B)
    with pytest.raises(qruntime.InputError, match="device"):
        binding.bind_output("sum", "cuda", 0)
    with pytest.raises(qruntime.InputError, match="no address"):
        binding.bind_input("b", "cpu", 0, np.float32, [1, 3], 0)
    with pytest.raises(qruntime.InputError, match="update_inplace needs"):
        fed.update_inplace(np.zeros((1, 3), np.float32))


def test_ort_values_describe_themselves():
    value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((2, 3), np.int64))
    assert (value.shape(), value.data_type(), value.element_type()) == ([2, 3], "tensor(int64)", TensorProto.INT64)
    assert (value.tensor_size_in_bytes(), value.device_name(), value.has_value()) == (48, "cpu", True)
    assert value.is_tensor()
    assert not value.is_tensor_sequence()
    assert onnxruntime.OrtValue.ortvalue_from_shape_and_type([4], TensorProto.DOUBLE).numpy().dtype == np.float64


def test_models_take_names_and_show_themselves():
    model = qruntime.load(two_outputs())
    total, product = model(a=A, b=B)
    assert_same_bits(total, A + B)
    assert_same_bits(model(A, b=B)[1], product)
    with pytest.raises(qruntime.InputError, match="'a' is given by its place and by its name"):
        model(A, a=A)
    shown = qruntime.load(linear_bytes(64, 32)).quantize_dynamic()._repr_html_()
    assert shown.startswith("<pre>")
    assert "DynamicQuantizedLinear(in_features=64, out_features=32" in shown


class TestQuantizeFiles:
    def test_from_file_to_file(self, tmp_path: Path):
        (tmp_path / "in.onnx").write_bytes(linear_bytes(64, 32))
        x = random(3, 64)
        for arguments, options_ in ({}, {}), ({"per_channel": True}, {"per_channel": True}):
            done = qruntime.quantization.quantize_dynamic(tmp_path / "in.onnx", str(tmp_path / "out.onnx"), **arguments)
            assert done is None
            made = qruntime.load(tmp_path / "out.onnx")
            assert_same_bits(made(x), qruntime.load(linear_bytes(64, 32)).quantize_dynamic(**options_)(x))

    def test_arguments_of_the_other(self, tmp_path: Path):
        from qruntime.quantization import QuantType, quantize_dynamic

        proto, out = onnx.load_from_string(encoder_bytes()), tmp_path / "out.onnx"
        names = [node.name for node in proto.graph.node if node.op_type == "MatMul" and "fc" in node.name]
        quantize_dynamic(
            model_input=proto,
            model_output=out,
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QUInt8,
            nodes_to_exclude=names or None,
            reduce_range=True,
            use_external_data_format=True,
        )
        assert out.with_name("out.onnx.data").exists()
        assert {layer.op_type for layer in qruntime.load(out).report.layers} == {"MatMul"}
        with pytest.raises(qruntime.QuantizationError, match="QInt4"):
            quantize_dynamic(proto, out, weight_type=QuantType.QInt4)
        with pytest.warns(UserWarning, match="MatMulConstBOnly"):
            quantize_dynamic(proto, out, extra_options={"MatMulConstBOnly": True})
        with pytest.warns(UserWarning, match="Softmax has no weights"):
            quantize_dynamic(proto, out, ["MatMul", "Softmax"])

    def test_nodes_are_chosen_by_name(self, tmp_path: Path):
        proto, out = onnx.load_from_string(encoder_bytes()), tmp_path / "out.onnx"
        names = [layer.name for layer in qruntime.load(encoder_bytes()).quantize_dynamic().report.layers]
        assert len(names) > 2
        for chosen, left in (("nodes_to_exclude", names[1:]), ("nodes_to_quantize", names[:1])):
            qruntime.quantization.quantize_dynamic(proto, out, **{chosen: names[:1]})
            assert [layer.name for layer in qruntime.load(out).report.layers] == left

    def test_one_operator_and_types_by_name(self, tmp_path: Path):
        """A string is a name, not the letters of some; types of ONNX Runtime's own enumeration have the names of ours."""
        their_type = enum.Enum("QuantType", {"QInt8": 0, "QUInt8": 1, "QInt4": 5})
        (tmp_path / "in.onnx").write_bytes(linear_bytes(64, 32))
        for weight_type in ("QInt8", their_type.QUInt8):
            qruntime.quantization.quantize_dynamic(tmp_path / "in.onnx", tmp_path / "out.onnx", "MatMul", weight_type=weight_type)
            assert len(qruntime.load(tmp_path / "out.onnx").report.layers) == 1
        with pytest.raises(qruntime.QuantizationError, match="QInt4"):
            qruntime.quantization.quantize_dynamic(tmp_path / "in.onnx", tmp_path / "out.onnx", weight_type=their_type.QInt4)

    @pytest.mark.parametrize("output", ["in.onnx", "linked.onnx", "../in.onnx"])
    def test_the_float_model_is_not_written_over(self, output: str, tmp_path: Path):
        path = tmp_path / "in.onnx"
        path.write_bytes(linear_bytes(64, 32))
        (tmp_path / "linked.onnx").symlink_to(path)
        target = tmp_path / ("folder" if output.startswith("..") else "") / output
        (tmp_path / "folder").mkdir()
        with pytest.raises(qruntime.QuantizationError, match="would be lost"):
            qruntime.quantization.quantize_dynamic(path, target)
        assert path.read_bytes() == linear_bytes(64, 32)

    def test_models_are_still_taken(self):
        model = qruntime.load(linear_bytes(64, 32))
        for quantized in (
            qruntime.quantization.quantize_dynamic(model, {"Linear"}),
            qruntime.quantization.quantize_dynamic(model=model, qconfig_spec={"Linear"}),
        ):
            assert len(quantized.report.layers) == 1
        with pytest.raises(qruntime.QuantizationError, match="needs a model"):
            qruntime.quantization.quantize_dynamic()
