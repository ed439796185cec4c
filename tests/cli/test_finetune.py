from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import qruntime
from tests.cli.conftest import Command
from tests.quantization.language_model import language_model, texts
from tests.small_models import assert_same_bits


@pytest.fixture
def train(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    folder.mkdir()
    for at, feed in enumerate(texts(3)):
        np.savez(folder / f"{at}.npz", **feed)
    return folder


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    path = tmp_path / "float.onnx"
    language_model().save(path)
    return path


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    path = tmp_path / "codes.onnx"
    language_model().quantize(scheme="W3A16").save(path)
    return path


def logits(model: qruntime.Model) -> np.ndarray:
    return model.run(texts(1, seed=5)[0])["logits"]


def test_without_torch_the_hint_is_the_package(command: Command, codes: Path, train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted, *more: None if wanted == "torch" else find(wanted, *more))
    done = command("finetune", codes, "--method", "PEQA", "--data", train, "--adapter", codes.with_name("task.npz"))
    assert done.code == 2
    assert done.err.rstrip().endswith("which is not installed: pip install 'qruntime[train]'.")


def test_scales_of_a_model_with_codes(command: Command, codes: Path, train: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")
    adapter, output = tmp_path / "task.npz", tmp_path / "tuned.onnx"
    arguments = ("finetune", codes, "--method", "PEQA", "--data", train, "--adapter", adapter, "--epochs", "2", "--lr", "0.01")
    done = command(*arguments, "--output", output)
    assert done.code == 0 and not done.err
    assert "  method     PEQA\n  trained    192 parameters in 6 layers\n" in done.out
    assert " in 6 steps\n" in done.out
    model = qruntime.load(codes)
    expected = model.finetune("PEQA", train, loss="next_token", epochs=2, lr=0.01)
    model.load_adapter(adapter)
    assert_same_bits(logits(model), logits(expected))
    assert_same_bits(logits(qruntime.load(output)), logits(expected))

    more = command(*arguments, "--start", adapter, "--validation", train / "0.npz", "--json")
    told = json.loads(more.out)
    path = tmp_path / "run.pt"
    assert command(*arguments, "--checkpoint", path).code == 0 and path.exists()
    done = command(*arguments, "--checkpoint", path, "--batch", "2")
    assert done.code != 0 and "is of a run with steps=6, and this one has 4: name another file" in done.err
    assert told["command"] == "finetune" and len(told["losses"]) == 6 and told["losses"][0] < expected.adapter.losses[0]
    assert told["parameters"] == 192 and len(told["layers"]) == 6


def test_branches_beside_a_float_model(command: Command, floats: Path, train: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")
    adapter, base = tmp_path / "task.npz", tmp_path / "base.onnx"
    arguments = ("--method", "qlora", "--data", train, "--adapter", adapter, "--rank", "4", "--targets", "up", "gate", "--steps", "2")
    done = command("finetune", floats, *arguments, "--base", base)
    assert done.code == 0
    assert "trained    896 parameters in 4 layers" in done.out
    model = qruntime.load(base)
    before = logits(model)
    model.load_adapter(adapter)
    assert not np.array_equal(logits(model), before)
    assert "'nowhere'" in command("finetune", base, *arguments, "--targets", "nowhere").err


def test_data_that_do_not_fit_are_named_by_their_file(command: Command, codes: Path, train: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")
    np.savez(train / "1.npz", tokens=np.ones((1, 4), np.int64))
    done = command("finetune", codes, "--method", "peqa", "--data", train, "--adapter", tmp_path / "task.npz")
    assert done.code != 0 and f"{str(train / '1.npz')!r}: missing input 'ids'" in done.err
    assert not (tmp_path / "task.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "peqa", "--rank", "4"), "--rank is for --method qlora"),
        (("--method", "lora"), "invalid choice: 'lora'"),
        (("--method", "peqa", "--base", "base.onnx"), "leave --base and --scheme out"),
        (("--method", "peqa", "--output", "codes.onnx"), "is the input"),
        (("--method", "peqa", "--output", "task.npz"), "need files of their own"),
        (("--method", "peqa", "--adapter", "nowhere/task.npz"), "cannot write"),
        (("--method", "peqa", "--checkpoint", "nowhere/run.pt"), "cannot write"),
        (("--method", "peqa", "--checkpoint", "task.npz"), "need files of their own"),
    ],
)
def test_arguments_that_do_not_fit_together(
    arguments: tuple[str, ...], said: str, command: Command, codes: Path, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("finetune", codes.name, "--data", train, "--adapter", "task.npz", *arguments)
    assert done.code != 0 and said in done.err
    assert not (tmp_path / "task.npz").exists()


def test_a_float_model_needs_a_file_for_its_codes(command: Command, floats: Path, train: Path, tmp_path: Path) -> None:
    done = command("finetune", floats, "--method", "peqa", "--data", train, "--adapter", tmp_path / "task.npz")
    assert done.code == 2 and "is float, and an adapter belongs to codes: name a file for its quantized form with --base" in done.err


def test_without_torch(command: Command, codes: Path, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = command("finetune", codes, "--method", "peqa", "--data", train, "--adapter", tmp_path / "task.npz")
    assert done.code != 0 and "pip install 'qruntime[train]'" in done.err
