from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.cli import inspect, terminal
from tests.cli.conftest import SHAKESPEARE, Command, save

ROOT = Path(__file__).parents[2]


def python(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        env=environment,
        timeout=120,
        check=False,
        **options,
    )


def test_version_and_help(command: Command) -> None:
    assert command("--version").out == f"qruntime {qruntime.__version__}\n"
    assert command("--help").code == 0
    for name in ("convert", "quantize", "inspect", "bench", "compare"):
        assert name in command("--help").out
        text = command(name, "--help").out
        assert f"example:\n  qruntime {name} " in text


@pytest.mark.parametrize("arguments", [(), ("nothing",), ("convert",), ("convert", "a", "b", "--activation", "none")])
def test_usage(command: Command, arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "usage: qruntime" in done.err


@pytest.mark.parametrize("name", ["inspect", "convert", "bench"])
def test_an_unknown_instruction_set(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRUNTIME_ISA", "sse9")
    done = python("-m", "qruntime", name, SHAKESPEARE, *([tmp_path / "out.onnx"] if name == "convert" else []), text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("qruntime: error: QRUNTIME_ISA='sse9', but this CPU offers: portable")


@pytest.mark.parametrize("threads", ["abc", "0", "-1", "2.5", "4 threads"])
def test_a_number_of_threads_that_is_none(monkeypatch: pytest.MonkeyPatch, command: Command, threads: str) -> None:
    monkeypatch.setenv("QRUNTIME_NUM_THREADS", threads)
    done = command("inspect", SHAKESPEARE)
    assert done.code == 2
    assert done.out == ""
    assert done.err == f"qruntime: error: QRUNTIME_NUM_THREADS={threads!r}: needs a whole number of at least 1. Set one, or unset it.\n"
    with pytest.raises(qruntime.InputError, match="QRUNTIME_NUM_THREADS"):
        qruntime.load(SHAKESPEARE)
    monkeypatch.setenv("QRUNTIME_NUM_THREADS", "99999999999999999999")
    assert qruntime.load(SHAKESPEARE).threads >= 1
    monkeypatch.setenv("QRUNTIME_NUM_THREADS", "")
    assert qruntime.load(SHAKESPEARE).threads >= 1


@pytest.mark.parametrize("name", ["inspect", "convert", "quantize", "bench", "compare"])
@pytest.mark.parametrize("content", [None, b"", b"\x08", b"<html></html>", b"PK\x03\x04" + bytes(50)])
def test_bad_files(command: Command, tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    done = command(name, path, *([tmp_path / "out.onnx"] if name in ("convert", "quantize", "compare") else []))
    assert done.code == 3
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("qruntime: error: ")
    assert "bad.onnx" in done.err
    assert done.err.rstrip().endswith(".")
    assert not (tmp_path / "out.onnx").exists()


def test_truncated_models(command: Command, linear: Path) -> None:
    whole = linear.read_bytes()
    for length in range(0, len(whole), 7):
        linear.write_bytes(whole[:length])
        assert command("inspect", linear).code in (0, 3, 4)


def test_a_folder_is_no_model(command: Command, tmp_path: Path) -> None:
    done = command("inspect", tmp_path)
    assert done.code == 3
    assert "directory" in done.err


def test_unsupported_operators(command: Command, tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    path = save(tmp_path / "m.onnx", [helper.make_node("Frobnicate", ["x"], ["y"], domain="my")], [x], [y], {})
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("my", 1))
    onnx.save(model, path)
    done = command("inspect", path)
    assert done.code == 4
    assert "my.Frobnicate" in done.err
    assert len(done.err.splitlines()) == 1


def test_unexpected_errors_are_one_line_unless_debugging(command: Command, linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("first\nsecond \x1b[2J")

    monkeypatch.setattr(inspect, "_lines", fail)
    monkeypatch.delenv("QRUNTIME_DEBUG", raising=False)
    done = command("inspect", linear)
    assert done.code == 5
    assert len(done.err.splitlines()) == 1
    assert "ZeroDivisionError: first second" in done.err
    assert "QRUNTIME_DEBUG=1" in done.err
    assert "\x1b" not in done.err
    monkeypatch.setenv("QRUNTIME_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        command("inspect", linear)


def test_interrupt(command: Command, linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "_lines", interrupt)
    assert command("inspect", linear).code == 130


def test_as_a_module_of_python(tmp_path: Path) -> None:
    done = python("-m", "qruntime", "inspect", SHAKESPEARE, "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith(b'{\n  "schema": 1,')
    assert done.stderr == b""
    assert python("-m", "qruntime", "inspect", "missing.onnx", cwd=tmp_path).returncode == 3


def test_tool_runs_from_anywhere(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    tool = [sys.executable, str(ROOT / "tools" / "convert.py")]
    done = subprocess.run(
        [*tool, str(SHAKESPEARE), "out.onnx"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.onnx").stat().st_size < 1_200_000


def test_broken_pipe(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "qruntime", "inspect", str(SHAKESPEARE)],
            stdout=write,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=120,
            check=False,
        )
    finally:
        os.close(write)
    assert done.returncode == 141
    assert done.stderr == b""


def test_interrupted_from_outside() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "qruntime", "bench", str(SHAKESPEARE), "--seconds", "60", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    assert b"guessed" in process.stderr.readline()  # it is about to measure
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in err


def test_a_terminal_without_unicode() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "qruntime", "inspect", str(SHAKESPEARE)],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.isascii()


def test_colours_and_progress_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def __init__(self, answer: bool):
            self.answer, self.written = answer, ""

        def isatty(self) -> bool:
            return self.answer

        def write(self, text: str) -> None:
            self.written += text

        def flush(self) -> None:
            pass

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for answer in (True, False):
        stream = Terminal(answer)
        monkeypatch.setattr(sys, "stderr", stream)
        with terminal.progress("Working"):
            pass
        assert ("Working" in stream.written) is answer
        assert ("\x1b[31m" in terminal.style("x", "31", stream)) is answer
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.style("x", "31", Terminal(True)) == "x"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 µs"),
        (4.1e-7, "0.41 µs"),
        (4.123e-6, "4.12 µs"),
        (0.00771, "7.71 ms"),
        (0.0999, "99.9 ms"),
        (123.4, "123 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text


def test_sizes() -> None:
    assert [terminal.size(n) for n in (0, 999, 1000, 4_390_248, 1_390_000_000)] == [
        "0 bytes", "999 bytes", "1.0 kB", "4.4 MB", "1.39 GB",
    ]  # fmt: skip
