"""torch's tutorial on dynamic quantization, the word language model, with torch and qruntime side by side.

    python benchmarks/word_language_model.py [--threads 1] [--json]
    python benchmarks/word_language_model.py --text wikitext-2

Without --text: the model of the tutorial (vocabulary 33,278, embedding 512, five LSTM layers of 256) with random
weights, by size and by the time of one evaluation step (25 words, one sequence), in turns. The tutorial published
113.9 → 79.7 MB and 225.9 → 145.7 s for the whole test set.

With --text: a smaller model of the same form, trained here for a few minutes on `valid.txt` of that folder (the
training split of WikiText-2 is not needed) and evaluated on `test.txt`: loss per word in float, with torch's int8 and
with qruntime's. Words that `valid.txt` has not seen more than once are `<unk>`. The tutorial published 5.167 → 5.168.

Needs torch and onnx.
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from report import emit
from turns import Contender, in_turns, serve, threads_environment

import qruntime

TUTORIAL = {"words": 33278, "embedding": 512, "hidden": 256, "layers": 5}
STEPS = 25  # bptt of the tutorial's evaluation
COLUMNS = {"model": "model", "mb": "MB", "ms": "ms a step", "speedup": "times as fast as torch float", "loss": "loss"}


def build(words: int, embedding: int, hidden: int, layers: int) -> Any:
    """The tutorial's model: embedding, LSTM, linear decoder; (ids [T, B], (h, c)) → (scores [T, B, words], (h, c))."""
    import torch

    class WordLanguageModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = torch.nn.Dropout(0.3)
            self.encoder = torch.nn.Embedding(words, embedding)
            self.rnn = torch.nn.LSTM(embedding, hidden, layers, dropout=0.3 if layers > 1 else 0)
            self.decoder = torch.nn.Linear(hidden, words)

        def forward(self, ids: Any, h: Any, c: Any) -> Any:
            y, (h, c) = self.rnn(self.drop(self.encoder(ids)), (h, c))
            return self.decoder(self.drop(y)), h, c

    torch.manual_seed(0)
    model = WordLanguageModel()
    for weight in (model.encoder.weight, model.decoder.weight):
        torch.nn.init.uniform_(weight, -0.1, 0.1)
    torch.nn.init.zeros_(model.decoder.bias)
    return model


def torch_int8(model: Any) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.LSTM, torch.nn.Linear}, dtype=torch.qint8)


def export(model: Any, layers: int, hidden: int, path: str) -> None:
    import torch

    state = torch.zeros(layers, 1, hidden)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), (torch.zeros(STEPS, 1, dtype=torch.long), state, state), path, dynamo=False,
            input_names=["ids", "h", "c"], output_names=["scores", "hn", "cn"],
            dynamic_axes={"ids": {0: "time"}, "scores": {0: "time"}},
        )  # fmt: skip


def quantized(path: str, embeddings: bool) -> qruntime.Model:
    model = qruntime.load(path)
    if not embeddings:
        return model.quantize_dynamic()
    return model.quantize_dynamic().quantize_dynamic({"Embedding"}, dtype="quint8")


# -------------------------------------------------------------------------------------- size and speed


def runner(which: str, path: str, threads: int) -> Any:
    shape = (TUTORIAL["layers"], 1, TUTORIAL["hidden"])
    ids = np.random.default_rng(0).integers(0, TUTORIAL["words"], (STEPS, 1))
    if which.startswith("torch"):
        import torch

        torch.set_num_threads(threads)
        model = build(**TUTORIAL).eval()
        model = torch_int8(model) if which == "torch int8" else model
        inputs = torch.from_numpy(ids), torch.zeros(shape), torch.zeros(shape)

        def run() -> None:
            with torch.inference_mode():
                model(*inputs)

        return run
    ours = qruntime.load(path, threads=threads)
    feed = {"ids": ids, "h": np.zeros(shape, np.float32), "c": np.zeros(shape, np.float32)}
    return lambda: ours.run(feed)


def file_size(model: Any, path: str) -> float:
    import torch

    torch.save(model.state_dict(), path)
    return os.path.getsize(path) / 1e6


