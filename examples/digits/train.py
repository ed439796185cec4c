"""Train the float model of this folder anew, from random weights: how digits.onnx was made.

    python examples/digits/train.py digits.onnx

Needs torch, for gradients alone: the network is an ONNX graph from its first step on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parents[1])]  # so that it runs from a checkout

from digits import SIZE, digits  # noqa: E402

import qruntime  # noqa: E402
from qruntime.quantization import QuantizedModule  # noqa: E402

PICTURES, EPOCHS, BATCH, RATE = 6000, 12, 64, 3e-3


def untrained() -> bytes:
    """Two convolutions, each of which halves the sides, and two linear layers: 9,802 parameters."""
    random = np.random.default_rng(1)

    def drawn(*shape: int) -> np.ndarray:
        return random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)

    weights = {
        "conv1.weight": drawn(8, 1, 3, 3), "conv2.weight": drawn(16, 8, 3, 3),
        "fc1.weight": drawn(32, 16 * 4 * 4), "fc2.weight": drawn(10, 32),
    }  # fmt: skip
    weights |= {name.replace("weight", "bias"): np.zeros(len(weight), np.float32) for name, weight in weights.items()}
    slides = {"pads": [1, 1, 1, 1], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["pictures", "conv1.weight", "conv1.bias"], ["c1"], name="/conv1/Conv", **slides),
        helper.make_node("Relu", ["c1"], ["r1"], name="/Relu"),
        helper.make_node("Conv", ["r1", "conv2.weight", "conv2.bias"], ["c2"], name="/conv2/Conv", **slides),
        helper.make_node("Relu", ["c2"], ["r2"], name="/Relu_1"),
        helper.make_node("Flatten", ["r2"], ["flat"], name="/Flatten"),
        helper.make_node("Gemm", ["flat", "fc1.weight", "fc1.bias"], ["h"], name="/fc1/Gemm", transB=1),
        helper.make_node("Relu", ["h"], ["r3"], name="/Relu_2"),
        helper.make_node("Gemm", ["r3", "fc2.weight", "fc2.bias"], ["scores"], name="/fc2/Gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def main(path: str) -> None:
    torch.set_num_threads(1)
    module = QuantizedModule(qruntime.load(untrained()), "W16A16")
    module.is_quantized = False
    pictures, labels = (torch.from_numpy(array) for array in digits(PICTURES, seed=0))
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * (PICTURES // BATCH))
    order = np.random.default_rng(2)
    for epoch in range(EPOCHS):
        for chosen in order.permutation(PICTURES)[: PICTURES // BATCH * BATCH].reshape(-1, BATCH):
            loss = torch.nn.functional.cross_entropy(module(pictures[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    model = module.to_float()
    model.save(path)
    held_out, wanted = digits(2000, seed=1)
    print(f"right: {np.mean(model(held_out).argmax(1) == wanted):.1%} of {len(wanted):,} held out")


if __name__ == "__main__":
    main(sys.argv[1])
