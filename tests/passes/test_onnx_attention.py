"""ONNX's own Attention: the kernel against the definition."""

import numpy as np
import pytest

from qruntime.errors import RunError
from qruntime.ops.registry import find
from tests.passes.lowering import lowered_ops, model


def rng(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def attend(inputs, outputs=("y",), **attributes):
    """(outputs, whether the kernel declined)."""
    names = [n if n in inputs else "" for n in ("q", "k", "v", "mask", "past_k", "past_v")]
    while not names[-1]:
        names.pop()
    loaded = model([("Attention", names, list(outputs), attributes)], inputs, [o for o in outputs if o], opset=23)
    for value in loaded.graph.inputs:  # files say how wide rows are
        shape = inputs[value.name].shape
        value.type = value.type._replace(shape=(*[None] * (len(shape) - 1), shape[-1]))
    found = loaded.run(inputs)
    plan = loaded._plan(tuple(loaded.graph.output_names))
    return found, plan.nodes[0].source != "native" or any(plan.executable.declined)


def check(inputs, native=True, **attributes):
    found, declined = attend(inputs, **attributes)
    arguments = [inputs.get(n) for n in ("q", "k", "v", "mask")]
    (expected, *_) = find("", "Attention", 23)(*arguments, **attributes)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=2e-6)
    assert declined is not native


def heads(b, h, kv, sq, sk, d, dv):
    return {"q": rng(b, h, sq, d), "k": rng(b, kv, sk, d, seed=1), "v": rng(b, kv, sk, dv, seed=2)}


def rows(b, h, kv, sq, sk, d, dv):
    return {n: x.transpose(0, 2, 1, 3).reshape(b, x.shape[2], -1) for n, x in heads(b, h, kv, sq, sk, d, dv).items()}


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1, 1, 1), (2, 4, 2, 5, 7, 8, 6), (1, 6, 1, 33, 17, 16, 16)])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("scale", [{}, {"scale": 0.3}])
def test_both_layouts(shape, causal, scale):
    check(heads(*shape), is_causal=causal, **scale)
    check(rows(*shape), is_causal=causal, q_num_heads=shape[1], kv_num_heads=shape[2], **scale)


@pytest.mark.parametrize("causal", [0, 1])
def test_masks(causal):
    inputs = heads(2, 2, 2, 5, 7, 4, 4)
    check({**inputs, "mask": rng(5, 7)}, is_causal=causal)
    check({**inputs, "mask": rng(2, 1, 5, 7, seed=3)}, is_causal=causal)
    check({**inputs, "mask": rng(5, 7) > -0.5}, is_causal=causal)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("boolean", [False, True])
def test_rows_that_see_nothing_are_zero(causal, boolean):
    inputs = heads(2, 2, 2, 5, 7, 4, 4)
    seen = np.ones((5, 7), bool)
    seen[2] = False
    seen[3, :5] = False  # all that causality leaves of it
    mask = seen if boolean else np.where(seen, np.float32(0), np.float32(-np.inf))
    check({**inputs, "mask": mask}, is_causal=causal)
    assert not attend({**inputs, "mask": mask}, is_causal=causal)[0]["y"][:, :, 2].any()


def test_a_nan_stays_in_its_row():
    inputs = heads(1, 2, 2, 5, 7, 4, 4)
    inputs["q"][0, 1, 3, 0] = np.nan
    inputs["mask"] = np.ones((5, 7), bool)
    check(inputs)
    assert np.isnan(attend(inputs)[0]["y"][0, 1, 3]).all()


def test_heads_named_for_four_dimensions():
    inputs = heads(2, 2, 2, 2, 2, 4, 4)
    check(inputs, q_num_heads=2, kv_num_heads=2)


def test_what_the_kernel_lacks():
    inputs = heads(2, 2, 2, 5, 7, 4, 4)
    check(inputs, native=False, softcap=2.0)
    check({**inputs, "mask": rng(5, 4)}, native=False)  # short masks hide the rest
    _, declined = attend(inputs, outputs=("y", "", "", "scores"))
    assert declined


def with_past(kind, batch, queries, past, heads_of_q=4, heads_of_k=2):
    """Inputs of the operator in one of its layouts, and its attributes."""
    make = heads if kind == "heads" else rows
    inputs = make(batch, heads_of_q, heads_of_k, queries, queries, 8, 6)
    inputs |= {"past_k": rng(batch, heads_of_k, past, 8, seed=7), "past_v": rng(batch, heads_of_k, past, 6, seed=8)}
    return inputs, {} if kind == "heads" else {"q_num_heads": heads_of_q, "kv_num_heads": heads_of_k}


