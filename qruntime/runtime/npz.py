"""Feeds in files: what numpy.savez wrote of the inputs of one run, by name."""

from __future__ import annotations

import os

import numpy as np

from qruntime.errors import InputError


def npz_files(path: str | os.PathLike[str]) -> list[str]:
    """`path`, or the .npz files in it where it is a folder, in the order of their names. InputError when it has none."""
    path = os.fspath(path)
    if not os.path.isdir(path):
        return [path]
    try:
        files = [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith(".npz")]
    except OSError as error:
        raise InputError(f"cannot read {path!r}: {error.strerror or error}") from error
    if not files:
        raise InputError(f"{path!r} has no .npz files; save the inputs of one run in each, by name, with numpy.savez")
    return files


def read_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; pickled objects are refused. Raises InputError."""
    members = {}
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.ndarray):
            with archive:
                members = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InputError(f"cannot read {path!r}: {error.strerror or error}") from error
    except Exception as error:  # of a damaged file zipfile, zlib and numpy's parser of headers raise a dozen kinds
        raise InputError(f"{path!r} is not a NumPy .npz file of plain arrays: {error}") from error
    if isinstance(archive, np.ndarray):
        raise InputError(f"{path!r} is a single array; save inputs by name with numpy.savez")
    for name, array in members.items():
        if not isinstance(array, np.ndarray):  # numpy hands out the bytes of a member that does not begin as an array
            raise InputError(f"{path!r} is not a NumPy .npz file of plain arrays: {name!r} is not an array")
    return members
