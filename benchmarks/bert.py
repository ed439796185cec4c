"""torch's tutorial on dynamic quantization of BERT, with torch and qruntime side by side, by size and latency.

    python benchmarks/bert.py [--threads 1] [--length 128] [--json]

BERT-base with random weights (transformers' default configuration); the tutorial published 438 → 181 MB and
160 → 90 s for an evaluation. Times are of one sequence, in turns. Needs torch, transformers and onnx.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import warnings
from typing import Any

import numpy as np
from report import emit
from turns import Contender, in_turns, serve, threads_environment

import qruntime

COLUMNS = {"model": "model", "mb": "MB", "ms": "ms a sequence", "speedup": "times as fast as torch float"}
KINDS = ("float", "int8", "int8, embeddings too")


def build() -> Any:
    import torch
    from transformers import BertConfig, BertModel

    class Encoder(torch.nn.Module):
        """ids, mask → last hidden states: transformers' own outputs do not trace."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(BertConfig(attn_implementation="eager"))

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.bert(input_ids=ids, attention_mask=mask).last_hidden_state

    torch.manual_seed(0)
    return Encoder().eval()


def torch_int8(model: Any) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def save(path: str, length: int) -> None:
    import torch

    inputs = torch.zeros(1, length, dtype=torch.long), torch.ones(1, length, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(build(), inputs, path, dynamo=False, input_names=["ids", "mask"], output_names=["hidden"])


def runner(which: str, path: str, threads: int, length: int) -> Any:
    feed = {"ids": np.random.default_rng(0).integers(0, 30000, (1, length)), "mask": np.ones((1, length), np.int64)}
    if which.startswith("torch"):
        import torch

        torch.set_num_threads(threads)
        model = torch_int8(build()) if which == "torch int8" else build()
        inputs = [torch.from_numpy(value) for value in feed.values()]

        def run() -> None:
            with torch.inference_mode():
                model(*inputs)

        return run
    ours = qruntime.load(path, threads=threads)
    return lambda: ours.run(feed)


def measure(options: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    import torch

    paths = {f"qruntime {kind}": os.path.join(folder, f"{i}.onnx") for i, kind in enumerate(KINDS)}
    save(paths["qruntime float"], options.length)
    int8 = qruntime.load(paths["qruntime float"]).quantize_dynamic()
    int8.save(paths["qruntime int8"])
    int8.quantize_dynamic({"Embedding"}, dtype="quint8").save(paths["qruntime int8, embeddings too"])
    sizes = {name: os.path.getsize(path) / 1e6 for name, path in paths.items()}
    for name, model in (("torch float", build()), ("torch int8", torch_int8(build()))):
        path = os.path.join(folder, "weights.pt")
        torch.save(model.state_dict(), path)
        sizes[name] = os.path.getsize(path) / 1e6
    contenders = {}
    for name in ("torch float", "torch int8", *paths):
        command = [sys.executable, __file__, "--worker", name, paths.get(name, "-")]
        command += ["--threads", str(options.threads), "--length", str(options.length)]
        contenders[name] = Contender(command, threads_environment(options.threads))
    times = in_turns(contenders, options.rounds, options.seconds)
    rows = []
    for name, found in times.items():
        speedups = [a / b for a, b in zip(times["torch float"], found, strict=True)]
        row = {"model": name, "threads": options.threads, "length": options.length, "mb": sizes[name]}
        rows.append({**row, "ms": statistics.median(found) * 1e3, "speedup": statistics.median(speedups)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--length", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(runner(*options.worker, options.threads, options.length))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, folder)
    emit("bert", rows, COLUMNS, options.json)


if __name__ == "__main__":
    main()
