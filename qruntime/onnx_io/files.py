"""Writing files that are either complete or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence

from qruntime.onnx_io.wire import Part, part_bytes


def write(contents: Mapping[str, Sequence[Part]]) -> None:
    """Write all files of a mapping from path to pieces, or none of them.

    Each goes to a temporary file in its own folder, is flushed to the disk and then renamed, in the order of the
    mapping. Raises OSError, after the temporary files were removed and files already renamed put back.
    """
    temporary: dict[str, str] = {}
    backups: dict[str, str | None] = {}
    folders: list[int] = []
    try:
        for path, parts in contents.items():
            if os.path.isdir(path):
                raise IsADirectoryError(21, "it is a directory", path)
            temporary[path] = _beside(path, "tmp")
            _write_new(temporary[path], parts, _mode_of(path))
        # Before anything is replaced: afterwards nothing may fail any more.
        if os.name != "nt":
            for folder in {os.path.dirname(path) or "." for path in contents}:
                folders.append(os.open(folder, os.O_RDONLY))
        for path in contents:
            if len(temporary) > 1:  # the last rename has nothing after it that could fail
                backups[path] = _keep(path)
            os.replace(temporary[path], path)
            del temporary[path]
        for descriptor in folders:
            with contextlib.suppress(OSError):  # some file systems cannot; the rename is still atomic
                os.fsync(descriptor)
    except BaseException:
        for path, backup in backups.items():
            if path in temporary:
                continue
            with contextlib.suppress(OSError):
                if backup is None:
                    os.unlink(path)
                elif backup:
                    os.replace(backup, path)
        raise
    finally:
        for descriptor in folders:
            os.close(descriptor)
        for leftover in (*temporary.values(), *backups.values()):
            if leftover:
                with contextlib.suppress(OSError):
                    os.unlink(leftover)


def _beside(path: str, suffix: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name[:100]}.{secrets.token_hex(6)}.{suffix}")


def _mode_of(path: str) -> int | None:
    try:
        return os.stat(path).st_mode & 0o777
    except OSError:
        return None


def _write_new(path: str, parts: Sequence[Part], mode: int | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags, 0o666), "wb") as file:
        if mode is not None and hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), mode)
        for part in parts:
            file.write(part_bytes(part))
        file.flush()
        os.fsync(file.fileno())


def _keep(path: str) -> str | None:
    """A second name for the file that is about to be replaced, None when there is no file, "" without hard links."""
    backup = _beside(path, "old")
    try:
        os.link(path, backup)
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    return backup
