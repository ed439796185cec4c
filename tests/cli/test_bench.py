from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.cli import bench
from tests.cli.conftest import Command, save

QUICK = ("--seconds", 0.01, "--warmup", 0)


def test_text(command: Command, linear: Path) -> None:
    done = command("bench", linear, *QUICK, "--threads", 1, 2)
    assert done.code == 0
    assert "guessed batch=1" in done.err
    assert "x[1, 8]" in done.out
    assert qruntime.isa() in done.out
    assert len(done.out.partition("threads  ")[2].splitlines()) == 4
    assert "guessed" not in done.out


def test_json(command: Command, linear: Path) -> None:
    found = command("bench", linear, *QUICK, "--int8", "--shape", "batch=3", "--threads", 2, "--json").json
    assert found["schema"] == 1
    assert found["int8"] is True
    assert found["inputs"] == {"x": [3, 8]}
    assert found["machine"]["isa"] == qruntime.isa()
    (result,) = found["results"]
    assert result["threads"] == 2
    assert result["runs"] >= 5
    times = result["seconds"]
    assert 0 < times["min"] <= times["median"] <= times["p90"] <= times["p99"]
    assert result["runs_per_second"] == pytest.approx(1 / times["mean"])


def test_ids_stay_inside_their_table(command: Command, lookup: Path) -> None:
    done = command("bench", lookup, *QUICK, "--json")
    assert done.code == 0
    assert done.json["inputs"] == {"ids": [1, 128], "mask": [1, 128]}
    assert "ids integers 0…4" in done.err
    assert "mask all ones" in done.err


def test_one_shape_sets_the_dimensions_of_the_others(command: Command, lookup: Path) -> None:
    done = command("bench", lookup, *QUICK, "--json", "--shape", "ids=2,7")
    assert done.json["inputs"] == {"ids": [2, 7], "mask": [2, 7]}
    assert "batch" not in done.err


def test_npz(command: Command, lookup: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "feed.npz", ids=np.zeros((4, 6), np.int64))
    done = command("bench", lookup, *QUICK, "--json", "--npz", tmp_path / "feed.npz")
    assert done.json["inputs"] == {"ids": [4, 6], "mask": [4, 6]}


def test_fill(command: Command, lookup: Path) -> None:
    done = command("bench", lookup, *QUICK, "--fill", "ids=4", "--fill", "mask=0", "--shape", "ids=1,2")
    assert done.code == 0
    assert done.err == ""
    outside = command("bench", lookup, *QUICK, "--fill", "ids=5", "--fill", "mask=0", "--shape", "ids=1,2")
    assert outside.code == 5
    assert "Gather" in outside.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--shape", "x=1,9"),
        ("--shape", "x=1,8,1"),
        ("--shape", "x=-1,8"),
        ("--shape", "x=99999999999,8"),
        ("--shape", "nothing=1"),
        ("--shape", "batch=1,2"),
        ("--shape", "batch"),
        ("--shape", "x=1,8e0"),
        ("--fill", "nothing=1"),
        ("--fill", "x=high"),
        ("--npz", "missing.npz"),
        ("--npz", __file__),
        ("--threads", "0"),
        ("--threads", "many"),
        ("--seconds", "-1"),
        ("--seconds", "nan"),
    ],
)
def test_arguments_that_do_not_fit(command: Command, linear: Path, arguments: tuple[str, str]) -> None:
    done = command("bench", linear, *QUICK, *arguments)
    assert done.code == 2
    assert done.out == ""
    assert "error: " in done.err.splitlines()[-1]


def test_npz_with_pickles_is_refused(command: Command, linear: Path, tmp_path: Path) -> None:
    path = tmp_path / "feed.npz"
    np.savez(path, x=np.array([print], dtype=object))
    done = command("bench", linear, *QUICK, "--npz", path)
    assert done.code == 2
    assert "plain arrays" in done.err
    np.save(tmp_path / "one.npy", np.zeros((1, 8), np.float32))
    assert command("bench", linear, *QUICK, "--npz", tmp_path / "one.npy").code == 2
    np.savez(path, y=np.zeros(3))
    assert "'y'" in command("bench", linear, *QUICK, "--npz", path).err


@pytest.mark.parametrize("dtype", ["FLOAT16", "DOUBLE", "UINT8", "BOOL", "INT32", "BFLOAT16", "COMPLEX64"])
def test_every_type_can_be_made_up(command: Command, tmp_path: Path, dtype: str) -> None:
    x = helper.make_tensor_value_info("x", getattr(TensorProto, dtype), [None, 3])
    y = helper.make_tensor_value_info("y", getattr(TensorProto, dtype), [None, 3])
    path = save(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], [x], [y], {})
    done = command("bench", path, *QUICK, "--json")
    assert done.code == 0
    assert done.json["inputs"] == {"x": [1, 3]}


def test_what_cannot_be_made_up_is_said(command: Command, tmp_path: Path) -> None:
    y = helper.make_tensor_value_info("y", TensorProto.STRING, [1])
    strings = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    done = command("bench", save(tmp_path / "s.onnx", [node], [strings], [y], {}), *QUICK)
    assert done.code == 2
    assert "--npz" in done.err
    unranked = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    path = save(tmp_path / "u.onnx", [node], [unranked], [y], {})
    assert "--shape x=1,128" in command("bench", path, *QUICK).err
    assert command("bench", path, *QUICK, "--shape", "x=2,2").code == 0
    assert command("bench", path, *QUICK, "--shape", "x=").code == 0


def test_int8_without_layers_is_said(command: Command, lookup: Path) -> None:
    assert "quantized no layer" in command("bench", lookup, *QUICK, "--int8").err


def test_profile(command: Command, linear: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    done = command("bench", linear, *QUICK, "--int8", "--profile", "--trace", trace, "--threads", 1, 2)
    assert done.code == 0
    assert done.out.count("linear_q8 ") == 2
    assert json.loads(trace.read_text())["traceEvents"]
    found = command("bench", linear, *QUICK, "--int8", "--profile", "--threads", 1, "--json").json
    nodes = [n for n in found["results"][0]["profile"]["nodes"] if n["kernel"] == "linear_q8"]
    assert nodes
    assert all(n["operations"] > 0 for n in nodes)


def test_a_trace_that_cannot_be_written(command: Command, linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("it was measured"))
    for path in (tmp_path / "nowhere" / "trace.json", tmp_path, linear / "trace.json"):
        done = command("bench", linear, *QUICK, "--trace", path)
        assert done.code == 5
        assert done.out == ""
        assert done.err.startswith(f"qruntime: error: cannot write {str(path)!r}: ")
        assert len(done.err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == [linear]


def test_files_may_stand_behind_thread_counts(command: Command, linear: Path) -> None:
    done = command("bench", *QUICK, "--json", "--threads", 1, 2, linear)
    assert [result["threads"] for result in done.json["results"]] == [1, 2]
