"""Dropout that a file has in training mode: a module drops while it is trained, and nothing that comes out of it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import qruntime
from qruntime.errors import QuantizationError
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

from qruntime.quantization import QuantizedModule  # noqa: E402

RATIO = 0.25


def model(opset: int = 17, *, ratio: str = "ratio", read_mask: bool = False) -> qruntime.Model:
    if opset >= 12:
        dropout = helper.make_node("Dropout", ["u", ratio, "training"], ["d", "mask"] if read_mask else ["d"], name="drop")
    else:
        dropout = helper.make_node("Dropout", ["u"], ["d"], name="drop", ratio=RATIO)
    nodes = [
        helper.make_node("MatMul", ["x", "up.weight"], ["u"], name="up"),
        dropout,
        helper.make_node("MatMul", ["d", "down.weight"], ["y"], name="down"),
    ]
    weights = {"up.weight": random(16, 32) / 4, "down.weight": random(32, 4, seed=1) / 5}
    if opset >= 12:
        weights |= {"training": np.array(True), "ratio": np.float32(RATIO)}
    inputs = [("x", FLOAT, ["n", 16])] + ([(ratio, FLOAT, [])] if ratio != "ratio" else [])
    outputs = [("y", FLOAT, ["n", 4])] + ([("mask", 9, ["n", 32])] if read_mask else [])
    return qruntime.load(model_bytes(nodes, inputs, outputs, weights, opset))


X = torch.from_numpy(random(64, 16, seed=2))


def plain(module: QuantizedModule) -> torch.Tensor:
    return X @ module.get_parameter("up.weight")


@pytest.mark.parametrize("opset", [17, 6])
@pytest.mark.parametrize("is_quantized", [True, False])
def test_training_drops_and_scales_what_is_left(opset: int, is_quantized: bool):
    module = QuantizedModule(model(opset), "W16A16")
    module.is_quantized = is_quantized
    torch.manual_seed(3)
    kept = torch.nn.functional.dropout(torch.ones(64, 32), RATIO)
    torch.manual_seed(3)
    made = module(X)
    wanted = (plain(module) * kept) @ module.get_parameter("down.weight")
    assert (made - wanted).abs().max() < (1e-5 if not is_quantized else 1e-2)
    assert (module(X) != made).any()


def test_evaluation_and_what_is_shipped_do_not_drop(tmp_path: Path):
    source = model()
    assert (source(X.numpy()) != source(X.numpy())).any()  # as ONNX has it: random at every run
    module = QuantizedModule(source, "W8A8").eval()
    shipped = module.to_model()
    assert not any(node.op_type == "Dropout" for node in shipped.graph.nodes)
    shipped.save(tmp_path / "shipped.onnx")
    made = module(X)
    for of in (shipped, qruntime.load(tmp_path / "shipped.onnx")):
        assert_same_bits(of(X.numpy()), made.detach().numpy())
    assert np.abs(module.to_float()(X.numpy()) - (plain(module) @ module.get_parameter("down.weight")).detach().numpy()).max() < 1e-4
    made.sum().backward()
    wanted = (plain(module).t() @ torch.ones(64, 4)).detach()  # of what is not dropped
    assert (module.get_parameter("down.weight").grad - wanted).abs().max() < 0.05 * wanted.abs().max()
    module.is_quantized = False
    assert torch.equal(module(X), module(X))


def test_a_mask_that_is_read_says_that_nothing_is_dropped():
    shipped = QuantizedModule(model(read_mask=True), "W8A8").to_model()
    assert shipped.run({"x": X.numpy()})["mask"].all()


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_what_was_dropped(recompute: bool):
    module = QuantizedModule(model(), "W16A16", recompute=recompute)
    torch.manual_seed(5)
    module(X).sum().backward()
    torch.manual_seed(5)
    kept = torch.nn.functional.dropout(torch.ones(64, 32), RATIO)
    wanted = ((plain(module) * kept).t() @ torch.ones(64, 4)).detach()
    assert (module.get_parameter("down.weight").grad - wanted).abs().max() < 1e-2 * wanted.abs().max()


class Stopped(Exception):
    pass


def test_a_run_that_was_killed_draws_what_it_would_have_drawn(tmp_path: Path):
    feeds = [{"x": random(8, 16, seed=10 + i)} for i in range(4)]
    options = {"scheme": "W4A8", "data": feeds, "loss": "mse", "epochs": 2, "lr": 1e-2}

    def kill(done: int, total: int, what: str) -> None:
        if done == 5:
            raise Stopped

    outside = torch.random.get_rng_state()
    whole = model().quantize("QAT", **options)
    assert torch.equal(torch.random.get_rng_state(), outside)
    with pytest.raises(Stopped):
        model().quantize("QAT", checkpoint=tmp_path / "run", progress=kill, **options)
    resumed = model().quantize("QAT", checkpoint=tmp_path / "run", **options)
    assert_same_bits(resumed(X.numpy()), whole(X.numpy()))
    assert (model().quantize("QAT", seed=1, **options)(X.numpy()) != whole(X.numpy())).any()


def test_a_share_that_is_not_known_is_an_error():
    with pytest.raises(QuantizationError, match="its ratio must be one number that the file holds"):
        QuantizedModule(model(ratio="given"), "W8A8")
