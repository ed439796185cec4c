"""Memory of mapped weights: given back once a kernel has packed them, never taken from others."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

import qruntime
from qruntime import _kernels
from qruntime.onnx_io.external_data import map_file
from qruntime.onnx_io.mapped_file import drop_pages, mapped_ranges
from tests.small_models import linear_bytes

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


def test_neighbours_are_one_range(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(SIZE))
    data = map_file(path)
    spans = [(0, 10_000), (10_100, 30_000), (100_000, 200_000), (300_000, 300_010)]
    tensors = [np.frombuffer(data[start:stop], np.uint8) for start, stop in reversed(spans)]
    found = mapped_ranges([*tensors, np.zeros(SIZE)])
    assert [(part.start, part.stop) for part in found] == [(0, 30_000), (100_000, 200_000)]  # the last is no page
    base = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    assert [part.address - base for part in found] == [0, 100_000]


@needs_smaps
def test_pages_are_fetched_in_the_background(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(SIZE))
    tensor = np.frombuffer(map_file(path)[5000:-5000], np.uint8)
    (part,) = mapped_ranges([tensor])
    with _kernels.PageFetch([(part.address, part.stop - part.start)]):
        pass
    assert resident(path) in (0, *range(tensor.nbytes, SIZE + 1))  # Linux before 5.14 leaves them to page faults


@pytest.mark.parametrize("ranges", [[], [(mmap.PAGESIZE, 100)], [(2**63, 2**62), (0, 0)]], ids=str)
def test_nothing_happens_where_nothing_is_mapped(ranges):
    with _kernels.PageFetch(ranges):
        pass
    with pytest.raises(RuntimeError, match="left"), _kernels.PageFetch(ranges):
        raise RuntimeError("the context is left by an error")


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
