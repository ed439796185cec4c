"""What each method of quantization costs and saves on a language model: the table of docs/methods.md.

    python benchmarks/methods.py model.onnx tokenizer.json calibration.txt test.txt
    python benchmarks/methods.py … --rows GPTQ:W3A16-g64 AWQ:W3A16-g64 RTN:W3A16-g64 GPTQ+QuantEase:W3A16 --windows 8

The model takes ids [b, s] and caches, which start empty, and gives logits. A row is a recipe, or several joined by "+", and a
scheme. Each is quantized in a process of its own, on windows of the calibration text; the loss is nats per token on windows of
the test text, ± is the standard error of its difference to float, window by window. Needs tokenizers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import emit

import qruntime

WINDOW = 512

ROWS = [
    "RTN:W8A8", "RTN:W3A16", "GPTQ:W3A16", "RTN:W3A16-g64", "GPTQ:W3A16-g64", "AWQ:W3A16-g64", "SpQR:W3A16-g16-bilevel",
    "QuantEase:W3A16", "GPTQ+QuantEase:W3A16", "ZeroQuant:W8A8", "ZeroQuant-V2:W3A16", "RTN:W4A16-g64-sym", "RTN:Wfp4A16-g64",
    "RTN:Wnf4A16-g64", "MoFQ:W4A16", "RTN:W16A16-KV4", "RTN:W8A8-static", "SmoothQuant:W8A8-static", "RTN:W6A6-static",
    "Outlier Suppression+:W6A6-static", "FPTQ:W4A8-g128", "RPTQ:W4A4", "OliVe:Wovp4Aovp4", "ZeroQuant-FP:Wfp4Afp8-g256",
]  # fmt: skip

COLUMNS = {
    "recipe": "recipe", "scheme": "scheme", "bits": "bits a weight", "megabytes": "file, MB", "loss": "loss", "delta": "to float",
    "standard_error": "±", "seconds": "seconds", "peak_megabytes": "peak, MB",
}  # fmt: skip


def windows(tokenizer: str, text: str, count: int) -> np.ndarray:
    """[count, WINDOW] int64"""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(tokenizer).encode(Path(text).read_text(encoding="utf-8")).ids
    count = min(count, len(ids) // WINDOW)
    return np.array(ids[: count * WINDOW], np.int64).reshape(count, WINDOW)


def blank(model: qruntime.Model, ids: np.ndarray) -> dict[str, np.ndarray]:
    """`ids` [s] in a batch of one, after nothing: every other input is a cache of length 0, in floats or in codes."""
    feed = {}
    for declared in model.inputs:
        is_ids = declared.name == "ids"
        dims = [dim if isinstance(dim, int) else 1 if dim == "b" else 0 for dim in declared.shape]
        feed[declared.name] = ids[None] if is_ids else np.zeros(dims, declared.dtype)
    return feed


def losses(model: qruntime.Model, rows: np.ndarray) -> np.ndarray:
    """[windows] nats per token"""
    found = []
    for ids in rows:
        logits = model.run(blank(model, ids), ["logits"])["logits"][0, :-1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        found.append(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), ids[1:]]))
    return np.array(found)


def measure(given: argparse.Namespace, row: str) -> dict[str, Any]:
    recipe, _, scheme = row.partition(":")
    model = qruntime.load(given.model)
    test = windows(given.tokenizer, given.test, given.windows)
    base = losses(model, test)
    data = None
    if recipe != "RTN" or "static" in scheme:
        data = [blank(model, ids) for ids in windows(given.tokenizer, given.calibration, given.calibration_windows)]
    start = time.perf_counter()
    made = model.quantize(recipe.split("+") if "+" in recipe[:-1] else recipe, scheme=scheme or None, data=data)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "made.onnx")
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    difference = losses(made, test) - base
    layers = made.report.layers
    return {
        "recipe": recipe,
        "scheme": scheme,
        "bits": float(np.mean([layer.bits_per_weight for layer in layers])) if layers else None,
        "megabytes": size / 1e6,
        "loss": float(base.mean() + difference.mean()),
        "delta": float(difference.mean()),
        "standard_error": float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else None,
        "seconds": seconds,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("model", "tokenizer", "calibration", "test"):
        parser.add_argument(name)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="RECIPE:SCHEME")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--calibration-windows", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given, given.one)))
        return
    rows = []
    for row in given.rows:
        run = subprocess.run([sys.executable, *sys.argv, "--one", row], stdout=subprocess.PIPE, text=True, env=os.environ)
        if run.returncode:
            sys.exit(f"{row} failed")
        rows.append(json.loads(run.stdout.splitlines()[-1]))
    emit("methods", rows, COLUMNS, given.json)


if __name__ == "__main__":
    main()
