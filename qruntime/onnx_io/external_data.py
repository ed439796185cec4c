"""Opening files: the model itself and its external data. Nothing else in the importer opens a path.

External data is confined: `location` must be relative, without `..`, and the file it leads to, symbolic
links resolved, must lie below the folder of the model as named or of the model file with links resolved
(Hugging Face caches keep models as links into a folder of blobs). Only regular files are opened, and a
range is compared with the size of the file before anything else happens. Files are mapped, not read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence

from qruntime.errors import InvalidModel
from qruntime.onnx_io.mapped_file import map_descriptor
from qruntime.onnx_io.messages import TensorProto

_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})
_IGNORED_KEY_PREFIX = "prepacked"  # ONNX Runtime writes its packed copies under such keys

Path = str | os.PathLike


def map_file(path: Path) -> memoryview:
    """Read-only view of a whole regular file.

    FileNotFoundError and PermissionError stay what they are; everything else is InvalidModel. The file must not
    be truncated or overwritten in place while the view lives; replacing it by renaming is safe.
    """
    shown = repr(os.fspath(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{shown} cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise InvalidModel(f"{shown} is a directory; name the .onnx file in it")
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModel(f"{shown} is not a regular file; read it yourself and pass the bytes")
        if status.st_size == 0:
            return memoryview(b"")
        return map_descriptor(descriptor)
    except OSError as error:
        raise InvalidModel(f"{shown} cannot be mapped: {error.strerror or error}") from None
    finally:
        os.close(descriptor)


class ExternalData:
    """The external data files of one model; `folders` may hold them, the first match wins."""

    def __init__(self, folders: Sequence[Path] = ()):
        self._folders = list(dict.fromkeys(os.fspath(folder) for folder in folders))
        self._roots = list(dict.fromkeys(os.path.realpath(folder) for folder in self._folders))
        self._open: dict[str, memoryview] = {}

    @classmethod
    def beside(cls, model_path: Path) -> ExternalData:
        """Data in the folder of the model, as named or with symbolic links resolved."""
        path = os.fspath(model_path)
        return cls([os.path.dirname(path) or ".", os.path.dirname(os.path.realpath(path))])

    def read(self, tensor: TensorProto, size: int) -> memoryview:
        """The `size` bytes of a tensor whose data_location is EXTERNAL."""
        who, entries = _entries(tensor)
        offset = _number(entries.get("offset", "0"), "offset", who)
        length = _number(entries.get("length", str(size)), "length", who)
        if length != size:
            raise InvalidModel(f"{who}: length is {length} bytes but its dims and element type need {size}")
        data = self._file(entries["location"], who)
        if offset + length > len(data):
            raise InvalidModel(f"{who}: bytes {offset} to {offset + length} lie outside {entries['location']!r}, which has {len(data)}")
        return data[offset : offset + length]

    def find(self, tensor: TensorProto) -> str:
        """The file that holds a tensor whose data_location is EXTERNAL, links resolved."""
        who, entries = _entries(tensor)
        return self._path(entries["location"], who)

    def _file(self, location: str, who: str) -> memoryview:
        if location not in self._open:
            path = self._path(location, who)
            try:
                self._open[location] = map_file(path)
            except OSError as error:
                raise InvalidModel(f"{who}: {location[:200]!r} cannot be read: {error.strerror}") from None
        return self._open[location]

    def _path(self, location: str, who: str) -> str:
        shown = repr(location[:200])
        if not self._folders:
            raise InvalidModel(
                f"{who} lies in {shown}, but a model given as bytes has no folder; pass its path, or say external_data_dir=..."
            )
        parts = re.split(r"[/\\]" if os.name == "nt" else "/", location)
        if not location or "\0" in location or os.path.isabs(location) or os.path.splitdrive(location)[0] or ".." in parts:
            raise InvalidModel(f"{who}: location {shown} is not a relative path below the folder of the model")
        found = None
        for folder in self._folders:
            real = os.path.realpath(os.path.join(folder, location))
            if os.path.lexists(real):
                found = real
                break
        if found is None:
            raise InvalidModel(f"{who}: there is no file {shown} in {self._folders[0]!r}; put it there, or say external_data_dir=...")
        if not any(_is_below(found, root) for root in self._roots):
            raise InvalidModel(
                f"{who}: {shown} leads outside the folder of the model (to {found!r}); copy the file beside the "
                "model, or name its folder with external_data_dir=..."
            )
        return found


def _entries(tensor: TensorProto) -> tuple[str, dict[str, str]]:
    """How messages call the external data of a tensor, and the keys that say where they lie."""
    who = f"external data of tensor {tensor.name!r}"
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key not in _KEYS and not entry.key.startswith(_IGNORED_KEY_PREFIX):
            raise InvalidModel(f"{who}: unknown key {entry.key[:80]!r}; known keys are {', '.join(sorted(_KEYS))}")
        if entry.key in entries:
            raise InvalidModel(f"{who}: key {entry.key!r} is given twice")
        entries[entry.key] = entry.value
    if "location" not in entries:
        raise InvalidModel(f"{who}: no key 'location' says which file holds it")
    return who, entries


def _is_below(path: str, root: str) -> bool:
    try:
        return os.path.commonpath([path, root]) == root
    except ValueError:  # different drives
        return False


def _number(text: str, key: str, who: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise InvalidModel(f"{who}: {key} is {text[:40]!r}, not a non-negative whole number")
    return int(text)
