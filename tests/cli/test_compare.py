from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from qruntime.cli.difference import Difference, difference
from tests.cli.conftest import SHAKESPEARE, Command, save

Scaled = Callable[..., Path]


def test_identical(command: Command, linear: Path) -> None:
    done = command("compare", linear, linear, "--tolerance", 0)
    assert done.code == 0
    assert done.out.count("  identical\n") == 2
    assert "exact" in done.out


def test_measures(command: Command, scaled: Scaled) -> None:
    done = command("compare", scaled(1.0), scaled(1.25), "--fill", "x=2", "--shape", "n=10", "--tolerance", 0.3, "--json")
    assert done.code == 0
    found = done.json
    assert found["schema"] == 1
    assert found["passed"] is True
    (output,) = found["outputs"]
    assert output["output"] == "y"
    assert output["max_abs_error"] == 0.5
    assert output["relative_error"] == 0.25
    assert output["snr_db"] == pytest.approx(20 * math.log10(4))
    assert output["cosine"] == pytest.approx(1)
    assert output["identical"] is False


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ((), 1),
        (("--snr", 12), 0),
        (("--snr", 12.1), 1),
        (("--tolerance", 0.25), 0),
        (("--tolerance", 0.24), 1),
        (("--rtol", 0.25), 0),
        (("--rtol", 0.24), 1),
        (("--atol", 0.5), 0),
        (("--atol", 0.49), 1),
        (("--rtol", 0.2, "--atol", 0.1), 0),
        (("--rtol", 0.3, "--tolerance", 0.2), 1),
    ],
)
def test_limits(command: Command, scaled: Scaled, limits: tuple, code: int) -> None:
    done = command("compare", scaled(1.0), scaled(1.25), "--fill", "x=2", "--shape", "n=10", *limits)
    assert done.code == code
    assert ("FAILED" in done.out) is bool(code)
    assert ("--exclude" in done.err) is bool(code)


def test_quantized_shakespeare_is_close(command: Command, tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    command("convert", SHAKESPEARE, target)
    done = command("compare", SHAKESPEARE, target, "--shape", "time=8", "--threads", 1, "--json")
    assert done.code == 0
    assert [output["output"] for output in done.json["outputs"]] == ["logits", "h_out", "c_out"]
    assert 25 < done.json["outputs"][0]["snr_db"] < 60
    assert command("compare", SHAKESPEARE, target, "--shape", "time=8", "--tolerance", 1e-4).code == 1


def test_outputs_pair_by_position_when_names_differ(command: Command, scaled: Scaled) -> None:
    done = command("compare", scaled(1.0), scaled(1.0, "other"), "--shape", "n=2")
    assert done.code == 0
    assert "identical" in done.out


def test_models_that_do_not_compare(command: Command, scaled: Scaled, linear: Path) -> None:
    done = command("compare", scaled(1.0), linear)
    assert done.code == 2
    assert "different outputs" in done.err


def test_nan_on_one_side_fails(command: Command, scaled: Scaled) -> None:
    done = command("compare", scaled(1.0), scaled(math.nan), "--shape", "n=3", "--tolerance", 1e9)
    assert done.code == 1
    assert "12 NaN or infinite on one side only" in done.out  # in four runs
    found = command("compare", scaled(1.0), scaled(math.nan), "--shape", "n=3", "--json").json
    assert found["outputs"][0]["nonfinite_mismatches"] == 12
    assert command("compare", scaled(math.nan), scaled(math.nan), "--shape", "n=3").code == 0


def test_difference_at_the_edges() -> None:
    assert difference(np.zeros(0), np.zeros(0)).identical
    assert difference(np.zeros(2), np.ones(2)).relative_error == math.inf
    assert difference(np.zeros(2), np.ones(2)).snr_db == -math.inf
    huge = np.array([3e38, -3e38], np.float32)
    assert difference(huge, -huge).cosine == pytest.approx(-1)
    assert difference(huge.astype(np.float64) * 5e269, -huge.astype(np.float64) * 5e269).max_abs_error == math.inf
    tiny = np.array([1e-300])
    assert difference(tiny, tiny * 2).snr_db == pytest.approx(0)
    assert difference(tiny, tiny * 2).cosine is None
    assert "shapes [2] and [3]" in (difference(np.zeros(2), np.zeros(3)).mismatch or "")
    assert "types" in (difference(np.zeros(2), np.zeros(2, np.float32)).mismatch or "")
    assert difference(np.array([True, False]), np.array([True, True])).agreement == 0.5
    large = np.array([2**62])
    assert not difference(large, large + 1).identical
    words = np.array(["a", "b"], object)
    assert difference(words, words).identical
    assert difference(words, words[::-1]).mismatch == "different strings"
    assert difference([np.zeros(2)], [np.zeros(2)]).identical
    assert difference([np.zeros(2)], [np.ones(2)]).mismatch
    assert difference(np.array([1 + 1j]), np.array([1 - 1j])).max_abs_error == 2
    inf = np.array([np.inf, 1.0])
    assert difference(inf, -inf).nonfinite == 1
    assert difference(inf, inf).identical


def test_runs_add_up() -> None:
    """Whatever is cut into runs measures the same; scales far apart included."""
    random = np.random.default_rng(0)
    a = random.standard_normal((6, 5)) * np.array([1e200, 1, 1e-3, 1e3, 1, 1e-200])[:, None]
    b = a * (1 + 0.1 * random.standard_normal((6, 5)))
    whole = difference(a, b)
    parts = sum((difference(a[i : i + 1], b[i : i + 1], i) for i in range(6)), Difference())
    for name in ("snr_db", "cosine", "relative_error", "max_abs_error"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))
    assert (parts.elements, parts.equal) == (30, 0)
    assert parts.worst is not None
    assert whole.worst is not None
    assert (parts.worst.run, *parts.worst.element[1:]) == whole.worst.element


