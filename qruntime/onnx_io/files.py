"""Writing files that are either complete or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

from qruntime.onnx_io import leftovers
from qruntime.onnx_io.wire import Part, part_bytes


def write(contents: Mapping[str, Sequence[Part]], *, replaced: Iterable[str] = ()) -> None:
    """Write all files of a mapping from path to pieces, or none of them.

    Each goes to a temporary file in its own folder, is flushed to the disk and then renamed, in the order of the
    mapping. Raises OSError, after the temporary files were removed and files already renamed put back. What processes
    that were killed while they wrote these files, or the `replaced` ones, have left is removed.
    """
    token = leftovers.new_token(secrets.token_hex(6))
    targets = {*contents, *replaced}
    temporary: dict[str, str] = {}
    backups: dict[str, str | None] = {}
    folders: list[int] = []
    with contextlib.ExitStack() as written:
        try:
            leftovers.remove(targets, leftovers.TEMPORARY)  # now: there may be no room for another
            for path, parts in contents.items():
                if os.path.isdir(path):
                    raise IsADirectoryError(21, "it is a directory", path)
                temporary[path] = leftovers.beside(path, token, leftovers.TEMPORARY)
                file = written.enter_context(open(_create(temporary[path]), "wb"))
                _fill(file, parts, _mode_of(path))
                if os.name == "nt":  # an open file has no other name there
                    file.close()
            # Before anything is replaced: afterwards nothing may fail any more.
            if os.name != "nt":
                for folder in {os.path.dirname(path) or "." for path in contents}:
                    folders.append(os.open(folder, os.O_RDONLY))
            for path in contents:
                if len(temporary) > 1:  # the last rename has nothing after it that could fail
                    backups[path] = _keep(path, token)
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
    leftovers.remove(targets, leftovers.BACKUP)  # only now: they were the last whole files


def _mode_of(path: str) -> int | None:
    try:
        return os.stat(path).st_mode & 0o777
    except OSError:
        return None


def _create(path: str) -> int:
    """Descriptor of a new file, locked as long as it is open: that is how others see that it is being written."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        descriptor = os.open(path, flags, 0o666)
        if leftovers.hold(descriptor):
            return descriptor
        os.close(descriptor)


def _fill(file: BinaryIO, parts: Sequence[Part], mode: int | None) -> None:
    if mode is not None and hasattr(os, "fchmod"):
        os.fchmod(file.fileno(), mode)
    for part in parts:
        file.write(part_bytes(part))
    file.flush()
    os.fsync(file.fileno())


def _keep(path: str, token: str) -> str | None:
    """A second name for the file that is about to be replaced, None when there is no file, "" without hard links."""
    backup = leftovers.beside(path, token, leftovers.BACKUP)
    try:
        os.link(path, backup)
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    return backup
