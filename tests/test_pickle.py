"""Models travel to other processes: by reference to their file, or whole."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

import qruntime
from tests.small_models import assert_same_bits, encoder_bytes, linear_bytes, random


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(encoder_bytes(64))
    return path


X = random(2, 5, 64)


def test_a_loaded_model_pickles_as_its_path(path: Path):
    model = qruntime.load(path, threads=2)
    model(X)
    data = pickle.dumps(model)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.threads == 2
    assert_same_bits(again(X), model(X))


def test_a_relative_path_works_from_another_directory(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(path.parent)
    data = pickle.dumps(qruntime.load("model.onnx"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(data)(X).shape == X.shape


def test_a_file_that_changed_is_refused(path: Path):
    data = pickle.dumps(qruntime.load(path))
    path.write_bytes(encoder_bytes(64, layers=1))
    with pytest.raises(qruntime.InvalidModel, match="changed since the model was pickled"):
        pickle.loads(data)


def test_a_model_whose_file_was_replaced_pickles_whole(path: Path):
    model = qruntime.load(path)
    expected = model(X)
    path.unlink()  # the old file lives on under the mapping
    path.write_bytes(encoder_bytes(64, layers=1))
    assert_same_bits(pickle.loads(pickle.dumps(model))(X), expected)
    path.unlink()
    assert_same_bits(pickle.loads(pickle.dumps(model))(X), expected)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_quantized_model_pickles_whole(path: Path, inplace: bool):
    model = qruntime.load(path).quantize_dynamic(inplace=inplace)
    again = pickle.loads(pickle.dumps(model))
    assert again.report == model.report
    assert again.threads == model.threads
    assert_same_bits(again(X), model(X))
    assert str(again) == str(model)


def test_a_model_from_bytes_pickles_whole():
    model = qruntime.load(linear_bytes())
    x = random(3, 16)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert again is not model
        assert_same_bits(again(x), model(x))


def test_reports_and_descriptions_pickle():
    model = qruntime.load(linear_bytes()).quantize_dynamic()
    for thing in (model.report, model.inputs, np.float32(1)):
        assert pickle.loads(pickle.dumps(thing)) == thing