def size_and_speed(options: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    model = build(**TUTORIAL).eval()
    paths = {name: os.path.join(folder, name.replace(" ", "-") + ".onnx") for name in ("float", "int8", "int8, embedding too")}
    export(model, TUTORIAL["layers"], TUTORIAL["hidden"], paths["float"])
    quantized(paths["float"], False).save(paths["int8"])
    quantized(paths["float"], True).save(paths["int8, embedding too"])
    sizes = {f"qruntime {name}": os.path.getsize(path) / 1e6 for name, path in paths.items()}
    sizes["torch float"] = file_size(model, os.path.join(folder, "float.pt"))
    sizes["torch int8"] = file_size(torch_int8(model), os.path.join(folder, "int8.pt"))

    contenders = {}
    for name in ("torch float", "torch int8", *(f"qruntime {n}" for n in paths)):
        path = paths.get(name.removeprefix("qruntime "), paths["float"])
        command = [sys.executable, __file__, "--worker", name, path, "--threads", str(options.threads)]
        contenders[name] = Contender(command, threads_environment(options.threads))
    times = in_turns(contenders, options.rounds, options.seconds)
    rows = []
    for name, found in times.items():
        speedups = [a / b for a, b in zip(times["torch float"], found, strict=True)]
        rows.append(
            {"model": name, "threads": options.threads, "mb": sizes[name], "ms": statistics.median(found) * 1e3,
             "speedup": statistics.median(speedups)}
        )  # fmt: skip
    return rows


# ------------------------------------------------------------------------------------------------- loss


def read_words(folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Word numbers of both texts, by the vocabulary of the first."""
    texts = [(folder / f"{split}.txt").read_text("utf-8").replace("\n", " <eos> ").split() for split in ("valid", "test")]
    known = [word for word, count in collections.Counter(texts[0]).items() if count > 1 and word != "<unk>"]
    number = {word: i for i, word in enumerate(["<unk>", *known])}
    train, test = (np.array([number.get(word, 0) for word in text]) for text in texts)
    return train, test, len(number)


def train(model: Any, words: np.ndarray, shape: dict[str, int], minutes: float) -> None:
    import torch

    batch = 20
    data = torch.from_numpy(words[: len(words) // batch * batch]).reshape(batch, -1).t().contiguous()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    end, epoch = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        model.train()
        h = c = torch.zeros(shape["layers"], batch, shape["hidden"])
        total, count = 0.0, 0
        for i in range(0, len(data) - 1, 35):
            x, y = data[i : i + 35][: len(data) - 1 - i], data[i + 1 : i + 36]
            scores, h, c = model(x, h.detach(), c.detach())
            loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            total, count = total + loss.item() * y.numel(), count + y.numel()
            if time.monotonic() > end:
                break
        epoch += 1
        for group in optimizer.param_groups:
            group["lr"] *= 0.8
        print(f"epoch {epoch}: training loss {total / count:.3f}", file=sys.stderr)


def mean_loss(step: Any, words: np.ndarray, shape: dict[str, int]) -> float:
    """Cross entropy per word, in nats; `step(ids, h, c)` → (scores, h, c)."""
    h = c = np.zeros((shape["layers"], 1, shape["hidden"]), np.float32)
    total = 0.0
    for i in range(0, len(words) - 1, STEPS):
        ids, wanted = words[i : i + STEPS][: len(words) - 1 - i, None], words[i + 1 : i + 1 + STEPS]
        scores, h, c = step(ids, h, c)
        scores = scores[:, 0].astype(np.float64)
        top = scores.max(axis=1)
        log_sum = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
        total += float((log_sum - scores[np.arange(len(wanted)), wanted]).sum())
    return total / (len(words) - 1)


def torch_step(model: Any) -> Any:
    import torch

    def step(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            return tuple(y.numpy() for y in model(*map(torch.from_numpy, arrays)))

    return step


def loss(options: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    words, test, count = read_words(Path(options.text))
    shape = {"words": count, "embedding": 128, "hidden": 128, "layers": 2}
    model = build(**shape)
    train(model, words, shape, options.minutes)
    model.eval()
    path = os.path.join(folder, "trained.onnx")
    export(model, shape["layers"], shape["hidden"], path)
    models = {"qruntime float": qruntime.load(path), "qruntime int8": quantized(path, False),
              "qruntime int8, embedding too": quantized(path, True)}  # fmt: skip
    steps = {"torch float": torch_step(model), "torch int8": torch_step(torch_int8(model))}
    for name, ours in models.items():
        steps[name] = lambda ids, h, c, ours=ours: tuple(ours.run({"ids": ids, "h": h, "c": c}).values())
    rows = [{"model": name, "loss": mean_loss(step, test, shape)} for name, step in steps.items()]
    print(f"perplexity {math.exp(rows[0]['loss']):.1f} over {len(test)} words, vocabulary {count}", file=sys.stderr)
    return [{**row, "loss": f"{row['loss']:.4f}"} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", metavar="FOLDER", help="train and compare losses on valid.txt and test.txt of it")
    parser.add_argument("--minutes", type=float, default=4, help="of training (default: 4)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(runner(*options.worker, options.threads))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = loss(options, folder) if options.text else size_and_speed(options, folder)
    columns = {key: title for key, title in COLUMNS.items() if key in rows[0]}
    emit("word_language_model", rows, columns, options.json)


if __name__ == "__main__":
    main()
