"""Search for text, against forward passes over whole sequences and against all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.errors import QRuntimeError
from tests.ops.one_node import close

VOCABULARY, WIDTH, HEADS, END = 6, 8, 2, 5
RNG = np.random.default_rng(29)
WEIGHTS = {
    name: RNG.standard_normal(shape).astype(np.float32)
    for name, shape in {
        "words": (VOCABULARY, WIDTH), "places": (12, WIDTH), "projections": (WIDTH, 3 * WIDTH), "bias": (3 * WIDTH,),
        "head": (WIDTH, VOCABULARY),
    }.items()
}  # fmt: skip


def decoder(**shapes):
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["word"]),
        helper.make_node("Gather", ["places", "positions"], ["place"]),
        helper.make_node("Add", ["word", "place"], ["x"]),
        helper.make_node(
            "Attention", ["x", "projections", "bias", "mask", "past"], ["attended", "present"], domain="com.microsoft",
            num_heads=HEADS, unidirectional=1,
        ),
        helper.make_node("Add", ["x", "attended"], ["y"]),
        helper.make_node("MatMul", ["y", "head"], ["logits"]),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, ["b", None]) for name in ("ids", "positions", "mask")]
    past = shapes.get("past", [2, "b", HEADS, None, WIDTH // HEADS])
    inputs.append(helper.make_tensor_value_info("past", TensorProto.FLOAT, past))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "present")]
    return helper.make_graph(nodes, "decoder", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in WEIGHTS.items()])


def search(op, *inputs, outputs=1, **attributes):
    settings = {"decoder": decoder(), "eos_token_id": END, "pad_token_id": 0, **attributes}
    names = ["" if x is None else f"i{i}" for i, x in enumerate(inputs)]
    feed = {name: x for name, x in zip(names, inputs, strict=True) if name}
    node = helper.make_node(op, names, [f"o{i}" for i in range(outputs)], domain="com.microsoft", **settings)
    declared = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in feed.items()]
    graph = helper.make_graph([node], "g", declared, [helper.make_tensor_value_info(o, TensorProto.UNDEFINED, None) for o in node.output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    found = list(qruntime.load(helper.make_model(graph, opset_imports=opsets).SerializeToString(), threads=1).run(feed).values())
    return found[0] if outputs == 1 else found


def logits(ids):
    """Of the last of `ids`, in float64 and without a cache."""
    w = {name: array.astype(np.float64) for name, array in WEIGHTS.items()}
    x = w["words"][ids] + w["places"][: len(ids)]
    q, k, v = np.split(x @ w["projections"] + w["bias"], 3, axis=1)
    made = []
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        scores = q[-1, part] @ k[:, part].T / np.sqrt(WIDTH // HEADS)
        shares = np.exp(scores - scores.max())
        made.append(shares / shares.sum() @ v[:, part])
    return (x[-1] + np.concatenate(made)) @ w["head"]


def int32(*values):
    return np.array(values, np.int32)


def test_greedy_search_is_what_whole_forward_passes_choose():
    prompts = np.array([[0, 1, 2], [3, 4, 1]], np.int32)
    found = search("GreedySearch", prompts, int32(9))
    for row, prompt in zip(found, prompts, strict=True):
        ids = [token for token in prompt.tolist() if token]
        grown = prompt.tolist()
        while len(grown) < 9:
            token = int(logits(ids).argmax())
            if token == END:
                break
            ids.append(token)
            grown.append(token)
        assert row.tolist() == grown + [0] * (9 - len(grown))


def test_a_prompt_does_not_depend_on_its_neighbours():
    prompts = np.array([[0, 1, 2], [3, 4, 1], [0, 0, 4]], np.int32)
    together = search("GreedySearch", prompts, int32(9))
    for i in range(3):
        assert np.array_equal(search("GreedySearch", prompts[i : i + 1], int32(9))[0], together[i])


def test_enough_beams_find_the_best_of_all_sequences():
    """Two tokens after the prompt, with a beam for each first one; nothing ends early."""
    prompt = int32(1, 2)[None]
    sequences, scores = search(
        "BeamSearch", prompt, int32(4), None, int32(VOCABULARY), int32(3), np.float32([1.0]), outputs=2, eos_token_id=VOCABULARY
    )
    totals = {}
    for tokens in itertools.product(range(VOCABULARY), repeat=2):
        total, ids = 0.0, [1, 2]
        for token in tokens:
            z = logits(ids)
            total += z[token] - z.max() - np.log(np.exp(z - z.max()).sum())
            ids.append(token)
        totals[tuple(ids)] = total / 4
    best = sorted(totals, key=totals.get, reverse=True)[:3]
    assert [tuple(row) for row in sequences[0].tolist()] == best
    close(scores[0], [totals[ids] for ids in best], atol=1e-5)


def test_sampling_repeats_with_a_seed_and_stays_in_the_nucleus():
    prompts = np.array([[1, 2], [3, 4]], np.int32)
    optional = [None] * 6
    once, again = (search("Sampling", prompts, int32(8), *optional, int32(7)) for _ in range(2))
    assert np.array_equal(once, again)
    greedy = search("GreedySearch", prompts, int32(8))
    assert np.array_equal(search("Sampling", prompts, int32(8), *optional, int32(7), top_p=1e-6), greedy)


def test_tokens_that_are_masked_or_would_repeat_are_not_chosen():
    prompts, allowed = int32(1, 2)[None], int32(0, 1, 1, 0, 0, 0)
    found = search("GreedySearch", prompts, int32(8), None, None, allowed, eos_token_id=VOCABULARY)
    assert set(found[0, 2:].tolist()) <= {1, 2}
    found = search("GreedySearch", prompts, int32(6), eos_token_id=VOCABULARY, no_repeat_ngram_size=1)
    assert len(set(found[0].tolist())) == 6
    assert END not in search("GreedySearch", prompts, int32(6), int32(6))


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("GreedySearch", [int32(1, 2)[None], int32(2)], {}, "max_length must be above"),
        ("GreedySearch", [int32(1, 2), int32(4)], {}, "input_ids must have rank 2"),
        ("GreedySearch", [int32(1, 2)[None], int32(4)], {"model_type": 1}, "with an encoder"),
        ("GreedySearch", [int32(1, 2)[None], int32(4), None, None, int32(1, 1)], {}, "vocab_mask must have the shape"),
        ("GreedySearch", [int32(1, 2)[None], int32(4)], {"decoder": decoder(past=None)}, "must declare its caches"),
        ("GreedySearch", [int32(1, 9)[None], int32(4)], {}, "Gather"),
        ("Sampling", [int32(1, 2)[None], int32(4)], {"temperature": 0.0}, "temperature above 0"),
        ("Sampling", [int32(1, 2)[None], int32(4)], {"custom": 1}, "is not supported"),
        ("BeamSearch", [int32(1, 2)[None], int32(4), None, int32(2), int32(3)], {}, "num_return_sequences ≤ num_beams"),
    ],
)
def test_what_does_not_fit_is_said(op, inputs, attributes, message):
    with pytest.raises(QRuntimeError, match=message):
        search(op, *inputs, **attributes)
