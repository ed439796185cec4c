"""Write torch_vectors.npz: small models as ONNX, and what torch's quantize_dynamic makes of them.

    python tests/quantization/make_torch_vectors.py        (needs torch 2.13 and onnx; the tests need neither torch nor this)

Keys are <model>/<what>: onnx, x0 … inputs, float0 … outputs in float32, fbgemm0 …, qnnpack0 …, channel0 … (fbgemm, per
channel), float16_0 …; <model>/weight<i> and scale<i> are the codes and scales of the Linear layers in order.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.ao.quantization import (
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    per_channel_dynamic_qconfig,
    quantize_dynamic,
)

TARGET = Path(__file__).with_name("torch_vectors.npz")
LAYERS = (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)


class TwoLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(23, 31), nn.Linear(31, 17, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Founding(nn.Module):
    """Conv 1×1 → ReLU → Linear 2→2, the example that the print of DynamicQuantizedLinear is known from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.relu(self.conv(x)))


class Wrapped(nn.Module):
    """A recurrent module under a name, as only children are quantized."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.layer(x[0], x[1:] if len(x) > 2 else x[1])
        if not isinstance(out, tuple):
            return (out,)
        first, rest = out
        return (first, *rest) if isinstance(rest, tuple) else (first, rest)


def recurrent(layer: nn.Module, *shapes: tuple[int, ...]) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Wrapped(layer), tuple(torch.randn(shape) * (1 if i == 0 else 0.5) for i, shape in enumerate(shapes))


def cases() -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    made: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {}
    torch.manual_seed(20)
    made["linear"] = nn.Sequential(nn.Linear(40, 30)), (torch.randn(9, 40),)
    made["linear_large"] = nn.Sequential(nn.Linear(40, 30)), (torch.randn(3, 40) * 1e4 + 5e3,)
    made["linear_small"] = nn.Sequential(nn.Linear(40, 30)), (torch.randn(3, 40) * 1e-3,)
    made["linear_positive"] = nn.Sequential(nn.Linear(40, 30)), (torch.rand(3, 40) + 1,)
    made["linear_zero"] = nn.Sequential(nn.Linear(40, 30)), (torch.zeros(2, 40),)
    made["two_linears"] = TwoLinears(), (torch.randn(2, 5, 23),)
    torch.manual_seed(0)
    fc = nn.Linear(2, 2)
    founding = Founding()
    founding.fc = fc
    made["founding"] = founding, (torch.tensor([[[[1.0, -2.0], [0.25, 0.5]]]]),)
    torch.manual_seed(21)
    steps, batch, inputs, hidden = 12, 3, 9, 8
    for name, cls in (("lstm", nn.LSTM), ("gru", nn.GRU)):
        states = 2 if cls is nn.LSTM else 1
        for layers in (1, 2):
            for bidirectional in (False, True):
                count = layers * (2 if bidirectional else 1)
                layer = cls(inputs, hidden, layers, bidirectional=bidirectional)
                shapes = [(steps, batch, inputs), *[(count, batch, hidden)] * states]
                made[f"{name}{layers}{'_bidirectional' if bidirectional else ''}"] = recurrent(layer, *shapes)
        cell = nn.LSTMCell if cls is nn.LSTM else nn.GRUCell
        made[f"{name}_cell"] = recurrent(cell(inputs, hidden), (batch, inputs), *[(batch, hidden)] * states)
    for nonlinearity in ("tanh", "relu"):
        made[f"rnn_cell_{nonlinearity}"] = recurrent(
            nn.RNNCell(inputs, hidden, nonlinearity=nonlinearity), (batch, inputs), (batch, hidden)
        )
    return made


def to_onnx(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> np.ndarray:
    file = io.BytesIO()
    names = [f"x{i}" for i in range(len(inputs))]
    torch.onnx.export(model, inputs, file, dynamo=False, input_names=names, opset_version=17)
    return np.frombuffer(file.getvalue(), np.uint8)


def flat(result: object) -> list[np.ndarray]:
    return [part.detach().numpy() for part in (result if isinstance(result, tuple) else (result,))]


def quantized(model: nn.Module, engine: str, **options: object) -> nn.Module:
    torch.backends.quantized.engine = engine
    return quantize_dynamic(model, **options)


def vectors() -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, (model, inputs) in cases().items():
        model.eval()
        found[f"{name}/onnx"] = to_onnx(model, inputs)
        found |= {f"{name}/x{i}": x.numpy() for i, x in enumerate(inputs)}
        variants: dict[str, Callable[[nn.Module], nn.Module]] = {
            "float": lambda m: m,
            "fbgemm": lambda m: quantized(m, "fbgemm"),
            "channel": lambda m: quantized(m, "fbgemm", qconfig_spec=dict.fromkeys(LAYERS, per_channel_dynamic_qconfig)),
            "float16_": lambda m: quantized(m, "fbgemm", dtype=torch.float16),
            "qnnpack": lambda m: quantized(m, "qnnpack"),
        }
        for variant, make in variants.items():
            try:
                made = make(model)
                outputs = flat(made(*inputs))
            except RuntimeError as error:
                print(f"{name} {variant}: torch says {str(error).splitlines()[0]}")
                continue
            found |= {f"{name}/{variant}{i}": y for i, y in enumerate(outputs)}
            if variant == "fbgemm":
                layers = [m for m in made.modules() if type(m).__name__ == "Linear"]
                for i, layer in enumerate(layers):
                    found[f"{name}/weight{i}"] = layer.weight().int_repr().numpy()
                    found[f"{name}/scale{i}"] = np.float32(layer.weight().q_scale())
    torch.manual_seed(24)
    for name, cls, qconfig in (
        ("embedding8", nn.Embedding, float_qparams_weight_only_qconfig),
        ("embedding4", nn.EmbeddingBag, float_qparams_weight_only_qconfig_4bit),
    ):
        table = nn.Embedding(20, 6)
        ids = torch.tensor([3, 0, 19, 3])
        found[f"{name}/onnx"] = to_onnx(table, (ids,))
        found[f"{name}/x0"] = ids.numpy()
        layer = table if cls is nn.Embedding else nn.EmbeddingBag(20, 6, _weight=table.weight.data, mode="sum")
        made = quantized(nn.Sequential(layer), "fbgemm", qconfig_spec={cls: qconfig})
        y = made(ids) if cls is nn.Embedding else made[0](ids, torch.arange(len(ids)))
        found[f"{name}/fbgemm0"] = y.numpy()
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    np.savez_compressed(TARGET, **vectors())
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")
