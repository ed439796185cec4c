"""Two bits a weight: what rounding loses, and what training at these bits wins back.

    python examples/digits/qat.py

Takes digits.onnx, a small convolutional network, and drawn digits (digits.py). Convolutions get weights of 2 bits, linear layers
weights of 2 and activations of 8 (W2A8): rounded to nearest, by GPTQ, and by quantization-aware training, with step sizes of weights
from their range and with learned ones (LSQ). What is best is saved, and a process without torch runs it. A minute or two on
two cores; the training needs torch (pip install 'qruntime[train]').
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parents[1])]  # so that it runs from a checkout

from digits import digits  # noqa: E402

import qruntime  # noqa: E402

SCHEME, OVERRIDES = "W2A8", {"Conv": "W2A16"}
"""Of linear layers, and of convolutions, whose activations are quantized with 8-bit weights alone."""
BATCH = 64


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    """Pictures to train on, with their labels beside them."""
    pictures, labels = digits(count, seed=0)
    return [{"pictures": pictures[i : i + BATCH], "labels": labels[i : i + BATCH]} for i in range(0, count, BATCH)]


def cross_entropy(outputs: Mapping[str, Any], feed: Mapping[str, Any]) -> Any:
    """What training makes less: `outputs` are those of the model, tensors by name; `feed` is the feed with all that it holds."""
    import torch

    return torch.nn.functional.cross_entropy(outputs["scores"], feed["labels"])


@functools.cache
def held_out() -> tuple[np.ndarray, np.ndarray]:
    """2,000 digits, none of them among those of training."""
    return digits(2000, seed=1)


def accuracy(model: qruntime.Model) -> float:
    """Share of them that get their highest score right."""
    pictures, labels = held_out()
    return float(np.mean(model(pictures).argmax(1) == labels))


def trained(model: qruntime.Model, data: Sequence[Mapping[str, np.ndarray]], steps: str, epochs: int) -> qruntime.Model:
    return model.quantize(
        "QAT", scheme=SCHEME, overrides=OVERRIDES, data=data, loss=cross_entropy, steps=steps, epochs=epochs, lr=3e-3, seed=0, progress=True
    )


def run_without_torch(path: Path) -> str:
    """What this script says of a saved model in a process of its own."""
    return subprocess.run([sys.executable, __file__, "--run", path], check=True, capture_output=True, text=True).stdout.strip()


def compare(pictures: int, epochs: int) -> dict[str, float]:
    """Accuracy of each model; what is best of 2 bits goes through a file."""
    source = FOLDER / "digits.onnx"
    model, data = qruntime.load(source, threads=1), feeds(pictures)
    inputs = [{"pictures": feed["pictures"]} for feed in data]
    made = {
        "float": model,
        "int8, dynamic": model.quantize_dynamic({"Conv", "Linear"}),
        "2 bits, rounded to nearest": model.quantize(scheme=SCHEME, overrides=OVERRIDES),
        "2 bits, GPTQ": model.quantize("GPTQ", scheme=SCHEME, overrides=OVERRIDES, data=inputs),
        "2 bits, QAT": trained(model, data, "minmax", epochs),
        "2 bits, QAT with learned steps": trained(model, data, "lsq", epochs),
    }
    found = {}
    for name, one in made.items():
        found[name] = accuracy(one)
        print(f"{name:32}{found[name]:7.1%}")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "digits.w2a8.onnx"
        made["2 bits, QAT with learned steps"].save(target)
        print(f"\n{os.path.getsize(source) / 1e3:.1f} kB → {os.path.getsize(target) / 1e3:.1f} kB; loaded by another process:")
        print(run_without_torch(target))
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=6016, help="to train on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="passes over them (default: %(default)s)")
    parser.add_argument("--run", type=Path, metavar="MODEL", help="say how many digits a saved model gets right, and nothing else")
    given = parser.parse_args(arguments)
    if given.run is None:
        return compare(given.pictures, given.epochs)
    right = accuracy(qruntime.load(given.run))
    print(f"{right:.1%} right, {'with' if 'torch' in sys.modules else 'without'} torch")
    return {"loaded": right}


if __name__ == "__main__":
    main()
