"""A model as a file: what its graph is there, its bytes, and whether a file is still the one that was read."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qruntime import _kernels
from qruntime.ir import Graph, ModelInfo

if TYPE_CHECKING:
    from qruntime.onnx_io.messages import FunctionProto


@contextlib.contextmanager
def portable(declared: Graph) -> Iterator[tuple[Graph, list[FunctionProto]]]:
    """The graph as files hold it, and the functions it calls. Codes that kernels alone have are in memory meanwhile."""
    from qruntime.passes import stored

    graph, functions = stored.portable(declared)
    try:
        yield graph, functions
    finally:
        if graph is not declared:
            for value in (*graph.constants(), *graph.stored_constants()):  # graphs are cycles: they go when the collector comes
                value.data = value.stored = None
            _kernels.trim_memory()


def serialized(declared: Graph, info: ModelInfo) -> bytes:
    """The bytes of a file that holds the graph and its weights."""
    from qruntime.onnx_io import exporter

    with portable(declared) as (graph, functions):
        return exporter.serialize(graph, info, functions=functions)


def identity(path: str) -> tuple[int, ...] | None:
    """What changes when the file does; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def digest(path: str) -> str:
    """SHA-256 of the bytes of a file."""
    import hashlib

    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return hashlib.sha256(data).hexdigest()
