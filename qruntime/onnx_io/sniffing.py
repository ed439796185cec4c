"""Telling what a file is that is not an ONNX model."""

from __future__ import annotations

_MAGIC = (
    (0, b"PK\x03\x04", "a zip archive (a PyTorch checkpoint, perhaps); export it with torch.onnx.export"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
    (0, b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (0, b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (0, b"GGUF", "a GGUF file; llama.cpp opens those"),
    (0, b"\x89HDF", "an HDF5 (Keras) file; convert it with tf2onnx"),
    (0, b"\x93NUMPY", "a numpy array"),
    (4, b"TFL3", "a TensorFlow Lite model; convert it with tf2onnx"),
    (4, b"ORTM", "an ORT-format model; convert the .onnx file it was made from"),
    (8, b'{"', "a safetensors file, weights without a graph; export the model that uses them"),
)


def explain(data: memoryview) -> str:
    """What the bytes look like and what to do, "" when nothing is recognised."""
    if len(data) == 0:
        return "it is empty; was the download interrupted?"
    head = bytes(data[:64])
    for offset, magic, what in _MAGIC:
        if head[offset:].startswith(magic):
            return f"it looks like {what}"
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page (a failed download?); download the raw file"
    if start.startswith((b"{", b"[")):
        return "it is JSON text; name the .onnx file"
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "it looks like a Python pickle, which is never loaded here; export it with torch.onnx.export"
    return ""
