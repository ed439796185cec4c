"""Where a training that was stopped goes on: a file that is written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.errors import QuantizationError

_ELSE = "name another file, or remove this one"


class Checkpoint:
    """At `path`, of a run that is told from others by `identity`: numbers by their names, and digests by what another one means."""

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]):
        self.path, self._identity = os.fspath(path), dict(identity)
        folder = os.path.dirname(os.path.abspath(self.path))
        if not os.path.isdir(folder):
            raise QuantizationError(f"checkpoint {self.path!r} cannot be written: there is no folder {folder!r}")
        if os.path.isdir(self.path):
            raise QuantizationError(f"checkpoint {self.path!r} is a folder: name a file, which need not be there yet")

    def write(self, held: Mapping[str, Any]) -> None:
        import torch

        part = f"{self.path}.part"
        try:
            torch.save({"identity": self._identity, "held": dict(held)}, part)
            os.replace(part, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise

    def read(self) -> dict[str, Any] | None:
        """What was written last; None where nothing was. QuantizationError for what is none, and for one of another run."""
        import torch

        if not os.path.exists(self.path):
            return None
        try:
            held = torch.load(self.path, weights_only=True)
        except Exception as error:  # torch has no class of its own for a file that is cut short
            raise QuantizationError(
                f"checkpoint {self.path!r} cannot be read ({type(error).__name__}): it is cut short, or no checkpoint; {_ELSE}"
            ) from error
        if not isinstance(held, dict) or held.keys() != {"identity", "held"}:
            raise QuantizationError(f"{self.path!r} is no checkpoint of this release; {_ELSE}")
        self._check(held["identity"])
        return held["held"]

    def _check(self, found: Mapping[str, Any]) -> None:
        for name, ours in self._identity.items():
            theirs = found.get(name)
            if theirs == ours:
                continue
            if isinstance(ours, bytes):
                raise QuantizationError(f"checkpoint {self.path!r} is of a run with {name}: {_ELSE}")
            raise QuantizationError(f"checkpoint {self.path!r} is of a run with {name}={theirs}, and this one has {ours}: {_ELSE}")


def digest(arrays: Sequence[Mapping[str, Any]]) -> bytes:
    """What tells arrays or tensors by name apart, in their order."""
    found = hashlib.sha256()
    for named in arrays:
        for name in sorted(named):
            array = np.asarray(named[name])
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return found.digest()
