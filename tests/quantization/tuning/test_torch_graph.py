"""Graphs as torch computes them: the numbers of the runtime, the gradients of torch."""

from __future__ import annotations

import re

import numpy as np
import pytest
from onnx import helper

import qruntime
from qruntime.errors import InputError, UnsupportedOp
from tests.ops.onnx_cases import difference, suite, value_of
from tests.quantization.language_model import language_model, texts
from tests.quantization.tuning.models import MODELS, encoder
from tests.small_models import FLOAT, linear_bytes, model_bytes, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

from qruntime.quantization.tuning import operators  # noqa: E402
from qruntime.quantization.tuning.torch_graph import TorchGraph  # noqa: E402


def tensors(model: qruntime.Model, feed: dict[str, np.ndarray]) -> dict:
    return {value: torch.from_numpy(feed[value.name]) for value in model.graph.inputs}


def close(made: np.ndarray, expected: np.ndarray, bound: float = 1e-5) -> bool:
    assert made.shape == expected.shape and made.dtype == expected.dtype
    return not expected.size or float(np.abs(made - expected).max()) <= bound * float(np.abs(expected).max())


@pytest.mark.parametrize("kind", MODELS)
def test_values_are_those_of_the_runtime(kind: str):
    model, feed = MODELS[kind]()
    made = TorchGraph(model.graph).run(tensors(model, feed))
    expected = model.run(feed)
    for value, name in zip(model.graph.outputs, model.graph.output_names, strict=True):
        assert close(made[value].numpy(), expected[name]), name


def test_sequences_of_unequal_length_stop_where_they_end():
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        weights = {"w": random(2, gates * 4, 5), "r": random(2, gates * 4, 4, seed=1) / 4, "b": random(2, 8 * gates, seed=2)}
        node = helper.make_node(op, ["x", "w", "r", "b", "lengths"], ["y", "h"], hidden_size=4, direction="bidirectional", clip=0.7)
        weights["lengths"] = np.array([7, 3, 5], np.int32)
        made = model_bytes([node], [("x", FLOAT, [7, 3, 5])], [("y", FLOAT, None), ("h", FLOAT, None)], weights)
        model, feed = qruntime.load(made), {"x": random(7, 3, 5)}
        got = TorchGraph(model.graph).run(tensors(model, feed))
        for value, expected in zip(model.graph.outputs, model.run(feed).values(), strict=True):
            assert close(got[value].numpy(), expected), op


def test_gradients_are_those_of_the_same_module_in_torch():
    model, feed = MODELS["CNN"]()
    parts = {value.name: torch.from_numpy(np.array(value.data)) for value in TorchGraph(model.graph).constants}
    given = {name: part.clone().requires_grad_() for name, part in parts.items()}
    known = tensors(model, feed)
    (x,) = known
    made = TorchGraph(model.graph).run(known, {v: given[v.name] for v in TorchGraph(model.graph).constants})
    made[model.graph.outputs[0]].square().sum().backward()

    p = {name: part.clone().requires_grad_(name not in ("bn.mean", "bn.var")) for name, part in parts.items()}
    functional = torch.nn.functional
    y = functional.conv2d(known[x], p["c1.w"], p["c1.b"], padding=1).relu()
    y = functional.batch_norm(y, p["bn.mean"], p["bn.var"], p["bn.scale"], p["bn.bias"])
    y = functional.pad(functional.max_pool2d(y, 2, ceil_mode=True), (1, 1, 0, 1))
    y = functional.pad(functional.conv2d(y, p["c2.w"], p["c2.b"], stride=(2, 1), groups=2).relu(), (0, 1, 1, 0))
    counts = functional.avg_pool2d(functional.pad(torch.ones(y.shape[2] - 1, y.shape[3] - 1), (0, 1, 1, 0))[None, None], 2, 1)
    y = (functional.avg_pool2d(y, 2, 1) / counts).mean((2, 3)) @ p["fc.w"].T + p["fc.b"]
    y.square().sum().backward()
    trained = [name for name in parts if name not in ("bn.mean", "bn.var")]
    assert len(trained) == 8
    for name in trained:
        assert close(given[name].grad.numpy(), p[name].grad.numpy(), 1e-4), name


def test_gradients_of_an_lstm_are_those_of_torchs():
    model, feed = MODELS["LSTM"]()
    graph = TorchGraph(model.graph)
    given = {value: torch.from_numpy(np.array(value.data)).requires_grad_() for value in graph.constants}
    graph.run(tensors(model, feed), given)[model.graph.outputs[0]].square().sum().backward()

    lstm = torch.nn.LSTM(5, 4, bidirectional=True)
    order = [0, 2, 3, 1]  # torch's gates are i, f, g, o, those of ONNX i, o, f, c

    def as_torch(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows.chunk(4)[gate] for gate in order])

    by_name = {value.name: tensor for value, tensor in given.items()}
    for d, suffix in enumerate(("", "_reverse")):
        for name, part in (("weight_ih", by_name["w"][d]), ("weight_hh", by_name["r"][d])):
            getattr(lstm, f"{name}_l0{suffix}").data = as_torch(part.detach()).clone()
        for name, part in zip(("bias_ih", "bias_hh"), by_name["b"][d].detach().chunk(2), strict=True):
            getattr(lstm, f"{name}_l0{suffix}").data = as_torch(part).clone()
    lstm(torch.from_numpy(feed["x"]))[0].square().sum().backward()
    for d, suffix in enumerate(("", "_reverse")):
        for name, part in (("weight_ih", by_name["w"].grad[d]), ("weight_hh", by_name["r"].grad[d])):
            assert close(as_torch(part).numpy(), getattr(lstm, f"{name}_l0{suffix}").grad.numpy(), 1e-4), (d, name)