@pytest.mark.parametrize("kind", ["heads", "rows"])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize(("queries", "past"), [(1, 5), (3, 0), (3, 9), (40, 64)])
def test_a_past_is_appended_to(kind, causal, queries, past):
    inputs, attributes = with_past(kind, 2, queries, past)
    found, declined = attend(inputs, ("y", "present_k", "present_v"), is_causal=causal, **attributes)
    arguments = [inputs[n] for n in ("q", "k", "v")]
    expected = find("", "Attention", 23)(*arguments, None, inputs["past_k"], inputs["past_v"], is_causal=causal, **attributes)
    assert not declined
    np.testing.assert_allclose(found["y"], expected[0], rtol=1e-5, atol=2e-6)
    assert np.array_equal(found["present_k"], expected[1])
    assert np.array_equal(found["present_v"], expected[2])


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("lengths", [[9, 4, 1], [0, 12, 9], [-3, 100, 2]])
@pytest.mark.parametrize("queries", [1, 4])
def test_lengths_of_padded_keys(causal, lengths, queries):
    """Opset 24; the kernel never looks at what lies behind them, where the definition multiplies it by 0."""
    inputs = heads(3, 4, 2, queries, 9, 8, 6) | {"lengths": np.array(lengths)}
    names = ["q", "k", "v", "", "", "", "lengths"]
    loaded = model([("Attention", names, ["y"], {"is_causal": causal})], inputs, ["y"], opset=24)
    found = loaded.run(inputs)["y"]
    (expected, *_) = find("", "Attention", 24)(*(inputs.get(n) for n in names), is_causal=causal)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)
    assert [call.source for call in loaded._plan(("y",)).as_run()] == ["native"]
    for b, length in enumerate(lengths):
        for x in ("k", "v"):
            inputs[x][b, :, max(0, length) :] = np.nan
    assert loaded.run(inputs)["y"].tobytes() == found.tobytes()


@pytest.mark.parametrize("lengths", [np.array([1, 2]), np.array([[1], [2], [3]]), np.float32([1, 2, 3])])
def test_lengths_that_do_not_fit(lengths):
    inputs = heads(3, 2, 2, 2, 9, 4, 4) | {"lengths": lengths}
    loaded = model([("Attention", ["q", "k", "v", "", "", "", "lengths"], ["y"], {})], inputs, ["y"], opset=24)
    if lengths.dtype == np.float32:
        loaded.run(inputs)  # whole numbers are what they are
        return
    with pytest.raises(RunError, match="lengths must be \\[3\\]"):
        loaded.run(inputs)


@pytest.mark.parametrize("queries", [1, 6])
def test_heads_repeated_before(queries):
    inputs = heads(2, 6, 2, queries, 7, 8, 6)
    nodes = []
    for n in "kv":
        nodes += [
            ("Unsqueeze", [n, "two"], [f"{n}1"], {}), ("Expand", [f"{n}1", "times"], [f"{n}2"], {}),
            ("Shape", [n], [f"{n}s"], {"start": 2}), ("Concat", ["front", f"{n}s"], [f"{n}f"], {"axis": 0}),
            ("Reshape", [f"{n}2", f"{n}f"], [f"{n}3"], {}),
        ]  # fmt: skip
    constants = {"two": np.array([2]), "times": np.array([1, 1, 3, 1, 1]), "front": np.array([2, -1])}
    loaded = model([*nodes, ("Attention", ["q", "k3", "v3"], ["y"], {})], inputs, ["y"], constants, opset=23)
    assert lowered_ops(loaded, inputs) == {"Attention": 1, "Shape": 2, "Concat": 2}


def test_heads_are_read_where_they_lie():
    inputs = {n: rng(2, 5, 4, 8, seed=i) for i, n in enumerate("qkv")}
    nodes = [("Transpose", [n], [f"{n}t"], {"perm": [0, 2, 1, 3]}) for n in "qkv"]
    nodes += [("Attention", ["qt", "kt", "vt"], ["a"], {"is_causal": 1}), ("Transpose", ["a"], ["y"], {"perm": [0, 2, 1, 3]})]
    assert lowered_ops(model(nodes, inputs, ["y"], opset=23), inputs) == {"Attention": 1}


def test_heads_that_do_not_divide():
    inputs = heads(2, 3, 2, 5, 7, 4, 4)
    loaded = model([("Attention", ["q", "k", "v"], ["y"], {})], inputs, ["y"], opset=23)
    with pytest.raises(RunError, match="must be a multiple"):
        loaded.run(inputs)


def test_float16_keeps_its_definition():
    inputs = {n: x.astype(np.float16) for n, x in heads(2, 2, 2, 5, 7, 4, 4).items()}
    loaded = model([("Cast", [n], [f"{n}h"], {"to": 10}) for n in "qkv"] + [("Attention", ["qh", "kh", "vh"], ["y"], {})],
                   {n: x.astype(np.float32) for n, x in inputs.items()}, ["y"], opset=23)  # fmt: skip
    found = loaded.run({n: x.astype(np.float32) for n, x in inputs.items()})["y"]
    (expected, *_) = find("", "Attention", 23)(*inputs.values())
    assert found.tobytes() == expected.tobytes()
