"""How far what is trained lies from what runs: a QuantizedModule and its `to_model()`, as a Markdown table. Needs torch.

    python benchmarks/convert_equivalence.py
    python benchmarks/convert_equivalence.py --sequences 256 --json

Differences are the largest of an output, relative to its largest number, over sequences (or images) that have no say in one
another. `evaluation`: the module in evaluation mode beside its model, saved and loaded again. `training`: the module in training
mode, where torch computes in floats what the kernels do in integers, beside the same model: what half of the sequences stay below,
and the largest. A number that lies between two codes may become the one here and the other there, by the last bit; from there on
such a sequence differs by a step.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from report import emit

import qruntime
from qruntime.quantization import QuantizedModule

ROOT = Path(__file__).resolve().parents[1]
SCHEMES = ("W8A8", "W4A8", "W4A16", "W8A8-static")
COLUMNS = {
    "model": "model", "scheme": "scheme", "layers": "layers", "evaluation": "evaluation", "half": "training, half below",
    "worst": "training, largest",
}  # fmt: skip
WIDTH, HEADS, LENGTH = 64, 4, 16

Feed = dict[str, np.ndarray]


class Case(NamedTuple):
    model: qruntime.Model
    feed: Feed
    axes: tuple[int, ...]
    """Along which axis of each output sequences lie."""


class Decoder(torch.nn.Module):
    """Two blocks of causal attention and a gated product, with norms before them; scores of 100 tokens."""

    def __init__(self) -> None:
        super().__init__()
        linear, norm = torch.nn.Linear, torch.nn.LayerNorm
        self.table, self.head = torch.nn.Embedding(100, WIDTH), linear(WIDTH, 100, bias=False)
        parts = {"q": WIDTH, "k": WIDTH, "v": WIDTH, "o": WIDTH, "gate": 3 * WIDTH, "up": 3 * WIDTH}
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {name: linear(WIDTH, size, bias=False) for name, size in parts.items()}
                | {"down": linear(3 * WIDTH, WIDTH, bias=False), "norm1": norm(WIDTH), "norm2": norm(WIDTH)}
            )
            for _ in range(2)
        )

    def forward(self, ids: Any) -> Any:
        x = self.table(ids)
        future = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)
        for block in self.blocks:
            y = block["norm1"](x)
            q, k, v = (block[name](y).reshape(*y.shape[:2], HEADS, -1).transpose(1, 2) for name in ("q", "k", "v"))
            y = (q @ k.transpose(2, 3) / (WIDTH / HEADS) ** 0.5 + future).softmax(-1) @ v
            x = x + block["o"](y.transpose(1, 2).reshape(x.shape))
            y = block["norm2"](x)
            x = x + block["down"](torch.nn.functional.silu(block["gate"](y)) * block["up"](y))
        return self.head(x)


def exported(module: torch.nn.Module, given: torch.Tensor) -> qruntime.Model:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}}}
        torch.onnx.export(module.eval(), (given,), file, dynamo=False, opset_version=17, **names)
    return qruntime.load(file.getvalue(), threads=1)


def encoder(count: int) -> Case:
    layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True, activation="gelu")
    x = torch.randn(count, LENGTH, WIDTH)
    return Case(exported(torch.nn.TransformerEncoder(layer, 2), x), {"x": x.numpy()}, (0,))


def decoder(count: int) -> Case:
    ids = torch.randint(0, 100, (count, LENGTH))
    return Case(exported(Decoder(), ids), {"x": ids.numpy()}, (0,))


def lstm(count: int) -> Case:
    """The language model of examples/shakespeare."""
    state = np.zeros((2, count, 288), np.float32)
    feed = {"ids": np.random.default_rng(0).integers(0, 65, (LENGTH, count)), "h": state, "c": state}
    return Case(qruntime.load(ROOT / "examples/shakespeare/shakespeare.onnx", threads=1), feed, (1, 1, 1))


def cnn(count: int) -> Case:
    """The network of examples/digits."""
    pictures = np.random.default_rng(0).random((count, 1, 14, 14), dtype=np.float32)
    return Case(qruntime.load(ROOT / "examples/digits/digits.onnx", threads=1), {"pictures": pictures}, (0,))


CASES: dict[str, Callable[[int], Case]] = {"encoder": encoder, "decoder": decoder, "LSTM": lstm, "CNN": cnn}


def apart(made: list[np.ndarray], expected: list[np.ndarray], axes: tuple[int, ...]) -> np.ndarray:
    """The largest relative difference in each sequence."""
    each = []
    for one, other, axis in zip(made, expected, axes, strict=True):
        difference = np.moveaxis(np.abs(one - other), axis, 0)
        each.append(difference.reshape(len(difference), -1).max(1) / np.abs(other).max())
    return np.max(each, axis=0)


def compared(name: str, scheme: str, count: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, feed, axes = CASES[name](count)
    overrides = {"Conv": {"W4A8": "W8A8", "W8A8-static": "W8A8"}.get(scheme, scheme)} if name == "CNN" else {}
    module = QuantizedModule(model, scheme, overrides=overrides)

    def outputs() -> list[np.ndarray]:
        with torch.no_grad():
            return [one.numpy() for one in module.outputs(feed).values()]

    outputs()  # static ranges are those of what was seen
    training = outputs()
    module.eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        module.to_model().save(path)
        loaded = qruntime.load(path, threads=1)
    expected = list(loaded.run(feed).values())
    differences = apart(training, expected, axes)
    return {
        "model": name,
        "scheme": scheme,
        "layers": len(loaded.report.layers),
        "evaluation": float(apart(outputs(), expected, axes).max()),
        "half": float(np.median(differences)),
        "worst": float(differences.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [compared(name, scheme, options.sequences) for name in CASES for scheme in SCHEMES]
    emit("convert equivalence", rows, COLUMNS, options.json)


if __name__ == "__main__":
    main()
