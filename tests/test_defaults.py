"""Weights that a file lists among its inputs too: constants, until somebody feeds them."""

from __future__ import annotations

import gc
import itertools
import pickle
import threading
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime import InputError, InvalidModel
from qruntime.passes import pipeline
from tests.small_models import FLOAT, assert_same_bits, random

W, V, X = random(32, 24), random(24, 32), random(5, 32)
BIAS = np.zeros(24, np.float32)


def listed_bytes(*, ir_version: int = 8, listed: tuple[str, ...] = ("w", "b", "v", "scale"), **declared: list) -> bytes:
    """y = scale · (Relu(x · w + b) · vᵀᵀ), the initializers of `listed` among the inputs, between them x."""
    constants = {"w": W, "b": BIAS, "v": np.ascontiguousarray(V.T), "scale": np.float32(2)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="up"),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Transpose", ["v"], ["t"]),
        helper.make_node("MatMul", ["r", "t"], ["d"], name="down"),
        helper.make_node("Mul", ["d", "scale"], ["y"]),
    ]
    shapes = {name: declared.get(name, list(np.shape(constants[name]))) for name in listed}
    inputs = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()]
    inputs.insert(1, helper.make_tensor_value_info("x", FLOAT, ["rows", 32]))
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("y", FLOAT, ["rows", 32])],
        [numpy_helper.from_array(np.asarray(data), name) for name, data in constants.items()],
    )  # fmt: skip
    opset = 8 if ir_version < 4 else 17
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model)
    return model.SerializeToString()


PLAIN = listed_bytes(listed=("scale",))


def names(infos: tuple[qruntime.TensorInfo, ...]) -> list[str]:
    return [info.name for info in infos]


def test_they_are_not_asked_for_and_run_as_constants() -> None:
    model, plain = qruntime.load(listed_bytes()), qruntime.load(PLAIN)
    assert names(model.inputs) == ["x"]
    assert names(model.overridable) == ["w", "b", "v", "scale"]
    assert str(model.overridable[0]) == "w: float32[32, 24]"
    for _ in range(2):
        assert_same_bits(model.run({"x": X})["y"], plain.run({"x": X})["y"])
    assert [call.source for call in model._plan(("y",)).nodes] == [call.source for call in plain._plan(("y",)).nodes]
    assert str(model) == str(plain)
    assert_same_bits(model(X), plain(X))
    with pytest.raises(InputError, match="the model has 1 input"):
        model(X, W)


def test_old_files_list_all_and_may_not_be_fed() -> None:
    model = qruntime.load(listed_bytes(ir_version=3))
    assert (names(model.inputs), model.overridable) == (["x"], ())
    assert_same_bits(model(X), qruntime.load(listed_bytes())(X))
    with pytest.raises(InputError, match="unknown input 'w'"):
        model.run({"x": X, "w": W})


@pytest.mark.parametrize(
    "fed",
    [
        {"w": random(32, 24, seed=1)},
        {"v": random(32, 24, seed=2)},
        {"w": W},
        {"scale": 3},
        {"b": np.ones(24, np.float32), "scale": np.float32(0.5)},
    ],
)
def test_what_is_fed_counts(fed: dict) -> None:
    values = {"w": W, "b": BIAS, "v": V.T, "scale": 2.0} | fed
    expected = np.maximum(X @ values["w"] + values["b"], 0) @ values["v"].T * np.float32(values["scale"])
    model = qruntime.load(listed_bytes())
    before = model.run({"x": X})["y"]
    for _ in range(2):
        np.testing.assert_allclose(model.run({"x": X, **fed})["y"], expected, rtol=1e-4, atol=1e-4)
        assert_same_bits(model.run({"x": X})["y"], before)
    np.testing.assert_array_equal(model.run({"x": X, **fed}, ["y"])["y"], model.run({**fed, "x": X})["y"])
    assert str(model.profile({"x": X, **fed}, repeat=1))
    assert str(model.memory({"x": X, **fed}))


def test_what_is_fed_must_fit_what_is_declared() -> None:
    model = qruntime.load(listed_bytes(w=[32, "width"], b=["width"]))
    wide = model.run({"x": X, "w": random(32, 24)})["y"]
    assert wide.shape == (5, 32)
    for wrong in ({"w": random(31, 24)}, {"w": W.astype(np.float64)}, {"w": None}):
        with pytest.raises(InputError, match="input 'w'"):
            model.run({"x": X, **wrong})
    with pytest.raises(InputError, match="missing input 'x'"):
        model.run({"w": W})
    with pytest.raises(InputError, match=r"unknown input 'z'.* 4 others with a default"):
        model.run({"x": X, "z": W})


@pytest.mark.parametrize("inplace", [False, True])
def test_quantizing_spends_what_it_reads(inplace: bool, tmp_path: Path) -> None:
    model = qruntime.load(listed_bytes())
    quantized = model.quantize_dynamic(inplace=inplace)
    assert [layer.name for layer in quantized.report.layers] == ["up", "down"]
    assert not quantized.report.skipped
    assert_same_bits(quantized(X), qruntime.load(PLAIN).quantize_dynamic()(X))
    assert names(quantized.overridable) == ["b", "scale"]
    for name in ("w", "v"):
        with pytest.raises(InputError, match=f"'{name}' cannot be fed any more: this model was quantized"):
            quantized.run({"x": X, name: W})
    assert_same_bits(quantized.run({"x": X, "scale": 4.0})["y"], quantized(X) * 2)
    quantized.save(tmp_path / "q.onnx")
    again = qruntime.load(tmp_path / "q.onnx")
    assert names(again.overridable) == ["b", "scale"]
    assert_same_bits(again(X), quantized(X))
    assert_same_bits(again.run({"x": X, "scale": 4.0})["y"], quantized(X) * 2)
    onnx.checker.check_model(tmp_path / "q.onnx", full_check=True)


