"""What a model holds in memory, what a run needs, and that neither grows without end."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime import _kernels
from qruntime.ir.held_codes import HeldCodes
from qruntime.ir.narrow import NarrowArray
from qruntime.ops import registry
from tests.small_models import (
    FLOAT,
    assert_same_bits,
    encoder_bytes,
    linear_bytes,
    model_bytes,
    one_node,
    random,
    recurrent_bytes,
)

N = 1000


def diamond(shape: list[int | str], join: str = "Add", **attributes: object) -> qruntime.Model:
    """y = join(exp(x), sqrt(x))"""
    nodes = [
        helper.make_node("Exp", ["x"], ["a"]),
        helper.make_node("Sqrt", ["x"], ["b"]),
        helper.make_node(join, ["a", "b"], ["y"], **attributes),
    ]
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, shape)], [("y", FLOAT, None)]))


def test_activations_are_what_is_alive_at_the_peak():
    model = diamond([N])
    assert model.memory().activations == 2 * 4 * N  # the sum takes the place of a summand
    assert f"{2 * 4 * N:,} bytes at peak with x[{N}]" in model.summary()
    assert diamond([N], "Concat", axis=0).memory().activations == 4 * 4 * N


def test_results_of_numpy_definitions_count():
    nodes = [helper.make_node("Det", ["x"], ["d"]), helper.make_node("Exp", ["d"], ["y"])]
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, [N, 2, 2])], [("y", FLOAT, None)]))
    assert "not native: Det" in model.summary()
    assert model.memory().activations == 2 * 4 * N


def test_what_a_definition_has_no_memory_for_names_the_node(monkeypatch):
    def starved(x: np.ndarray) -> np.ndarray:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(registry.find("", "Det", 11), "definition", starved)
    model = one_node("Det", [("x", FLOAT, [2, 2])], [("y", FLOAT, None)])
    with pytest.raises(MemoryError, match=r"the_det.*Unable to allocate.*float32"):
        model.run({"x": random(2, 2)})


def test_the_largest_of_two_columns_need_room_for_two():
    model = one_node("TopK", [("x", FLOAT, [N, 2])], [("v", FLOAT, None), ("i", TensorProto.INT64, None)], {"k": np.array([1])}, axis=0)
    assert model.memory().activations < 4 * 4 * 2 * N


def test_open_shapes_need_a_run():
    model = diamond(["n"])
    assert model.memory().activations is None
    assert "summary(feed), with x: float32[n]" in model.summary()
    model(random(3, seed=1) ** 2)
    assert model.memory().activations == 2 * 4 * 3
    assert "8,000 bytes at peak with x[1000]" in model.summary({"x": np.ones(N, np.float32)})
    assert model.memory()[4:] == model.memory({"x": np.ones(N, np.float32)})[4:]


def test_zeros_that_a_model_refuses_leave_the_peak_unknown():
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    inputs = [("x", FLOAT, [4]), ("shape", TensorProto.INT64, [2])]
    model = qruntime.load(model_bytes(nodes, inputs, [("y", FLOAT, None)]))
    assert model.memory().activations is None


def test_no_model_with_a_loop_is_run_unasked():
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["go_on"]), helper.make_node("Identity", ["i"], ["step"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("going", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), helper.make_tensor_value_info("step", TensorProto.INT64, [])],
    )
    loop = helper.make_node("Loop", ["", "x"], ["steps"], body=body)
    nodes = [loop, helper.make_node("Identity", ["x"], ["y"])]
    model = qruntime.load(model_bytes(nodes, [("x", TensorProto.BOOL, [])], [("y", TensorProto.BOOL, [])]))
    assert model.memory().activations in (None, 0)


@pytest.mark.parametrize("quantize", [False, True])
def test_depth_costs_no_activations(quantize: bool):
    def peak(layers: int) -> int:
        model = qruntime.load(encoder_bytes(64, layers=layers))
        used = (model.quantize_dynamic() if quantize else model).memory({"x": random(2, 40, 64)}).activations
        assert used is not None
        return used

    assert peak(9) == peak(3)


def test_a_steady_model_keeps_little_more_than_it_needs():
    model = qruntime.load(encoder_bytes(64, layers=6)).quantize_dynamic()
    for _ in range(3):
        use = model.memory({"x": random(8, 64, 64)})
    assert use.activations is not None
    assert use.buffers <= 2 * use.activations


@pytest.mark.parametrize("order", ["rising", "falling", "random"])
def test_many_input_shapes_do_not_gather_buffers(order: str):
    model = qruntime.load(encoder_bytes(64), threads=1).quantize_dynamic()
    lengths = np.arange(1, 400, 2)
    if order == "random":
        np.random.default_rng(0).shuffle(lengths)
    largest = model.memory({"x": random(1, 399, 64)}).activations
    assert largest is not None
    for length in lengths if order != "falling" else lengths[::-1]:
        use = model.memory({"x": random(1, int(length), 64)})
        assert use.buffers <= 2 * largest
    for _ in range(100):
        use = model.memory({"x": random(1, 3, 64)})
    assert use.buffers < largest / 4


def test_packed_weights_replace_mapped_ones(tmp_path: Path):
    path = tmp_path / "model.onnx"
    qruntime.load(linear_bytes(512, 1024)).save(path)
    model, x = qruntime.load(path), {"x": random(1, 512)}
    use = model.memory(x)
    assert 4 * 512 * 1024 <= use.packed < 4 * 512 * 1024 * 1.1
    assert use.mapped == 4 * 512 * 1024
    assert use.constants + use.originals < 8192
    quantized = model.quantize_dynamic()
    use = quantized.memory(x)
    assert 512 * 1024 <= use.packed < 512 * 1024 * 1.1
    assert use.originals < 8192  # save() unpacks what the kernel has
    quantized.save(path)
    use = qruntime.load(path).memory(x)
    assert use.mapped == 512 * 1024
    assert use.constants + use.originals < 8192


def _gemm_bytes() -> bytes:
    """y = relu(x · Wᵀ + b) · Wᵀ with a scale, W of 48 × 48."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"], transB=1),
        helper.make_node("Relu", ["g"], ["r"]),
        helper.make_node("Gemm", ["r", "w"], ["y"], transB=1, alpha=0.5),
    ]
    weights = {"w": random(48, 48), "b": random(48, seed=1)}
    return model_bytes(nodes, [("x", FLOAT, [3, 48])], [("y", FLOAT, None)], weights)


