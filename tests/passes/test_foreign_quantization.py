"""What other tools quantized or fused meets the same kernels as what we quantize."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.ir import clone
from qruntime.passes import pipeline
from qruntime.runtime.plan import Planner
from tests.passes.lowering import as_loaded

RNG = np.random.default_rng(2)
X = RNG.standard_normal((2, 3, 8)).astype(np.float32)
W = RNG.integers(-128, 128, (8, 6)).astype(np.int8)
BIAS = RNG.standard_normal(6).astype(np.float32)
TYPES = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}


def load(nodes, constants, inputs=None, outputs=("y",)):
    """Nodes are (op, inputs, outputs) with attributes as a fourth and the domain as a fifth part."""
    made = []
    for op, reads, writes, *rest in nodes:
        attributes = rest[0] if rest else {}
        made.append(helper.make_node(op, reads, writes, domain=rest[1] if len(rest) > 1 else "", **attributes))
    inputs = inputs or {"x": X}
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info(n, TYPES[a.dtype.kind], [None] * a.ndim) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return qruntime.load(helper.make_model(graph, opset_imports=opsets).SerializeToString(), threads=1)


def compare(loaded, inputs=None, atol=2e-6):
    """Operators of the lowered graph, whose results must lie within `atol` of the graph as loaded."""
    inputs = inputs or {"x": X}
    plain = Planner(as_loaded(loaded.graph), num_threads=1).plan()
    graph = pipeline.lowered(clone(loaded.graph))
    graph.check()
    plan = Planner(graph, num_threads=1).plan()
    values = [inputs[v.name] for v in loaded.graph.inputs]
    expected, found = plain.executable.run(values), plan.executable.run(values)
    for e, f in zip(expected, found, strict=True):
        assert e.shape == f.shape
        assert e.dtype == f.dtype
        np.testing.assert_allclose(f, e, rtol=2e-5, atol=atol)
    assert not any(plan.executable.declined)
    return Counter(node.op_type for node in graph.nodes)


def one_code(x, real):
    """What one differing code of every row may change at most."""
    return float((max(x.max(), 0) - min(x.min(), 0)) / 255 * np.abs(real).max() * 2)


def chain(**changed):
    """x → codes → sums → float → scaled, as onnxruntime.quantization writes it."""
    names = {"zero": "x_zero", "w_zero": "w_zero", "scale": "x_scale", "to": 1, **changed}
    return [
        ("DynamicQuantizeLinear", ["x"], ["x_q", "x_scale", "x_zero"]),
        ("MatMulInteger", ["x_q", "w", names["zero"], names["w_zero"]], ["sums"]),
        ("Mul", [names["scale"], "w_scale"], ["scales"]),
        ("Cast", ["sums"], ["float_sums"], {"to": names["to"]}),
        ("Mul", ["float_sums", "scales"], ["product"]),
        ("Add", ["bias", "product"], ["y"]),
    ]


PER_TENSOR = {"w": W, "w_scale": np.float32(0.02), "w_zero": np.int8(5), "bias": BIAS}
PER_COLUMN = {**PER_TENSOR, "w_scale": np.abs(BIAS) * 0.02 + 0.01, "w_zero": np.arange(6).astype(np.int8)}
UNSIGNED = {
    **PER_TENSOR,
    "w": W.view(np.uint8),
    "w_scale": np.abs(BIAS) * 0.02 + 0.01,
    "w_zero": np.arange(120, 126).astype(np.uint8),
}


@pytest.mark.parametrize("constants", [PER_TENSOR, PER_COLUMN, UNSIGNED, {**UNSIGNED, "w_zero": np.uint8(130)}])
def test_integer_chain(constants):
    real = (constants["w"].astype(np.float32) - constants["w_zero"]) * constants["w_scale"]
    assert compare(load(chain(), constants), atol=one_code(X, real)) == {"DynamicQuantizedLinear": 1}


@pytest.mark.parametrize("constants", [PER_TENSOR, {**UNSIGNED}])
def test_integer_chain_without_zero_point(constants):
    real = constants["w"].astype(np.float32) * constants["w_scale"]
    loaded = load(chain(w_zero=""), {k: v for k, v in constants.items() if k != "w_zero"})
    assert compare(loaded, atol=one_code(X, real)) == {"DynamicQuantizedLinear": 1}


def test_one_quantized_tensor_for_two_layers():
    nodes = [
        *chain()[:-1],
        ("MatMulInteger", ["x_q", "v", "x_zero", "w_zero"], ["sums_2"]),
        ("Cast", ["sums_2"], ["float_sums_2"], {"to": 1}),
        ("Mul", ["float_sums_2", "scales"], ["product_2"]),
        ("Add", ["product", "product_2"], ["y"]),
    ]
    constants = {**PER_TENSOR, "v": W[::-1].copy()}
    found = compare(load(nodes, constants), atol=2 * one_code(X, (W - 5.0) * 0.02))
    assert found == {"DynamicQuantizedLinear": 2}


def test_the_scale_of_the_weight_may_follow_later():
    nodes = chain()
    nodes[2:5] = [
        ("Cast", ["sums"], ["float_sums"], {"to": 1}),
        ("Mul", ["float_sums", "x_scale"], ["half"]),
        ("Mul", ["half", "w_scale"], ["product"]),
    ]
    assert compare(load(nodes, PER_TENSOR), atol=one_code(X, (W - 5.0) * 0.02))["DynamicQuantizedLinear"] == 1


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        (chain(zero="other"), {**PER_TENSOR, "other": np.uint8(7)}),
        (chain(zero=""), PER_TENSOR),
        (chain(scale="other"), {**PER_TENSOR, "other": np.float32(0.5)}),
        (chain(), {**PER_TENSOR, "w_scale": np.full((1, 1, 6), 0.02, np.float32)}),
        (chain(), {**PER_TENSOR, "w": np.stack([W, W])}),
        ([*chain(), ("Cast", ["sums"], ["z"], {"to": 1})], PER_TENSOR),
    ],
)
def test_declines(nodes, constants):
    outputs = ["y", "z"] if nodes[-1][2] == ["z"] else ["y"]
    loaded = load(nodes, constants, outputs=outputs)
    graph = pipeline.lowered(clone(loaded.graph))
    assert "DynamicQuantizedLinear" not in {node.op_type for node in graph.nodes}
    plain = Planner(clone(loaded.graph), num_threads=1).plan().executable.run([X])
    for e, f in zip(plain, Planner(graph, num_threads=1).plan().executable.run([X]), strict=True):
        np.testing.assert_allclose(f, e, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"w_scale": np.full(5, 0.02, np.float32)},
        {"w_scale": np.zeros(0, np.float32)},
        {"w_zero": np.zeros(5, np.int8)},
        {"w_zero": np.zeros(7, np.int8)},
        {"w": W[:7]},
    ],
)
def test_lengths_that_do_not_fit_are_errors(changed):
    with pytest.raises(qruntime.QRuntimeError):
        load(chain(), {**PER_TENSOR, **changed}).run({"x": X})


def test_matmul_integer_to_float_and_dynamic_quantize_matmul():
    fused = [
        ("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        ("MatMulIntegerToFloat", ["q", "w", "s", "w_scale", "z", "w_zero", "bias"], ["p"], {}, "com.microsoft"),
        ("Gelu", ["p"], ["g"], {}, "com.microsoft"),
        ("DynamicQuantizeMatMul", ["g", "v", "v_scale"], ["y"], {}, "com.microsoft"),
    ]
    constants = {**PER_TENSOR, "v": W[:6, :5].copy(), "v_scale": np.float32(0.01)}
    # A differing code of the first layer moves the range of the second.
    assert compare(load(fused, constants), atol=0.3) == {"DynamicQuantizedLinear": 2}


def test_rows_are_quantized_with_one_range():
    loaded = load(chain(), PER_TENSOR)
    far = X.copy()
    far[0, 0, 0] = 1000
    assert not np.array_equal(loaded.run({"x": X})["y"][1], loaded.run({"x": far})["y"][1])


DYNAMIC_LSTM = [
    ("DynamicQuantizeLSTM", ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"], ["y"],
     {"hidden_size": 4}, "com.microsoft"),
]  # fmt: skip


def test_dynamic_quantize_lstm():
    constants = {
        "w": RNG.integers(-60, 60, (1, 8, 16)).astype(np.int8), "r": RNG.integers(-60, 60, (1, 4, 16)).astype(np.int8),
        "ws": np.full(1, 0.01, np.float32), "wz": np.zeros(1, np.int8),
        "rs": np.full((1, 16), 0.01, np.float32), "rz": np.zeros((1, 16), np.int8),
    }  # fmt: skip
    assert compare(load(DYNAMIC_LSTM, constants), atol=0.02) == {"DynamicQuantizedLSTM": 1}
    for name in ("ws", "wz", "rs", "rz"):
        short = {**constants, name: np.zeros((1, 15), constants[name].dtype)}
        with pytest.raises(qruntime.QRuntimeError, match="DynamicQuantizeLSTM"):
            load(DYNAMIC_LSTM, short).run({"x": X})


@pytest.mark.parametrize("scale", [np.float32(0.02), np.abs(BIAS) * 0.02])
def test_weight_only_models_run_on_float_kernels(scale):
    nodes = [("DequantizeLinear", ["w", "scale"], ["real"], {"axis": 1}), ("MatMul", ["x", "real"], ["y"])]
    assert compare(load(nodes, {"w": W, "scale": scale}), atol=2e-5) == {"Linear": 1}
    unsigned = {"w": W.view(np.uint8), "scale": scale, "zero": np.full(np.shape(scale), 128, np.uint8)}
    nodes[0] = ("DequantizeLinear", ["w", "scale", "zero"], ["real"], {"axis": 1})
    assert compare(load(nodes, unsigned), atol=2e-5) == {"Linear": 1}


def test_static_pairs_stay_and_their_weights_become_float():
    nodes = [
        ("QuantizeLinear", ["x", "s", "z"], ["q"]),
        ("DequantizeLinear", ["q", "s", "z"], ["rounded"]),
        ("DequantizeLinear", ["w", "w_scale"], ["real"], {"axis": 0}),
        ("Gemm", ["flat", "real"], ["y"]),
    ]
    nodes.insert(2, ("Reshape", ["rounded", "shape"], ["flat"]))
    constants = {
        "s": np.float32(0.03), "z": np.uint8(120), "w": W, "w_scale": np.abs(X[0, 0]) * 0.02,
        "shape": np.array([-1, 8]),
    }  # fmt: skip
    found = compare(load(nodes, constants), atol=2e-5)
    assert found == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Reshape": 1, "Linear": 1}


def test_our_own_quantized_weights_stay_codes():
    loaded = load([("MatMul", ["x", "w"], ["y"])], {"w": W.astype(np.float32)})
    graph = pipeline.lowered(clone(loaded.quantize_dynamic().graph))
    assert [node.op_type for node in graph.nodes] == ["DynamicQuantizedLinear"]


def test_tables_are_looked_up_as_codes():
    ids = np.array([[1, 7], [0, -1]])
    nodes = [("DequantizeLinear", ["w", "scale", "zero"], ["real"]), ("Gather", ["real", "ids"], ["y"])]
    constants = {"w": W, "scale": np.float32(0.1), "zero": np.int8(3)}
    loaded = load(nodes, constants, {"ids": ids})
    assert compare(loaded, {"ids": ids}) == {"Gather": 1, "DequantizeLinear": 1}
    graph = pipeline.lowered(clone(loaded.graph))
    assert [node.op_type for node in graph.nodes] == ["Gather", "DequantizeLinear"]
    columns = load(nodes, {**constants, "scale": np.abs(BIAS), "zero": np.zeros(6, np.int8)}, {"ids": ids})
    assert compare(columns, {"ids": ids}) == {"Gather": 1}


F = RNG.standard_normal((8, 6)).astype(np.float32)
V = RNG.standard_normal(8).astype(np.float32)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("MatMul", ["x", "f"], ["m"]), ("BiasGelu", ["m", "b"], ["y"], {}, "com.microsoft")], {"Linear": 1}),
        ([("FusedMatMul", ["x", "ft"], ["y"], {"alpha": 0.5, "transB": 1}, "com.microsoft")], {"Linear": 1}),
        ([("FusedMatMul", ["x", "x"], ["y"], {"alpha": 0.5, "transB": 1}, "com.microsoft")],
         {"Transpose": 1, "MatMul": 1, "Mul": 1}),
        (
            [("SkipLayerNormalization", ["x", "x", "v", "v"], ["y"], {}, "com.microsoft")],
            {"LayerNormalization": 1},
        ),
        (
            [("SkipSimplifiedLayerNormalization", ["x", "x", "v"], ["y", "", "", "t"], {}, "com.microsoft")],
            {"RMSNormalization": 1},
        ),
        ([("SimplifiedLayerNormalization", ["x", "v"], ["y"])], {"RMSNormalization": 1}),
        ([("Reshape", ["x", "flat"], ["r"]), ("FusedGemm", ["r", "f", "b"], ["y"], {"activation": "Relu"}, "com.microsoft")],
         {"Reshape": 1, "Linear": 1}),
        ([("Attention", ["x", "qkv"], ["y"], {"num_heads": 2}, "com.microsoft")],
         {"Linear": 1, "Reshape": 2, "Attention": 1}),
        ([("MultiHeadAttention", ["x", "x", "x"], ["y"], {"num_heads": 2}, "com.microsoft")], {"Attention": 1}),
    ],
)  # fmt: skip
def test_fused_operators_are_taken_apart(nodes, expected):
    constants = {
        "f": F, "ft": F.T.copy(), "b": BIAS, "v": V, "flat": np.array([-1, 8]),
        "qkv": RNG.standard_normal((8, 24)).astype(np.float32),
    }  # fmt: skip
    found = compare(load(nodes, constants), atol=1e-5)
    assert {op: n for op, n in found.items() if op != "Add"} == expected


def test_what_reads_more_outputs_keeps_its_definition():
    node = ("SkipLayerNormalization", ["x", "x", "v", "v"], ["y", "mean"], {}, "com.microsoft")
    loaded = load([node], {"v": V}, outputs=["y", "mean"])
    assert compare(loaded) == {"SkipLayerNormalization": 1}


QKV = {"qkv": RNG.standard_normal((8, 24)).astype(np.float32), "b": RNG.standard_normal(24).astype(np.float32)}
MASK = np.array([[1, 1, 0], [1, 1, 1]])


def test_attention_with_a_raw_mask():
    inputs = {"x": X, "mask": MASK}
    nodes = [
        ("Cast", ["mask"], ["m"], {"to": 6}),
        ("Attention", ["x", "qkv", "b", "m"], ["y"], {"num_heads": 2}, "com.microsoft"),
    ]
    found = compare(load(nodes, QKV, inputs), inputs, atol=1e-5)
    assert found["Linear"] == found["Attention"] == 1
    assert {"Greater", "Where"} < set(found)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_behind_its_embeddings(masked):
    """The mask index counts what the mask shows; without a mask it says nothing."""
    ids = np.array([[0, 3, 1], [2, 2, 2]])
    inputs = {"ids": ids, "mask": MASK} if masked else {"ids": ids}
    embed = ["i", "", "words", "places", "", "v", "v", *(["m"] if masked else [])]
    nodes = [
        ("Cast", ["ids"], ["i"], {"to": 6}),
        ("EmbedLayerNormalization", embed, ["x", "index"], {}, "com.microsoft"),
        ("Attention", ["x", "qkv", "b", "index"], ["y"], {"num_heads": 2}, "com.microsoft"),
    ]
    if masked:
        nodes.insert(0, ("Cast", ["mask"], ["m"], {"to": 6}))
    constants = {**QKV, "words": W[:4].astype(np.float32), "places": F[:3] @ F.T, "v": V}
    constants["words"] = np.ascontiguousarray(RNG.standard_normal((4, 8)), np.float32)
    loaded = load(nodes, constants, inputs)
    plain = Planner(clone(loaded.graph), num_threads=1).plan().executable.run(list(inputs.values()))
    graph = pipeline.lowered(clone(loaded.graph))
    assert {"Linear", "Attention"} <= {n.op_type for n in graph.nodes if n.domain == "qruntime"}
    found = Planner(graph, num_threads=1).plan().executable.run(list(inputs.values()))
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-3, atol=2e-3)  # −10000 costs the definition three digits


@pytest.mark.parametrize("attributes", [{"unidirectional": 1}, {"qkv_hidden_sizes": [4, 4, 16]}])
def test_attention_that_the_kernel_lacks_is_a_linear_layer_and_a_definition(attributes):
    node = ("Attention", ["x", "qkv", "b"], ["y"], {"num_heads": 2, **attributes}, "com.microsoft")
    assert compare(load([node], QKV)) == {"Linear": 1, "Split": 1, "MultiHeadAttention": 1}


def test_quantized_attention():
    nodes = [
        ("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        ("QAttention", ["q", "w", "b", "s", "ws", "", "z", "wz"], ["y"], {"num_heads": 2}, "com.microsoft"),
    ]
    w = RNG.integers(-128, 128, (8, 24)).astype(np.int8)
    constants = {"w": w, "b": QKV["b"], "ws": np.float32(0.005), "wz": np.int8(2)}
    found = compare(load(nodes, constants), atol=one_code(X, (w - 2.0) * 0.005))
    assert found == {"DynamicQuantizedLinear": 1, "Reshape": 2, "Attention": 1}