def test_a_layer_left_out_can_still_be_fed() -> None:
    quantized = qruntime.load(listed_bytes()).quantize_dynamic(exclude=["up"])
    assert names(quantized.overridable) == ["w", "b", "scale"]
    zero = quantized.run({"x": X, "w": np.zeros_like(W)})["y"]
    assert not zero.any()


def test_saving_keeps_them_as_they_were_declared(tmp_path: Path) -> None:
    model = qruntime.load(listed_bytes(w=[32, "width"]))
    model(X)
    model.save(tmp_path / "m.onnx")
    saved = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(saved, full_check=True)
    assert {i.name: str(i.type) for i in saved.graph.input} == {
        i.name: str(i.type) for i in onnx.load_from_string(listed_bytes(w=[32, "width"])).graph.input
    }
    for again in (qruntime.load(tmp_path / "m.onnx"), pickle.loads(pickle.dumps(qruntime.load(listed_bytes())))):
        assert_same_bits(again.run({"x": X, "v": np.zeros((32, 24), np.float32)})["y"], np.zeros((5, 32), np.float32))
        assert_same_bits(again(X), model(X))


@pytest.mark.parametrize(
    ("declared", "message"),
    [({"w": [32, 23]}, r"float32\[32, 24\], the input of that name float32\[32, 23\]"), ({"w": [768]}, r"float32\[768\]")],
)
def test_a_default_that_does_not_fit_its_input_is_refused(declared: dict, message: str) -> None:
    with pytest.raises(InvalidModel, match=rf"graph 'g': initializer 'w' is .*{message}"):
        qruntime.load(listed_bytes(**declared))


def test_a_default_that_is_an_output_too() -> None:
    x, w, y = (helper.make_tensor_value_info(name, FLOAT, [3]) for name in "xwy")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", [x, w], [y, w], [numpy_helper.from_array(np.ones(3, np.float32), "w")]
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    model = qruntime.load(data)
    again = pickle.loads(pickle.dumps(model))
    for one in (model, again):
        assert {k: v.tolist() for k, v in one.run({"x": np.zeros(3, np.float32)}).items()} == {"y": [1] * 3, "w": [1] * 3}
        assert {k: v.tolist() for k, v in one.run({"x": [0, 0, 0], "w": [2, 2, 2]}).items()} == {"y": [2] * 3, "w": [2] * 3}


def test_initializers_among_the_inputs_of_a_loop_body_are_constants(tmp_path: Path) -> None:
    """What the node feeds comes first; nobody can name the rest."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "step"], ["next"]), helper.make_node("Identity", ["go"], ["go_on"])], "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("state", FLOAT, [2]), info("step", FLOAT, [2])],
        [info("go_on", TensorProto.BOOL, []), info("next", FLOAT, [2])],
        [numpy_helper.from_array(np.float32([1, 2]), "step")],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)], "g", [info("x", FLOAT, [2])], [info("y", FLOAT, [2])],
        [numpy_helper.from_array(np.int64(3), "n")],
    )  # fmt: skip
    model = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    assert model([0.0, 0.0]).tolist() == [3, 6]
    model.save(tmp_path / "m.onnx")
    assert qruntime.load(tmp_path / "m.onnx")([0.0, 0.0]).tolist() == [3, 6]


def test_few_sets_of_fed_weights_stay_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last four in use; each holds packed weights of its own."""
    lowerings: list[object] = []
    lowered = pipeline.lowered
    monkeypatch.setattr(pipeline, "lowered", lambda graph, **how: lowerings.append(graph) or lowered(graph, **how))
    model, values = qruntime.load(listed_bytes()), {"w": W, "b": BIAS, "v": np.ascontiguousarray(V.T), "scale": np.float32(2)}
    expected = model(X)
    held = []
    for count in range(1, 5):
        for fed in itertools.combinations(values, count):
            assert_same_bits(model.run({"x": X, **{name: values[name] for name in fed}})["y"], expected)
            held.append(weakref.ref(model._planners.get(fed)))
    assert len(lowerings) == 16
    gc.collect()
    assert sum(one() is not None for one in held) == 4
    for fed in (("w", "b", "v", "scale"), ("b", "v", "scale"), ("w", "v", "scale"), ("w", "b", "scale")):
        model._plan(("y",), fed)
    assert len(lowerings) == 16
    model._plan(("y",), ("w",))  # in the place of the one that was not used for longest
    model._plan(("y",), ("b", "v", "scale"))
    assert len(lowerings) == 17
    assert_same_bits(model(X), expected)
    assert len(lowerings) == 18


def test_few_choices_of_outputs_stay_planned() -> None:
    model = qruntime.load(listed_bytes())
    for count in range(1, 100):
        model._plan(("y",) * count)
    planner = model._planners.get(())
    assert planner is not None
    assert len(planner.recent) == 32
    with pytest.raises(InputError, match="unknown output 'z'"):
        model.run({"x": X}, ["y", "z"])
    assert model.run({"x": X}, ["y", "y"]).keys() == {"y"}


def test_threads_feed_different_weights_at_once() -> None:
    model, wrong = qruntime.load(listed_bytes(), threads=1), []

    def work(name: str, value: np.ndarray | float, factor: float) -> None:
        for _ in range(20):
            result = model.run({"x": X, name: value})["y"]
            if not np.array_equal(result, expected * np.float32(factor)):
                wrong.append(name)

    expected = model(X)
    jobs = [("scale", 4.0, 2), ("scale", 1.0, 0.5), ("v", np.zeros((32, 24), np.float32), 0), ("w", W, 1)]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
