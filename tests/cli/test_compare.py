from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qruntime.cli.compare import difference
from tests.cli.conftest import SHAKESPEARE, Command

Scaled = Callable[..., Path]


def test_identical(command: Command, linear: Path) -> None:
    done = command("compare", linear, linear, "--tolerance", 0)
    assert done.code == 0
    assert done.out.count("  identical\n") == 2
    assert "exact" in done.out


def test_measures(command: Command, scaled: Scaled) -> None:
    done = command(
        "compare", scaled(1.0), scaled(1.25), "--fill", "x=2", "--shape", "n=10", "--tolerance", 0.3, "--json"
    )
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
    assert "3 NaN or infinite on one side only" in done.out
    found = command("compare", scaled(1.0), scaled(math.nan), "--shape", "n=3", "--json").json
    assert found["outputs"][0]["nonfinite_mismatches"] == 3
    assert command("compare", scaled(math.nan), scaled(math.nan), "--shape", "n=3").code == 0


def test_difference_at_the_edges() -> None:
    assert difference(np.zeros(0), np.zeros(0))["identical"]
    assert difference(np.zeros(2), np.ones(2))["relative_error"] == math.inf
    assert difference(np.zeros(2), np.ones(2))["snr_db"] == -math.inf
    huge = np.array([3e38, -3e38], np.float32)
    assert difference(huge, -huge)["cosine"] == pytest.approx(-1)
    assert difference(huge.astype(np.float64) * 5e269, -huge.astype(np.float64) * 5e269)["max_abs_error"] == math.inf
    tiny = np.array([1e-300])
    assert difference(tiny, tiny * 2)["snr_db"] == pytest.approx(0)
    assert "shapes [2] and [3]" in difference(np.zeros(2), np.zeros(3))["mismatch"]
    assert "types" in difference(np.zeros(2), np.zeros(2, np.float32))["mismatch"]
    assert difference(np.array([True, False]), np.array([True, True]))["max_abs_error"] == 1
    large = np.array([2**62])
    assert not difference(large, large + 1)["identical"]
    words = np.array(["a", "b"], object)
    assert difference(words, words)["identical"]
    assert difference(words, words[::-1])["mismatch"] == "different strings"
    assert difference([np.zeros(2)], [np.zeros(2)])["identical"]
    assert difference([np.zeros(2)], [np.ones(2)])["mismatch"]
    assert difference(np.array([1 + 1j]), np.array([1 - 1j]))["max_abs_error"] == 2
    inf = np.array([np.inf, 1.0])
    assert difference(inf, -inf)["nonfinite_mismatches"] == 1
    assert difference(inf, inf)["identical"]
