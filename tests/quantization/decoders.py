"""Decoders with caches of keys and values, small and in the shapes in which exporters write them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import FunctionProto, NodeProto, TensorProto, helper, numpy_helper

import qruntime
from tests.small_models import FLOAT, random

LAYERS, HEADS, SIZE = 2, 2, 8
WIDTH = HEADS * SIZE
SHAPES = {
    "stacked": "one input [layers, 2, b, heads, t, size]",
    "separate": "an input for the keys and for the values of each layer [b, heads, t, size]",
    "tokens first": "likewise [b, t, heads, size]",
    "merged heads": "likewise [b · heads, t, size]",
    "split": "one input [b, 2 · layers, heads, t, size] that a Split takes apart",
    "attention": "the operator of opset 23 with its past",
    "causal attention": "likewise, masked by itself",
    "contrib attention": "com.microsoft.MultiHeadAttention",
}


class Decoder:
    """Two layers of attention over x [b, s, WIDTH]; y has its shape. `dtype` is that of x and of the caches.

    With a `vocabulary` it reads ids [b, s] and makes logits; `has_positions`: it has attention_mask and position_ids too.
    """

    def __init__(self, kind: str, opset: int = 17, dtype: int = FLOAT, vocabulary: int = 0, *, has_positions: bool = False):
        self.kind, self.opset, self.dtype = kind, 23 if kind in ("attention", "causal attention") else opset, dtype
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.inputs = [("x", dtype, ["b", "s", WIDTH])]
        self.outputs = [("y", dtype, ["b", "s", WIDTH])]
        if vocabulary:
            self._embed(vocabulary, has_positions=has_positions)
        self._caches()
        self._mask()
        h = "x"
        for layer in range(LAYERS):
            h = self._layer(h, layer)
        if vocabulary:
            self.op("MatMul", h, self.weight(random(WIDTH, vocabulary, seed=98) / 2), into="logits")
        else:
            self.op("Identity", h, into="y")
        self._give_back()

    def bytes(self, functions: Sequence[FunctionProto] = ()) -> bytes:
        floats = np.float16 if self.dtype == TensorProto.FLOAT16 else np.float32
        weights = [
            numpy_helper.from_array(data.astype(floats) if data.dtype == np.float32 else data, name) for name, data in self.weights.items()
        ]
        infos = [[helper.make_tensor_value_info(*i) for i in infos] for infos in (self.inputs, self.outputs)]
        graph = helper.make_graph(self.nodes, "decoder", *infos, weights)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))
        return model.SerializeToString()

    def op(self, op_type: str, *inputs: str, into: str = "", **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [into or name], name=name, **attributes))
        return into or name

    def weight(self, data: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = data
        return name

    def integers(self, *numbers: int) -> str:
        return self.weight(np.array(numbers, np.int64))

    def _embed(self, vocabulary: int, *, has_positions: bool) -> None:
        self.inputs = [("ids", TensorProto.INT64, ["b", "s"])]
        self.outputs = [("logits", self.dtype, ["b", "s", vocabulary])]
        table = self.weight(random(vocabulary, WIDTH, seed=99))
        if not has_positions:
            self.op("Gather", table, "ids", into="x")
            return
        self.inputs += [("attention_mask", TensorProto.INT64, ["b", "t2"]), ("position_ids", TensorProto.INT64, ["b", "s"])]
        places = self.op("Gather", self.weight(random(64, WIDTH, seed=97)), "position_ids")
        self.op("Add", self.op("Gather", table, "ids"), places, into="x")

    def _caches(self) -> None:
        parts = [f"past.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
        if self.kind == "stacked":
            self.inputs.append(("past", self.dtype, [LAYERS, 2, "b", HEADS, "t", SIZE]))
            of_layers = [self.op("Gather", "past", self.weight(np.array(layer)), axis=0) for layer in range(LAYERS)]
            found = [self.op("Gather", of_layer, self.weight(np.array(i)), axis=0) for of_layer in of_layers for i in range(2)]
            self.past, self.length = found, self.op("Gather", self.op("Shape", "past"), self.weight(np.array([4])))
        elif self.kind == "split":
            self.inputs.append(("past", self.dtype, ["b", 2 * LAYERS, HEADS, "t", SIZE]))
            names = [f"split{i}" for i in range(2 * LAYERS)]
            self.nodes.append(helper.make_node("Split", ["past", self.integers(*[1] * (2 * LAYERS))], names, axis=1))
            self.past = [self.op("Squeeze", name, self.integers(1)) for name in names]
            self.length = self.op("Slice", self.op("Shape", self.past[0]), self.integers(2), self.integers(3))
        else:
            shape, axis = ["b", HEADS, "t", SIZE], 2
            if self.kind == "tokens first":
                shape, axis = ["b", "t", HEADS, SIZE], 1
            elif self.kind == "merged heads":
                shape, axis = ["bh", "t", SIZE], 1
            self.inputs += [(name, self.dtype, shape) for name in parts]
            self.past = parts
            self.length = self.op("Shape", parts[0], start=axis, end=axis + 1)

    def _mask(self) -> None:
        """Which of all keys a query sees, [s, t + s], also as a number that is added."""
        queries = self.op("Squeeze", self.op("Gather", self.op("Shape", "x"), self.integers(1)))
        past = self.op("Squeeze", self.length)
        zero, one = (self.weight(np.array(n)) for n in (0, 1))
        keys = self.op("Range", zero, self.op("Add", past, queries), one)
        places = self.op("Unsqueeze", self.op("Range", past, self.op("Add", past, queries), one), self.integers(1))
        self.seen = self.op("LessOrEqual", keys, places)
        self.added = self.op("Where", self.seen, self.weight(np.zeros((), np.float32)), self.weight(np.array(-6e4, np.float32)))

    def _layer(self, h: str, layer: int) -> str:
        q, k, v = (self.op("MatMul", h, self.weight(random(WIDTH, WIDTH, seed=10 * layer + i) / 4)) for i in range(3))
        past = self.past[2 * layer : 2 * layer + 2]
        if self.kind in ("attention", "causal attention", "contrib attention"):
            names = [f"read{layer}", *(f"present.{layer}.{part}" for part in ("key", "value"))]
            if self.kind == "contrib attention":
                added = self.op("Unsqueeze", self.op("Unsqueeze", self.added, self.integers(0)), self.integers(0))
                node = helper.make_node(
                    "MultiHeadAttention", [q, k, v, "", "", added, *past], names, num_heads=HEADS, domain="com.microsoft"
                )
            else:
                mask, causal = ("", 1) if self.kind == "causal attention" else (self.added, 0)
                node = helper.make_node("Attention", [q, k, v, mask, *past], names, q_num_heads=HEADS, kv_num_heads=HEADS, is_causal=causal)
            self.nodes.append(node)
            return self.op("Add", h, names[0])
        q, k, v = (self._heads(one) for one in (q, k, v))
        axis = 1 if self.kind in ("tokens first", "merged heads") else -2
        k, v = (self.op("Concat", a, b, axis=axis, into=f"present.{layer}.{name}") for a, b, name in zip(past, (k, v), ("key", "value")))
        if self.kind == "tokens first":
            q, k, v = (self.op("Transpose", one, perm=(0, 2, 1, 3)) for one in (q, k, v))
        turned = self.op("Transpose", k, perm=(0, 2, 1) if self.kind == "merged heads" else (0, 1, 3, 2))
        scores = self.op("Div", self.op("MatMul", q, turned), self.weight(np.array(SIZE**0.5, np.float32)))
        weights = self.op("Softmax", self.op("Where", self.seen, scores, self.weight(np.array(-6e4, np.float32))), axis=-1)
        y = self.op("MatMul", weights, v)
        if self.kind == "merged heads":
            y = self.op("Reshape", y, self.op("Concat", self.integers(-1, HEADS), self.op("Shape", y, start=1), axis=0))
        y = self.op("Reshape", self.op("Transpose", y, perm=(0, 2, 1, 3)), self.integers(0, 0, WIDTH))
        return self.op("Add", h, y)

    def _heads(self, x: str) -> str:
        x = self.op("Reshape", x, self.integers(0, 0, HEADS, SIZE))
        if self.kind == "tokens first":
            return x
        x = self.op("Transpose", x, perm=(0, 2, 1, 3))
        if self.kind == "merged heads":
            return self.op("Reshape", x, self.op("Concat", self.integers(-1), self.op("Shape", x, start=2), axis=0))
        return x

    def _give_back(self) -> None:
        parts = [f"present.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
        if self.kind == "stacked":
            pairs = [[self.op("Unsqueeze", name, self.integers(0)) for name in parts[i : i + 2]] for i in range(0, len(parts), 2)]
            layers = [self.op("Unsqueeze", self.op("Concat", *pair, axis=0), self.integers(0)) for pair in pairs]
            self.op("Concat", *layers, axis=0, into="present")
            self.outputs.append(("present", self.dtype, [LAYERS, 2, "b", HEADS, "t2", SIZE]))
        elif self.kind == "split":
            self.op("Concat", *(self.op("Unsqueeze", name, self.integers(1)) for name in parts), axis=1, into="present")
            self.outputs.append(("present", self.dtype, ["b", 2 * LAYERS, HEADS, "t2", SIZE]))
        else:
            shapes = {"tokens first": ["b", "t2", HEADS, SIZE], "merged heads": ["bh", "t2", SIZE]}
            self.outputs += [(name, self.dtype, shapes.get(self.kind, ["b", HEADS, "t2", SIZE])) for name in parts]


def empty(model: qruntime.Model, batch: int = 1) -> dict[str, np.ndarray]:
    """Caches without a token, whatever their form."""
    sizes = {"b": batch, "bh": batch * HEADS, "t": 0}
    shapes = {i.name: (i.shape, np.dtype(i.dtype)) for i in model.inputs if i.name != "x" and i.shape is not None}
    return {name: np.zeros([d if isinstance(d, int) else sizes[str(d)] for d in shape], dtype) for name, (shape, dtype) in shapes.items()}