def _conv_bytes() -> bytes:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2)
    return model_bytes([node], [("x", FLOAT, [1, 6, 9, 9])], [("y", FLOAT, None)], {"w": random(8, 3, 3, 2)})


LAYERS: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "MatMul": (encoder_bytes(32, layers=1), (2, 5, 32)),
    "Gemm": (_gemm_bytes(), (3, 48)),
    "Conv": (_conv_bytes(), (1, 6, 9, 9)),
    "LSTM": (recurrent_bytes("LSTM", 7, 5, directions=2), (3, 2, 7)),
    "GRU": (recurrent_bytes("GRU", 7, 5, directions=2), (3, 2, 7)),
    "RNN": (recurrent_bytes("RNN", 7, 5), (3, 2, 7)),
}
SCHEMES = ["int8", "per channel", "W8A16", "W6A16", "W4A16-g16", "W3A16", "W2A16-g16", "Wnf4A16-g16"]
CASES = [
    *((name, scheme) for name in LAYERS for scheme in SCHEMES if name != "Conv"),
    *((name, scheme) for name in ("MatMul", "Gemm") for scheme in ("W4A8-g16", "W3A8")),
    ("Conv", "int8"),
    ("Conv", "per channel"),
]


def _quantized(name: str, scheme: str) -> tuple[qruntime.Model, dict[str, np.ndarray]]:
    data, shape = LAYERS[name]
    model, feed = qruntime.load(data, threads=1), {"x": random(*shape, seed=3)}
    if scheme in ("int8", "per channel"):
        return model.quantize_dynamic({"Linear", "Conv", "LSTM", "GRU", "RNN"}, per_channel=scheme == "per channel"), feed
    return model.quantize(scheme=scheme), feed


def _held(model: qruntime.Model) -> list[HeldCodes]:
    return [value.stored.held for value in model.graph.stored_constants() if value.stored is not None]


