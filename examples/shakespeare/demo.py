#!/usr/bin/env python3
"""Quantize a character-level LSTM, see what that costs and brings, and let it write.

    python examples/shakespeare/demo.py

Needs numpy and qruntime only, and about ten seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent.parent))  # so that it runs from a checkout

import qruntime  # noqa: E402

CHUNK = 512
TEMPERATURE = 0.7
LINES = 8

State = tuple[np.ndarray, np.ndarray]


def zero_state() -> State:
    return np.zeros((2, 1, 288), np.float32), np.zeros((2, 1, 288), np.float32)


def step(model: qruntime.Model, ids: np.ndarray, state: State) -> tuple[np.ndarray, State]:
    """Logits [time, 65] after each of `ids` [time], and the state behind the last."""
    h, c = state
    logits, h, c = model(ids[:, None], h, c)
    return logits[:, 0], (h, c)


def bits_per_character(model: qruntime.Model, ids: np.ndarray) -> float:
    """Mean of −log2 of the probability given to each next character, over one reading of the text."""
    state = zero_state()
    bits = 0.0
    for start in range(0, len(ids) - 1, CHUNK):
        seen, wanted = ids[start : start + CHUNK], ids[start + 1 : start + CHUNK + 1]
        logits, state = step(model, seen, state)
        logits = logits[: len(wanted)].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        log_probability = logits[np.arange(len(wanted)), wanted] - np.log(np.exp(logits).sum(axis=1))
        bits -= log_probability.sum() / np.log(2)
    return bits / (len(ids) - 1)


def latencies(models: list[qruntime.Model], ids: np.ndarray, runs: int) -> list[float]:
    """Median seconds of one run on `ids` for each model, measured in turns so that disturbances hit all alike."""
    times: list[list[float]] = [[] for _ in models]
    state = zero_state()
    for turn in range(runs + 3):
        for model, taken in zip(models, times, strict=True):
            start = time.perf_counter()
            step(model, ids, state)
            if turn >= 3:  # the first runs pack weights and warm caches
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def write(model: qruntime.Model, vocabulary: list[str], prompt: str) -> str:
    """Lines that the model makes up after `prompt`."""
    random = np.random.default_rng(1)
    ids = {character: i for i, character in enumerate(vocabulary)}
    logits, state = step(model, np.array([ids[c] for c in prompt]), zero_state())
    text = prompt
    while text.count("\n") < LINES and len(text) < 1000:
        weights = np.exp((logits[-1] - logits[-1].max()) / TEMPERATURE)
        chosen = int(random.choice(len(vocabulary), p=weights / weights.sum()))
        text += vocabulary[chosen]
        logits, state = step(model, np.array([chosen]), state)
    return text


def main() -> None:
    source = FOLDER / "shakespeare.onnx"
    model = qruntime.load(source, threads=1)
    vocabulary = json.loads(model.metadata["vocabulary"])
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "shakespeare.int8.onnx"
        model.quantize_dynamic().save(target)
        quantized = qruntime.load(target, threads=1)
        sizes = os.path.getsize(source), os.path.getsize(target)
        print(quantized)
        print()

        known = {character: i for i, character in enumerate(vocabulary)}
        text = (FOLDER / "held_out.txt").read_text(encoding="utf-8")
        ids = np.array([known[character] for character in text])
        models = [model, quantized]
        bits = [bits_per_character(one, ids) for one in models]
        character = latencies(models, ids[:1], 2000)
        chunk = latencies(models, ids[:128], 100)

        print(f"{'':30}{'float32':>12}{'int8':>12}")
        print(f"{'bits per character, held out':30}{bits[0]:12.4f}{bits[1]:12.4f}   {bits[1] - bits[0]:+.4f}")
        rows = (
            ("file, MB", [size / 1e6 for size in sizes], "smaller"),
            ("one character, µs", [seconds * 1e6 for seconds in character], "faster"),
            ("128 characters, ms", [seconds * 1e3 for seconds in chunk], "faster"),
        )
        for name, (before, after), word in rows:
            print(f"{name:30}{before:12.2f}{after:12.2f}   {before / after:.2f}× {word}")
        print(f"(one thread, {qruntime.isa()}, {len(text):,} characters)")
        print()
        print(write(quantized, vocabulary, "PROSPERO:\n").rstrip())


if __name__ == "__main__":
    main()
