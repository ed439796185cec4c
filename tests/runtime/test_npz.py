"""Files of feeds: what is read back, and what is said of files that are damaged or something else."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qruntime.errors import InputError, QuantizationError
from qruntime.quantization.feeds import feeds_of
from qruntime.runtime.npz import npz_files, read_npz


def write(path: Path) -> None:
    np.savez_compressed(path, x=np.random.default_rng(0).standard_normal(1000).astype(np.float32))


def write_changed(path: Path, change: Callable[[bytearray], None]) -> None:
    write(path)
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def set_in_both_headers(data: bytearray, offset: int, value: int) -> None:
    """`offset` counts in the local header; in the central directory the field stands two bytes later."""
    data[data.find(b"PK\x03\x04") + offset] = value
    data[data.find(b"PK\x01\x02") + offset + 2] = value


def damage_stream(data: bytearray) -> None:
    for i in range(100, 200):
        data[i] ^= 0x5A


def write_member(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"1234"


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(117) + b"\n"

DAMAGED: dict[str, Callable[[Path], None]] = {
    "a stream": lambda path: write_changed(path, damage_stream),
    "cut off": lambda path: write_changed(path, lambda data: data.__delitem__(slice(len(data) // 2, None))),
    "encrypted": lambda path: write_changed(path, lambda data: set_in_both_headers(data, 6, 1)),
    "another method": lambda path: write_changed(path, lambda data: set_in_both_headers(data, 8, 99)),
    "petabytes": lambda path: write_member(path, npy(HUGE)),
    "a header": lambda path: write_member(path, npy(b"{'descr': [[[[( ")),
    "text": lambda path: write_member(path, b"hello"),
    "objects": lambda path: np.savez(path, x=np.array([print], dtype=object)),
    "empty": lambda path: path.write_bytes(b"") and None,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_say_so(damage: str, tmp_path: Path):
    path = tmp_path / "feed.npz"
    DAMAGED[damage](path)
    with pytest.raises(InputError, match=r"feed\.npz' is not a NumPy \.npz file of plain arrays: ."):
        read_npz(str(path))
    with pytest.raises(QuantizationError, match=r"^data: '.*feed\.npz' is not a NumPy"):
        list(feeds_of(path))


def test_feeds_come_back_in_the_order_of_their_names(tmp_path: Path):
    for name in ("b", "a"):
        np.savez(tmp_path / f"{name}.npz", x=np.float32([ord(name)]), empty=np.zeros((0, 3)))
    (tmp_path / "notes.txt").write_text("no feed")
    feeds = list(feeds_of(tmp_path))
    assert [feed["x"] for feed in feeds] == [97, 98]
    assert feeds[0]["empty"].shape == (0, 3)
    assert npz_files(str(tmp_path)) == [str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]


def test_paths_without_feeds(tmp_path: Path):
    with pytest.raises(InputError, match=r"has no \.npz files; save"):
        npz_files(tmp_path)
    with pytest.raises(InputError, match=r"cannot read '.*none\.npz': No such file"):
        read_npz(str(tmp_path / "none.npz"))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(InputError, match="is a single array"):
        read_npz(str(tmp_path / "one.npy"))