@pytest.fixture(params=["portable", "best"])
def rung(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _kernels.isa()
    _kernels.set_isa("portable" if request.param == "portable" else _kernels.available_isas()[-1])
    yield request.param
    _kernels.set_isa(before)


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_weights_quantized_here_are_held_once(name: str, scheme: str, rung: str, tmp_path: Path):
    """Packed, and unpacked to the same bits for whoever asks."""
    model, feed = _quantized(name, scheme)
    held = _held(model)
    assert held
    before = [codes.array() for codes in held]
    model.save(tmp_path / "before.onnx")
    y = model.run(feed)
    assert all(codes.memory is None for codes in held)
    for codes, array in zip(held, before, strict=True):
        again = codes.array()
        assert type(again) is type(array)
        if isinstance(array, NarrowArray):
            assert again._replace(data=None) == array._replace(data=None)
            assert_same_bits(again.data, array.data)
        else:
            assert_same_bits(again, array)
    model.save(tmp_path / "after.onnx")
    assert (tmp_path / "after.onnx").read_bytes() == (tmp_path / "before.onnx").read_bytes()
    _kernels.set_isa(_kernels.available_isas()[0])
    for other in (pickle.loads(pickle.dumps(model)), qruntime.load(tmp_path / "after.onnx")):
        for key, value in other.run(feed).items():
            np.testing.assert_allclose(value, y[key], rtol=1e-4, atol=1e-4)
    use = model.memory(feed)
    assert use.originals < use.packed


@pytest.mark.parametrize("name", LAYERS)
def test_models_that_share_weights_find_them_packed(name: str):
    """Quantized again, with other outputs, and after the model that packed them is gone."""
    model, feed = _quantized(name, "int8")
    fresh, _ = _quantized(name, "int8")
    y = model.run(feed)
    again = model.quantize_dynamic({"Linear", "Conv", "LSTM", "GRU", "RNN"}, per_channel=True)
    expected = fresh.quantize_dynamic({"Linear", "Conv", "LSTM", "GRU", "RNN"}, per_channel=True)
    for key, value in expected.run(feed).items():
        assert_same_bits(again.run(feed)[key], value)
    unchanged = model.quantize_dynamic()
    first = model.outputs[0].name
    assert_same_bits(model.run(feed, [first])[first], y[first])
    del model
    for key, value in unchanged.run(feed).items():
        assert_same_bits(value, y[key])


def test_codes_stay_for_layers_that_are_not_packed_yet(tmp_path: Path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "v"], ["b"])]
    weights = {"w": random(16, 16), "v": random(16, 8)}
    data = model_bytes(nodes, [("x", FLOAT, [2, 16])], [("a", FLOAT, None), ("b", FLOAT, None)], weights)
    model = qruntime.load(data).quantize_dynamic()
    model.save(tmp_path / "before.onnx")
    model.run({"x": random(2, 16)}, ["a"])
    assert [codes.memory is None for codes in _held(model)] == [True, False]
    model.save(tmp_path / "after.onnx")
    assert (tmp_path / "after.onnx").read_bytes() == (tmp_path / "before.onnx").read_bytes()
    model.run({"x": random(2, 16)})
    assert all(codes.memory is None for codes in _held(model))


def test_models_run_and_are_saved_at_once(tmp_path: Path):
    reference, feed = _quantized("MatMul", "int8")
    reference.save(tmp_path / "reference.onnx")
    expected, y = (tmp_path / "reference.onnx").read_bytes(), reference.run(feed)

    def save(model: qruntime.Model, i: int) -> None:
        model.save(tmp_path / f"{i}.onnx")
        assert (tmp_path / f"{i}.onnx").read_bytes() == expected

    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            model, _ = _quantized("MatMul", "int8")
            jobs = [pool.submit(save, model, i) for i in range(2)] + [pool.submit(model.run, feed) for _ in range(2)]
            for job in jobs:
                for key, value in (job.result() or {}).items():
                    assert_same_bits(value, y[key])


def test_float_weights_go_when_they_are_quantized():
    tracemalloc.start()
    try:
        model = qruntime.load(bytes(linear_bytes(1024, 1024)), threads=1)
        model = model.quantize_dynamic()
        x = random(1, 1024)
        model(x)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 1024 * 1024  # the packed weights are no memory of Python's; floats would be 4 MB, codes 1 MB


@pytest.mark.parametrize("indices", [[0, -1, 7, 7], [5], [[2999, 1], [2, 3]], 4])
def test_tables_are_read_where_they_lie_in_the_file(tmp_path: Path, indices: object):
    """Protobuf aligns nothing; a copy of an embedding table would be the largest tensor in memory."""
    table = random(3000, 4096)
    nodes = [helper.make_node("Gather", ["t", "i"], ["rows"]), helper.make_node("Exp", ["rows"], ["y"])]
    path = tmp_path / "model.onnx"
    path.write_bytes(model_bytes(nodes, [("i", TensorProto.INT64, None)], [("y", FLOAT, None)], {"t": table}))
    model = qruntime.load(path)
    assert not model.graph.constants()[0].data.flags.aligned
    indices = np.asarray(indices)
    assert_same_bits(model(indices), one_node("Exp", [("x", FLOAT, None)], [("y", FLOAT, None)])(table[indices]))
    assert model.memory()[1:4] == (0, 0, table.nbytes)


