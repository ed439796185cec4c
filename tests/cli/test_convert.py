from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
from tests.cli.conftest import SHAKESPEARE, Command, save


def test_writes_a_valid_model_and_reports(command: Command, linear: Path, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    done = command("convert", linear, output)
    assert done.code == 0
    onnx.checker.check_model(onnx.load(output), full_check=True)
    assert "Linear ×2" in done.out
    assert "/head/MatMul" in done.out
    assert "both inputs are computed: MatMul ×1 (/MatMul)" in done.out
    assert "qruntime compare" in done.err
    assert "note" not in done.out
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    expected = qruntime.load(linear).quantize_dynamic().run({"x": x})
    got = qruntime.load(output).run({"x": x})
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])


def test_json(command: Command, linear: Path, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    done = command("convert", linear, output, "--json", "--per-channel", "--activation", "per_tensor", "--threads", 1)
    report = done.json
    assert report["schema"] == 1
    assert report["command"] == "convert"
    assert report["per_channel"] is True
    assert report["activation"] == "per_tensor"
    assert report["file_bytes_before"] == linear.stat().st_size
    assert report["file_bytes_after"] == output.stat().st_size
    assert report["weight_bytes_before"] == 4 * (8 * 4 + 4 * 4)
    assert [layer["shape"] for layer in report["layers"]] == [[8, 4], [4, 4]]
    assert {layer["scheme"] for layer in report["layers"]} == {"per_channel_affine"}
    assert [layer["name"] for layer in report["skipped"]] == ["/MatMul"]
    snr = {layer["name"]: layer["snr_db"] for layer in report["layers"]}
    assert report["worst"] == sorted(snr, key=snr.__getitem__)
    assert report["seconds"]["total"] >= report["seconds"]["quantize"] > 0
    marks = [json.loads(p.value) for n in onnx.load(output).graph.node for p in n.metadata_props if p.key == "qruntime.layer"]
    assert [mark["activations"] for mark in marks] == ["per_tensor"] * 2


def test_only_and_exclude(command: Command, linear: Path, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    only = command("convert", linear, output, "--only", "/head/*", "--json")
    assert [layer["name"] for layer in only.json["layers"]] == ["/head/MatMul"]
    for pattern in ("head", "encoder.layer.0", "layer.0", "fc", "/head/MatMul"):
        exclude = command("convert", linear, output, "--exclude", pattern, "--json")
        left = "/encoder/layer.0/fc/MatMul" if "head" in pattern else "/head/MatMul"
        assert [layer["name"] for layer in exclude.json["layers"]] == [left]
        assert exclude.err.count("warning") == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--exclude", "encoder.layer.1"],
        ["--only", "encoder.layer.1", "head"],
        ["--qconfig", "encoder.layer.1=none"],
        ["--exclude", "encoder.layer.1", "--json"],
    ],
)
def test_a_limit_that_names_nothing_is_an_error(command: Command, linear: Path, tmp_path: Path, flags: list[str]) -> None:
    done = command("convert", linear, tmp_path / "int8.onnx", *flags)
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert "nothing in the model is selected by 'encoder.layer.1' (close: 'encoder.layer.0'" in line
    assert os.listdir(tmp_path) == ["linear.onnx"]
    assert command("convert", linear, tmp_path / "int8.onnx", "--exclude", "LSTM").code == 0


