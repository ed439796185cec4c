"""Models with static quantization: what their lowered graphs are made of, and that they compute what the file says."""

from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.ir import clone
from qruntime.passes import pipeline
from qruntime.passes.stored import decode_what_is_left
from qruntime.runtime.plan import Planner

RNG = np.random.default_rng(3)
TYPES = [np.uint8, np.int8]


class Chain:
    """A model written node by node; every activation has a scale of its own."""

    def __init__(self, dtype, opset=19):
        self.dtype, self.opset, self.nodes, self.constants, self.count = dtype, opset, [], {}, 0

    def constant(self, data):
        self.count += 1
        name = f"c{self.count}"
        self.constants[name] = np.asarray(data)
        return name

    def node(self, op, *inputs, outputs=1, domain="", **attributes):
        self.count += 1
        names = [f"v{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def scale(self, scale, zero):
        return self.constant(np.float32(scale)), self.constant(self.dtype(zero))

    def quantized(self, x, scale, zero):
        """x, quantized and dequantized."""
        parameters = self.scale(scale, zero)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, *parameters), *parameters)

    def weight(self, shape, axis, dtype=np.int8, scale=0.02):
        codes = RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)
        zeros = np.zeros(shape[axis], dtype) if dtype == np.int8 else np.full(shape[axis], 120, dtype)
        scales = (scale * RNG.uniform(0.5, 1.5, shape[axis])).astype(np.float32)
        real = self.node("DequantizeLinear", self.constant(codes), self.constant(scales), self.constant(zeros), axis=axis)
        return real, scales

    def bias(self, x_scale, w_scales):
        codes = RNG.integers(-2000, 2000, w_scales.shape).astype(np.int32)
        return self.node("DequantizeLinear", self.constant(codes), self.constant(np.float32(x_scale) * w_scales), axis=0)

    def model(self, output, x, kind=TensorProto.UNDEFINED):
        dtype = helper.np_dtype_to_tensor_dtype(x.dtype)
        inputs = [helper.make_tensor_value_info("x", dtype, [None] * x.ndim)]
        outputs = [helper.make_tensor_value_info(output, kind, None)]
        initializers = [numpy_helper.from_array(a, n) for n, a in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return qruntime.load(helper.make_model(graph, opset_imports=opsets).SerializeToString(), threads=1)


def ran(loaded, x):
    """(result as the file defines it, result as lowered, operators of the lowered graph); no kernel declined."""
    as_it_is = clone(loaded.graph)
    decode_what_is_left(as_it_is)
    plain = Planner(as_it_is, num_threads=1).plan()
    graph = pipeline.lowered(clone(loaded.graph))
    graph.check()
    plan = Planner(graph, num_threads=1).plan()
    (expected,), (found,) = plain.executable.run([x]), plan.executable.run([x])
    assert expected.dtype == found.dtype
    assert expected.shape == found.shape
    declined = [c.node.label for c, d in zip(plan.nodes, plan.executable.declined, strict=True) if d]
    assert not declined
    return expected, found, Counter(node.op_type for node in graph.walk_nodes())


def codes_apart(expected, found):
    """Largest difference in codes, and the part of them that differ."""
    apart = np.abs(expected.astype(np.int32) - found.astype(np.int32))
    return apart.max(initial=0), (apart > 0).mean() if apart.size else 0.0


def images(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def zero_of(dtype, offset=3):
    return np.iinfo(dtype).max // 2 + 1 + offset if dtype == np.uint8 else offset


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("weight", TYPES)
@pytest.mark.parametrize("activation", [None, "Relu", "Clip"])
def test_convolution_between_pairs(dtype, weight, activation):
    c = Chain(dtype)
    x = c.quantized("x", 0.03, zero_of(dtype))
    w, scales = c.weight((6, 4, 3, 3), 0, weight)
    y = c.node("Conv", x, w, c.bias(0.03, scales), pads=[1, 1, 1, 1], strides=[2, 1])
    if activation == "Relu":
        y = c.node("Relu", y)
    if activation == "Clip":
        y = c.node("Clip", y, c.constant(np.float32(-1)), c.constant(np.float32(4.3)))
    y = c.node("QuantizeLinear", y, *c.scale(0.1, zero_of(dtype, -5)))
    expected, found, ops = ran(c.model(y, images(2, 4, 9, 8)), images(2, 4, 9, 8))
    assert ops == {"QuantizeLinear": 1, "Transpose": 2, "QLinearConv": 1}
    most, part = codes_apart(expected, found)
    assert most <= 1
    assert part < 0.01
    assert len(np.unique(found)) > 30


def test_float_chains_of_layers_stay_in_codes():
    c = Chain(np.uint8)
    x = c.quantized("x", 0.03, 120)
    for i in range(3):
        w, scales = c.weight((8, 8, 1, 1), 0, scale=0.01)
        y = c.quantized(c.node("Conv", x, w, c.bias(0.03, scales)), 0.03, 128)
        gate = c.quantized(c.node("Sigmoid", y), 1 / 255, 0)
        y = c.quantized(c.node("Mul", y, gate), 0.03, 20)
        x = c.quantized(c.node("Add", x, y), 0.03, 120) if i else y
    image = images(2, 8, 5, 6)
    expected, found, ops = ran(c.model(c.node("QuantizeLinear", x, *c.scale(0.03, 120)), image), image)
    assert ops["QLinearConv"] == 3
    assert ops["QLinearAdd"] == 2
    assert ops["Transpose"] == 2
    assert not {"Conv", "Sigmoid", "Mul", "QLinearMul", "DequantizeLinear"} & set(ops)
    assert codes_apart(expected, found)[0] <= 3  # of four roundings after one another


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("has_target", [True, False])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_matrices_between_pairs(dtype, has_target, op):
    c = Chain(dtype)
    x = c.quantized("x", 0.03, zero_of(dtype))
    if op == "MatMul":
        w, scales = c.weight((20, 7), 1)
        y = c.node("MatMul", x, w)
    else:
        w, scales = c.weight((7, 20), 0)
        y = c.node("Gemm", x, w, c.bias(0.03, scales), transB=1)
    if has_target:
        y = c.node("QuantizeLinear", y, *c.scale(0.1, zero_of(dtype)))
    x = images(6, 20)
    expected, found, ops = ran(c.model(y, x), x)
    assert ops == {"QuantizeLinear": 1, "QLinearMatMul": 1}
    if has_target:
        assert codes_apart(expected, found)[0] <= 1
    else:
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_moves_codes_is_exact(dtype):
    c = Chain(dtype)
    x = c.quantized("x", 0.03, zero_of(dtype))
    y = c.quantized(c.node("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), 0.03, zero_of(dtype))
    y = c.quantized(c.node("Resize", y, "", c.constant(np.float32([1, 1, 2, 2])), mode="nearest"), 0.03, zero_of(dtype))
    y = c.node("Slice", y, *(c.constant(np.int64([n])) for n in (1, 9, 3, 2)))
    y = c.node("Transpose", c.quantized(y, 0.02, zero_of(dtype, 9)), perm=[0, 2, 3, 1])
    y = c.node("QuantizeLinear", c.node("Flatten", y), *c.scale(0.02, zero_of(dtype, 9)))
    image = images(2, 3, 6, 7)
    expected, found, ops = ran(c.model(y, image), image)
    np.testing.assert_array_equal(expected, found)
    assert ops == {"QuantizeLinear": 1, "MaxPool": 1, "Resize": 1, "Slice": 1, "CodeTable": 1, "Transpose": 1, "Flatten": 1}


@pytest.mark.parametrize("dtype", TYPES)
def test_concat_and_poolings_between_pairs(dtype):
    c = Chain(dtype)
    x = c.quantized("x", 0.03, zero_of(dtype))
    w, scales = c.weight((5, 3, 1, 1), 0)
    y = c.quantized(c.node("Conv", x, w, c.bias(0.03, scales)), 0.05, zero_of(dtype, 1))
    y = c.quantized(c.node("Concat", x, y, axis=1), 0.06, zero_of(dtype, 4))
    y = c.quantized(c.node("AveragePool", y, kernel_shape=[3, 2], pads=[1, 0, 1, 1]), 0.04, zero_of(dtype))
    y = c.node("QuantizeLinear", c.node("GlobalAveragePool", y), *c.scale(0.01, zero_of(dtype)))
    image = images(2, 3, 6, 7)
    expected, found, ops = ran(c.model(y, image), image)
    assert codes_apart(expected, found)[0] <= 2
    assert ops["QLinearAveragePool"] == ops["QLinearGlobalAveragePool"] == ops["Concat"] == 1
    assert "AveragePool" not in ops


UNARY = [
    ("Sigmoid", {}), ("Tanh", {}), ("HardSigmoid", {"alpha": 0.2, "beta": 0.4}), ("HardSwish", {}), ("LeakyRelu", {"alpha": 0.1}),
    ("Elu", {}), ("Relu", {}), ("Softplus", {}), ("Sqrt", {}), ("Log", {}), ("Erf", {}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("op", "attributes"), UNARY)
def test_functions_of_one_code_are_exact_tables(dtype, op, attributes):
    c = Chain(dtype)
    parameters = c.scale(0.04, zero_of(dtype))
    real = c.node("DequantizeLinear", "x", *parameters)
    y = c.node("Mul", c.node(op, real, **attributes), c.constant(np.float32(1.7)))
    y = c.node("QuantizeLinear", c.node("Add", y, real), *c.scale(0.05, zero_of(dtype)))
    x = np.arange(256, dtype=np.uint8).view(dtype).reshape(4, 64)
    expected, found, ops = ran(c.model(y, x), x)
    np.testing.assert_array_equal(expected, found)
    assert ops == {"CodeTable": 1}


def test_a_function_of_two_values_is_no_table():
    c = Chain(np.uint8)
    parameters = c.scale(0.04, 100)
    real = c.node("DequantizeLinear", "x", *parameters)
    other = c.node("Transpose", real, perm=[1, 0])
    y = c.node("QuantizeLinear", c.node("Max", real, other), *c.scale(0.05, 3))
    x = RNG.integers(0, 256, (5, 5)).astype(np.uint8)
    expected, found, ops = ran(c.model(y, x), x)
    np.testing.assert_array_equal(expected, found)
    assert "CodeTable" not in ops


def test_what_another_bias_a_scale_or_a_reader_forbids_stays_float():
    x = images(1, 4, 6, 6)

    def ops_of(change):
        c = Chain(np.uint8)
        real = c.quantized("x", 0.03, 120)
        w, scales = c.weight((4, 4, 1, 1), 0)
        bias = c.bias(0.03, scales)
        if change == "bias":
            bias = c.bias(0.04, scales)
        y = c.node("Conv", real, w, bias)
        target = c.scale(-0.1 if change == "negative" else 0.1, 3)
        z = c.node("QuantizeLinear", y, *target)
        if change == "reader":
            z = c.node("Add", c.node("DequantizeLinear", z, *target), y)
        return ran(c.model(z, x), x)[2]

    assert ops_of(None)["QLinearConv"] == 1
    for change in ("bias", "reader", "negative"):
        assert ops_of(change)["Conv"] == 1


def operator_model(c, op, x_shape, w_shape, zero, **attributes):
    """Codes through a QLinearConv."""
    w = c.constant(RNG.integers(-128, 128, w_shape).astype(np.int8))
    w_scale, w_zero = c.constant(np.float32(0.02)), c.constant(np.int8(0))
    return c.node(op, "x", *c.scale(0.03, zero), w, w_scale, w_zero, *c.scale(0.1, zero), **attributes)


@pytest.mark.parametrize("dtype", TYPES)
def test_operators_of_the_file_are_exact(dtype):
    """QLinearConv, SiLU of QLinear operators, QLinearAdd, QLinearConcat, poolings, QGemm: integers as each defines them."""
    c = Chain(dtype)
    zero = zero_of(dtype)
    y = operator_model(c, "QLinearConv", (2, 4, 9, 8), (6, 4, 3, 3), zero, pads=[1, 1, 1, 1])
    gate = c.node("QLinearSigmoid", y, *c.scale(0.1, zero), *c.scale(1 / 255, np.iinfo(dtype).min), domain="com.microsoft")
    silu = c.node(
        "QLinearMul", y, *c.scale(0.1, zero), gate, *c.scale(1 / 255, np.iinfo(dtype).min), *c.scale(0.06, zero), domain="com.microsoft"
    )
    y = c.node("QLinearAdd", silu, *c.scale(0.06, zero), y, *c.scale(0.1, zero), *c.scale(0.12, zero), domain="com.microsoft")
    y = c.node("QLinearLeakyRelu", y, *c.scale(0.12, zero), *c.scale(0.1, zero), alpha=0.2, domain="com.microsoft")
    y = c.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = c.node("QLinearConcat", *c.scale(0.11, zero), y, *c.scale(0.1, zero), y, *c.scale(0.11, zero), axis=1, domain="com.microsoft")
    window = {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1]}
    y = c.node("QLinearAveragePool", y, *c.scale(0.11, zero), *c.scale(0.1, zero), domain="com.microsoft", **window)
    y = c.node("QLinearGlobalAveragePool", y, *c.scale(0.1, zero), *c.scale(0.05, zero), domain="com.microsoft")
    y = c.node("Flatten", y)
    w = c.constant(RNG.integers(-128, 128, (5, 12)).astype(np.int8))
    bias = c.constant(RNG.integers(-2000, 2000, 5).astype(np.int32))
    y = c.node(
        "QGemm", y, *c.scale(0.05, zero), w, c.constant(np.float32(0.02)), c.constant(np.int8(0)), bias, *c.scale(0.1, zero), transB=1,
        alpha=1.5, domain="com.microsoft",
    )  # fmt: skip
    info = np.iinfo(dtype)
    x = RNG.integers(info.min, info.max + 1, (2, 4, 9, 8)).astype(dtype)
    expected, found, ops = ran(c.model(y, x), x)
    np.testing.assert_array_equal(expected, found)
    assert ops["QLinearMatMul"] == ops["QLinearConv"] == ops["NhwcMaxPool"] == 1
    assert not {"QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearConcat", "QGemm"} & set(ops)


def test_integer_products_alone():
    c = Chain(np.uint8)
    w = c.constant(RNG.integers(-128, 128, (20, 7)).astype(np.int8))
    y = c.node("MatMulInteger", "x", w, c.constant(np.uint8(7)))
    x = RNG.integers(0, 256, (3, 4, 20)).astype(np.uint8)
    expected, found, ops = ran(c.model(y, x), x)
    np.testing.assert_array_equal(expected, found)
    assert ops == {"QLinearMatMul": 1}

    c = Chain(np.uint8)
    codes, _, zero = c.node("DynamicQuantizeLinear", "x", outputs=3)
    w = c.constant(RNG.integers(-128, 128, (6, 2, 3, 3)).astype(np.int8))
    y = c.node("ConvInteger", codes, w, zero, pads=[1, 1, 1, 1], group=2)
    x = images(2, 4, 9, 8)
    expected, found, ops = ran(c.model(y, x), x)
    np.testing.assert_array_equal(expected, found)
    assert ops["QLinearConv"] == 1


def test_softmax_of_codes():
    c = Chain(np.uint8)
    y = c.node("QLinearSoftmax", "x", *c.scale(0.05, 100), *c.scale(1 / 256, 0), axis=-1, opset=13, domain="com.microsoft")
    x = RNG.integers(0, 256, (5, 33)).astype(np.uint8)
    expected, found, ops = ran(c.model(y, x), x)
    assert codes_apart(expected, found)[0] <= 1
    assert ops == {"DequantizeLinear": 1, "Softmax": 1, "QuantizeLinear": 1}


def test_an_image_alone_is_the_image_in_its_batch():
    c = Chain(np.uint8)
    y = operator_model(c, "QLinearConv", (3, 4, 9, 8), (6, 4, 3, 3), 100, pads=[1, 1, 1, 1])
    x = RNG.integers(0, 256, (3, 4, 9, 8)).astype(np.uint8)
    loaded = c.model(y, x)
    (together,) = loaded.run({"x": x}).values()
    for i in range(3):
        (alone,) = loaded.run({"x": x[i : i + 1]}).values()
        np.testing.assert_array_equal(alone, together[i : i + 1])


def test_a_constant_of_an_image_follows_its_channels():
    c = Chain(np.uint8)
    y = operator_model(c, "QLinearConv", (2, 4, 9, 8), (6, 4, 1, 1), 100)
    factors = c.constant(RNG.integers(0, 256, (6, 1, 1)).astype(np.uint8))
    y = c.node("QLinearMul", y, *c.scale(0.1, 100), factors, *c.scale(0.01, 7), *c.scale(0.12, 90), domain="com.microsoft")
    x = RNG.integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    expected, found, ops = ran(c.model(y, x), x)
    np.testing.assert_array_equal(expected, found)
    assert ops == {"Transpose": 2, "QLinearConv": 1, "QLinearMul": 1}


def test_images_that_others_read_are_transposed_for_them():
    """An island ends at an output and at an operator that reads channels second."""
    c = Chain(np.uint8)
    y = operator_model(c, "QLinearConv", (2, 4, 9, 8), (6, 4, 1, 1), 100)
    y = c.node("QLinearAdd", y, *c.scale(0.1, 100), y, *c.scale(0.2, 100), *c.scale(0.12, 90), domain="com.microsoft")
    pooled = c.node("MaxPool", y, kernel_shape=[3, 3])
    y = c.node("Concat", c.node("Reshape", y, c.constant(np.int64([-1]))), c.node("Reshape", pooled, c.constant(np.int64([-1]))), axis=0)
    x = RNG.integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    expected, found, _ = ran(c.model(y, x), x)
    np.testing.assert_array_equal(expected, found)
