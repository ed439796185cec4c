"""MatMulNBits and MatMulBnb4 run on the kernels of few bits, over the bytes of the file."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

import qruntime
from qruntime.errors import QRuntimeError
from qruntime.ir import clone
from qruntime.ir.narrow import NarrowArray
from qruntime.passes import pipeline
from qruntime.runtime.plan import Planner

RNG = np.random.default_rng(5)


def load(op, x, constants, **attributes):
    """A model of one node; `constants` are its further inputs, None for one that is missing."""
    names = ["x", *("" if c is None else f"c{i}" for i, c in enumerate(constants))]
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], name="layer", domain="com.microsoft", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", kind, [None] * x.ndim)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(constants) if c is not None],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return qruntime.load(helper.make_model(graph, opset_imports=opsets).SerializeToString(), threads=1)


def both(model, x):
    """The result of the definition and that of the lowered graph, and the weight that the latter holds."""
    plain = Planner(clone(model.graph), num_threads=1).plan()
    graph = pipeline.lowered(clone(model.graph))
    graph.check()
    plan = Planner(graph, num_threads=1).plan()
    expected, found = plain.executable.run([x])[0], plan.executable.run([x])[0]
    assert not any(plan.executable.declined)
    linear = next(node for node in graph.nodes if node.op_type in ("Linear", "DynamicQuantizedLinear"))
    return expected, found, linear.input(1), [node.op_type for node in graph.nodes]


def weights(n, k, bits, block, *, zero="none", dtype=np.float32):
    blocks = -(-k // block)
    b = RNG.integers(0, 256, (n, blocks, block * bits // 8), np.uint8)
    scales = RNG.uniform(0.01, 0.1, (n, blocks)).astype(dtype)
    zero_points = {
        "none": None,
        "packed": RNG.integers(0, 256, (n, -(-blocks * bits // 8)), np.uint8),
        "float": RNG.uniform(0, 1 << bits, (n, blocks)).astype(dtype),
    }
    return b, scales, zero_points[zero]


def check(expected, found, x, weight):
    """Float sums in another order: the bound is of their rounding, with a margin of 4. Kernels sum codes and take off zero points
    times the sum of x, so it is codes and zero points that count, not the weights, which may be far smaller."""
    held = np.abs(weight.data if weight.stored is None else weight.stored.decoded())
    if weight.stored is not None and weight.stored.format.table is None:
        held = held + weight.stored.scale.max() * 2.0 ** (weight.stored.format.bits + 1)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    size = np.abs(x).astype(np.float64) @ held + 1
    step = np.finfo(x.dtype).eps
    assert (np.abs(found.astype(np.float64) - expected) <= 4 * size * (x.shape[-1] * 2.0**-24 + (step if step > 1e-6 else 0))).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", ["none", "packed", "float"])
@pytest.mark.parametrize(("k", "block"), [(64, 16), (96, 32), (256, 128), (40, 16), (37, 16), (20, 64), (1, 16)])
def test_codes_reach_the_kernels(bits, zero, k, block):
    n, x = 35, RNG.standard_normal((3, k)).astype(np.float32)
    b, scales, zero_points = weights(n, k, bits, block, zero=zero)
    bias = RNG.standard_normal(n).astype(np.float32)
    model = load("MatMulNBits", x, [b, scales, zero_points, None, bias], K=k, N=n, bits=bits, block_size=block)
    expected, found, weight, ops = both(model, x)
    assert ops == ["Linear"]
    assert weight.stored.format.name == f"uint{bits}"
    check(expected, found, x, weight)
    assert [node.op_type for node in model.graph.nodes] == ["MatMulNBits"], "files keep the node"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_not_copied(bits):
    x = np.ones((1, 64), np.float32)
    b, scales, _ = weights(8, 64, bits, 32)
    model = load("MatMulNBits", x, [b, scales], K=64, N=8, bits=bits, block_size=32)
    weight = both(model, x)[2]
    codes = weight.stored.codes
    assert np.shares_memory(codes.data if isinstance(codes, NarrowArray) else codes, model.graph.nodes[0].input(1).data)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_row_does_not_depend_on_its_neighbours(dtype):
    x = RNG.standard_normal((9, 128)).astype(dtype)
    b, scales, _ = weights(48, 128, 4, 32, dtype=dtype)
    bias = RNG.standard_normal(48).astype(dtype)
    model = load("MatMulNBits", x, [b, scales, None, None, bias], K=128, N=48, bits=4, block_size=32)
    expected, found, weight, _ = both(model, x)
    check(expected, found, x, weight)
    rows = np.concatenate([model.run({"x": row[None]})["y"] for row in x])
    assert np.array_equal(rows, model.run({"x": x})["y"])


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_in_another_order(bits):
    k, n, block = 96, 20, 32
    x = RNG.standard_normal((2, 3, k)).astype(np.float32)
    b, scales, zero_points = weights(n, k, bits, block, zero="packed")
    for g_idx, gathers in ((np.arange(k) // block, 0), (RNG.permutation(np.arange(k) // block), 1)):
        model = load("MatMulNBits", x, [b, scales, zero_points, g_idx.astype(np.int32)], K=k, N=n, bits=bits, block_size=block)
        expected, found, weight, ops = both(model, x)
        assert (ops.count("Gather"), weight.stored is not None) == (gathers, True)
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-4)
        with pytest.raises(QRuntimeError):
            model.run({"x": np.zeros((2, 3, k + 1), np.float32)})
    uneven = np.zeros(k, np.int32)
    model = load("MatMulNBits", x, [b, scales, zero_points, uneven], K=k, N=n, bits=bits, block_size=block)
    expected, found, weight, _ = both(model, x)
    assert weight.data is not None, "groups that are no blocks are decoded"
    check(expected, found, x, weight)
    model = load("MatMulNBits", x, [b, scales, zero_points, uneven + 3], K=k, N=n, bits=bits, block_size=block)
    with pytest.raises(QRuntimeError, match="g_idx must lie in"):
        model.run({"x": x})


@pytest.mark.parametrize("quant_type", [0, 1])
@pytest.mark.parametrize(
    ("k", "n", "block", "group"), [(64, 7, 32, 32), (64, 7, 64, 0), (64, 7, 128, 0), (48, 6, 64, 16), (96, 5, 64, 32), (40, 5, 64, None)]
)
def test_blocks_that_run_over_rows(quant_type, k, n, block, group):
    x = RNG.standard_normal((5, k)).astype(np.float32)
    b = RNG.integers(0, 256, -(-n * k // 2), np.uint8)
    absmax = RNG.uniform(0.1, 1, -(-n * k // block)).astype(np.float32)
    model = load("MatMulBnb4", x, [b, absmax], K=k, N=n, block_size=block, quant_type=quant_type)
    expected, found, weight, ops = both(model, x)
    assert ops == ["Linear"]
    assert (None if weight.stored is None else weight.stored.block) == group
    if weight.stored is not None:
        assert np.shares_memory(weight.stored.codes.data, model.graph.nodes[0].input(1).data)
    check(expected, found, x, weight)


def test_a_weight_that_is_not_transposed_is_decoded_once():
    b, absmax = RNG.integers(0, 256, 32 * 6 // 2, np.uint8), np.ones(6, np.float32)
    x = RNG.standard_normal((3, 6)).astype(np.float32)
    model = load("MatMulBnb4", x, [b, absmax], K=32, N=6, block_size=32, quant_type=1, transB=0)
    expected, found, weight, ops = both(model, x)
    assert ops == ["Linear"]
    assert weight.data.shape == (6, 32)
    check(expected, found, x, weight)


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("MatMulNBits", {"K": 63 << 40}), ("MatMulNBits", {"N": -1}), ("MatMulNBits", {"bits": 5}), ("MatMulNBits", {"block_size": 0}),
        ("MatMulNBits", {"weight_prepacked": 1}), ("MatMulBnb4", {"K": 0}), ("MatMulBnb4", {"N": 1 << 60}),
        ("MatMulBnb4", {"block_size": 17}), ("MatMulBnb4", {"quant_type": 7}),
    ],
)  # fmt: skip
def test_attributes_that_do_not_fit_are_reported(op, change):
    x = np.zeros((1, 64), np.float32)
    attributes = {"K": 64, "N": 4, "block_size": 32, **({"bits": 4} if op == "MatMulNBits" else {"quant_type": 1}), **change}
    model = load(op, x, [np.zeros((4, 2, 16), np.uint8), np.ones((4, 2), np.float32)], **attributes)
    with pytest.raises(QRuntimeError, match=op):
        model.run({"x": x})


def test_a_bias_that_does_not_fit_is_reported():
    x = np.zeros((1, 64), np.float32)
    b, scales, _ = weights(4, 64, 4, 32)
    model = load("MatMulNBits", x, [b, scales, None, None, np.zeros(1, np.float32)], K=64, N=4, bits=4, block_size=32)
    with pytest.raises(QRuntimeError, match="bias must be"):
        model.run({"x": x})


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", ["none", "packed", "float"])
@pytest.mark.parametrize(("k", "block"), [(64, 16), (256, 128), (40, 16), (20, 64)])
def test_activations_in_eight_bits_where_the_file_asks_for_them(bits, zero, k, block):
    """A number of a row is off by half a step of the row's range at most."""
    n, x = 35, RNG.standard_normal((3, k)).astype(np.float32)
    b, scales, zero_points = weights(n, k, bits, block, zero=zero)
    bias = RNG.standard_normal(n).astype(np.float32)
    sizes = {"K": k, "N": n, "bits": bits, "block_size": block}
    model = load("MatMulNBits", x, [b, scales, zero_points, None, bias], **sizes, accuracy_level=4)
    expected, found, weight, ops = both(model, x)
    if zero == "float":  # no whole numbers to sum exactly
        assert ops == ["Linear"]
        return check(expected, found, x, weight)
    assert ops == ["DynamicQuantizedLinear"]
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    step = ((high - low) / 255)[:, None]
    reach = np.abs(weight.stored.decoded()).sum(axis=0)
    assert (np.abs(found - expected) <= 0.51 * step * reach + 1e-4).all()
    assert np.array_equal(np.concatenate([model.run({"x": row[None]})["y"] for row in x]), model.run({"x": x})["y"])
    return None


