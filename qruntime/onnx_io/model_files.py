"""Which files a model consists of, and how large they are together."""

from __future__ import annotations

import os
from collections.abc import Iterator

from qruntime.onnx_io import tensors, wire
from qruntime.onnx_io.external_data import ExternalData, map_file
from qruntime.onnx_io.messages import ModelProto, TensorProto
from qruntime.onnx_io.wire import Message


def model_files(path: str | os.PathLike[str]) -> list[str]:
    """The model file and the files that its tensors lie in, links resolved, each once.

    Raises InvalidModel for what is no model or refers to files that it may not read, OSError when it cannot be read.
    """
    external = ExternalData.beside(path)
    found = {os.path.realpath(path): None}
    for tensor in _tensors(wire.parse(ModelProto, map_file(path))):
        if tensor.data_location == tensors.EXTERNAL:
            found[external.find(tensor)] = None
    return list(found)


def size_on_disk(path: str | os.PathLike[str]) -> int:
    """Bytes of all files of a model. Raises as `model_files` does."""
    return sum(map(os.path.getsize, model_files(path)))


def _tensors(model: Message) -> Iterator[TensorProto]:
    """Every tensor of a model: initializers, attributes, those of subgraphs and functions, parts of sparse ones."""
    pending = [model]
    while pending:
        for value in vars(pending.pop()).values():
            for message in value if type(value) is list else (value,):
                if isinstance(message, TensorProto):
                    yield message
                elif isinstance(message, Message):
                    pending.append(message)
