"""Paths that commands write to, checked before any work is done."""

from __future__ import annotations

import errno
import os

from qruntime.cli.arguments import Usage
from qruntime.errors import SaveError
from qruntime.onnx_io import files


def check_writable(path: str, *, replaces: bool) -> None:
    """Raises SaveError when nothing can be written at `path`; `replaces` as `save` does, by renaming a new file."""
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        problem = errno.EISDIR
    elif not os.path.isdir(folder):
        problem = errno.ENOTDIR if os.path.exists(folder) else errno.ENOENT
    elif not os.access(folder if replaces or not os.path.exists(path) else path, os.W_OK):
        problem = errno.EACCES
    else:
        return
    raise SaveError(f"cannot write {path!r}: {os.strerror(problem)}")


def check_not_the_input(source: str, target: str) -> None:
    """Raises Usage when both paths, also through links, are one file."""
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target):
        raise Usage(f"{target!r} is the input, and its float weights would be lost; give another output, or --force")


def write_text(path: str, text: str) -> None:
    """A whole file or none. Raises SaveError."""
    try:
        files.write({path: [f"{text}\n".encode()]})
    except OSError as error:
        raise SaveError(f"cannot write {path!r}: {error.strerror or error}") from error
