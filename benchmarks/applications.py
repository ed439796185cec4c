"""Applications made for ONNX Runtime on qruntime: the line that imports it is all that changes.

    pip install rapidocr-onnxruntime openwakeword==0.4.0 faster-whisper magika qruntime
    python benchmarks/applications.py [NAME …] [--int8]

Each is run twice, in a process of its own: as it is, and with `import qruntime as onnxruntime` in place of `import onnxruntime`
(an entry of sys.modules, so that no file of theirs is edited). Both must answer the same. With --int8 the second quantizes
every model on its way in.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from typing import Any

import numpy as np


def text_recognition() -> Any:
    """RapidOCR reads three lines that were drawn."""
    from PIL import Image, ImageDraw, ImageFont
    from rapidocr_onnxruntime import RapidOCR

    image = Image.new("RGB", (640, 200), "white")
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(("Quantized models on CPUs", "run batch invariant", "0123456789")):
        draw.text((20, 15 + 60 * i), line, fill="black", font=ImageFont.load_default(36))
    found, _ = RapidOCR()(np.asarray(image))
    return [text for _, text, _ in found or ()]


def wake_words() -> Any:
    """openWakeWord listens to four seconds of noise that grows: scores of its words."""
    import openwakeword

    noise = np.random.default_rng(0).standard_normal(64000) * np.linspace(10, 8000, 64000)
    model = openwakeword.Model()
    scores = [model.predict(part) for part in noise.astype(np.int16).reshape(-1, 1280)]
    return [{word: float(score) for word, score in one.items()} for one in scores]


def voice_activity() -> Any:
    """faster-whisper's detector (Silero) on tones between silences: where it hears speech."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    time_ = np.arange(16000 * 6) / 16000
    carrier = sum(np.sin(2 * np.pi * 120 * k * time_ + 2 * np.sin(2 * np.pi * 3 * time_)) / k for k in range(1, 25))
    voiced = carrier * (np.sin(2 * np.pi * 4 * time_) > 0) * ((time_ > 1.5) & (time_ < 4.5))
    return get_speech_timestamps((voiced * 0.1).astype(np.float32), VadOptions(threshold=0.3))


def file_types() -> Any:
    """Magika tells the languages of three snippets."""
    from magika import Magika

    snippets = (
        b"def f(x):\n    return [y for y in x]\n" * 8,
        b"#include <stdio.h>\nint main(void) { return 0; }\n" * 8,
        b'{"a": [1, 2, 3]}\n' * 20,
    )
    return [Magika().identify_bytes(text).output.label for text in snippets]


APPLICATIONS = {one.__name__: one for one in (text_recognition, wake_words, voice_activity, file_types)}


def answer(name: str, runtime: str) -> None:
    """Print what the application answers on `runtime`, as JSON."""
    if runtime != "onnxruntime":
        import qruntime

        sys.modules["onnxruntime"] = qruntime
        if runtime == "qruntime-int8":
            _quantize_on_the_way_in(qruntime)
    start = time.perf_counter()
    result = APPLICATIONS[name]()
    print(json.dumps({"answer": result, "seconds": time.perf_counter() - start}))


def _quantize_on_the_way_in(qruntime: Any) -> None:
    plain = qruntime.InferenceSession

    class Quantized(plain):  # type: ignore[misc, valid-type]
        def __init__(self, source: Any, *arguments: Any, **keywords: Any):
            super().__init__(qruntime.load(source).quantize_dynamic(), *arguments, **keywords)

    qruntime.InferenceSession = Quantized


def agree(a: Any, b: Any) -> bool:
    """Whether two answers are the same, numbers up to a hundredth (or 1e-5)."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(agree(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(agree, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=0.01, abs_tol=1e-5)
    return bool(a == b)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"which (default: all): {', '.join(APPLICATIONS)}")
    parser.add_argument("--int8", action="store_true", help="quantize what qruntime loads")
    parser.add_argument("--answer", nargs=2, metavar=("NAME", "RUNTIME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        answer(*arguments.answer)
        return 0
    differing = 0
    for name in arguments.names or APPLICATIONS:
        runs = {}
        for runtime in ("onnxruntime", "qruntime-int8" if arguments.int8 else "qruntime"):
            command = [sys.executable, __file__, "--answer", name, runtime]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name} on {runtime} fails:\n{done.stderr}")
                return 1
            runs[runtime] = json.loads(done.stdout.splitlines()[-1])
        theirs, ours = runs.values()
        same = agree(theirs["answer"], ours["answer"])
        differing += not same
        seconds = f"{theirs['seconds']:.2f} s, {ours['seconds']:.2f} s"
        print(f"{name:18} {'same' if same else 'DIFFERENT'}  {seconds}  {str(ours['answer'])[:100]}")
        if not same:
            print(f"  onnxruntime: {theirs['answer']}\n  qruntime:    {ours['answer']}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
