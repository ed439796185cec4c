"""Reading and writing ONNX files."""

from qruntime.onnx_io.exporter import save_graph, serialize
from qruntime.onnx_io.graph_builder import Limits
from qruntime.onnx_io.importer import load_graph

__all__ = ["Limits", "load_graph", "save_graph", "serialize"]
