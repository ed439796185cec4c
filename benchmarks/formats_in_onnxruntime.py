"""Every stored format through a file: onnx.checker accepts it, it loads to the same bits, ONNX Runtime computes the same.

usage: formats_in_onnxruntime.py MODEL … [--schemes W4A16-g128 …]

ONNX Runtime runs the file with float activations and without its optimizers, which compute some products in 8 bits of
their own. What it is compared with are the numbers that the codes decode to: of schemes with 8-bit activations that is the
scheme with A16. Exits 1 when a file is refused, does not come back to the bit, or differs by more than 1e-4 of the largest. That it has
no kernel for an element type, as for float4, is told.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
from output_hashes import feed_for

import qruntime

SCHEMES = [
    "W2A16-g64", "W3A16", "W3A16-g128", "W4A16-g32", "W4A16-g128", "W4A16-g128-sym", "W4A16-tensor", "W5A16", "W6A16-g64", "W7A16-g16",
    "W8A16", "W8A16-g32", "W8A16-asym", "Wnf4A16-g64", "Wfp4A16-g32", "Wfp8A16", "W16A16", "W4A8-g32", "W8A8", "Wfp4A8-g32",
]  # fmt: skip
TOLERANCE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    arguments = parser.parse_args()
    faults = 0
    for path in arguments.models:
        model = qruntime.load(path, threads=1)
        feed = feed_for(model)
        for scheme in arguments.schemes:
            fault, line = check(model, feed, scheme)
            faults += fault
            print(f"{Path(path).name:24} {scheme:16} {line}", flush=True)
    return int(faults > 0)


def check(model: qruntime.Model, feed: dict[str, np.ndarray], scheme: str) -> tuple[bool, str]:
    """Whether something is wrong, and what was found."""
    quantized = model.quantize(scheme=scheme)
    outputs = quantized.run(feed)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        quantized.save(path)
        size = Path(path).stat().st_size
        try:
            onnx.checker.check_model(path, full_check=True)
        except onnx.checker.ValidationError as error:
            return True, f"refused by onnx.checker: {error}"
        again = qruntime.load(path, threads=1).run(feed)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        theirs = None
        with contextlib.suppress(NoKernel):
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            theirs = dict(zip((o.name for o in session.get_outputs()), session.run(None, feed), strict=True))
    if any(not np.array_equal(again[name], outputs[name]) for name in outputs):
        return True, "does not come back to the bit"
    if theirs is None:
        return False, f"{size:12,} bytes, ONNX Runtime has no kernel for its element type"
    floats = model.quantize(scheme=scheme.replace("A8", "A16")).run(feed)
    apart = max(float(np.abs(theirs[name] - floats[name]).max() / max(np.abs(floats[name]).max(), 1e-30)) for name in floats)
    return apart > TOLERANCE, f"{size:12,} bytes, ONNX Runtime apart by {apart:.1e}"


if __name__ == "__main__":
    sys.exit(main())
