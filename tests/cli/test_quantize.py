from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.cli import terminal
from qruntime.quantization import feeds
from qruntime.quantization.methods import GPTQ, RECIPES, SmoothQuant
from tests.cli.conftest import Command, save
from tests.quantization.decoders import Decoder


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """x [batch, 32] through four linear layers with ReLUs between them, the last of them called head."""
    nodes, constants = [], {}
    for at, name in enumerate(("a", "b", "c", "head")):
        constants[name] = np.random.default_rng(at).standard_normal((32, 32), dtype=np.float32) / 4
        nodes.append(helper.make_node("MatMul", [f"x{at}" if at else "x", name], [f"h{at}"], name=f"/{name}/MatMul"))
        nodes.append(helper.make_node("Relu", [f"h{at}"], [f"x{at + 1}" if at < 3 else "y"], name=f"/{name}/Relu"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 32]) for name in ("x", "y"))
    return save(tmp_path / "layers.onnx", nodes, [x], [y], constants)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for at in range(3):
        np.savez(folder / f"{at}.npz", x=np.random.default_rng(10 + at).standard_normal((50, 32), dtype=np.float32))
    return folder


def same_outputs(one: qruntime.Model, other: qruntime.Model) -> None:
    x = np.random.default_rng(1).standard_normal((5, 32), dtype=np.float32)
    np.testing.assert_array_equal(one(x), other(x))