def test_unaligned_constants_of_other_kernels_are_copied(tmp_path: Path):
    constant = random(300, 128)
    path = tmp_path / "model.onnx"
    nodes = [helper.make_node("Add", ["x", "tt"], ["y"])]
    path.write_bytes(model_bytes(nodes, [("x", FLOAT, [128])], [("y", FLOAT, None)], {"tt": constant}))
    model = qruntime.load(path)
    assert not model.graph.constants()[0].data.flags.aligned
    x = random(128, seed=1)
    assert_same_bits(model(x), x + constant)
    assert model.memory()[1:4] == (constant.nbytes, 0, constant.nbytes)


LARGE = 1 << 19  # float32: 2 MB


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_a_large_output_is_written_where_one_was_that_nobody_reads_any_more():
    model = one_node("Neg", [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])])
    x = random(LARGE)
    first = model(x)
    where, expected = address(first), first.copy()
    second = model(x + 1)
    assert address(second) != where
    np.testing.assert_array_equal(first, expected)
    view = first[5:10]
    del first
    third = model(x + 2)
    assert address(third) != where  # the view still reads it
    np.testing.assert_array_equal(view, expected[5:10])
    del view
    assert address(model(x[: LARGE - 1000])) == where


def test_a_cache_that_grows_stays_where_it_is():
    model = one_node("Concat", [("past", FLOAT, ["n"]), ("new", FLOAT, [64])], [("y", FLOAT, ["m"])], axis=0)
    past, places = random(LARGE), set()
    for step in range(20):
        past = model(past, np.full(64, step, np.float32))
        places.add(address(past))
    assert len(places) == 2  # the one that is read and the one that is written
    np.testing.assert_array_equal(past[LARGE::64], np.arange(20))


def test_what_only_a_shape_is_read_of_last_comes_back():
    """Also in later runs, which skip what depends on shapes alone."""
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("ReduceMax", ["a"], ["m"]),
        helper.make_node("Shape", ["a"], ["shape"]),
    ]
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n"])], [("m", FLOAT, None), ("shape", TensorProto.INT64, None)]))
    x = random(LARGE)
    for _ in range(4):
        model.run({"x": x})
        assert x.nbytes <= model.memory().buffers <= 3 * x.nbytes


def test_outputs_dropped_together_are_freed():
    model = one_node("Neg", [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])])
    x = random(LARGE)
    outputs = [model(x) for _ in range(20)]
    outputs.clear()
    assert 0 < model.memory().buffers <= 2 * x.nbytes


def test_outputs_outlive_their_model():
    model = one_node("Neg", [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])])
    x = random(LARGE)
    kept, dropped = model(x), model(x)
    del dropped, model
    np.testing.assert_array_equal(kept, -x)


def _tied(layers: int, op: str = "MatMul", **attributes: object) -> bytes:
    """y = tanh(… tanh(x · W) … · W)"""
    nodes = []
    for i in range(layers):
        nodes.append(helper.make_node(op, [f"x{i}" if i else "x", "w"], [f"g{i}"], **attributes))
        nodes.append(helper.make_node("Tanh", [f"g{i}"], [f"x{i + 1}" if i + 1 < layers else "y"]))
    weight = random(8, 8, 3, 3) if op == "Conv" else random(64, 64)
    shape = [1, 8, 5, 5] if op == "Conv" else [2, 64]
    return model_bytes(nodes, [("x", FLOAT, shape)], [("y", FLOAT, None)], {"w": weight})


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize(
    ("op", "attributes"),
    [("MatMul", {}), ("Gemm", {"transB": 1}), ("Gemm", {"alpha": 0.5}), ("Conv", {"pads": [1, 1, 1, 1]})],
)
def test_a_weight_that_many_nodes_share_is_packed_once(op: str, attributes: dict[str, object], quantize: bool):
    one, many = (qruntime.load(_tied(layers, op, **attributes)) for layers in (1, 12))
    if quantize:
        one, many = (model.quantize_dynamic({"Linear", "Conv"}) for model in (one, many))
    assert many.memory().packed == one.memory().packed > 0
    x = random(*many.inputs[0].shape, seed=1)
    expected = x
    for _ in range(12):
        expected = one(expected)
    assert_same_bits(many(x), expected)


def test_weights_that_differ_in_their_bias_are_packed_apart():
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        helper.make_node("Gemm", ["h", "w", "c"], ["y"]),
    ]
    b, c, w, x = random(16), random(16, seed=1), random(16, 16, seed=2), random(3, 16, seed=3)
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, [3, 16])], [("y", FLOAT, None)], {"w": w, "b": b, "c": c}))
    np.testing.assert_allclose(model(x), (x @ w + b) @ w + c, rtol=1e-5, atol=1e-4)