def test_only_what_is_marked_is_compared() -> None:
    a, mask = np.zeros((2, 3, 4)), np.array([[1, 1, 0], [1, 0, 0]]) != 0
    b = a.copy()
    b[0, 2] = b[1, 1:] = 7  # padding
    assert difference(a, b, where=mask).identical
    b[1, 0, 3] = 0.5
    found = difference(a, b, where=mask)
    assert found.elements == 3 * 4
    assert found.worst is not None
    assert found.worst.element == (1, 0, 3)
    assert difference(a[:, 0], b[:, 0], where=mask[:, :2]).elements == 8  # of another shape: compared whole


@pytest.fixture
def encoder(tmp_path: Path) -> Callable[..., Path]:
    """Rows of a table, with `noise` where the mask is 0, and `shift` of the first row elsewhere."""

    def make(name: str, noise: float, shift: float) -> Path:
        nodes = [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["m", "last"], ["u"]),
            helper.make_node("Sub", ["one", "u"], ["padding"]),
            helper.make_node("Mul", ["padding", "noise"], ["n"]),
            helper.make_node("Mul", ["u", "shift"], ["s"]),
            helper.make_node("Add", ["rows", "n"], ["r"]),
            helper.make_node("Add", ["r", "s"], ["y"]),
        ]
        tensor = helper.make_tensor_value_info
        inputs = [tensor(name, TensorProto.INT64, ["b", "s"]) for name in ("ids", "attention_mask")]
        constants = {
            "table": np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32),
            "last": np.array([2]),
            "one": np.float32([1]),
            "noise": np.float32([noise]),
            "shift": np.float32([shift]),
        }
        return save(tmp_path / name, nodes, inputs, [tensor("y", TensorProto.FLOAT, ["b", "s", 3])], constants)

    return make


def test_padding_decides_nothing(command: Command, encoder: Callable[..., Path]) -> None:
    float_, padded, shifted = encoder("a.onnx", 0, 0), encoder("b.onnx", 99, 0), encoder("c.onnx", 0, 0.5)
    done = command("compare", float_, padded, "--json")
    assert (done.code, done.json["mask"]) == (0, "attention_mask")
    assert "b=4; s=128" in done.err
    assert "attention_mask with padding" in done.err
    assert command("compare", float_, padded, "--mask", "none").code == 0  # nothing is padded then
    assert command("compare", float_, shifted).code == 1
    assert command("compare", float_, padded, "--mask", "mask").code == 2


def test_a_folder_of_inputs(command: Command, encoder: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "recorded"
    folder.mkdir()
    done = command("compare", encoder("a.onnx", 0, 0), encoder("b.onnx", 99, 0), "--npz", folder)
    assert done.code == 2
    assert "no .npz files" in done.err
    ones = np.ones((1, 4), np.int64)
    np.savez(folder / "1.npz", ids=ones, attention_mask=ones)
    np.savez(folder / "2.npz", ids=ones * 2, attention_mask=np.array([[1, 1, 0, 0]]))
    done = command("compare", encoder("a.onnx", 0, 0), encoder("b.onnx", 99, 0), "--npz", folder, "--json")
    assert (done.code, done.json["runs"]) == (0, 2)
    done = command("compare", encoder("a.onnx", 0, 0), encoder("b.onnx", 99, 0), "--npz", folder, "--mask", "none")
    assert done.code == 1
    assert "largest difference: y[0, 2, " in done.out
    assert "of run 2" in done.out


def test_sizes_are_tried_until_the_model_runs(command: Command, tmp_path: Path) -> None:
    """A rate that the model asks for, a state of the batch's size, and a window that is longer than the first guess."""
    tensor = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Equal", ["sr", "rate"], ["is_known"]),
        helper.make_node("Cast", ["is_known"], ["known"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["input", "axis"], ["x"]),
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[256]),
        helper.make_node("ReduceMax", ["c"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("ReduceMax", ["state"], ["k"], axes=[0, 2], keepdims=0),
        helper.make_node("Add", ["m", "k"], ["s"]),
        helper.make_node("Mul", ["s", "known"], ["y"]),
    ]
    inputs = [
        tensor("input", TensorProto.FLOAT, [None, None]),
        tensor("state", TensorProto.FLOAT, [2, None, 8]),
        tensor("sr", TensorProto.INT64, []),
    ]
    constants = {
        "rate": np.array(8000),
        "axis": np.array([1]),
        "w": np.random.default_rng(0).standard_normal((4, 1, 300)).astype(np.float32),
    }
    path = save(tmp_path / "vad.onnx", nodes, inputs, [tensor("y", TensorProto.FLOAT, None)], constants)
    done = command("compare", path, path)
    assert done.code == 0
    assert "guessed input axis 0=4; input axis 1=576; state axis 1=4; sr=8000" in done.err
    target = tmp_path / "int8.onnx"
    assert command("convert", path, target, "--kinds", "Conv").code == 0
    assert command("compare", path, target).code == 0
