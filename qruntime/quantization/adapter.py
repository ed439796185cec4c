"""What a model has learned beside its codes, in a small file: one for each task.

An adapter belongs to the codes that it was trained on, and knows them by a digest. Its file is an .npz: `adapter`, a text in JSON,
and arrays `<number of the layer>.<part>`. No part of this needs torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qruntime.errors import QuantizationError, SaveError, counted
from qruntime.onnx_io import files
from qruntime.quantization.layers import Layer
from qruntime.runtime.npz import read_npz

VERSION = 1
_HEAD = "adapter"

Parts = Mapping[str, np.ndarray]
"""Arrays of one layer, float32: "scale" of PEQA, "A" and "B" of QLoRA."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """Learned by `method`; `layers` holds the arrays of each layer, by its name."""

    method: str
    base: str
    """Digest of the codes of these layers."""
    layers: Mapping[str, Parts]
    settings: Mapping[str, float] = field(default_factory=dict)
    """Numbers that belong to the method, alpha of QLoRA for one."""
    losses: tuple[float, ...] = ()
    """Of the steps by which it was trained; not in files."""
    untouched: Mapping[str, str] = field(default_factory=dict)
    """Layers that have no part in it, with the reason; not in files."""

    @property
    def parameters(self) -> int:
        """How many numbers were learned."""
        return sum(array.size for parts in self.layers.values() for array in parts.values())

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for parts in self.layers.values() for array in parts.values())

    def __str__(self) -> str:
        text = f"{self.method} adapter: {self.parameters:,} parameters in {counted(len(self.layers), 'layer')}"
        return f"{text}, loss {self.losses[0]:.4g} → {self.losses[-1]:.4g}" if self.losses else text


def write(adapter: Adapter, path: str | os.PathLike[str]) -> None:
    """A whole file or none; the same adapter gives the same bytes. Raises SaveError."""
    head = {
        "version": VERSION, "method": adapter.method, "base": adapter.base, "settings": dict(adapter.settings),
        "layers": list(adapter.layers),
    }  # fmt: skip
    arrays = {f"{i}.{part}": array for i, parts in enumerate(adapter.layers.values()) for part, array in parts.items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{_HEAD: np.array(json.dumps(head))}, **arrays)
    path = os.fspath(path)
    try:
        files.write({path: [file.getvalue()]})
    except OSError as error:
        raise SaveError(f"cannot write {path!r}: {error.strerror or error}") from error


def read(path: str | os.PathLike[str]) -> Adapter:
    """The adapter of a file, every array float32 and finite; whether it fits a model is for its method to say.

    Raises InputError where the file cannot be read, QuantizationError where it holds no adapter.
    """
    path = os.fspath(path)
    arrays = read_npz(path)
    if _HEAD not in arrays:
        raise QuantizationError(f"{path!r} is no adapter: it has no entry {_HEAD!r}; model.save_adapter writes such files")
    try:
        return _parsed(arrays)
    except ValueError as error:
        raise QuantizationError(f"{path!r} is no adapter that can be read: {error}") from error


def _parsed(arrays: dict[str, np.ndarray]) -> Adapter:
    head = _head(arrays.pop(_HEAD))
    names, settings = head["layers"], head["settings"]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError("names of layers are texts, and none stands there twice")
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in settings.values()):
        raise ValueError("settings are finite numbers")
    found: list[dict[str, np.ndarray]] = [{} for _ in names]
    for name, array in arrays.items():
        number, _, part = name.partition(".")
        if not number.isdecimal() or not number.isascii() or len(number) > 9 or int(number) >= len(names):
            raise ValueError(f"the array {name!r} belongs to none of its {counted(len(names), 'layer')}")
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(f"the array {name!r} must hold finite float32 numbers, it holds {_kind(array)}")
        found[int(number)][part] = np.ascontiguousarray(array)
    return Adapter(head["method"], head["base"], dict(zip(names, found, strict=True)), {name: float(n) for name, n in settings.items()})


def _head(array: np.ndarray) -> dict[str, Any]:
    try:
        head = json.loads(str(array[()])) if array.dtype.kind == "U" and array.ndim == 0 else None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{_HEAD!r} is no JSON: {error}") from error
    if not isinstance(head, dict) or type(head.get("version")) is not int:
        raise ValueError(f"{_HEAD!r} is no text that says what it is")
    if head["version"] != VERSION:
        raise ValueError(f"it is of version {head['version']}, and this release reads version {VERSION}")
    for key, kind in (("method", str), ("base", str), ("settings", dict), ("layers", list)):
        if not isinstance(head.get(key), kind):
            raise ValueError(f"{_HEAD!r} has no {key}")
    return head


def _kind(array: np.ndarray) -> str:
    return str(array.dtype) if array.dtype != np.float32 else "NaN or infinity"


def check_parts(name: str, parts: Parts, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """QuantizationError unless a layer has the arrays that it needs, each of its shape, and no more."""
    if parts.keys() != wanted.keys():
        raise QuantizationError(f"layer {name!r} needs {', '.join(wanted)}, the adapter has {', '.join(parts) or 'nothing'}")
    for part, shape in wanted.items():
        if parts[part].shape != shape:
            raise QuantizationError(f"layer {name!r}: {part} must have the shape {shape}, the adapter's has {parts[part].shape}")


def digest_of(layers: Mapping[str, Layer]) -> str:
    """Of the names of layers and of their codes in units of the scales, however a file writes them; of float weights, of these."""
    made = hashlib.sha256()
    for name, layer in layers.items():
        for value in layer.weights:
            held = None if value is None else value.data if value.stored is None else value.stored.values()
            if held is not None:
                made.update(f"{name}\0{held.dtype.name}{held.shape}\0".encode())
                made.update(np.ascontiguousarray(held).data)
    return made.hexdigest()
