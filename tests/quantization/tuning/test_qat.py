"""QAT: training for a scheme, from the call to the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, helper

import qruntime
from qruntime.errors import CalibrationError, QuantizationError
from tests.quantization.tuning.models import encoder
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")


def feeds(count: int = 6) -> list[dict[str, np.ndarray]]:
    return [{"x": random(4, 5, 32, seed=20 + i)} for i in range(count)]


def error(model: qruntime.Model, exact: qruntime.Model) -> float:
    held_out = random(16, 5, 32, seed=99)
    return float(np.square(model(held_out) - exact(held_out)).mean())


@pytest.mark.parametrize("steps", ["minmax", "lsq"])
def test_training_beats_rounding(steps: str):
    model, _ = encoder(layers=1)
    trained = model.quantize("QAT", scheme="W2A8", data=feeds(), loss="mse", epochs=8, lr=3e-3, steps=steps)
    assert error(trained, model) < 0.8 * error(model.quantize(scheme="W2A8"), model)
    first, last = trained.report.layers[0].facts[0]["loss"]
    assert last < first
    assert len(trained.report.layers) == 6


def test_a_rate_of_0_is_rounding_to_nearest():
    model, feed = encoder(layers=1)
    trained = model.quantize("QAT", scheme="W4A8-g32", data=feeds(2), lr=0)
    assert_same_bits(trained(feed["x"]), model.quantize(scheme="W4A8-g32")(feed["x"]))


def test_static_ranges_are_learned_and_frozen_at_the_end():
    model, feed = encoder(layers=1)
    trained = model.quantize("QAT", scheme="W8A8-static", data=feeds(), loss="mse", epochs=2, lr=1e-5)
    assert {node.op_type for node in trained.graph.nodes} >= {"QuantizeLinear", "DequantizeLinear"}
    assert error(trained, model) < 1e-3 * float(np.square(model(feed["x"])).mean())


def test_labels_come_with_the_feeds():
    model, _ = encoder(layers=1)
    labelled = [feed | {"labels": np.full((4,), number % 2)} for number, feed in enumerate(feeds())]
    head = torch.from_numpy(random(32, 2, seed=5))

    def loss(outputs: Mapping, feed: Mapping) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs["y"].mean(1) @ head, feed["labels"])

    def wrong(of: qruntime.Model) -> float:
        made = [{"y": torch.from_numpy(of(feed["x"]))} for feed in labelled]
        return float(np.mean([loss(one, {"labels": torch.from_numpy(feed["labels"])}) for one, feed in zip(made, labelled, strict=True)]))

    trained = model.quantize("QAT", scheme="W3A8", data=labelled, loss=loss, epochs=10, lr=1e-2)
    assert wrong(trained) < 0.5 * wrong(model)
    with pytest.raises(QuantizationError, match="loss reads 'answers', which neither the outputs nor the feed hold"):
        model.quantize("QAT", data=labelled, loss=lambda outputs, feed: feed["answers"].sum())


def language_model() -> qruntime.Model:
    """Scores of the next of 20 tokens by this one alone, with a mask that it does not read."""
    weights = {"table": random(20, 16), "up.weight": random(16, 32, seed=1) / 4, "head.weight": random(32, 20, seed=2) / 5}
    nodes: list[NodeProto] = [
        helper.make_node("Gather", ["table", "ids"], ["h"], name="embed"),
        helper.make_node("MatMul", ["h", "up.weight"], ["u"], name="up"),
        helper.make_node("Tanh", ["u"], ["t"]),
        helper.make_node("MatMul", ["t", "head.weight"], ["logits"], name="head"),
    ]
    inputs, outputs = [("ids", 7, ["b", "s"])], [("logits", FLOAT, ["b", "s", 20])]
    return qruntime.load(model_bytes(nodes, inputs, outputs, weights))


def test_a_language_model_learns_the_next_token():
    model = language_model()
    ids = [(np.arange(12)[None] * 3 + start) % 20 for start in range(8)]
    trained = model.quantize("QAT", scheme="W4A8", data=[{"ids": one} for one in ids], loss="next_token", epochs=20, lr=1e-2)
    assert (trained(np.array([[0, 7, 11, 19]])).argmax(-1) == [[3, 10, 14, 2]]).all()
    with pytest.raises(QuantizationError, match="next_token does not know the ids"):
        encoder(layers=1)[0].quantize("QAT", data=feeds(1), loss="next_token")
    with pytest.raises(QuantizationError, match="loss must be one of 'next_token', 'distill', 'mse', or a function"):
        model.quantize("QAT", data=[{"ids": ids[0]}], loss="perplexity")


def test_distillation_follows_the_float_model():
    model = language_model()
    data = [{"ids": np.random.default_rng(i).integers(0, 20, (4, 8))} for i in range(8)]

    def divergence(of: qruntime.Model) -> float:
        scores = (torch.from_numpy(one(np.arange(20)[None])).log_softmax(-1) for one in (model, of))
        wanted, made = scores
        return float((wanted.exp() * (wanted - made)).sum(-1).mean())

    trained = model.quantize("QAT", scheme="W2A8", data=data, loss="distill", epochs=10, lr=3e-3)
    assert divergence(trained) < 0.5 * divergence(model.quantize(scheme="W2A8"))


def test_the_same_seed_gives_the_same_codes():
    model, feed = encoder(layers=1)
    options = {"scheme": "W3A8", "data": feeds(3), "loss": "mse", "epochs": 2, "lr": 1e-2}
    first, again, other = (model.quantize("QAT", seed=seed, **options)(feed["x"]) for seed in (1, 1, 2))
    assert_same_bits(first, again)
    assert (first != other).any()


def test_it_takes_as_many_threads_as_the_model_has():
    model, _ = encoder(layers=1)
    model.threads = 1
    seen: list[int] = []

    def loss(outputs: Mapping, feed: Mapping) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return outputs["y"].square().mean()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        model.quantize("QAT", data=feeds(2), loss=loss)
        assert (seen, torch.get_num_threads()) == ([1, 1], 3)
    finally:
        torch.set_num_threads(before)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("scheme", ["W3A8", "W8A8-static"])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path, scheme: str):
    model, feed = encoder(layers=1)
    options = {"scheme": scheme, "data": feeds(5), "loss": "mse", "epochs": 2, "lr": 1e-2, "steps": "lsq"}
    whole = model.quantize("QAT", **options)
    path = tmp_path / "run"

    def kill(done: int, total: int, what: str) -> None:
        if done == 6:
            raise Stopped

    with pytest.raises(Stopped):
        model.quantize("QAT", checkpoint=path, progress=kill, **options)
    seen: list[int] = []
    resumed = model.quantize("QAT", checkpoint=path, progress=lambda done, total, what: seen.append(done), **options)
    assert seen == [7, 8, 9, 10]
    assert_same_bits(resumed(feed["x"]), whole(feed["x"]))
    with pytest.raises(QuantizationError, match=r"is of a run with lr=0\.01, and this one has 0\.1: name another file"):
        model.quantize("QAT", checkpoint=path, **{**options, "lr": 0.1})
    with pytest.raises(QuantizationError, match="is of a run with another model"):
        model.quantize("QAT", checkpoint=path, **{**options, "steps": "minmax"})


def test_an_interrupt_keeps_the_best_so_far():
    model, _ = encoder(layers=1)
    said: list[str] = []

    def interrupt(done: int, total: int, what: str) -> None:
        said.append(what)
        if done == 12:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="QAT was interrupted after 12 of 300 steps: the model is the best so far"):
        trained = model.quantize("QAT", scheme="W2A8", data=feeds(), loss="mse", epochs=50, lr=3e-3, progress=interrupt)
    assert trained.report.layers[0].facts[0]["interrupted"] == "after 12 of 300 steps"
    assert error(trained, model) < error(model.quantize(scheme="W2A8"), model)
    assert said[0].startswith("loss ")
    assert said[0].endswith(" left")


def test_a_checkpoint_of_something_else_is_not_gone_on_from(tmp_path: Path):
    model, _ = encoder(layers=1)
    path = tmp_path / "run"

    def run(of: qruntime.Model = model, **options: object) -> None:
        of.quantize("QAT", **{"scheme": "W3A8", "data": feeds(2), "loss": "mse", "checkpoint": path, **options})

    run()
    run()  # all of it is done
    with pytest.raises(QuantizationError, match="is of a run with another scheme"):
        run(scheme="W4A8")
    with pytest.raises(QuantizationError, match="is of a run with another scheme"):
        run(overrides={"*up*": None})
    with pytest.raises(QuantizationError, match="is of a run with other data"):
        run(data=feeds(3)[1:])
    with pytest.raises(QuantizationError, match="is of a run with another model"):
        run(model.quantize("QAT", scheme="W16A16", data=feeds(2), loss=lambda outputs, feed: outputs["y"].pow(3).mean(), only=["*up*"]))


@pytest.mark.parametrize("damage", ["cut short", "empty", "no checkpoint", "another file of torch"])
def test_a_damaged_checkpoint_says_so(tmp_path: Path, damage: str):
    model, _ = encoder(layers=1)
    path = tmp_path / "run"
    model.quantize("QAT", data=feeds(2), checkpoint=path)
    whole = path.read_bytes()
    if damage == "another file of torch":
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes({"cut short": whole[: len(whole) // 2], "empty": b"", "no checkpoint": b"hello world" * 99}[damage])
    said = "is no checkpoint of this release" if damage == "another file of torch" else "it is cut short, or no checkpoint"
    with pytest.raises(QuantizationError, match=f"{said}; name another file, or remove this one"):
        model.quantize("QAT", data=feeds(2), checkpoint=path)


def test_where_no_checkpoint_can_be_is_said_before_training(tmp_path: Path):
    model, _ = encoder(layers=1)
    seen: list[int] = []
    options = {"data": feeds(2), "progress": lambda done, total, what: seen.append(done)}
    with pytest.raises(QuantizationError, match="there is no folder"):
        model.quantize("QAT", checkpoint=tmp_path / "nowhere/run", **options)
    with pytest.raises(QuantizationError, match="is a folder: name a file"):
        model.quantize("QAT", checkpoint=tmp_path, **options)
    assert not seen


def test_feeds_that_do_not_fit_are_told_before_training():
    model, _ = encoder(layers=1)
    good = feeds(1)[0]
    with pytest.raises(CalibrationError, match=r"data\[1\]: input 'x': needs float32\[batch, time, 32\], got float32\[4, 5, 8\]"):
        model.quantize("QAT", data=[good, {"x": random(4, 5, 8)}])
    with pytest.raises(CalibrationError, match=r"data\[0\]: input 'x': .* got float64.*; convert it with .astype\(np.float32\)"):
        model.quantize("QAT", data=[{"x": good["x"].astype(np.float64)}])
    labelled = [good | {"text": np.array(["a", "b"]), "nothing": None}]
    seen: list[type] = []

    def loss(outputs: Mapping, feed: Mapping) -> torch.Tensor:
        seen.append(type(feed["text"]))
        return outputs["y"].square().mean()

    model.quantize("QAT", data=labelled, loss=loss)
    assert seen == [np.ndarray]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda outputs, feed: 1.0, "got float 1.0"),
        (lambda outputs, feed: None, "got NoneType None"),
        (lambda outputs, feed: outputs["y"][0, 0], r"got a tensor of shape \(32,\)"),
        (lambda outputs, feed: outputs["y"].detach().sum(), r"got a tensor of shape \(\) without gradient"),
    ],
)
def test_a_loss_is_one_number_with_a_gradient(made: Callable, said: str):
    model, _ = encoder(layers=1)
    with pytest.raises(QuantizationError, match=f"loss must give a tensor of one number that is computed from the outputs, {said}"):
        model.quantize("QAT", data=feeds(1), loss=made)
    with pytest.raises(QuantizationError, match=f"loss must give a tensor of one number that is computed from the outputs, {said}"):
        model.quantize(scheme="W4A8").finetune("PEQA", feeds(1), loss=made)


def test_labels_that_do_not_fit_are_told_with_their_feed():
    model, _ = encoder(layers=1)
    labelled = [feed | {"labels": np.full(4, 2 if number == 3 else 40)} for number, feed in enumerate(feeds(4))]

    def loss(outputs: Mapping, feed: Mapping) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs["y"].mean(1), feed["labels"])

    for train in (lambda: model.quantize("QAT", data=labelled, loss=loss), lambda: model.quantize().finetune("PEQA", labelled, loss=loss)):
        with pytest.raises(QuantizationError, match=r"feed [012]: loss\(outputs, feed\) ended in IndexError: Target 40 is out of bounds"):
            train()
    with pytest.raises(QuantizationError, match=r"ended in TypeError: .*both are \{name: tensor\}; the outputs are: y; the feed holds: x"):
        model.quantize("QAT", data=feeds(1), loss=torch.nn.CrossEntropyLoss())


def test_a_loss_that_is_no_number_is_told_with_what_holds_none():
    model, _ = encoder(layers=1)
    odd = feeds(1)[0]["x"].copy()
    odd[0, 0, 0] = np.nan
    with pytest.raises(QuantizationError, match="the loss of step 0 is nan, on feed 0: 'x' of it holds such numbers too"):
        model.quantize("QAT", data=[{"x": odd}], loss="mse")
    with pytest.raises(QuantizationError, match=r"on feed 0: a lower lr= may keep it finite, now 0\.0001"):
        model.quantize("QAT", data=feeds(1), loss=lambda outputs, feed: outputs["y"].sum() * float("nan"))


def test_what_means_nothing_is_an_error():
    model, _ = encoder(layers=1)
    with pytest.raises(CalibrationError, match="QAT trains on data: give data="):
        model.quantize("QAT")
    with pytest.raises(CalibrationError, match=r"data\[1\]: missing input 'x'"):
        model.quantize("QAT", data=[feeds(1)[0], {"z": random(1)}])
    with pytest.raises(QuantizationError, match="QAT has no option 'rate'; its options are: checkpoint, epochs, loss, lr"):
        model.quantize("QAT", data=feeds(1), rate=1)
    with pytest.raises(QuantizationError, match="RTN has no option 'epochs'; it has no options"):
        model.quantize(epochs=1)
    with pytest.raises(QuantizationError, match="epochs must be a whole number of 1 or more, got 0"):
        model.quantize("QAT", data=feeds(1), epochs=0)
    with pytest.raises(QuantizationError, match=r"nothing to train for.*not selected by only="):
        model.quantize("QAT", data=feeds(1), only=["nowhere"])
    with pytest.raises(QuantizationError, match=r"nothing to train for.*stored in codes already"):
        model.quantize(scheme="W4A8").quantize("QAT", data=feeds(1), scheme="W4A8")
    for option, value in (("epochs", 1.5), ("epochs", "3"), ("lr", "1"), ("lr", -1), ("weight_decay", -1), ("seed", "a"), ("seed", -3)):
        with pytest.raises(QuantizationError, match=rf"{option} must be a .* number of .*, got {value!r}"):
            model.quantize("QAT", data=feeds(1), **{option: value})
    with pytest.raises(QuantizationError, match="the loss of step 0 is nan"):
        model.quantize("QAT", data=feeds(1), loss=lambda outputs, feed: outputs["y"].sum() * float("nan"))


def test_the_model_itself_changes_only_in_place():
    model, feed = encoder(layers=1)
    before = model(feed["x"])
    model.quantize("QAT", data=feeds(2), lr=1e-2)
    assert_same_bits(model(feed["x"]), before)
    assert model.quantize("QAT", data=feeds(2), lr=1e-2, inplace=True) is model
    assert len(model.report.layers) == 6


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from qruntime.quantization.tuning.checkpoint import Checkpoint

    checkpoint = Checkpoint(tmp_path / "run.pt", {"version": 1})
    checkpoint.write({"done": 1})

    def fails(held: object, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write({"done": 2})
    assert [one.name for one in tmp_path.iterdir()] == ["run.pt"]
    assert checkpoint.read() == {"done": 1}
