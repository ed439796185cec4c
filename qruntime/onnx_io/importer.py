"""ONNX files → `Graph`: where the bytes come from, and what the file says beside its graph."""

from __future__ import annotations

import importlib
import os
from typing import Any, BinaryIO

from qruntime.errors import InputError, InvalidModel, UnsupportedModel
from qruntime.ir import Graph, ModelInfo
from qruntime.onnx_io import wire
from qruntime.onnx_io.external_data import ExternalData, map_file
from qruntime.onnx_io.graph_builder import GraphBuilder, Limits
from qruntime.onnx_io.messages import MAX_IR_VERSION, ModelProto
from qruntime.onnx_io.sniffing import explain

Source = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | Any


def load_graph(
    source: Source,
    *,
    external_data_dir: str | os.PathLike | None = None,
    limits: Limits = Limits(),  # noqa: B008
) -> tuple[Graph, ModelInfo]:
    """Read an ONNX model from a path, bytes, a binary file, an `onnx.ModelProto` or an `onnx_ir.Model`.

    Large tensors are read-only views of the (mapped) file and may be unaligned: see `tensors.decode`. External
    data is looked for beside the model, or only in `external_data_dir` when that is given. Raises InvalidModel
    when the bytes or the graph break the format, UnsupportedModel when they only go beyond what is supported,
    FileNotFoundError and PermissionError for the path.
    """
    data, path = _open(source)
    if external_data_dir is not None:
        external = ExternalData([external_data_dir])
    else:
        external = ExternalData.beside(path) if path is not None else ExternalData()
    where = repr(os.fspath(path)) if path is not None else "the model"
    try:
        model = wire.parse(ModelProto, data)
        if model.graph is None:
            raise InvalidModel("there is no graph in it")
    except InvalidModel as error:
        raise InvalidModel(f"{where} is not an ONNX model: {explain(data) or error}") from error
    try:
        info = _model_info(model)
        graph, opsets = GraphBuilder(model, external, limits).build()
    except (InvalidModel, UnsupportedModel) as error:
        raise type(error)(f"{where}: {error}") from error
    return graph, info._replace(opset_imports=opsets)


def _model_info(model: ModelProto) -> ModelInfo:
    if model.ir_version < 1:
        raise InvalidModel(f"ir_version is {model.ir_version}; a model without it is damaged or not ONNX")
    if model.ir_version > MAX_IR_VERSION:
        raise UnsupportedModel(f"ir_version {model.ir_version} is newer than {MAX_IR_VERSION}, the last one known")
    return ModelInfo(
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc=model.doc_string,
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _open(source: Source) -> tuple[memoryview, str | os.PathLike | None]:
    if isinstance(source, (str, os.PathLike)):
        return map_file(source), source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _byte_view(source), None
    if hasattr(source, "SerializeToString"):
        return memoryview(source.SerializeToString()), None
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InputError(f"the file object gives {type(data).__name__}; open it in binary mode")
        return _byte_view(data), None
    if type(source).__module__.partition(".")[0] == "onnx_ir":
        to_proto = importlib.import_module("onnx_ir").to_proto
        return memoryview(to_proto(source).SerializeToString()), None
    raise InputError(f"a model is a path, bytes, a binary file or an onnx.ModelProto, not {type(source).__name__}")


def _byte_view(data: bytes | bytearray | memoryview) -> memoryview:
    view = memoryview(data).toreadonly()
    if not view.c_contiguous:
        raise InputError("the memoryview of the model is not contiguous; pass bytes(view)")
    return view.cast("B") if view.nbytes else memoryview(b"")
