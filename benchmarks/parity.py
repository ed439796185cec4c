"""How close each engine comes to what it reproduces, on freshly drawn models, as a Markdown table. Needs torch 2.13.

    python benchmarks/parity.py > docs/torch_parity.md
    python benchmarks/parity.py --draws 100 --only GRU      another 100 models for each row that says GRU

For each case `--draws` models and inputs are drawn and exported to ONNX. A cell is the largest difference over them,
relative to the largest output: to the original (torch's quantize_dynamic, or ONNX Runtime's where that is installed), and
of the original and of ours (default arithmetic) to float.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from report import markdown

import qruntime

if importlib.util.find_spec("torch") is None:
    sys.exit("benchmarks/parity.py compares with torch, which is not installed: pip install torch")

import torch
from torch import nn
from torch.ao import quantization

COLUMNS = {
    "case": "case", "arithmetic": "arithmetic", "difference": "difference", "original_to_float": "original to float",
    "ours_to_float": "ours to float", "differing": "models beyond 5e-5",
}  # fmt: skip
LAYERS = (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
CODE = 5e-5  # what differs by more differs by a code

Drawn = tuple[nn.Module, tuple[torch.Tensor, ...]]


class Arithmetic(NamedTuple):
    """The same request to the original (of a model, its inputs and its ONNX file) and to qruntime; `default` is its own way."""

    original: Callable[[nn.Module, tuple[torch.Tensor, ...], bytes], list[np.ndarray]]
    options: dict[str, Any]
    default: dict[str, Any]


def torch_dynamic(engine: str, **options: Any) -> Callable[[nn.Module, tuple[torch.Tensor, ...], bytes], list[np.ndarray]]:
    def run(model: nn.Module, inputs: tuple[torch.Tensor, ...], data: bytes) -> list[np.ndarray]:
        torch.backends.quantized.engine = engine
        return as_arrays(quantization.quantize_dynamic(model, **options)(*inputs))

    return run


def onnxruntime_dynamic(model: nn.Module, inputs: tuple[torch.Tensor, ...], data: bytes) -> list[np.ndarray]:
    import logging

    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # the quantizer recommends a step that changes nothing here
    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(onnx.load_from_string(data), f"{folder}/int8.onnx", weight_type=QuantType.QInt8)
        session = onnxruntime.InferenceSession(f"{folder}/int8.onnx", providers=["CPUExecutionProvider"])
        return session.run(None, {f"x{i}": x.numpy() for i, x in enumerate(inputs)})


PER_CHANNEL = dict.fromkeys(LAYERS, quantization.per_channel_dynamic_qconfig)
ARITHMETIC = {
    "fbgemm": Arithmetic(torch_dynamic("fbgemm"), {"engine": "fbgemm"}, {}),
    "fbgemm, per channel": Arithmetic(
        torch_dynamic("fbgemm", qconfig_spec=PER_CHANNEL), {"engine": "fbgemm", "per_channel": True}, {"per_channel": True}
    ),
    "qnnpack": Arithmetic(torch_dynamic("qnnpack"), {"engine": "qnnpack"}, {}),
    "onnxruntime": Arithmetic(onnxruntime_dynamic, {"engine": "onnxruntime"}, {}),
    "float16": Arithmetic(torch_dynamic("fbgemm", dtype=torch.float16), {"dtype": "float16"}, {"dtype": "float16"}),
}


class Wrapped(nn.Module):
    """A module under a name, as torch quantizes children only; outputs flat."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(x) == 1:
            return (self.layer(x[0]),)
        out = self.layer(x[0], x[1:] if len(x) > 2 else x[1])
        if not isinstance(out, tuple):
            return (out,)
        first, rest = out
        return (first, *rest) if isinstance(rest, tuple) else (first, rest)


def linear(k: int, n: int, *shape: int, scale: float = 1.0, shift: float = 0.0, bias: bool = True) -> Callable[[], Drawn]:
    return lambda: (Wrapped(nn.Linear(k, n, bias=bias)), (torch.randn(*shape, k) * scale + shift,))


def recurrent(cls: type, layers: int, bidirectional: bool, inputs: int = 16, hidden: int = 20) -> Callable[[], Drawn]:
    def draw() -> Drawn:
        steps, batch, count = 12, 3, layers * (2 if bidirectional else 1)
        states = [torch.randn(count, batch, hidden) * 0.5 for _ in range(2 if cls is nn.LSTM else 1)]
        return Wrapped(cls(inputs, hidden, layers, bidirectional=bidirectional)), (torch.randn(steps, batch, inputs), *states)

    return draw


def cell(cls: type, inputs: int = 16, hidden: int = 20, **options: Any) -> Callable[[], Drawn]:
    def draw() -> Drawn:
        states = [torch.randn(3, hidden) * 0.5 for _ in range(2 if cls is nn.LSTMCell else 1)]
        return Wrapped(cls(inputs, hidden, **options)), (torch.randn(3, inputs), *states)

    return draw


def network() -> Drawn:
    """Linear layers that pass their rounding on."""
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10)]
    return Wrapped(nn.Sequential(*layers)), (torch.randn(9, 64),)


