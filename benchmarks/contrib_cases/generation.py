"""Search for text with a decoder of one layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper

from contrib_cases.case import Case, Rng, draws, floats, maybe

VOCABULARY, WIDTH, HEADS, LONGEST = 11, 16, 2, 16
END, PADDING = 3, 0


def decoder(r: Rng) -> GraphProto:
    """Ids, positions, a mask and one cache → logits and the grown cache."""
    weights = {
        "words": floats(r, VOCABULARY, WIDTH), "places": floats(r, LONGEST, WIDTH) / 2, "projections": floats(r, WIDTH, 3 * WIDTH) / 2,
        "bias": floats(r, 3 * WIDTH) / 8, "head": floats(r, WIDTH, VOCABULARY),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word"]),
        helper.make_node("Gather", ["places", "position_ids"], ["place"]),
        helper.make_node("Add", ["word", "place"], ["x"]),
        helper.make_node(
            "Attention", ["x", "projections", "bias", "attention_mask", "past_0"], ["attended", "present_0"], domain="com.microsoft",
            num_heads=HEADS, unidirectional=1,
        ),
        helper.make_node("Add", ["x", "attended"], ["y"]),
        helper.make_node("MatMul", ["y", "head"], ["logits"]),
    ]  # fmt: skip
    names = [("input_ids", "s"), ("position_ids", "s"), ("attention_mask", "t")]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, ["b", length]) for name, length in names]
    size = WIDTH // HEADS
    inputs.append(helper.make_tensor_value_info("past_0", TensorProto.FLOAT, [2, "b", HEADS, "p", size]))
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", VOCABULARY]),
        helper.make_tensor_value_info("present_0", TensorProto.FLOAT, [2, "b", HEADS, "t", size]),
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return helper.make_graph(nodes, "decoder", inputs, outputs, constants)


def _request(r: Rng, end: int) -> tuple[np.ndarray, int, list[Any], dict[str, Any]]:
    """Prompts padded on the left, the length to stop at, masks, attributes."""
    batch, length = int(r.integers(1, 4)), int(r.integers(1, 5))
    prompts = r.integers(END + 1, VOCABULARY, (batch, length)).astype(np.int32)
    for row in prompts:
        row[: int(r.integers(0, length))] = PADDING
    masks = [
        maybe(r, (r.random(VOCABULARY) < 0.8).astype(np.int32)), maybe(r, (r.random((batch, VOCABULARY)) < 0.8).astype(np.int32)),
        maybe(r, (prompts != PADDING).astype(np.int32)),
    ]  # fmt: skip
    attributes = {"decoder": decoder(r), "eos_token_id": end, "pad_token_id": PADDING, "no_repeat_ngram_size": int(r.integers(0, 4))}
    return prompts, length + int(r.integers(1, 9)), masks, attributes


@draws("GreedySearch")
def _(r: Rng, n: int) -> Case:
    """No token ends a sequence: when all have ended, ONNX Runtime leaves what follows as the memory was."""
    prompts, limit, masks, attributes = _request(r, end=VOCABULARY)
    penalty = np.array([1.3 if n % 2 else 1.0], np.float32)
    shortest = np.array([prompts.shape[1]], np.int32)
    return Case([prompts, np.array([limit], np.int32), shortest, penalty, *masks], attributes)


@draws("BeamSearch")
def _(r: Rng, n: int) -> Case:
    prompts, limit, masks, attributes = _request(r, end=END)
    beams = int(r.integers(1, 5))
    counts = [np.array([count], np.int32) for count in (limit, prompts.shape[1] + 2, beams, int(r.integers(1, beams + 1)))]
    weights = [np.array([value], np.float32) for value in (r.choice([0.5, 1, 2]), r.choice([1, 1.3]))]
    # Whether to go on ONNX Runtime decides for all prompts but the first by scores of their neighbours.
    attributes["early_stopping"] = 1 if len(prompts) > 1 else n % 2
    return Case([prompts, *counts, *weights, *masks], attributes, outputs=2, tolerance=1e-4)
