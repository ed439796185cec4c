#!/usr/bin/env python3
"""Quantize a decoder to 4 and to 3 bits, keep its cache in 4, see what that costs, and let it write on one thread.

    python examples/language_model/generate.py FOLDER --text calibration.txt --prompt "The lighthouse keeper"

FOLDER holds smollm2.onnx (inputs: ids [b, s] int64 and a cache; outputs: logits and the cache, longer by s) and
smollm2.tokenizer.json. --export SCRIPT runs `SCRIPT --out FOLDER` first where they are missing. The last tenth of the text is
kept for measuring. Needs tokenizers besides qruntime, and two minutes for the calibration.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a checkout

import qruntime
from qruntime.quantization import GPTQ, RTN

WINDOW = 512
MODELS = [
    ("float", None, None),
    ("int8", RTN(), "W8A8"),
    ("4 bits, cache in 4", GPTQ(mse=True), "W4A16-g64-KV4"),
    ("3 bits, cache in 4", GPTQ(mse=True), "W3A16-g64-KV4"),
]

Feed = dict[str, np.ndarray]


def blank(model: qruntime.Model, ids: np.ndarray) -> Feed:
    """`ids` [b, s] after nothing: every other input is a cache, which codes may be in, and its length 0."""
    feed = {}
    for declared in model.inputs:
        batch = [dim if isinstance(dim, int) else len(ids) if dim == "b" else 0 for dim in declared.shape]
        feed[declared.name] = ids if declared.name == "ids" else np.zeros(batch, declared.dtype)
    return feed


def following(model: qruntime.Model, results: Feed, ids: np.ndarray) -> Feed:
    """The next feed: outputs beside the logits are the caches, in the order of their inputs."""
    caches = [value for name, value in results.items() if name != "logits"]
    names = [declared.name for declared in model.inputs if declared.name != "ids"]
    return {"ids": ids, **dict(zip(names, caches, strict=True))}


def loss(model: qruntime.Model, windows: np.ndarray) -> float:
    """Nats per token."""
    losses = []
    for ids in windows:
        logits = model.run(blank(model, ids[None]), ["logits"])["logits"][0, :-1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        losses.append(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), ids[1:]]))
    return float(np.mean(losses))


def tokens(model: qruntime.Model, prompt: list[int], count: int) -> Iterator[int]:
    """The likeliest next token, `count` times."""
    feed = blank(model, np.array([prompt]))
    for _ in range(count):
        results = model.run(feed)
        token = int(results["logits"][0, -1].argmax())
        yield token
        feed = following(model, results, np.array([[token]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--export", type=Path, metavar="SCRIPT", help="writes the model into FOLDER where it is missing")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--prompt", default="The lighthouse keeper")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--windows", type=int, default=32, help="of 512 tokens, for calibration")
    given = parser.parse_args()
    if given.export and not (given.folder / "smollm2.onnx").exists():
        subprocess.run([sys.executable, given.export, "--out", given.folder], check=True)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(given.folder / "smollm2.tokenizer.json"))
    ids = np.array(tokenizer.encode(given.text.read_text(encoding="utf-8")).ids)
    windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    held_out = max(1, min(8, len(windows) // 10))
    prompt = tokenizer.encode(given.prompt).ids

    original = qruntime.load(given.folder / "smollm2.onnx")
    data = [blank(original, window[None]) for window in windows[: min(given.windows, len(windows) - held_out)]]
    for name, recipe, scheme in MODELS:
        path = given.folder / "smollm2.onnx"
        if recipe is not None:
            path = given.folder / f"smollm2.{scheme}.onnx"
            original.quantize(recipe, scheme=scheme, data=data if recipe.requires else None, progress=True).save(path)
        model = qruntime.load(path, threads=1)
        nats = loss(model, windows[-held_out:])
        start = time.perf_counter()
        written = list(tokens(model, prompt, given.tokens))
        seconds = (time.perf_counter() - start) / given.tokens
        megabytes = model.memory().packed / 1e6
        print(f"{name}: {nats:.3f} nats per token, {1 / seconds:.1f} tokens/s, {megabytes:.0f} MB of packed weights")
        print(f"  {given.prompt}{tokenizer.decode(written)}\n".replace("\n", "\n  ").rstrip(), end="\n\n")


if __name__ == "__main__":
    main()
