"""Fine-tuning beside frozen codes: PEQA and QLoRA."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import qruntime
from qruntime.errors import CalibrationError, QuantizationError
from qruntime.quantization.finetuning import METHODS, targets_of
from qruntime.quantization.methods.peqa import PEQA
from qruntime.quantization.methods.qlora import QLoRA
from tests.quantization.language_model import VOCABULARY, language_model, texts
from tests.quantization.tuning.models import MODELS
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

from qruntime.quantization.tuning.next_token import NextToken  # noqa: E402
from qruntime.quantization.tuning.operators.products import Scaled  # noqa: E402

SCHEMES = {"PEQA": "W3A16", "QLoRA": "Wnf4A16-g64-double"}
RATES = {"PEQA": 2e-2, "QLoRA": 2e-2}
DATA = texts(4)


def base(method: str) -> qruntime.Model:
    return language_model().quantize(scheme=SCHEMES[method])


def tuned(method: str, model: qruntime.Model | None = None, data: Any = DATA, **options: Any) -> qruntime.Model:
    options = {"loss": "next_token", "steps": 6, "lr": RATES[method]} | options
    return (model or base(method)).finetune(method, data, **options)


def loss_of(model: qruntime.Model, data: list[dict[str, np.ndarray]] = DATA) -> float:
    """Of the runtime, in float64."""
    found = []
    for feed in data:
        logits = model.run(feed)["logits"][:, :-1].astype(np.float64)
        shares = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)
        found.append(-np.take_along_axis(shares, feed["ids"][:, 1:, None], -1).mean())
    return float(np.mean(found))


@pytest.mark.parametrize("method", METHODS)
def test_codes_stay_bit_for_bit_and_the_loss_falls(method: str):
    model = base(method)
    before, logits = loss_of(model), model.run(DATA[0])["logits"]
    made = tuned(method, model, steps=30)
    old, new = ({v.name: v.stored for v in one.graph.stored_constants()} for one in (model, made))
    assert len(old) == 6
    for name, stored in old.items():
        assert_same_bits(new[name].unpacked(), stored.unpacked())
        assert new[name].zero_point is stored.zero_point
        assert method == "PEQA" or new[name].scale is stored.scale
    assert loss_of(made) < before - 0.5
    assert made.adapter.losses[0] == pytest.approx(loss_of(model), abs=2)
    assert_same_bits(model.run(DATA[0])["logits"], logits)
    made.unload_adapter()
    assert_same_bits(made.run(DATA[0])["logits"], logits)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["decoder", "decoder, stacked", "decoder, causal Attention", "encoder", "CNN"])
def test_a_rate_of_zero_changes_no_bit(method: str, kind: str):
    model, feed = MODELS[kind]()
    model = model.quantize(scheme=SCHEMES[method])
    name = model.outputs[0].name
    made = model.finetune(method, [feed], loss=lambda outputs, feed: outputs[name].square().mean(), steps=2, lr=0.0)
    for output, array in model.run(feed).items():
        assert np.array_equal(made.run(feed)[output], array), output


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", [None, "W4A16-g16", "W8A8", "W3A8-g32", "W4A16-g16-f16"])
def test_what_is_trained_is_what_runs(method: str, scheme: str | None, tmp_path: Path):
    model = language_model().quantize(scheme=scheme or SCHEMES[method])
    made = tuned(method, model)
    seen = []

    def looking(outputs: dict, feed: dict) -> Any:
        seen.append(outputs["logits"].detach().numpy())
        return outputs["logits"].square().mean()

    again = tuned(method, made, DATA[:1], loss=looking, lr=0.0, steps=1)
    expected = again.run(DATA[0])["logits"]
    assert np.abs(seen[0] - expected).max() <= 1e-4 * np.abs(expected).max()
    assert_same_bits(expected, made.run(DATA[0])["logits"])
    made.save_adapter(tmp_path / "a.npz")
    model.load_adapter(tmp_path / "a.npz")
    assert_same_bits(model.run(DATA[0])["logits"], expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_every_bit(method: str, tmp_path: Path):
    first, second, other = (tuned(method, seed=seed, batch=3) for seed in (5, 5, 6))
    for one, name in ((first, "first"), (second, "second"), (other, "other")):
        one.save_adapter(tmp_path / f"{name}.npz")
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes() != (tmp_path / "other.npz").read_bytes()


def test_scales_begin_as_what_codes_stand_for():
    for scheme in ("W3A16", "W3A16-g16", "W4A16-g32-sym", "Wnf4A16-g16", "Wfp4A16-g16", "W8A16-tensor", "W4A16-g16-f16"):
        graph = language_model().quantize(scheme=scheme).graph
        layers = targets_of(graph, PEQA())[0]
        learned = PEQA().learning(graph, layers, PEQA().start(layers, 0), {})
        for value, tensor in learned.replaced().items():
            assert value.stored is not None
            assert_same_bits(tensor.detach().numpy(), value.stored.decoded())


def test_the_gradient_of_a_scale_is_a_sum_over_its_codes():
    graph = language_model().quantize(scheme="W3A16-g16").graph
    layers = targets_of(graph, PEQA(targets=("l.0.down",)))[0]
    learned = PEQA().learning(graph, layers, PEQA().start(layers, 0), {})
    ((value, weight),) = learned.replaced().items()
    assert value.stored is not None and weight.shape == (40, 16)
    outer = torch.from_numpy(np.random.default_rng(0).standard_normal(weight.shape).astype(np.float32))
    (weight * outer).sum().backward()
    products = outer.numpy() * value.stored.values() * value.stored.scale.repeat(16, 0)[:40]
    expected = np.add.reduceat(products, [0, 16, 32], axis=0)
    assert np.allclose(learned.parameters[0].grad.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Gemm turned", "twice"])
def test_products_with_scales_of_outputs_are_those_with_the_weight(op: str):
    """And so are gradients, in float64 of both."""
    from qruntime.quantization.tuning.torch_graph import TorchGraph

    turned = op == "Gemm turned"
    weights = {"w": random(6, 10) if turned else random(10, 6), "c": random(6, seed=1)}
    options = {} if op in ("MatMul", "twice") else {"alpha": 0.5, "beta": 2.0, "transB": int(turned)}
    kind, inputs = ("Gemm", ["x", "w", "c"]) if options else ("MatMul", ["x", "w"])
    nodes = [helper.make_node(kind, inputs, ["y"], name="layer", **options)]
    if op == "twice":  # the weight itself is read as well
        nodes = [*nodes[:1], helper.make_node("ReduceSum", ["w"], ["s"]), helper.make_node("Add", ["y", "s"], ["z"])]
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", 10])], [(nodes[-1].output[0], FLOAT, ["n", 6])], weights))
    graph = model.quantize(scheme="W3A16").graph if op != "twice" else model.graph
    value = next(one for one in (*graph.constants(), *graph.stored_constants()) if one.name == "w")
    units = torch.from_numpy(random(*weights["w"].shape, seed=3)).double()
    x, outer = torch.from_numpy(random(4, 10, seed=4)).double(), torch.from_numpy(random(4, 6, seed=5)).double()
    part, found = TorchGraph(graph, parameters=[value]), []
    for made in (lambda scale: Scaled(units, scale), lambda scale: units * scale):
        scale = torch.from_numpy(random(6, 1, seed=6) if turned else random(1, 6, seed=6)).double().requires_grad_()
        (y,) = part.run({graph.inputs[0]: x}, {value: made(scale)}).values()
        (y * outer).sum().backward()
        found.append((y.detach(), scale.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-6 if op.startswith("Gemm") else 1e-12)  # c is float32


def test_scales_stay_above_zero():
    made = tuned("PEQA", lr=5.0, steps=4)
    assert all((parts["scale"] > 0).all() for parts in made.adapter.layers.values())


def test_a_float_model_is_quantized_first_and_a_head_stays_float():
    made = language_model().finetune("qlora", DATA, loss="next_token", steps=2)
    assert {row.scheme for row in made.report.layers} == {"nf4 channel scales in 8 bits"}
    assert len(made.adapter.layers) == 6 and "/head/MatMul" in made.adapter.untouched
    assert "QLoRA adapter: 5,376 parameters in 6 layers" in made.summary()
    made = language_model().finetune(PEQA(targets=("up",)), DATA, loss="next_token", steps=2, scheme="W4A16-g16")
    assert list(made.adapter.layers) == ["/l.0/up/MatMul", "/l.1/up/MatMul"]
    assert made.report.layers[0].scheme.startswith("uint4")
    with pytest.raises(QuantizationError, match="has codes, and they stay"):
        base("PEQA").finetune("PEQA", DATA, loss="next_token", scheme="W4A16")


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_an_adapter_goes_on_from_it(method: str):
    first = tuned(method, steps=20)
    second = tuned(method, first, steps=20)
    assert loss_of(second) < loss_of(first)
    other = next(name for name in METHODS if name != method)
    with pytest.raises(QuantizationError, match="unload_adapter"):
        tuned(other, first)


def test_inplace_changes_the_model_itself():
    model = language_model()
    before = loss_of(model)
    assert tuned("QLoRA", model, steps=20, inplace=True) is model
    assert model.adapter is not None and model.report.layers and loss_of(model) < before


def test_what_is_best_on_the_validation_stays():
    model = base("QLoRA")
    made = tuned("QLoRA", model, data=texts(4, step=1), validation=texts(2, step=40, seed=3), steps=12, lr=0.1)
    assert_same_bits(made.run(DATA[0])["logits"], model.run(DATA[0])["logits"])  # another text: nothing learned is of use
    good = tuned("QLoRA", model, validation=texts(2, seed=9), steps=12)
    assert loss_of(good, texts(2, seed=9)) < loss_of(model, texts(2, seed=9))


def test_an_interrupt_keeps_what_was_reached():
    model, calls = base("QLoRA"), []

    def loss(outputs: dict, feed: dict) -> Any:
        calls.append(1)
        if len(calls) == limit:
            raise KeyboardInterrupt
        return NextToken()(outputs, feed)

    limit = 4
    with pytest.warns(UserWarning, match="interrupted after 3 of 9 steps: the adapter is what 3 of 9 steps learned"):
        made = tuned("QLoRA", model, loss=loss, steps=9)
    assert len(made.adapter.losses) == 3
    calls.clear()
    limit = 1
    with pytest.raises(KeyboardInterrupt):
        tuned("QLoRA", model, loss=loss, inplace=True)
    assert model.adapter is None


def test_an_interrupt_keeps_the_best_of_several_passes():
    def interrupted(after: int) -> tuple[qruntime.Model, int]:
        def interrupt(done: int, total: int, what: str) -> None:
            if done == after:
                raise KeyboardInterrupt

        def loss(outputs: dict, feed: dict) -> Any:
            calls.append(1)
            return NextToken()(outputs, feed) + (5.0 if len(calls) > 12 else 0.0)  # from the fourth pass on it looks worse

        calls: list[int] = []
        with pytest.warns(UserWarning, match=f"after {after} of 40 steps: the adapter is what") as said:
            made = tuned("QLoRA", loss=loss, steps=40, progress=interrupt)
        return made, int(str(said[0].message).split("what ")[1].split()[0])

    made, kept = interrupted(18)
    assert 4 < kept <= 12
    assert_same_bits(made.run(DATA[0])["logits"], interrupted(kept)[0].run(DATA[0])["logits"])


class Stopped(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("validated", [False, True])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(method: str, validated: bool, tmp_path: Path):
    path = tmp_path / "run.pt"
    options = {"steps": None, "epochs": 3, "batch": 3, "validation": texts(2, seed=9) if validated else None}
    whole = tuned(method, **options)

    def kill(done: int, total: int, what: str) -> None:
        if done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        tuned(method, checkpoint=path, progress=kill, **options)
    seen: list[int] = []
    made = tuned(method, checkpoint=path, progress=lambda done, total, what: seen.append(done), **options)
    assert seen == [5, 6]
    assert made.adapter.losses == whole.adapter.losses
    assert_same_bits(made.run(DATA[0])["logits"], whole.run(DATA[0])["logits"])
    for other, said in (
        ({"lr": 0.5}, r"with lr=0\.02, and this one has 0\.5"),
        ({"batch": 1}, "with steps=6, and this one has 12"),
        ({"data": DATA[::-1]}, "with other data"),
        ({"validation": texts(1, seed=1)}, "with other data for validation"),
    ):
        with pytest.raises(QuantizationError, match=f"is of a run {said}: name another file"):
            tuned(method, **{"checkpoint": path, **options, **other})
    with pytest.raises(QuantizationError, match="is of a run with another model"):
        tuned(method, language_model().quantize(scheme="W4A16" if method == "PEQA" else "Wnf4A16-g32"), checkpoint=path, **options)


def test_next_token_is_the_cross_entropy_of_the_runtimes_logits():
    model = base("PEQA")
    made = tuned("PEQA", model, DATA[:1], lr=0.0, steps=1)
    assert made.adapter.losses[0] == pytest.approx(loss_of(model, DATA[:1]), rel=1e-5)


def test_padding_does_not_count():
    model = language_model(masked=True).quantize(scheme="W3A16")
    feed = dict(DATA[0], attention_mask=np.ones((2, 9), np.int64))
    padded = {name: array.copy() for name, array in feed.items()}
    padded["ids"][:, 6:], padded["attention_mask"][:, 6:] = 7, 0
    short = {name: array[:, :6] for name, array in feed.items()}
    losses = [model.finetune("PEQA", [one], loss="next_token", lr=0.0).adapter.losses[0] for one in (padded, short)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(CalibrationError, match="mask='padding' must be in every feed"):
        model.finetune("PEQA", [feed], loss=NextToken(mask="padding"))


def test_labels_come_with_the_feed():
    labelled = [dict(feed, labels=np.roll(feed["ids"], -1, 1)) for feed in DATA]

    def loss(outputs: dict, feed: dict) -> Any:
        assert set(feed) == {"ids", "labels"} and feed["labels"].dtype == torch.int64
        return torch.nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), feed["labels"].flatten())

    made = tuned("QLoRA", data=labelled, loss=loss, epochs=6, steps=None)
    assert len(made.adapter.losses) == 24 and made.adapter.losses[-1] < made.adapter.losses[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "perplexity"}, "loss must be 'next_token' or a function"),
        ({"loss": lambda outputs, feed: 1.0}, "a tensor of one number"),
        ({"loss": lambda outputs, feed: outputs["logits"]}, "a tensor of one number"),
        ({"loss": lambda outputs, feed: torch.zeros(())}, "computed from the outputs"),
        ({"loss": lambda outputs, feed: outputs["logits"].sum() * float("nan")}, r"the loss of step 0 is nan, on feed \d: a lower lr="),
        ({"loss": NextToken(ids="tokens")}, "ids='tokens' is not there; there are: ids"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"batch": 1.5}, "batch must be a whole number"),
        ({"lr": -1.0}, "lr must be a finite number"),
        ({"data": []}, "data holds no feed; give a list of {input name: array}"),
        ({"validation": []}, "validation holds no feed"),
        ({"seed": "a"}, "seed must be a whole number of 0 or more, got 'a'"),
        ({"seed": -1}, "seed must be a whole number of 0 or more, got -1"),
        ({"data": [{"tokens": np.ones((1, 4))}]}, r"data\[0\]: missing input 'ids'"),
        ({"data": [{"ids": np.full((1, 4), VOCABULARY)}]}, r"indices must lie in \[-96, 95\]"),
    ],
)
def test_what_cannot_be_trained_says_why(options: dict, said: str):
    model = base("PEQA")
    with pytest.raises((QuantizationError, qruntime.InputError, qruntime.RunError), match=said):
        tuned("PEQA", model, **options)
    assert model.adapter is None


def test_progress_tells_the_loss_and_the_time_left(capsys: pytest.CaptureFixture[str]):
    told: list[tuple[int, int, str]] = []
    tuned("PEQA", steps=3, progress=lambda *said: told.append(said))
    assert [said[:2] for said in told] == [(1, 3), (2, 3), (3, 3)]
    assert all(said[2].startswith("loss ") and said[2].endswith(" s left") for said in told)
    tuned("PEQA", steps=3, progress=True)
    assert "3 of 3 steps: loss " in capsys.readouterr().err


def test_threads_and_random_numbers_of_torch_are_left_alone():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned("QLoRA", base("QLoRA"), steps=1)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


def test_rank_and_alpha():
    made = language_model().finetune(QLoRA(rank=2, alpha=4.0), DATA, loss="next_token", steps=1, lr=0.01)
    for parts in made.adapter.layers.values():
        assert parts["A"].shape[0] == parts["B"].shape[1] == 2
    assert made.adapter.settings == {"alpha": 4.0}
    branch = next(value for value in made.graph.constants() if value.name == "l0.up.left")
    assert branch.data is not None
    assert np.allclose(branch.data, 2 * made.adapter.layers["/l.0/up/MatMul"]["B"].T)