CASES: dict[str, Callable[[], Drawn]] = {
    "Linear 2→2": linear(2, 2, 4),
    "Linear 40→30": linear(40, 30, 9),
    "Linear 40→30, no bias": linear(40, 30, 9, bias=False),
    "Linear 768→3072": linear(768, 3072, 2, 7),
    "Linear 3072→768": linear(3072, 768, 5),
    "Linear 64→64, inputs of 10,000": linear(64, 64, 5, scale=1e4, shift=5e3),
    "Linear 64→64, inputs of 0.001": linear(64, 64, 5, scale=1e-3),
    "Linear 64→128→128→10": network,
    **{
        f"{cls.__name__} 16→20, {layers}{', both directions' if both else ''}": recurrent(cls, int(layers[0]), both)
        for cls in (nn.LSTM, nn.GRU)
        for layers in ("1 layer", "2 layers")
        for both in (False, True)
    },
    "LSTM 64→96, 1 layer": recurrent(nn.LSTM, 1, False, 64, 96),
    "GRU 64→96, 1 layer": recurrent(nn.GRU, 1, False, 64, 96),
    "LSTMCell 16→20": cell(nn.LSTMCell),
    "GRUCell 16→20": cell(nn.GRUCell),
    "RNNCell 16→20, tanh": cell(nn.RNNCell),
    "RNNCell 16→20, relu": cell(nn.RNNCell, nonlinearity="relu"),
}


def to_onnx(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> bytes:
    file = io.BytesIO()
    torch.onnx.export(model, inputs, file, dynamo=False, input_names=[f"x{i}" for i in range(len(inputs))], opset_version=17)
    return file.getvalue()


def as_arrays(result: Any) -> list[np.ndarray]:
    return [np.asarray(part) for part in (result if isinstance(result, tuple) else (result,))]


def largest(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max() / (np.abs(b).max() or 1)) for a, b in zip(found, expected, strict=True))


def compare(draw: Callable[[], Drawn], arithmetic: Arithmetic, draws: int) -> dict[str, Any] | str:
    """Largest differences over `draws` models, or what the original says instead."""
    errors = []
    for seed in range(draws):
        torch.manual_seed(seed)
        model, inputs = draw()
        model.eval()
        data, feed = to_onnx(model, inputs), [x.numpy() for x in inputs]
        ours = qruntime.load(data)
        floats = as_arrays(model(*inputs))
        try:
            theirs = arithmetic.original(model, inputs, data)
        except RuntimeError as error:
            return str(error).splitlines()[0]
        found = as_arrays(ours.quantize_dynamic(**arithmetic.options)(*feed))
        default = as_arrays(ours.quantize_dynamic(**arithmetic.default)(*feed))
        errors.append((largest(found, theirs), largest(theirs, floats), largest(default, floats)))
    return row_of(errors)


def row_of(errors: list[tuple[float, float, float]]) -> dict[str, str]:
    difference, theirs, ours = np.array(errors).max(axis=0).tolist()
    beyond = sum(error[0] > CODE for error in errors)
    return {
        "difference": f"{difference:.0e}" if difference else "0",
        "original_to_float": f"{theirs:.0e}",
        "ours_to_float": f"{ours:.0e}",
        "differing": f"{beyond} of {len(errors)}",
    }


def embedding(bits: int, draws: int) -> dict[str, Any]:
    """Rows of a quantized table. torch has 4 bits in EmbeddingBag alone, where a bag of one is a look-up."""
    errors = []
    for seed in range(draws):
        torch.manual_seed(seed)
        table, ids = nn.Embedding(50, 16), torch.randint(0, 50, (12,))
        if bits == 8:
            qconfig = quantization.float_qparams_weight_only_qconfig
            made = quantization.quantize_dynamic(nn.Sequential(table), {nn.Embedding: qconfig})[0](ids)
        else:
            bag = nn.EmbeddingBag(50, 16, _weight=table.weight.data, mode="sum")
            qconfig = quantization.float_qparams_weight_only_qconfig_4bit
            made = quantization.quantize_dynamic(nn.Sequential(bag), {nn.EmbeddingBag: qconfig})[0](ids, torch.arange(12))
        ours = qruntime.load(to_onnx(table, (ids,))).quantize_dynamic(dtype="quint8" if bits == 8 else "quint4x2")(ids.numpy())
        floats = [table(ids).numpy()]
        errors.append((largest([ours], [made.numpy()]), largest([made.numpy()], floats), largest([ours], floats)))
    return row_of(errors) | ({"differing": "scales of half precision"} if bits == 4 else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10, help="models for each row")
    parser.add_argument("--only", default="", help="rows whose case holds this text")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for case, draw in CASES.items():
            for name, arithmetic in ARITHMETIC.items():
                # ONNX Runtime has no int8 GRU and RNN, and its LSTM is quantized otherwise.
                skipped = name == "onnxruntime" and ("Linear" not in case or importlib.util.find_spec(name) is None)
                if options.only in case and not skipped:
                    found = compare(draw, arithmetic, options.draws)
                    row = {"difference": found} if isinstance(found, str) else found
                    rows.append({"case": case, "arithmetic": name, **row})
        for bits, name in ((8, "quint8"), (4, "quint4x2")):
            if options.only in f"Embedding 50×16 {name}":
                rows.append({"case": "Embedding 50×16", "arithmetic": name, **embedding(bits, options.draws)})
    print(TEXT.format(draws=options.draws, torch=torch.__version__, isa=torch.backends.cpu.get_cpu_capability(), ours=qruntime.isa()))
    print(markdown(rows, COLUMNS))


TEXT = """\
# Parity with torch

Written by `benchmarks/parity.py`, which needs torch; do not edit. Each row is the largest difference over {draws} freshly
drawn models with inputs, relative to the largest output: of `qruntime` computing as the original does (`engine=` or
`dtype=`) to the original, torch {torch} on x86 ({isa}) or ONNX Runtime; and of the original and of `qruntime`'s default
arithmetic ({ours}) to the float model. A code is worth more than 5e-5, so "models beyond 5e-5" are those in which one
code or more differs. How to read it: `docs/coming_from_torch.md`.
"""

if __name__ == "__main__":
    main()
