"""Hashes of what models compute, float and under every preset, before and after a change that must not change a bit.

usage: output_hashes.py MODEL … > before.txt;  (change the package);  output_hashes.py MODEL … | diff before.txt -

Inputs are drawn from a fixed seed; symbolic dimensions take small sizes. Each quantized model is also saved, loaded and
run again, and the line says so when that does not give the same bits.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import qruntime

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "one scale": {"per_channel": False},
    "per channel": {"per_channel": True},
    "per tensor": {"activation": "per_tensor"},
    "convolutions": {"qconfig_spec": {"Conv", "Linear", "LSTM", "GRU", "RNN"}},
    "float16": {"dtype": "float16"},
    "embeddings": {"dtype": "quint8"},
    "embeddings in 4 bits": {"dtype": "quint4x2"},
    "fbgemm": {"engine": "fbgemm"},
    "qnnpack": {"engine": "qnnpack"},
    "onnxruntime": {"engine": "onnxruntime"},
}

SIZES = {"batch": 2, "b": 2, "n": 2, "past": 5}
"""Of symbolic dimensions; others take 7."""


def feed_for(model: qruntime.Model, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feed = {}
    for info in model.inputs:
        shape = [d if isinstance(d, int) else SIZES.get(str(d).lower(), 7) for d in info.shape or ()]
        if "mask" in info.name:
            feed[info.name] = np.ones(shape, info.dtype)
        elif "int" in info.dtype:
            feed[info.name] = rng.integers(0, 50, shape).astype(info.dtype)
        else:
            feed[info.name] = (rng.standard_normal(shape) * 0.5).astype(info.dtype)
    return feed


def digest(outputs: dict[str, Any]) -> str:
    hashed = hashlib.sha256()
    for name in sorted(outputs):
        hashed.update(np.ascontiguousarray(outputs[name]).tobytes())
    return hashed.hexdigest()[:16]


def lines(path: str) -> list[str]:
    model = qruntime.load(path, threads=1)
    feed = feed_for(model)
    found = [f"{Path(path).name}: float {digest(model.run(feed))}"]
    for name, arguments in PRESETS.items():
        try:
            quantized = model.quantize_dynamic(**arguments)
            made = digest(quantized.run(feed))
            with tempfile.TemporaryDirectory() as folder:
                quantized.save(f"{folder}/model.onnx")
                again = digest(qruntime.load(f"{folder}/model.onnx", threads=1).run(feed))
        except qruntime.QRuntimeError as error:
            made = again = f"{type(error).__name__}: {str(error)[:100]}"
        found.append(f"{Path(path).name}: {name} {made}{'' if made == again else f', loaded again {again}'}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    warnings.simplefilter("ignore")
    for path in parser.parse_args().models:
        print(*lines(path), sep="\n", flush=True)


if __name__ == "__main__":
    main()
