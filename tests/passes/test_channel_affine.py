"""BatchNormalization, and Mul and Add by constants, join the layer before them."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import qruntime

RNG = np.random.default_rng(7)
CHANNELS = 6


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


NORM = {"s": numbers(CHANNELS), "t": numbers(CHANNELS), "m": numbers(CHANNELS), "v": np.abs(numbers(CHANNELS)) + 0.1}
NORM_NODE = ("BatchNormalization", ["h", "s", "t", "m", "v"], ["y"], {"epsilon": 1e-3})
IMAGE, ROWS = numbers(2, 4, 7, 5), numbers(3, 4)


def made(nodes, x, constants, outputs=("y",), opset=17) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "g",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)],
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def one_by_one(nodes, x, constants, outputs=("y",), opset=17) -> dict[str, np.ndarray]:
    """Every intermediate result is an output, so that nothing may be folded."""
    everything = [name for _, _, made_here, _ in nodes for name in made_here]
    model = qruntime.load(made(nodes, x, constants, everything, opset).SerializeToString())
    assert len(model.graph.nodes) == len(nodes)
    return model.run({"x": x})


def ops_after(nodes, x, constants, tolerance=2e-5, **options) -> Counter:
    """Operators of the canonical graph, once its results are those of the operators one by one."""
    model = qruntime.load(made(nodes, x, constants, **options).SerializeToString())
    model.graph.check()
    for name, got in model.run({"x": x}).items():
        expected = one_by_one(nodes, x, constants, **options)[name]
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
    return Counter(node.op_type for node in model.graph.nodes)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("op", "shape", "attributes"),
    [
        ("Conv", (6, 4, 3, 2), {"pads": [1, 0, 1, 1]}),
        ("Conv", (6, 2, 3, 3), {"group": 2}),
        ("ConvTranspose", (4, 6, 3, 2), {"strides": [2, 2]}),
        ("ConvTranspose", (4, 3, 3, 2), {"group": 2}),
    ],
)
def test_convolution_takes_in_the_normalization(op, shape, attributes, bias):
    constants = {"w": numbers(*shape), **NORM, **({"b": numbers(CHANNELS)} if bias else {})}
    nodes = [(op, ["x", "w", *(["b"] if bias else [])], ["h"], attributes), NORM_NODE]
    assert ops_after(nodes, IMAGE, constants) == {op: 1}


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 3.0}])
@pytest.mark.parametrize("bias", [None, (CHANNELS,), (1, CHANNELS), ()])
def test_gemm_takes_in_the_normalization(attributes, bias):
    constants = {"w": numbers(6, 4) if "transB" in attributes else numbers(4, 6), **NORM}
    constants |= {} if bias is None else {"b": numbers(*bias) if bias else np.float32(3).reshape(())}
    nodes = [("Gemm", ["x", "w", *(["b"] if bias is not None else [])], ["h"], attributes), NORM_NODE]
    assert ops_after(nodes, ROWS, constants) == {"Gemm": 1}


def test_matmul_of_a_matrix_takes_in_the_normalization_and_of_a_batch_does_not():
    nodes = [("MatMul", ["x", "w"], ["h"], {}), NORM_NODE]
    assert ops_after(nodes, ROWS, {"w": numbers(4, 6), **NORM}) == {"MatMul": 1, "Add": 1}
    # Channels are the second axis, the columns of the product the last one.
    assert ops_after(nodes, numbers(2, 6, 4), {"w": numbers(4, 6), **NORM}) == {"MatMul": 1, "BatchNormalization": 1}


@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("shape", [(), (1, 6, 1, 1), (6, 1, 1), (1, 1)])
def test_convolution_takes_in_arithmetic_by_channel(op, shape):
    constants = {"w": numbers(6, 4, 3, 3), "c": np.asarray(1 + np.abs(numbers(*shape)), np.float32)}
    assert ops_after([("Conv", ["x", "w"], ["h"], {}), (op, ["h", "c"], ["y"], {})], IMAGE, constants) == {"Conv": 1}


def test_a_whole_chain_is_taken_in():
    constants = {"w": numbers(6, 4, 3, 3), "b": numbers(6), **NORM, "c": numbers(6, 1, 1), "d": numbers(1, 6, 1, 1)}
    chain = [("Mul", ["c", "k"], ["i"], {}), ("Add", ["i", "d"], ["j"], {}), ("Relu", ["j"], ["y"], {})]
    nodes = [("Conv", ["x", "w", "b"], ["h"], {}), (*NORM_NODE[:2], ["k"], {}), *chain]
    assert ops_after(nodes, IMAGE, constants) == {"Conv": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("op", "inputs", "constant"),
    [
        ("Mul", ["h", "c"], (5,)),  # along the width
        ("Mul", ["h", "c"], (1, 6, 1, 5)),
        ("Add", ["h", "c"], (1, 1, 6, 1, 1)),  # which makes the result one of five dimensions
        ("Sub", ["c", "h"], (6, 1, 1)),
        ("Div", ["c", "h"], ()),
    ],
)
def test_other_arithmetic_stays(op, inputs, constant):
    constants = {"w": numbers(6, 4, 1, 1), "c": np.asarray(1 + np.abs(numbers(*constant)), np.float32)}
    assert ops_after([("Conv", ["x", "w"], ["h"], {}), (op, inputs, ["y"], {})], IMAGE, constants)[op] == 1


def test_what_others_read_stays():
    constants = {"w": numbers(6, 4, 3, 3), **NORM}
    conv = ("Conv", ["x", "w"], ["h"], {})
    kept = {"Conv": 1, "BatchNormalization": 1}
    assert ops_after([conv, NORM_NODE, ("Relu", ["h"], ["z"], {})], IMAGE, constants, outputs=("y", "z")) == kept | {"Relu": 1}
    assert ops_after([conv, NORM_NODE], IMAGE, constants, outputs=("y", "h")) == kept
    shared = [conv, NORM_NODE, ("Conv", ["x", "w"], ["z"], {"strides": [2, 2]})]
    assert ops_after(shared, IMAGE, constants, outputs=("y", "z")) == {"Conv": 2, "BatchNormalization": 1}


def test_training_and_numbers_that_are_not_finite_stay():
    constants = {"w": numbers(6, 4, 3, 3), **NORM}
    trained = ("BatchNormalization", ["h", "s", "t", "m", "v"], ["y", "p", "q"], {"training_mode": 1})
    loaded = qruntime.load(made([("Conv", ["x", "w"], ["h"], {}), trained], IMAGE, constants).SerializeToString())
    assert Counter(node.op_type for node in loaded.graph.nodes) == {"Conv": 1, "BatchNormalization": 1}
    constants["v"] = np.full(CHANNELS, -1, np.float32)  # the square root is NaN
    assert ops_after([("Conv", ["x", "w"], ["h"], {}), NORM_NODE], IMAGE, constants)["BatchNormalization"] == 1


def test_float64():
    constants = {name: a.astype(np.float64) for name, a in {"w": numbers(6, 4, 3, 3), **NORM}.items()}
    assert ops_after([("Conv", ["x", "w"], ["h"], {}), NORM_NODE], IMAGE.astype(np.float64), constants, 1e-13) == {"Conv": 1}


def test_a_convolution_in_float16_is_rounded_before_it_is_scaled():
    constants = {name: a.astype(np.float16) for name, a in {"w": numbers(6, 4, 3, 3), **NORM}.items()}
    ops = ops_after([("Conv", ["x", "w"], ["h"], {}), NORM_NODE], IMAGE.astype(np.float16), constants, 4e-3)
    assert ops == {"Conv": 1, "BatchNormalization": 1}


def test_the_folded_layer_is_saved_and_quantized(tmp_path):
    constants = {"w": numbers(6, 4, 3, 3), **NORM}
    nodes = [("Conv", ["x", "w"], ["h"], {}), NORM_NODE]
    quantized = qruntime.load(made(nodes, IMAGE, constants).SerializeToString()).quantize_dynamic({"Conv"})
    quantized.save(tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    expected = one_by_one(nodes, IMAGE, constants)["y"]
    for model in (quantized, qruntime.load(tmp_path / "m.onnx")):
        assert "DynamicQuantizedConv2d" in str(model)
        assert np.abs(model.run({"x": IMAGE})["y"] - expected).max() < 0.03 * np.abs(expected).max()