def test_a_method_by_its_name(command: Command, layers: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    done = command("quantize", layers, output, "--method", "gptq", "--scheme", "W4A16-g32", "--data", data)
    assert done.code == 0
    onnx.checker.check_model(onnx.load(output), full_check=True)
    same_outputs(qruntime.load(output), qruntime.load(layers).quantize("GPTQ", scheme="W4A16-g32", data=data))
    assert "  method     GPTQ\n  scheme     W4A16-g32\n" in done.out
    assert "Linear ×4" in done.out
    assert "error" in done.out
    assert "What it costs:" in done.out
    assert f"inputs from {data}" in done.out
    assert "qruntime compare" in done.err
    assert "layers" not in done.err.replace(str(layers), "").replace("the layers that lost most", "")  # no progress: nobody looks


def test_without_a_method_weights_are_rounded_to_nearest(command: Command, layers: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    done = command("quantize", layers, output, "--scheme", "Wnf4A16-g32", "--no-compare")
    assert done.code == 0
    assert "What it costs:" not in done.out
    same_outputs(qruntime.load(output), qruntime.load(layers).quantize(scheme="Wnf4A16-g32"))


def test_json_and_report_say_the_same(command: Command, layers: Path, data: Path, tmp_path: Path) -> None:
    output, report = tmp_path / "out.onnx", tmp_path / "report.json"
    flags = ["--method", "smoothquant,gptq", "--scheme", "W8A8", "--data", data, "--exclude", "head", "--seed", 3, "--report", report]
    done = command("quantize", layers, output, *flags, "--json")
    told = done.json
    assert json.loads(report.read_text()) == told
    assert (told["schema"], told["command"], told["method"], told["scheme"], told["seed"]) == (
        1,
        "quantize",
        "SmoothQuant + GPTQ",
        "W8A8",
        3,
    )
    assert told["steps"] == [str(SmoothQuant()), str(GPTQ())]
    expected = qruntime.load(layers).quantize(["SmoothQuant", "GPTQ"], scheme="W8A8", data=data, exclude=["head"], seed=3)
    assert {name: told[name] for name in expected.report.to_dict()} == expected.report.to_dict()
    assert told["skipped"] == [{"name": "/head/MatMul", "op_type": "MatMul", "reason": "excluded by exclude="}]
    assert told["comparison"]["runs"] == 3
    assert told["file_bytes_after"] == output.stat().st_size
    same_outputs(qruntime.load(output), expected)


def test_overrides_and_only(command: Command, layers: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    done = command(
        "quantize", layers, output, "--scheme", "W4A16", "--override", "a=W8A8", "b=none", "--override", "head=W3A16-g16", "--json"
    )
    assert {layer["name"]: layer["scheme"] for layer in done.json["layers"]} == {
        "/a/MatMul": "per_channel_affine",
        "/c/MatMul": "uint4 channel affine",
        "/head/MatMul": "uint3 g16 affine",
    }
    assert done.json["overrides"] == {"a": "W8A8", "b": None, "head": "W3A16-g16"}
    assert "excluded by --override" in command("quantize", layers, output, "--override", "b=none").out
    only = command("quantize", layers, output, "--only", "head", "--json")
    assert [layer["name"] for layer in only.json["layers"]] == ["/head/MatMul"]


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (
            ["--method", "SmoothQuant(alpha=0.8)", "--method", "GPTQ(actorder=None, block_size=16)"],
            [SmoothQuant(0.8), GPTQ(16, actorder=None)],
        ),
        (["--method", "awq"], list(RECIPES["AWQ"].steps)),
        (["--method", "gptq, quantease"], [*RECIPES["GPTQ"].steps, *RECIPES["QuantEase"].steps]),
        ([], []),
    ],
    ids=str,
)
def test_methods_and_their_steps(command: Command, layers: Path, data: Path, tmp_path: Path, flags: list[str], steps: list) -> None:
    done = command("quantize", layers, tmp_path / "out.onnx", *flags, "--scheme", "W4A8", "--data", data, "--json")
    assert done.json["steps"] == list(map(str, steps))


def test_list(command: Command) -> None:
    done = command("quantize", "--list")
    assert done.code == 0
    for recipe in RECIPES.values():
        assert f"{recipe.name}: {recipe.scheme}" in done.out
        assert all(str(step) in done.out for step in recipe.steps)
    assert "GPTQ: W4A16-g128, needs --data" in done.out
    assert "OmniQuant: W3A16-g128, needs --data" in done.out
    assert "RTN: W4A16-g128\n" in done.out
    assert "qruntime quantize --list" in command("quantize", "--help").out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "magic"], "'magic' is no method; there are RTN, GPTQ"),
        (["--method", "Magic()"], "'Magic' is no step; there are AWQ"),
        (["--method", "GPTQ(16)"], "arguments have names; its arguments are block_size"),
        (["--method", "GPTQ(size=16)"], "unexpected keyword argument 'size'; its arguments are block_size, dampening_frac, actorder"),
        (["--method", "GPTQ(block_size=open)"], "open is no number, text, True, False or None"),
        (["--method", "SmoothQuant(alpha=2)"], "alpha of SmoothQuant must be 0 to 1"),
        (["--method", "gptq,smoothquant"], "the order is [SmoothQuant, GPTQ]"),
        (["--method", "gptq"], "GPTQ looks at activations, which come from runs: give --data, an .npz file"),
        (
            ["--scheme", "W8A8-static"],
            "give --data, an .npz file with the inputs of a run by name, or a folder of such; or leave out -static",
        ),
        (["--scheme", "W9"], "scheme must be like W4A16-g128"),
        (["--override", "head"], "needs PATTERN=SCHEME or PATTERN=none"),
        (["--override", "head=W9"], "scheme must be like"),
        (["--override", "heads=none"], "nothing in the model is selected by 'heads' (close: 'head'"),
        (["--exclude", "heads"], "nothing in the model is selected by 'heads' (close: 'head'"),
        (["--calibration-bytes", "much"], "needs a number of bytes, as 500MB or 4GB"),
        (["--seed", "-1"], "needs a whole number of at least 0"),
        (["--only", "a", "--strict", "--override", "heads=W8A8"], "--strict and nothing in the model is selected by 'heads'"),
    ],
    ids=str,
)
def test_what_means_nothing(command: Command, layers: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    done = command("quantize", layers, tmp_path / "out.onnx", *flags)
    assert done.code == 2
    assert done.out == ""
    assert message in done.err
    assert os.listdir(tmp_path) == ["layers.onnx"]


def test_a_wrong_name_costs_no_calibration(
    command: Command, layers: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qruntime.Model, "quantize", None)
    for flags in (["--only", "heads"], ["--exclude", "heads"], ["--override", "heads=none"]):
        done = command("quantize", layers, tmp_path / "out.onnx", "--method", "gptq", "--data", data, *flags)
        assert done.code == 2
        assert "nothing in the model is selected by 'heads'" in done.err


def test_data_that_do_not_fit_are_named_by_their_files(command: Command, layers: Path, data: Path, tmp_path: Path) -> None:
    def fails(*flags: object) -> str:
        done = command("quantize", layers, tmp_path / "out.onnx", "--method", "gptq", "--data", data, *flags)
        assert (done.code, done.out) == (2, "")
        assert not (tmp_path / "out.onnx").exists()
        (line,) = done.err.splitlines()
        return line

    assert "--mask 'z' is no input; the inputs are: x. See the inputs with: qruntime inspect" in fails("--mask", "z")
    np.savez(data / "1.npz", z=np.zeros((4, 32), np.float32))
    assert f"{str(data / '1.npz')!r}: " in fails()
    np.savez(data / "1.npz", x=np.full((4, 32), np.nan, np.float32))
    assert f"{str(data / '1.npz')!r} makes NaN or infinity of 'x'; leave that feed out" in fails()
    for name in ("0", "1", "2"):
        np.savez(data / f"{name}.npz", x=np.ones((3, 32), np.float32))
    assert "hold 9 rows of it; give at least as many rows" in fails()
    (data / "1.npz").write_bytes(b"no archive")
    assert "1.npz' is not a NumPy .npz file" in fails()
    for path in data.iterdir():
        path.unlink()
    assert "--data: " in (said := fails())
    assert "has no .npz files" in said


def test_outputs_are_checked_first(command: Command, layers: Path, tmp_path: Path) -> None:
    before = layers.read_bytes()
    assert "--force" in command("quantize", layers, layers).err
    assert layers.read_bytes() == before
    assert command("quantize", layers, tmp_path / "none" / "out.onnx").code == 5
    assert command("quantize", layers, tmp_path / "out.onnx", "--report", tmp_path / "none" / "r.json").code == 5
    for path in (layers, tmp_path / "out.onnx"):
        assert "give the report a file of its own" in command("quantize", layers, tmp_path / "out.onnx", "--report", path).err
    assert os.listdir(tmp_path) == ["layers.onnx"]
    assert command("quantize", layers, layers, "--force").code == 0


def test_nothing_quantized(command: Command, lookup: Path, tmp_path: Path) -> None:
    done = command("quantize", lookup, tmp_path / "out.onnx")
    assert done.code == 1
    assert "no layer was quantized" in done.err
    assert "not selected: --override must name Embedding, or the layer" in done.out


@pytest.mark.parametrize("kind", ["stacked", "separate"])
def test_caches_of_codes_are_compared_from_empty_ones(command: Command, tmp_path: Path, kind: str) -> None:
    path, output = tmp_path / "decoder.onnx", tmp_path / "out.onnx"
    path.write_bytes(Decoder(kind).bytes())
    flags = [path, output, "--scheme", "W16A16-KV4"]
    done = command("quantize", *flags, "--shape", "t=0")
    assert done.code == 0
    assert "Not compared, as they hold codes: present" in done.out
    assert "FAILED" not in done.out
    compared = command("compare", path, output, "--shape", "t=0", "--json").json
    assert [one["output"] for one in compared["outputs"]] == ["y"]
    assert 10 < compared["outputs"][0]["snr_db"] < 60
    assert all(name.startswith("present") for name in compared["not_compared"])
    assert "not measured: input 'past" in command("quantize", *flags).out
    assert "give 0 tokens to the caches, with --shape" in command("compare", path, output).err


def test_an_interrupt_leaves_no_file(command: Command, layers: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: str) -> Any:
        if path.endswith("1.npz"):
            raise KeyboardInterrupt
        return read(path)

    read = feeds.read_npz
    monkeypatch.setattr(feeds, "read_npz", interrupted)
    done = command("quantize", layers, tmp_path / "out.onnx", "--method", "gptq", "--data", data, "--report", tmp_path / "r.json")
    assert (done.code, done.out) == (130, "")
    assert sorted(os.listdir(tmp_path)) == ["data", "layers.onnx"]


def test_progress_on_a_terminal_alone(command: Command, layers: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [layers, tmp_path / "out.onnx", "--method", "gptq", "--data", data, "--no-compare"]
    assert "of 4" not in command("quantize", *flags).err
    monkeypatch.setattr(terminal, "is_shown", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert "quantize: 4 of 4" in command("quantize", *flags).err


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("512", 512), ("4GB", 4 * 10**9), ("1.5 k", 1500), ("500MB", 5 * 10**8)])
def test_calibration_bytes(command: Command, layers: Path, data: Path, tmp_path: Path, text: str, count: int) -> None:
    from qruntime.cli.arguments import byte_count

    assert byte_count(text) == count
    flags = ["--method", "gptq", "--data", data, "--calibration-bytes", text, "--no-compare"]
    assert command("quantize", layers, tmp_path / "out.onnx", *flags).code == 0
