"""What a process that was killed while it wrote a model leaves behind goes with the next save; nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qruntime.onnx_io import leftovers
from qruntime.onnx_io.files import write

pytest.importorskip("fcntl")
HALF_WAY = """
import os, sys, time
from qruntime.onnx_io import files
replace = os.replace
def stop_at_the_last(old, new):
    if new == sys.argv[-1]:
        print("writing", flush=True)
        time.sleep(60)
    replace(old, new)
os.replace = stop_at_the_last
files.write({path: [b"new"] for path in sys.argv[1:]})
"""


def writer(*paths: Path) -> subprocess.Popen[str]:
    """A process that has written all `paths` and given all but the last their names."""
    process = subprocess.Popen(
        [sys.executable, "-c", HALF_WAY, *map(os.fspath, paths)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(30)
    assert process.stdout is not None
    process.stdout.close()


def save(path: Path) -> None:
    write({os.fspath(path): [b"whole"]}, replaced=[f"{path}.data"])
    assert path.read_bytes() == b"whole"


def test_what_a_killed_save_left_goes_with_the_next(tmp_path: Path):
    path = tmp_path / "m.onnx"
    process = writer(path)
    (before,) = os.listdir(tmp_path)
    save(path)
    assert sorted(os.listdir(tmp_path)) == [before, "m.onnx"], "its writer lives"
    kill(process)
    save(tmp_path / "other.onnx")
    assert before in os.listdir(tmp_path), "it belongs to another model"
    save(path)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "other.onnx"]


def test_backups_stay_as_long_as_they_may_be_needed(tmp_path: Path):
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    for old in (path, data):
        old.write_bytes(b"old")
    process = writer(data, path)
    (backup,) = [name for name in os.listdir(tmp_path) if name.startswith(".m.onnx.data.") and name.endswith(".old")]
    assert (tmp_path / backup).read_bytes() == b"old"
    save(path)
    assert backup in os.listdir(tmp_path), "its writer lives"
    kill(process)
    save(path)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]


OTHER_BOOT = f".m.onnx.{'0' * 8}.{'1' * 12}.tmp"


@pytest.mark.parametrize("name", [OTHER_BOOT, f".m.onnx.{'1' * 12}.tmp", f".m.onnx.{'1' * 12}.old"])
@pytest.mark.parametrize("hours", [1, 30])
def test_locks_of_other_machines_are_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hours: int):
    (tmp_path / name).write_bytes(b"")
    now = time.time()
    monkeypatch.setattr(leftovers.time, "time", lambda: now + hours * 3600)
    save(tmp_path / "m.onnx")
    assert (name in os.listdir(tmp_path)) is (hours < 24)


@pytest.mark.parametrize("name", [".m.onnx.swp", ".m.onnx.tmp", f".m.onnx.{'1' * 11}.tmp", f"m.onnx.{'1' * 12}.tmp", ".m.onnx.data.tmp"])
def test_other_names_are_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(leftovers.time, "time", lambda: 1e12)
    save(tmp_path / "m.onnx")
    assert name in os.listdir(tmp_path)


def test_links_and_folders_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "precious").write_bytes(b"mine")
    os.symlink("precious", tmp_path / OTHER_BOOT)
    (tmp_path / OTHER_BOOT.replace("1", "2")).mkdir()
    monkeypatch.setattr(leftovers.time, "time", lambda: 1e12)
    save(tmp_path / "m.onnx")
    assert len(os.listdir(tmp_path)) == 4


def test_a_folder_that_cannot_be_listed_does_not_stop_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(leftovers.os, "listdir", refuse)
    save(tmp_path / "m.onnx")


def test_a_writer_whose_new_file_is_taken_for_a_leftover_makes_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between its making and its lock a file looks abandoned."""
    hold, removed = leftovers.hold, []

    def late(descriptor: int) -> bool:
        if not removed:
            removed.extend(name for name in os.listdir(tmp_path) if name.endswith(".tmp"))
            leftovers.remove([os.fspath(tmp_path / "m.onnx")], leftovers.TEMPORARY)
        return hold(descriptor)

    monkeypatch.setattr(leftovers, "hold", late)
    save(tmp_path / "m.onnx")
    assert len(removed) == 1
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_saves_of_many_threads_to_one_path(tmp_path: Path):
    path, failed = tmp_path / "m.onnx", []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                write({f"{path}.data": [b"%d" % number], os.fspath(path): [b"%d" % number] * 1000})
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(set(path.read_bytes())) == 1
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
