"""Adapters in files and in models. Nothing here needs torch."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import qruntime
from qruntime.errors import InputError, QuantizationError, SaveError
from qruntime.quantization.adapter import Adapter, digest_of, write
from qruntime.quantization.finetuning import METHODS, args_of, targets_of
from qruntime.quantization.methods.qlora import QLoRA
from qruntime.quantization.scheme import parse
from tests.quantization.language_model import HIDDEN, WIDTH, language_model, texts
from tests.small_models import assert_same_bits

SCHEMES = {"PEQA": "W3A16", "QLoRA": "Wnf4A16-g64-double"}
FEED = texts(1)[0]


def base(method: str, scheme: str | None = None) -> qruntime.Model:
    return language_model().quantize(scheme=scheme or SCHEMES[method])


def learned(model: qruntime.Model, method: str, seed: int = 0, **arguments: object) -> Adapter:
    """What a training might have made of `model`."""
    random, asked = np.random.default_rng(seed), METHODS[method](**arguments)
    layers, untouched = targets_of(model.graph, asked)
    arrays = {
        name: {part: _changed(part, array, random) for part, array in parts.items()} for name, parts in asked.start(layers, seed).items()
    }
    return Adapter(asked.name, digest_of(layers), arrays, asked.settings, untouched=untouched)


def _changed(part: str, array: np.ndarray, random: np.random.Generator) -> np.ndarray:
    made = random.normal(0, 0.1, array.shape) if part == "B" else array * random.uniform(0.5, 1.5, array.shape)
    return made.astype(np.float32)


def file(tmp_path: Path, model: qruntime.Model, method: str, seed: int = 0) -> Path:
    path = tmp_path / f"{method}.{seed}.npz"
    write(learned(model, method, seed), path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_switching_tasks_switches_bits(method: str, tmp_path: Path):
    model = base(method)
    first, second = (file(tmp_path, model, method, seed) for seed in (1, 2))
    before = model.run(FEED)["logits"]
    codes = {value.name: value.stored for value in model.graph.stored_constants()}
    made = []
    for path in (first, second, first):
        model.load_adapter(path)
        made.append(model.run(FEED)["logits"])
        now = {value.name: value.stored for value in model.graph.stored_constants()}
        for name, stored in codes.items():
            assert_same_bits(now[name].unpacked(), stored.unpacked())
            assert (now[name].zero_point is None) == (stored.zero_point is None)
            assert stored.zero_point is None or np.array_equal(now[name].zero_point, stored.zero_point)
    assert not np.array_equal(made[0], before) and not np.array_equal(made[0], made[1])
    assert_same_bits(made[0], made[2])
    model.unload_adapter()
    assert model.adapter is None
    assert_same_bits(model.run(FEED)["logits"], before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", [None, "W4A16-g16", "W8A8", "W4A8-g32", "Wnf4A16-g16", "W4A16-g16-f16", "W2A16-sym"])
def test_adapters_fit_the_model_that_was_saved_and_are_saved_with_it(method: str, scheme: str | None, tmp_path: Path):
    model = base(method, scheme)
    path = file(tmp_path, model, method)
    model.save(tmp_path / "base.onnx")
    before = model.run(FEED)["logits"]
    model.load_adapter(path)
    made = model.run(FEED)["logits"]
    assert not np.array_equal(made, before)
    model.save(tmp_path / "tuned.onnx")
    assert_same_bits(qruntime.load(tmp_path / "tuned.onnx").run(FEED)["logits"], made)
    loaded = qruntime.load(tmp_path / "base.onnx")
    loaded.load_adapter(path)
    assert_same_bits(loaded.run(FEED)["logits"], made)
    loaded.save_adapter(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_models_with_an_adapter_pickle(method: str, tmp_path: Path):
    model = base(method)
    before = model.run(FEED)["logits"]
    model.load_adapter(file(tmp_path, model, method))
    copy = pickle.loads(pickle.dumps(model))
    assert_same_bits(copy.run(FEED)["logits"], model.run(FEED)["logits"])
    copy.unload_adapter()
    assert_same_bits(copy.run(FEED)["logits"], before)


def test_a_scale_for_each_row_or_group_is_trained():
    rows = 2 * (2 * HIDDEN + WIDTH)
    assert learned(base("PEQA"), "PEQA").parameters == rows
    assert learned(base("PEQA", "W3A16-g16"), "PEQA").parameters == 2 * (2 * HIDDEN + WIDTH * 3)  # 40 inputs are 3 groups


def test_branches_stand_beside_all_layers_but_the_scorer_of_a_vocabulary():
    model = base("QLoRA")
    assert learned(model, "QLoRA", rank=4).parameters == 2 * 3 * 4 * (HIDDEN + WIDTH)
    made = learned(model, "QLoRA", targets=("up", "l.1"))
    assert list(made.layers) == ["/l.0/up/MatMul", "/l.1/up/MatMul", "/l.1/gate/MatMul", "/l.1/down/MatMul"]
    assert learned(model, "QLoRA").untouched["/head/MatMul"] == "scores a vocabulary: targets= may name it"
    assert list(learned(model, "QLoRA", targets="head").layers) == ["/head/MatMul"]
    with pytest.raises(QuantizationError, match=r"nothing in the model is selected by 'upp' \(close: 'up'\)"):
        learned(model, "QLoRA", targets=("upp",))


@pytest.mark.parametrize(("scheme", "reason"), [("Wnf4A16-g64-double", "codes themselves"), ("W16A16", "no scale")])
def test_scales_that_cannot_be_trained_are_named(scheme: str, reason: str):
    with pytest.raises(QuantizationError, match=f"PEQA finds nothing to train.*{reason}"):
        learned(base("PEQA", scheme), "PEQA")


def test_merged_scales_are_the_same_bits_and_merged_branches_have_their_cost_told(tmp_path: Path):
    model = base("PEQA")
    model.load_adapter(file(tmp_path, model, "PEQA"))
    made = model.run(FEED)["logits"]
    model.merge_adapter()
    assert model.adapter is None
    assert_same_bits(model.run(FEED)["logits"], made)

    model = base("QLoRA", "W8A16")
    nodes, before = len(model.graph.nodes), model.run(FEED)["logits"]
    model.load_adapter(file(tmp_path, model, "QLoRA"))
    assert len(model.graph.nodes) == nodes + 3 * 6
    made = model.run(FEED)["logits"]
    model.merge_adapter()
    assert len(model.graph.nodes) == nodes
    merged = model.run(FEED)["logits"]
    assert np.abs(merged - made).max() < 0.1 * np.abs(made - before).max()
    rows = {row.name: row for row in model.report.layers}
    assert 0 < rows["/l.0/up/MatMul"].facts[0]["merged_error"] < 0.1
    assert rows["/l.0/up/MatMul"].source == "int8"
    assert "merged_error" in model.summary()
    with pytest.raises(QuantizationError, match="no adapter is loaded"):
        model.unload_adapter()


@pytest.mark.parametrize("scheme", ["W4A16-g16", "W3A16", "W8A8-tensor", "Wnf4A16-g16-double", "W3A16-g16-bilevel", "W4A16-g16-f16"])
def test_how_a_matrix_is_stored_is_read_from_it(scheme: str):
    layer = targets_of(base("QLoRA", scheme).graph, QLoRA())[0]["/l.0/down/MatMul"]
    assert args_of(layer.stored(layer.weights[0])[0]) == parse(scheme).weights


def test_an_adapter_of_other_codes_is_refused(tmp_path: Path):
    path = file(tmp_path, base("PEQA"), "PEQA")
    for other in (base("PEQA", "W4A16"), base("PEQA", "W3A16-sym")):
        before = other.run(FEED)["logits"]
        with pytest.raises(QuantizationError, match="trained on other codes"):
            other.load_adapter(path)
        assert_same_bits(other.run(FEED)["logits"], before)
        assert other.adapter is None


Change = Callable[[dict[str, np.ndarray], dict], object]


def _set(name: str, value: np.ndarray) -> Change:
    return lambda arrays, head: arrays.update({name: value})


def _head(**changes: object) -> Change:
    return lambda arrays, head: head.update(changes)


ONE = np.ones((1, 1), np.float32)
HOSTILE: dict[str, tuple[Change, str]] = {
    "scale of 0": (lambda arrays, head: arrays["0.scale"].fill(0), "above 0"),
    "negative scale": (lambda arrays, head: arrays["0.scale"].__imul__(-1), "above 0"),
    "NaN": (lambda arrays, head: arrays["0.scale"].fill(np.nan), "NaN or infinity"),
    "infinity": (lambda arrays, head: arrays["0.scale"].fill(np.inf), "NaN or infinity"),
    "doubles": (lambda arrays, head: arrays.update({"0.scale": arrays["0.scale"].astype(np.float64)}), "holds float64"),
    "integers": (_set("0.scale", np.ones(3, np.int8)), "holds int8"),
    "another shape": (_set("0.scale", ONE), "must have the shape"),
    "a scalar": (_set("0.scale", np.float32(1)), "must have the shape"),
    "no array": (lambda arrays, head: arrays.pop("0.scale"), "needs scale, the adapter has nothing"),
    "one too many": (_set("0.offset", ONE), "needs scale, the adapter has scale, offset"),
    "an array of no layer": (_set("99.scale", ONE), "belongs to none"),
    "an array without number": (_set("scale", ONE), "belongs to none"),
    "a negative number": (_set("-1.scale", ONE), "belongs to none"),
    "another layer": (lambda arrays, head: head["layers"].__setitem__(0, "nowhere"), "a layer 'nowhere'"),
    "a layer twice": (lambda arrays, head: head["layers"].__setitem__(0, head["layers"][1]), "none stands there twice"),
    "a layer that is no text": (lambda arrays, head: head["layers"].__setitem__(0, 1), "names of layers are texts"),
    "another method": (_head(method="LoRA"), "'LoRA' means nothing"),
    "the other method": (_head(method="QLoRA"), "alpha"),
    "another base": (_head(base="0" * 64), "trained on other codes"),
    "a later version": (_head(version=2), "version 2"),
    "no version": (_head(version=None), "says what it is"),
    "no layers": (_head(layers=None), "has no layers"),
    "settings that are texts": (_head(settings={"alpha": "16"}), "finite numbers"),
    "settings without end": (_head(settings={"alpha": float("inf")}), "finite numbers"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_files_that_do_not_fit_change_nothing(case: str, tmp_path: Path):
    model, (change, said) = base("PEQA"), HOSTILE[case]
    good, bad = file(tmp_path, model, "PEQA"), tmp_path / "bad.npz"
    arrays = dict(np.load(good))
    head = json.loads(str(arrays.pop("adapter")))
    change(arrays, head)
    np.savez(bad, adapter=np.array(json.dumps(head)), **arrays)
    model.load_adapter(good)
    before = model.run(FEED)["logits"]
    with pytest.raises(QuantizationError, match=f"bad.npz.*{said}"):
        model.load_adapter(bad)
    assert_same_bits(model.run(FEED)["logits"], before)


def test_files_that_are_none_are_refused(tmp_path: Path):
    model, bad = base("PEQA"), tmp_path / "bad.npz"
    np.savez(bad, weights=np.ones(3))
    with pytest.raises(QuantizationError, match="has no entry 'adapter'"):
        model.load_adapter(bad)
    for text in ("[" * 100_000, "{", "[]", "{}"):
        np.savez(bad, adapter=np.array(text))
        with pytest.raises(QuantizationError, match="no adapter that can be read"):
            model.load_adapter(bad)
    np.savez(bad, adapter=np.array([1]))
    with pytest.raises(QuantizationError, match="no adapter that can be read"):
        model.load_adapter(bad)
    whole = file(tmp_path, model, "PEQA").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        bad.write_bytes(whole[:size])
        with pytest.raises(InputError):
            model.load_adapter(bad)
    with pytest.raises(InputError, match="cannot read"):
        model.load_adapter(tmp_path / "nowhere.npz")


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path):
    model = base("PEQA")
    path = file(tmp_path, model, "PEQA")
    model.load_adapter(path)
    with pytest.raises(SaveError, match="cannot write"):
        model.save_adapter(tmp_path / "nowhere" / "a.npz")
    with pytest.raises(SaveError, match="cannot write"):
        model.save_adapter(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_quantizing_again_takes_the_adapter_along(tmp_path: Path):
    model = base("PEQA")
    model.load_adapter(file(tmp_path, model, "PEQA"))
    model.quantize(scheme="W8A16", inplace=True)
    assert model.adapter is None


def test_arguments_that_mean_nothing():
    for made, said in (
        (lambda: QLoRA(rank=0), "of 1 or more, got 0"),
        (lambda: QLoRA(rank=2.5), r"got 2\.5"),
        (lambda: QLoRA(alpha=-1.0), r"got -1\.0"),
        (lambda: QLoRA(alpha=0), "above 0"),
    ):
        with pytest.raises(QuantizationError, match=said):
            made()


def test_finetune_without_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(QuantizationError, match=r"finetune takes gradients with torch.*pip install 'qruntime\[train\]'"):
        language_model().finetune("PEQA", texts(), loss="next_token")
    with pytest.raises(QuantizationError, match="method must be 'PEQA' or 'QLoRA'"):
        language_model().finetune("LoRA", texts(), loss="next_token")
