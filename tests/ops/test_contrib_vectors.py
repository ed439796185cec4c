"""Operators of ONNX Runtime against what it computed for them.

contrib_vectors.npz was written by `python benchmarks/parity_contrib.py --record tests/ops/contrib_vectors.npz` with
ONNX Runtime 1.32: models of one node by operator and number, whose initializers also hold what to feed, what came out (y0 …)
and which elements of that have a meaning (meant0 …).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import qruntime

VECTORS = np.load(Path(__file__).with_name("contrib_vectors.npz"))


def compared(name: str, found: np.ndarray, expected: np.ndarray, meant: np.ndarray | None, tolerance: float, codes: int) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
    if found.dtype.kind == "O":
        assert found.tolist() == expected.tolist(), name
        return
    if meant is not None:
        found, expected = found[meant], expected[meant]
    allowed = (tolerance, tolerance) if found.dtype.kind == "f" else (0, codes)
    np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=allowed[0], atol=allowed[1], err_msg=name)


@pytest.mark.parametrize("key", VECTORS.files)
def test_as_onnxruntime_computes_it(key):
    proto = ModelProto.FromString(VECTORS[key].tobytes())
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    feed = {value.name: arrays[value.name] for value in proto.graph.input}
    outputs = [value.name for value in proto.graph.output]
    for tensor in [t for t in proto.graph.initializer if t.name in feed or t.name.startswith(("y", "meant"))]:
        proto.graph.initializer.remove(tensor)
    limits = {entry.key: float(entry.value) for entry in proto.metadata_props}
    found = qruntime.load(proto.SerializeToString(), threads=1).run(feed)
    for name in outputs:
        compared(name, found[name], arrays[name], arrays.get(f"meant{name[1:]}"), limits["tolerance"], int(limits["codes"]))
