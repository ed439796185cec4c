"""Made the files of this folder with the version of 2026-11-28, before weights had one stored representation.

linear_few_bits is younger: of 2026-11-29, when the bodies of functions that unpack codes computed in int64. They must load to
the same bits for ever, so the script is not run again: it says what the files hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.quantization import (
    MinMaxObserver,
    QConfig,
    default_dynamic_quant_observer,
    float_qparams_weight_only_qconfig_4bit,
)

HERE = Path(__file__).parent
RNG = np.random.default_rng(5)


def weight(*shape: int, dtype: str = "float32") -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.1).astype(dtype)


def model(
    nodes: list[Any],
    inputs: dict[str, tuple[Any, list[Any]]],
    output: str,
    weights: dict[str, np.ndarray],
    opset: int,
    rank: int,
    out: int = 1,
) -> qruntime.Model:
    graph = helper.make_graph(
        nodes, "saved", [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(output, out, [None] * rank)], [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset > 9 else 4)
    return qruntime.load(made.SerializeToString())


def linear(opset: int, dtype: str = "float32") -> qruntime.Model:
    n = helper.make_node
    nodes = [
        n("MatMul", ["x", "w0"], ["a"], name="first"),
        n("Gemm", ["a", "w1", "b1"], ["b"], name="second", transB=1, alpha=0.5, beta=2.0),
        n("MatMul", ["b", "w2"], ["c"], name="third"),
        n("MatMul", ["c", "w2"], ["y"], name="fourth"),
    ]
    weights = {"w0": weight(20, 17), "w1": weight(12, 17), "b1": weight(12), "w2": weight(12, 12)}
    weights["w0"][:, 3] *= 40  # a column that one scale would lose
    code = TensorProto.FLOAT if dtype == "float32" else TensorProto.FLOAT16
    return model(nodes, {"x": (code, ["m", 20])}, "y", {k: v.astype(dtype) for k, v in weights.items()}, opset, 2, code)


def recurrent(op: str, gates: int, opset: int = 14) -> qruntime.Model:
    node = helper.make_node(op, ["x", "w", "r", "b"], ["y"], name="layer", hidden_size=10, direction="bidirectional")
    weights = {"w": weight(2, gates * 10, 8), "r": weight(2, gates * 10, 10), "b": weight(2, 2 * gates * 10)}
    weights["w"][1, 4] *= 60
    return model([node], {"x": (1, ["t", "n", 8])}, "y", weights, opset, 4)


def convolution() -> qruntime.Model:
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", group=2, pads=[1, 1, 1, 1])
    return model([node], {"x": (1, ["n", 6, 9, 9])}, "y", {"w": weight(8, 3, 3, 3), "b": weight(8)}, 17, 4)


def embedding(dtype: str = "float32") -> qruntime.Model:
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="look_up")
    code = TensorProto.FLOAT if dtype == "float32" else TensorProto.FLOAT16
    return model([node], {"ids": (TensorProto.INT64, ["n"])}, "y", {"table": weight(30, 14, dtype=dtype)}, 17, 2, code)


def affine() -> QConfig:
    return QConfig(default_dynamic_quant_observer, MinMaxObserver(dtype="qint8", qscheme="per_tensor_affine"))


def saved() -> dict[str, qruntime.Model]:
    int8 = linear(17).quantize_dynamic(per_channel=False)
    return {
        "linear": linear(17).quantize_dynamic(),
        "linear_per_channel": linear(17).quantize_dynamic(per_channel=True),
        "linear_per_channel_opset11": linear(11).quantize_dynamic(per_channel=True),
        "linear_affine_opset9": linear(9).quantize_dynamic({"": affine()}),
        "linear_affine": linear(17).quantize_dynamic({"": affine()}, activation="per_tensor"),
        "linear_fbgemm": linear(17).quantize_dynamic(engine="fbgemm"),
        "linear_float16": linear(17).quantize_dynamic(dtype="float16"),
        "linear_of_half": linear(17, "float16").quantize_dynamic(),
        "linear_of_half_opset11": linear(11, "float16").quantize_dynamic(per_channel=True),
        "linear_made_anew": int8.quantize_dynamic({"Linear"}, per_channel=True),
        "lstm": recurrent("LSTM", 4).quantize_dynamic(),
        "lstm_per_channel": recurrent("LSTM", 4).quantize_dynamic(per_channel=True),
        "lstm_per_channel_opset11": recurrent("LSTM", 4, 11).quantize_dynamic(per_channel=True),
        "gru": recurrent("GRU", 3).quantize_dynamic(),
        "gru_float16": recurrent("GRU", 3).quantize_dynamic(dtype="float16"),
        "rnn_onnxruntime": recurrent("RNN", 1).quantize_dynamic(engine="onnxruntime"),
        "conv": convolution().quantize_dynamic({"Conv"}),
        "conv_per_channel": convolution().quantize_dynamic({"Conv"}, per_channel=True),
        "linear_few_bits": linear(17).quantize(
            scheme="W3A16-g16-bilevel", overrides={"second": "W5A16-g16-sym", "third": "Wnf4A16-g16-double", "fourth": "Wnf4A16-g16-double"}
        ),
        "embedding": embedding().quantize_dynamic(dtype="quint8"),
        "embedding_4_bits": embedding().quantize_dynamic({"Embedding": float_qparams_weight_only_qconfig_4bit}),
        "embedding_of_half": embedding("float16").quantize_dynamic(dtype="quint8"),
    }


def feed(one: qruntime.Model) -> dict[str, np.ndarray]:
    (info,) = one.inputs
    rng = np.random.default_rng(6)
    if info.name == "ids":
        return {"ids": rng.integers(0, 30, 11)}
    return {"x": rng.standard_normal([d if isinstance(d, int) else 5 for d in info.shape or ()]).astype(info.dtype)}


if __name__ == "__main__":
    outputs = {}
    for name, one in saved().items():
        one.save(HERE / f"{name}.onnx", external_data=False)
        onnx.checker.check_model(str(HERE / f"{name}.onnx"))
        (outputs[name],) = one.run(feed(one)).values()
    np.savez(HERE / "outputs.npz", **outputs)