def test_memory_is_that_of_the_codes():
    k, n = 1024, 512
    x = np.zeros((1, k), np.float32)
    b, scales, _ = weights(n, k, 4, 128)
    model = load("MatMulNBits", x, [b, scales], K=k, N=n, bits=4, block_size=128)
    graph = pipeline.lowered(clone(model.graph))
    plan = Planner(graph, num_threads=1).plan()
    plan.executable.run([x])
    (call,) = plan.nodes
    assert call.source == "native"
    assert call.kernel is not None and call.kernel.startswith("linear")
    assert sum(array.nbytes for array in call.node.input(1).arrays()) <= b.nbytes + 2 * scales.nbytes


def test_element_type_is_not_of_half_precision_weights_alone():
    """The numbers of a float16 model are widened and rounded once."""
    x = RNG.standard_normal((2, 32)).astype(np.float16)
    b, scales, _ = weights(3, 32, 8, 16, dtype=np.float16)
    model = load("MatMulNBits", x, [b, scales], K=32, N=3, bits=8, block_size=16)
    codes = b.reshape(3, 32).astype(np.float64) - 128
    exact = x.astype(np.float64) @ (codes * np.repeat(scales.astype(np.float64), 16, axis=1)).T
    np.testing.assert_allclose(model.run({"x": x})["y"], exact.astype(np.float16), rtol=2e-3)
