"""A model that has read Shakespeare learns another text beside its codes, twice: by PEQA and by QLoRA.

    python examples/shakespeare/finetune.py
    python examples/shakespeare/finetune.py --text yours.txt

The text is this project's documentation, as it stands in docs/, or yours; its last tenth is held out. The model is quantized,
taught, and what it learned written to a small file; the codes stay as they are, bit for bit, and without the adapter the model is the
one from before. PEQA trains the scales of 4-bit codes in groups of 32, those of both LSTM layers among them; QLoRA trains a
branch of rank 16 beside the linear layer, for recurrent ones have none, over NF4. A few minutes on two cores; the training needs torch
(pip install 'qruntime[train]').
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from a checkout

import qruntime  # noqa: E402

TIME, BATCH, UNITS = 64, 8, 288
METHODS = {"PEQA": "W4A16-g32", "QLoRA": "Wnf4A16-g64-double"}
RATE = 3e-2

Feed = dict[str, np.ndarray]


def feeds(ids: np.ndarray) -> list[Feed]:
    """Pieces of a text, BATCH in each feed, from a zero state; "next" is what the model should say."""
    pieces = ids[: len(ids) // (TIME + 1) * (TIME + 1)].reshape(-1, TIME + 1)
    state = np.zeros((2, BATCH, UNITS), np.float32)
    groups = [pieces[i : i + BATCH].T for i in range(0, len(pieces) - BATCH + 1, BATCH)]
    return [{"ids": group[:-1].copy(), "h": state, "c": state, "next": group[1:].copy()} for group in groups]


def cross_entropy(outputs: Mapping[str, Any], feed: Mapping[str, Any]) -> Any:
    """What training makes less. "next_token" is for models of ids [batch, time]; this one takes [time, batch]."""
    import torch

    return torch.nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), feed["next"].flatten())


def bits_per_character(model: qruntime.Model, data: Sequence[Feed]) -> float:
    bits = []
    for feed in data:
        logits = model.run({name: feed[name] for name in ("ids", "h", "c")}, ["logits"])["logits"].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        bits.append(-np.take_along_axis(logits, feed["next"][..., None], -1).mean() / np.log(2))
    return float(np.mean(bits))


def digest(model: qruntime.Model, path: Path) -> str:
    """Of the whole model, as a file has it."""
    model.save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def teach(method: str, model: qruntime.Model, data: Sequence[Feed], held_out: Sequence[Feed], steps: int, folder: Path) -> dict[str, float]:
    """Bits per character of the quantized model, with what it learned, and without again; bytes of the adapter."""
    base = model.quantize(scheme=METHODS[method])
    before, unchanged = bits_per_character(base, held_out), digest(base, folder / "base.onnx")
    file = folder / f"{method}.npz"
    base.finetune(method, data, loss=cross_entropy, steps=steps, lr=RATE, progress=True).save_adapter(file)

    base = qruntime.load(folder / "base.onnx", threads=1)  # from here on nothing needs torch
    base.load_adapter(file)
    learned, adapter = bits_per_character(base, held_out), str(base.adapter)
    base.unload_adapter()
    after = bits_per_character(base, held_out)
    assert digest(base, folder / "again.onnx") == unchanged, "the codes changed"
    print(f"{adapter}, {os.path.getsize(file):,} bytes beside {os.path.getsize(folder / 'base.onnx'):,} of the model")
    print(f"  {before:.3f} bits per character → {learned:.3f} with the adapter; {after:.3f} and the same file without it")
    return {"before": before, "learned": learned, "after": after, "bytes": os.path.getsize(file)}


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", default=sorted((ROOT / "docs").glob("*.md")), help="files to learn from")
    parser.add_argument("--steps", type=int, default=100, help=f"of {BATCH} pieces of {TIME} characters (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    given = parser.parse_args(arguments)

    model = qruntime.load(FOLDER / "shakespeare.onnx", threads=1)
    known = {character: i for i, character in enumerate(json.loads(model.metadata["vocabulary"]))}
    text = "".join(path.read_text(encoding="utf-8") for path in given.text)
    ids = np.array([known[character] for character in text if character in known])  # what is no letter to Shakespeare is left out
    cut = len(ids) * 9 // 10
    data, held_out = feeds(ids[:cut]), feeds(ids[cut:])
    print(f"float: {bits_per_character(model, held_out):.3f} bits per character on the last tenth of {len(ids):,} characters")
    with tempfile.TemporaryDirectory() as folder:
        return {method: teach(method, model, data, held_out, given.steps, Path(folder)) for method in given.methods}


if __name__ == "__main__":
    main()
