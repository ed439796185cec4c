"""Conv 1×1 → ReLU → Linear 2→2: the smallest model on which torch's quantize_dynamic is explained, without torch.

    python examples/founding/founding.py

Builds the ONNX model that torch exports, prints it as float and as int8 with what it computes, and compares
engine="fbgemm" with the numbers that torch 2.13 gives on x86.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import qruntime

CONV_WEIGHT, CONV_BIAS = -0.019813179969787598, 0.7928894758224487
FC_WEIGHT = [[-0.005293981172144413, 0.37932288646698], [-0.5819807648658752, -0.5203874707221985]]
FC_BIAS = [-0.27234524488449097, 0.1896158903837204]
X = np.array([[1, -2], [0.25, 0.5]], np.float32)

# What torch 2.13 gives on x86: the whole model, and the linear layer alone on X.
TORCH_MODEL = [[0.03952932730317116, -0.6955298185348511], [0.019601428881287575, -0.6759011149406433]]
TORCH_FC = [[-1.037573, 0.654769], [-0.085594, -0.220331]]


def build(whole: bool = True) -> qruntime.Model:
    """The model as torch's exporter writes it, or its linear layer alone."""
    float32 = TensorProto.FLOAT
    nodes = [
        helper.make_node("MatMul", ["hidden" if whole else "x", "fc.weight"], ["product"], name="/fc/MatMul"),
        helper.make_node("Add", ["product", "fc.bias"], ["y"], name="/fc/Add"),
    ]
    weights = {"fc.weight": np.array(FC_WEIGHT, np.float32).T, "fc.bias": np.array(FC_BIAS, np.float32)}
    if whole:
        nodes[:0] = [
            helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["convolved"], name="/conv/Conv"),
            helper.make_node("Relu", ["convolved"], ["hidden"], name="/relu/Relu"),
        ]
        weights["conv.weight"] = np.full((1, 1, 1, 1), CONV_WEIGHT, np.float32)
        weights["conv.bias"] = np.full(1, CONV_BIAS, np.float32)
    shape = [1, 1, 2, 2] if whole else [2, 2]
    graph = helper.make_graph(
        nodes,
        "founding",
        [helper.make_tensor_value_info("x", float32, shape)],
        [helper.make_tensor_value_info("y", float32, shape)],
        [numpy_helper.from_array(np.ascontiguousarray(data), name) for name, data in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return qruntime.load(model.SerializeToString())


def main() -> None:
    model = build()
    x = X[None, None]
    for title, made in (
        ("float", model),
        ("int8", model.quantize_dynamic()),
        ("int8 with the arithmetic of torch on x86", model.quantize_dynamic(engine="fbgemm")),
    ):
        print(f"{title}:\n{made}\n{made(x)[0, 0]}\n")
    as_torch = model.quantize_dynamic(engine="fbgemm")(x)[0, 0]
    alone = build(whole=False).quantize_dynamic(engine="fbgemm")(X)
    print(f"largest difference to torch 2.13: {np.abs(as_torch - np.float32(TORCH_MODEL)).max():.1e}")
    print(f"the linear layer alone on [[1, -2], [0.25, 0.5]]:\n{alone}")
    print(f"largest difference to torch 2.13, given to six digits: {np.abs(alone - TORCH_FC).max():.1e}")


if __name__ == "__main__":
    main()
