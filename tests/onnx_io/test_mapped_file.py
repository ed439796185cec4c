"""Memory of mapped weights: given back once a kernel has packed them, never taken from others."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest
from onnx import helper

import qruntime
from qruntime.onnx_io.external_data import map_file
from qruntime.onnx_io.mapped_file import drop_pages
from tests.small_models import FLOAT, linear_bytes, model_bytes, random

SIZE = 1 << 20


def resident(path) -> int:
    """Bytes of the mapped file that are in memory of this process."""
    with open("/proc/self/smaps") as smaps:
        lines = iter(smaps.readlines())
    total = 0
    for line in lines:
        if line.rstrip().endswith(str(path)):
            total += next(int(entry.split()[1]) for entry in lines if entry.startswith("Rss:"))
    return total * 1024


needs_smaps = pytest.mark.skipif(sys.platform != "linux", reason="counts pages in /proc/self/smaps")


@needs_smaps
def test_dropped_tensors_leave_memory_and_come_back(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(np.arange(SIZE, dtype=np.uint8).tobytes())
    data = map_file(path)
    tensor = np.frombuffer(data[100 : SIZE // 2], np.uint8)
    rest = np.frombuffer(data[SIZE // 2 :], np.uint8)
    tensor.sum(), rest.sum()
    before = resident(path)
    assert before >= SIZE
    drop_pages([tensor.reshape(-1, 1)[::2].T])
    assert before - resident(path) >= SIZE // 2 - 2 * mmap.PAGESIZE
    assert resident(path) >= rest.nbytes - mmap.PAGESIZE
    assert np.array_equal(tensor, np.arange(100, SIZE // 2, dtype=np.uint64).astype(np.uint8))


@needs_smaps
def test_packed_weights_leave_memory(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(linear_bytes(512, 1024))
    model = qruntime.load(path)
    (weight,) = (v.data for v in model.graph.constants() if v.data.ndim == 2)
    weight.sum()
    before = resident(path)
    model.run({"x": np.ones((1, 512), np.float32)})
    assert before - resident(path) >= weight.nbytes - 2 * mmap.PAGESIZE


def test_memory_of_the_caller_keeps_its_contents():
    data = linear_bytes(512, 1024)
    anonymous = mmap.mmap(-1, len(data))
    anonymous.write(data)
    model = qruntime.load(memoryview(anonymous))
    model.run({"x": np.ones((1, 512), np.float32)})
    assert anonymous[:] == data


@needs_smaps
def test_quantized_weights_leave_memory(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(linear_bytes(512, 1024))
    qruntime.load(path).quantize_dynamic()  # reads all modules that are needed
    model = qruntime.load(path)
    (weight,) = (v.data for v in model.graph.constants() if v.data.ndim == 2)
    weight.sum()
    before = resident(path)
    model.quantize_dynamic()
    assert before - resident(path) >= weight.nbytes - 2 * mmap.PAGESIZE


@needs_smaps
def test_weights_are_not_held_while_data_go_through(tmp_path):
    """They were looked at before, to see that they are finite."""
    path = tmp_path / "model.onnx"
    nodes = [helper.make_node("MatMul", ["x", "first"], ["h"]), helper.make_node("MatMul", ["h", "second"], ["g"])]
    nodes.append(helper.make_node("ReduceSum", ["g"], ["y"]))
    weights = {"first": random(64, 512), "second": random(512, 4096, seed=1)}
    path.write_bytes(model_bytes(nodes, [("x", FLOAT, ["n", 64])], [("y", FLOAT, None)], weights))
    seen: list[int] = []
    data = [{"x": random(600, 64)}]
    qruntime.load(path).quantize("GPTQ", scheme="W4A16", data=data, progress=lambda done, total, what: seen.append(resident(path)))
    assert len(seen) == 2
    assert seen[0] < weights["second"].nbytes // 2