def test_gradients_of_an_encoder_agree_with_differences():
    model, feed = encoder(layers=1)
    graph, known = TorchGraph(model.graph), tensors(model, feed)
    given = {
        value: torch.from_numpy(np.array(value.data)).double().requires_grad_()
        for value in graph.constants
        if value.data.dtype == np.float32
    }
    known = {value: tensor.double() for value, tensor in known.items()}

    def loss() -> torch.Tensor:
        return graph.run(known, given)[model.graph.outputs[0]].square().sum()

    loss().backward()
    generator = torch.Generator().manual_seed(0)
    for value, tensor in given.items():
        if tensor.grad is None:
            continue
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            step = 1e-6
            tensor += step * direction
            above = loss()
            tensor -= 2 * step * direction
            below = loss()
            tensor += step * direction
        slope = float((above - below) / (2 * step))
        assert abs(slope - float((tensor.grad * direction).sum())) <= 1e-5 * max(1.0, abs(slope)), value.name


def test_a_part_starts_from_given_values_and_reads_given_weights():
    model = qruntime.load(linear_bytes())
    product, total, relu = model.graph.nodes
    part = TorchGraph(model.graph, starts=[product.outputs[0]], wanted=[total.outputs[0], relu.outputs[0]])
    x, bias = torch.from_numpy(random(3, 8)), torch.from_numpy(random(8, seed=7)).requires_grad_()
    made = part.run({product.outputs[0]: x}, {total.inputs[1]: bias})
    assert torch.equal(made[total.outputs[0]], x + bias)
    assert torch.equal(made[relu.outputs[0]], (x + bias).relu())
    assert [value.name for value in part.constants] == ["b"]
    with pytest.raises(InputError, match="starts from 'product', which is not given"):
        part.run({})
    with pytest.raises(InputError, match="needs 'x', which is not computed from 'sum'"):
        TorchGraph(model.graph, starts=[total.outputs[0]], wanted=[product.outputs[0]])


def test_what_is_missing_is_listed_once():
    nodes = [
        helper.make_node("LpPool", ["x"], ["1"], name="first", kernel_shape=[2]),
        helper.make_node("LpPool", ["1"], ["2"], name="second", kernel_shape=[2]),
        helper.make_node("Det", ["2"], ["y"], name="third"),
    ]
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, [1, 4, 6])], [("y", FLOAT, [1])]))
    with pytest.raises(UnsupportedOp, match=r"no gradients through 2 operators: LpPool ×2 \(first 'first'\), Det ×1 \(first 'third'\)"):
        TorchGraph(model.graph)


def test_layers_round_what_they_read_also_where_nothing_is_trained():
    model, feed = language_model().quantize(scheme="W8A8"), texts(1)[0]
    graph = model.graph
    made = TorchGraph(graph, parameters=[]).run(tensors(model, feed))
    assert close(made[graph.outputs[0]].numpy(), model.run(feed)["logits"])


def test_what_has_no_gradient_needs_no_line():
    nodes = [
        helper.make_node("ArgMax", ["x"], ["1"], axis=1, keepdims=0),
        helper.make_node("Unique", ["1"], ["2"]),  # no line, and no floats
        helper.make_node("Cast", ["2"], ["y"], to=FLOAT),
    ]
    model, feed = qruntime.load(model_bytes(nodes, [("x", FLOAT, [4, 6])], [("y", FLOAT, None)])), {"x": random(4, 6)}
    assert TorchGraph(model.graph).run(tensors(model, feed))[model.graph.outputs[0]].tolist() == model(feed["x"]).tolist()


WITHOUT_GRADIENT = "has no gradient here|have no gradient here|can't convert np.ndarray of type|non-zero size"
"""What the errors say of cases that torch does not compute: rare modes of operators, narrow types, reductions of nothing."""


def _cases() -> dict[str, list]:
    found: dict[str, list] = {}
    for case in suite():
        graph = case.model.graph
        kinds = {value.type.tensor_type.elem_type for value in (*graph.input, graph.output[0])}
        node, makes_floats = graph.node[0], graph.output[0].type.tensor_type.elem_type == FLOAT
        is_listed = len(graph.node) == 1 and (node.domain, node.op_type) in operators.table()
        if is_listed and makes_floats and FLOAT in kinds and "training" not in case.name:
            found.setdefault(node.op_type, []).append(case)
    return found


CASES = _cases()


@pytest.mark.parametrize("op_type", CASES)
@pytest.mark.filterwarnings("ignore")
def test_operators_compute_what_the_cases_of_onnx_say(op_type: str):
    computed = 0
    for case in CASES[op_type]:
        graph = qruntime.load(case.model.SerializeToString()).graph
        for inputs, outputs in case.data_sets:
            known = dict(zip(graph.inputs, map(value_of, inputs), strict=True))
            try:
                made = TorchGraph(graph, wanted=graph.outputs[:1]).run(known)
            except InputError as error:
                if not re.search(WITHOUT_GRADIENT, str(error)):
                    raise
                continue
            computed += 1
            wrong = difference(made[graph.outputs[0]].numpy(), value_of(outputs[0]), max(case.rtol, 1e-4), max(case.atol, 1e-5))
            assert wrong is None, f"{case.name}: {wrong}"
    assert computed


def test_most_operators_of_the_table_are_among_the_cases():
    assert len(CASES) > 90