def test_strict_refuses_and_writes_nothing(command: Command, linear: Path, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    done = command("convert", linear, output, "--only", "nothing", "--strict")
    assert done.code == 2
    assert done.out == ""
    assert done.err.splitlines()[-1].startswith("qruntime: error: --strict and nothing in the model is selected by")
    assert not output.exists()


def test_nothing_quantized_is_said(command: Command, lookup: Path, tmp_path: Path) -> None:
    done = command("convert", lookup, tmp_path / "int8.onnx")
    assert done.code == 1
    assert "no layer was quantized" in done.err
    assert "  --qconfig Embedding=quint8" not in done.err
    assert "not selected: --qconfig Embedding=quint8 quantizes embeddings too" in done.out
    assert command("convert", lookup, tmp_path / "int8.onnx", "--json").code == 1
    assert command("convert", lookup, tmp_path / "int8.onnx", "--qconfig", "Embedding=quint8").code == 0


@pytest.mark.parametrize("link", [None, os.symlink, os.link], ids=["itself", "symbolic link", "hard link"])
def test_the_input_is_overwritten_only_by_force(command: Command, linear: Path, link: Any) -> None:
    before = linear.read_bytes()
    output = linear
    if link is not None:
        output = linear.parent / "other.onnx"
        link(linear, output)
    refused = command("convert", linear, output)
    assert refused.code == 2
    assert "is the input" in refused.err
    assert "--force" in refused.err
    assert linear.read_bytes() == before
    done = command("convert", linear, output, "--force", "--json")
    assert done.code == 0
    assert done.json["file_bytes_before"] == len(before)
    assert len(qruntime.load(output).report.layers) == 2
    assert sorted(os.listdir(linear.parent)) == sorted({"linear.onnx", output.name})


def test_a_request_on_an_int8_model_is_carried_out_or_said(command: Command, linear: Path, tmp_path: Path) -> None:
    int8, output = tmp_path / "int8.onnx", tmp_path / "out.onnx"
    command("convert", linear, int8)
    same = command("convert", int8, output)
    assert same.code == 0
    assert "quantized  none" in same.out
    assert "kept       Linear ×2: quantized before, and left as stored" in same.out
    channels = command("convert", int8, output, "--per-channel", "--strict")
    assert channels.code == 0
    assert "quantized  Linear ×2\n" in channels.out
    assert "kept" not in channels.out
    assert "2 layers are quantized from int8 (first /encoder/layer.0/fc/MatMul)" in channels.out
    found = command("convert", int8, output, "--dtype", "float16", "--json").json
    assert [(layer["scheme"], layer["source"]) for layer in found["layers"]] == [("float16", "int8")] * 2
    late = command("convert", int8, output, "--exclude", "head", "--json")
    assert late.code == 0
    assert "excluded layers that were quantized before stay so: '/head/MatMul'" in late.err
    assert late.json["kept"] == ["/encoder/layer.0/fc/MatMul", "/head/MatMul"]


def test_a_file_that_became_larger_is_said_to_be_so(command: Command, tmp_path: Path) -> None:
    int8, half = tmp_path / "int8.onnx", tmp_path / "half.onnx"
    assert " smaller)" in command("convert", SHAKESPEARE, int8).out
    done = command("convert", int8, half, "--dtype", "float16")
    ratio = half.stat().st_size / int8.stat().st_size
    assert ratio > 1
    assert f"({ratio:.2f}× larger)" in done.out


def test_an_earlier_output_is_replaced(command: Command, linear: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert command("convert", linear, tmp_path / "int8.onnx").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--exclude", "head", "IN", "OUT"),
        ("--exclude", "head", "--", "IN", "OUT"),
        ("IN", "--exclude", "head", "OUT"),
        ("--exclude", "head", "IN", "--strict", "OUT"),
        ("IN", "OUT", "--exclude", "head", "/head"),
        ("--json", "--exclude", "head", "/head", "IN", "OUT"),
        ("--excl", "head", "IN", "OUT"),
        ("--exclude=head", "IN", "OUT"),
        ("--dtype", "qint8", "--kinds", "Linear", "--exclude", "head", "IN", "OUT"),
        ("--threads", "1", "--exclude", "head", "IN", "OUT"),
    ],
    ids=" ".join,
)
def test_files_may_stand_anywhere(command: Command, linear: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    output = tmp_path / "int8.onnx"
    done = command("convert", *({"IN": linear, "OUT": output}.get(a, a) for a in arguments))
    assert done.code == 0, done.err
    assert [layer.name for layer in qruntime.load(output).report.layers] == ["/encoder/layer.0/fc/MatMul"]


@pytest.mark.parametrize("arguments", [("--exclude", "IN"), ("--exclude", "head", "IN"), ("IN", "OUT", "third"), ("IN", "--threads", "1")])
def test_missing_and_surplus_files(command: Command, linear: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = command("convert", *({"IN": linear, "OUT": tmp_path / "int8.onnx"}.get(a, a) for a in arguments))
    assert done.code == 2
    assert "usage: qruntime" in done.err
    assert ("unrecognized arguments: third" if "third" in arguments else "required: ") in done.err
    assert os.listdir(tmp_path) == ["linear.onnx"]


@pytest.mark.parametrize("target", ["missing/out.onnx", "."])
def test_a_failed_write_leaves_the_folder_alone(command: Command, linear: Path, target: str) -> None:
    before = linear.read_bytes()
    done = command("convert", linear, linear.parent / target)
    assert done.code == 5
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("qruntime: error: cannot write")
    assert os.listdir(linear.parent) == ["linear.onnx"]
    assert linear.read_bytes() == before


def test_an_output_that_cannot_be_written_is_said_before_the_work(command: Command, linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qruntime, "load", lambda *_, **__: pytest.fail("it was loaded"))
    assert command("convert", linear, linear.parent / "missing" / "out.onnx").code == 5
    assert command("convert", linear, linear / "out.onnx").code == 5
    assert command("convert", linear, linear).code == 2


def test_a_crash_while_writing_keeps_the_old_file(command: Command, linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = linear.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    done = command("convert", linear, linear, "--force")
    assert done.code == 5
    assert "No space left on device" in done.err
    assert linear.read_bytes() == before
    assert os.listdir(linear.parent) == ["linear.onnx"]


def test_shakespeare_is_a_quarter_of_its_size(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    report = command("convert", SHAKESPEARE, output, "--json").json
    assert [(layer["kind"], layer["shape"]) for layer in report["layers"]] == [
        ("LSTM", [64, 288]),
        ("LSTM", [288, 288]),
        ("Linear", [288, 65]),
    ]
    assert output.stat().st_size < SHAKESPEARE.stat().st_size / 3.8


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """An embedding, a Conv over its rows, and a Linear."""
    random = np.random.default_rng(0)
    constants = {
        "table": random.standard_normal((20, 6)).astype(np.float32),
        "kernel": random.standard_normal((8, 6, 3)).astype(np.float32),
        "w": random.standard_normal((8, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="/embedding/Gather"),
        helper.make_node("Transpose", ["rows"], ["channels"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["channels", "kernel"], ["features"], name="/conv/Conv", pads=[1, 1]),
        helper.make_node("Transpose", ["features"], ["back"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["back", "w"], ["y"], name="/head/MatMul"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "time"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "time", 4])
    return save(tmp_path / "several.onnx", nodes, [ids], [y], constants)


@pytest.mark.parametrize(
    ("flags", "expected", "scheme"),
    [
        ([], {"/head/MatMul": "per_tensor_affine"}, "weights int8 per tensor, activations uint8 per token"),
        (["--dtype", "float16"], {"/head/MatMul": "float16"}, "weights float16"),
        (["--dtype", "quint8"], {"/embedding/Gather": "per_channel_affine_float_qparams"}, "embeddings uint8 or uint4 per row"),
        (["--dtype", "quint4x2", "--kinds", "Embedding"], {"/embedding/Gather": "per_channel_affine_float_qparams"}, "embeddings"),
        (["--engine", "fbgemm"], {"/head/MatMul": "per_tensor_affine"}, "activations uint8 per tensor, as fbgemm computes"),
        (["--kinds", "Conv"], {"/conv/Conv": "per_tensor_affine"}, "weights int8 per tensor"),
        (["--kinds", "conv", "Linear", "--per-channel"], dict.fromkeys(["/conv/Conv", "/head/MatMul"], "per_channel_affine"), "channel"),
        (["--faster-only"], {}, "nothing is quantized"),
        (["--qconfig", "head=none", "Conv=per_channel"], {"/conv/Conv": "per_channel_affine"}, "weights int8 per channel"),
        (["--qconfig", "Conv=float16", "--per-channel"], {"/conv/Conv": "float16", "/head/MatMul": "per_channel_affine"}, "float16"),
        (["--kinds", "Linear", "Embedding"],
         {"/head/MatMul": "per_tensor_affine", "/embedding/Gather": "per_channel_affine_float_qparams"}, "embeddings uint8"),
        (["--kinds", "Embedding"], {"/embedding/Gather": "per_channel_affine_float_qparams"}, "embeddings uint8"),
        (["--kinds", "Embedding", "--qconfig", "Embedding=quint4x2", "head=per_channel"],
         {"/head/MatMul": "per_channel_affine", "/embedding/Gather": "per_channel_affine_float_qparams"}, "per channel"),
        (["--kinds", "Conv", "--dtype", "float16", "--qconfig", "Embedding=quint8"],
         {"/conv/Conv": "float16", "/embedding/Gather": "per_channel_affine_float_qparams"}, "weights float16, embeddings"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_quantized_and_how(command: Command, several: Path, tmp_path: Path, flags: list[str], expected: dict, scheme: str) -> None:
    output = tmp_path / "out.onnx"
    done = command("convert", several, output, *flags, "--json")
    assert {layer["name"]: layer["scheme"] for layer in done.json["layers"]} == expected
    assert scheme in command("convert", several, output, *flags).out
    found = {layer.name: layer.scheme for layer in qruntime.load(output).report.layers}
    assert found == expected
    ids = np.arange(10).reshape(2, 5)
    assert qruntime.load(output)(ids).shape == (2, 5, 4)


def test_what_is_asked_for_and_absent_is_said(command: Command, several: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    done = command("convert", several, output, "--kinds", "Linear", "LSTM", "nobody", "--json")
    assert sorted(done.json["idle"]) == ["LSTM", "nobody"]
    assert "nothing in the model is selected by 'nobody'" in done.err
    assert command("convert", several, output, "--kinds", "Linear", "LSTM", "--strict").code == 2
    assert "too small for int8 to be faster" in command("convert", several, output).out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--qconfig", "Linear"], "PATTERN=QCONFIG"),
        (["--qconfig", "Linear=int8"], "per_tensor, per_channel, float16, quint8, quint4x2, none"),
        (["--dtype", "int4"], "invalid choice"),
        (["--engine", "fbgemm", "--activation", "per_token"], "quantizes activations per tensor"),
        (["--dtype", "float16", "--per-channel"], "no scales"),
        (["--dtype", "quint8", "--kinds", "Linear"], "the only dtypes for Linear"),
        (["--dtype", "qint8", "--kinds", "Embedding"], "write --qconfig Embedding=quint8 (or quint4x2) instead"),
        (["--qconfig", "Embedding=per_tensor"], "--qconfig NAME=quint8, or NAME=quint4x2"),
    ],
)
def test_flags_that_mean_nothing(command: Command, several: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    done = command("convert", several, tmp_path / "out.onnx", *flags)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out.onnx").exists()


def test_the_script_is_the_command(several: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "tools" / "convert.py"
    output = tmp_path / "out.onnx"
    subprocess.run([sys.executable, script, several, output, "--kinds", "Conv", "--json"], check=True, capture_output=True)
    assert [layer.kind for layer in qruntime.load(output).report.layers] == ["Conv"]
