"""Files that a killed process left behind while it wrote others: what they are called, and when they may go.

Whoever writes keeps its temporary files locked (flock) until they have their final names; the system drops the locks of
a process that ends, however it ends. A lock that can be had thus means that nobody writes any more, provided that both
processes run on one kernel: names carry a number that stands for its boot, and containers of one machine share it. Not
every shared file system shows the locks of other machines, so what they wrote must also be a day old.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
import zlib
from collections.abc import Iterable

try:
    import fcntl
except ImportError:  # without locks nothing is removed
    fcntl = None  # type: ignore[assignment]

TEMPORARY, BACKUP = "tmp", "old"
"""What a file will be, and a second name for what it was: one save gives all of them one token."""

_TOKEN = r"(?:(?P<boot>[0-9a-f]{8})\.)?[0-9a-f]{12}"  # earlier versions wrote no boot
_DAY = 24 * 60 * 60.0


def new_token(random: str) -> str:
    """`random` are twelve hexadecimal digits."""
    return f"{_boot()}.{random}".lstrip(".")


def beside(path: str, token: str, suffix: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f"{_stem(name)}.{token}.{suffix}")


def hold(descriptor: int) -> bool:
    """Lock a new file while it is open; False when a save that cleans up has taken it for a leftover and removed it."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks: nobody else gets one either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_nlink > 0 or os.name == "nt"


def remove(paths: Iterable[str], suffix: str) -> None:
    """Remove the files with `suffix` beside `paths` that nobody writes any more. Never raises OSError."""
    if fcntl is None:
        return
    folders: dict[str, list[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        folders.setdefault(folder, []).append(re.escape(_stem(name)))
    for folder, stems in folders.items():
        with contextlib.suppress(OSError):
            _remove_in(folder, re.compile(rf"(?:{'|'.join(stems)})\.(?P<token>{_TOKEN})\.{suffix}"))


def _remove_in(folder: str, wanted: re.Pattern[str]) -> None:
    names, ours = os.listdir(folder or "."), _boot()
    for name in names:
        match = wanted.fullmatch(name)
        if match is None:
            continue
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode) or not (match["boot"] == ours or time.time() - status.st_ctime > _DAY):
                continue
            if name.endswith(TEMPORARY):
                _remove_unlocked(path)
            # A save has its last temporary file until all files are in place and no backup is needed any more.
            elif not any(other.endswith(f".{match['token']}.{TEMPORARY}") for other in names):
                os.unlink(path)


def _remove_unlocked(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)  # while it is locked: its writer, if it has only just made it, waits in `hold`
    finally:
        os.close(descriptor)


def _stem(name: str) -> str:
    return f".{name[:100]}"


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return f"{zlib.crc32(file.read()):08x}"
    except OSError:
        return ""  # no name has it
