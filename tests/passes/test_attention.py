"""Decomposed attention becomes one node, with the same result; what only looks like it stays."""

import numpy as np
import pytest

from qruntime.errors import RunError
from tests.passes.lowering import attributes_of, lowered_ops, model

B, S, H, D = 2, 5, 3, 4


def rng(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


def one(value):
    return np.array(value, np.float32)


HEADS = {"q": rng(B, H, S, D), "k": rng(B, H, S + 2, D, seed=1), "v": rng(B, H, S + 2, D, seed=2)}
SCALE, MASK = {"scale": one(0.5)}, {"mask": rng(B, 1, S, S + 2, seed=3)}

QK = [("Transpose", ["k"], ["kt"], {"perm": [0, 1, 3, 2]}), ("MatMul", ["q", "kt"], ["s0"], {})]


def tail(scores, softmax_axis=-1):
    return [("Softmax", [scores], ["p"], {"axis": softmax_axis}), ("MatMul", ["p", "v"], ["y"], {})]


def test_plain():
    loaded = model([*QK, *tail("s0")], HEADS, ["y"])
    assert lowered_ops(loaded, HEADS) == {"Attention": 1}


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_scale(op, shape):
    nodes = [*QK, (op, ["s0", "scale"], ["s1"], {}), *tail("s1")]
    loaded = model(nodes, HEADS, ["y"], {"scale": np.full(shape, 3.0, np.float32)})
    assert lowered_ops(loaded, HEADS) == {"Attention": 1}


def test_scale_before_the_product():
    nodes = [
        ("Mul", ["q", "root"], ["q1"], {}), ("Transpose", ["k"], ["kt"], {"perm": [0, 1, 3, 2]}),
        ("Div", ["kt", "divisor"], ["kt1"], {}), ("MatMul", ["q1", "kt1"], ["s0"], {}), *tail("s0"),
    ]  # fmt: skip
    loaded = model(nodes, HEADS, ["y"], {"root": one(0.7), "divisor": one(1.5)})
    assert lowered_ops(loaded, HEADS) == {"Attention": 1}


def test_scale_computed_from_a_shape():
    nodes = [
        ("Shape", ["q"], ["shape"], {}), ("Slice", ["shape", "last", "end"], ["size"], {}),
        ("Cast", ["size"], ["size_f"], {"to": 1}), ("Sqrt", ["size_f"], ["root"], {}),
        ("Sqrt", ["root"], ["root_2"], {}),
        ("Div", ["q", "root_2"], ["q1"], {}), ("Transpose", ["k"], ["kt"], {"perm": [0, 1, 3, 2]}),
        ("Div", ["kt", "root_2"], ["kt1"], {}), ("MatMul", ["q1", "kt1"], ["s0"], {}), *tail("s0"),
    ]  # fmt: skip
    loaded = model(nodes, HEADS, ["y"], {"last": ints(-1), "end": ints(2**62)})
    ops = lowered_ops(loaded, HEADS)
    assert ops["Attention"] == 1
    assert ops["MatMul"] == ops["Softmax"] == ops["Transpose"] == 0


def test_a_scale_per_channel_is_no_scale():
    nodes = [("Mul", ["q", "channels"], ["q1"], {}), QK[0]]
    nodes += [("MatMul", ["q1", "kt"], ["s0"], {}), *tail("s0")]
    ops = lowered_ops(model(nodes, HEADS, ["y"], {"channels": rng(D)}), HEADS)
    assert ops == {"Mul": 1, "Attention": 1}


@pytest.mark.parametrize("order", [["s1", "mask"], ["mask", "s1"]])
def test_added_mask(order):
    nodes = [*QK, ("Mul", ["s0", "scale"], ["s1"], {}), ("Add", order, ["s2"], {}), *tail("s2")]
    assert lowered_ops(model(nodes, {**HEADS, **MASK}, ["y"], SCALE), {**HEADS, **MASK}) == {"Attention": 1}


def test_two_added_masks():
    inputs = {**HEADS, **MASK, "bias": rng(1, H, S, S + 2, seed=4)}
    nodes = [*QK, ("Add", ["s0", "bias"], ["s1"], {}), ("Add", ["s1", "mask"], ["s2"], {}), *tail("s2")]
    assert lowered_ops(model(nodes, inputs, ["y"]), inputs) == {"Add": 1, "Attention": 1}


def test_mask_scaled_with_the_scores_stays():
    inputs = {**HEADS, **MASK}
    nodes = [*QK, ("Add", ["s0", "mask"], ["s1"], {}), ("Mul", ["s1", "scale"], ["s2"], {}), *tail("s2")]
    assert lowered_ops(model(nodes, inputs, ["y"], SCALE), inputs)["Attention"] == 0


@pytest.mark.parametrize("fill", [-1e9, -np.inf, 0.25])
@pytest.mark.parametrize("inverted", [False, True])
def test_boolean_mask(fill, inverted):
    seen = np.arange(S + 2) <= np.arange(S)[:, None] + 1
    inputs = {**HEADS, "seen": seen}
    order = ["seen", "fill", "s0"] if inverted else ["seen", "s0", "fill"]
    inputs["seen"] = ~seen if inverted else seen
    loaded = model([*QK, ("Where", order, ["s1"], {}), *tail("s1")], inputs, ["y"], {"fill": one(fill)})
    assert lowered_ops(loaded, inputs) == ({"Not": 1, "Attention": 1} if inverted else {"Attention": 1})


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("fill", [-np.inf, np.finfo(np.float32).min, 3.0])
@pytest.mark.parametrize("order", [["s0", "mask"], ["mask", "s0"]])
def test_mask_made_from_a_boolean_one(order, fill, inverted):
    inputs = {**HEADS, "test": rng(B, 1, S, S + 2) < 0.5}
    inputs["test"][..., 1] = not inverted  # the others see one key at least
    inputs["test"][0, 0, 2] = inverted or np.isinf(fill)  # a row that sees nothing
    sides = ["fill", "zero"] if inverted else ["zero", "fill"]
    nodes = [("Where", ["test", *sides], ["mask"], {}), *QK, ("Add", order, ["s1"], {}), *tail("s1")]
    ops = lowered_ops(model(nodes, inputs, ["y"], {"zero": one(0), "fill": one(fill)}), inputs)
    assert ops == ({"Attention": 1, "Not": 1} if inverted else {"Attention": 1})


def test_mask_made_from_other_numbers_stays():
    inputs = {**HEADS, "test": rng(B, 1, S, S + 2) < 0.5}
    nodes = [("Where", ["test", "a", "b"], ["mask"], {}), *QK, ("Add", ["s0", "mask"], ["s1"], {}), *tail("s1")]
    constants = {"a": one(1), "b": one(-1)}
    assert lowered_ops(model(nodes, inputs, ["y"], constants), inputs) == {"Where": 1, "Attention": 1}


def test_negated_mask_is_taken_as_it_is():
    inputs = {**HEADS, "seen": np.arange(S + 2) <= np.arange(S)[:, None]}
    nodes = [("Not", ["seen"], ["hidden"], {}), *QK, ("Where", ["hidden", "fill", "s0"], ["s1"], {}), *tail("s1")]
    assert lowered_ops(model(nodes, inputs, ["y"], {"fill": one(-np.inf)}), inputs) == {"Attention": 1}


@pytest.mark.parametrize("guarded", [False, True])
def test_rows_that_see_nothing(guarded):
    mask = np.zeros((S, S + 2), np.float32)
    mask[1] = -np.inf
    inputs = {**HEADS, "mask": mask}
    nodes = [*QK, ("Add", ["s0", "mask"], ["s1"], {}), ("Softmax", ["s1"], ["p0"], {"axis": -1})]
    if guarded:
        nodes += [("IsNaN", ["p0"], ["nan"], {}), ("Where", ["nan", "zero", "p0"], ["p"], {})]
    nodes.append(("MatMul", ["p" if guarded else "p0", "v"], ["y"], {}))
    loaded = model(nodes, inputs, ["y"], {"zero": one(0)})
    assert lowered_ops(loaded, inputs) == {"Attention": 1}
    y = loaded.run(inputs)["y"]
    assert (y[:, :, 1] == 0).all() if guarded else np.isnan(y[:, :, 1]).all()
    assert np.isfinite(np.delete(y, 1, axis=2)).all()


def test_softmax_before_opset_13():
    assert lowered_ops(model([*QK, *tail("s0", 3)], HEADS, ["y"], opset=12), HEADS) == {"Attention": 1}


@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_along_another_axis_stays(axis):
    assert lowered_ops(model([*QK, *tail("s0", axis)], HEADS, ["y"]), HEADS)["Attention"] == 0


@pytest.mark.parametrize("read", ["s0", "p"])
def test_scores_that_are_outputs_stay(read):
    loaded = model([*QK, *tail("s0")], HEADS, ["y", read])
    assert lowered_ops(loaded, HEADS)["Attention"] == 0


def test_transposed_keys_that_are_an_output():
    ops = lowered_ops(model([*QK, *tail("s0")], HEADS, ["y", "kt"]), HEADS)
    assert ops == {"Transpose": 1, "Attention": 1}


def test_three_dimensions():
    inputs = {n: x[0] for n, x in HEADS.items()}
    nodes = [("Transpose", ["k"], ["kt"], {"perm": [0, 2, 1]}), ("MatMul", ["q", "kt"], ["s0"], {}), *tail("s0")]
    assert lowered_ops(model(nodes, inputs, ["y"]), inputs) == {"Attention": 1}


def test_two_dimensions_stay():
    inputs = {n: x[0, 0] for n, x in HEADS.items()}
    nodes = [("Transpose", ["k"], ["kt"], {"perm": [1, 0]}), ("MatMul", ["q", "kt"], ["s0"], {}), *tail("s0")]
    assert lowered_ops(model(nodes, inputs, ["y"]), inputs)["Attention"] == 0


ROWS = {"x": rng(B, S, H * D), "z": rng(B, S, H * D, seed=5)}
SHAPES = {"split": ints(0, 0, H, D), "merge": ints(0, 0, -1)}


def split(name, of, perm=(0, 2, 1, 3)):
    return [
        ("Reshape", [of, "split"], [f"{name}_r"], {}),
        ("Transpose", [f"{name}_r"], [name], {"perm": list(perm)}),
    ]


def merged(scores="s0"):
    return [
        *tail(scores),
        ("Transpose", ["y"], ["yt"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["yt", "merge"], ["out"], {}),
    ]


def test_heads_are_read_where_they_lie():
    nodes = [
        *split("q", "x"), *split("kt", "z", (0, 2, 3, 1)), *split("v", "z"),
        ("MatMul", ["q", "kt"], ["s0"], {}), *merged(),
    ]  # fmt: skip
    loaded = model(nodes, ROWS, ["out"], SHAPES)
    assert lowered_ops(loaded, ROWS) == {"Reshape": 3, "Attention": 1}
    (attributes,) = attributes_of(loaded, "Attention")
    assert {attributes[f"{x}_layout"] for x in ("q", "k", "v", "out")} == {"BSHD"}


def test_a_scale_before_the_split_joins():
    nodes = [
        ("Mul", ["x", "scale"], ["x1"], {}), *split("q", "x1"), *split("kt", "z", (0, 2, 3, 1)), *split("v", "z"),
        ("MatMul", ["q", "kt"], ["s0"], {}), *merged(),
    ]  # fmt: skip
    assert lowered_ops(model(nodes, ROWS, ["out"], {**SHAPES, **SCALE}), ROWS) == {"Reshape": 3, "Attention": 1}


def test_a_scale_that_others_read_stays():
    nodes = [
        ("Mul", ["x", "scale"], ["x1"], {}), *split("q", "x1"), *split("kt", "z", (0, 2, 3, 1)), *split("v", "x1"),
        ("MatMul", ["q", "kt"], ["s0"], {}), *merged(),
    ]  # fmt: skip
    ops = lowered_ops(model(nodes, ROWS, ["out"], {**SHAPES, **SCALE}), ROWS)
    assert ops["Mul"] == 1
    assert ops["Attention"] == 1


def test_parts_of_one_projection():
    inputs = {"x": rng(B, S, 3 * H * D)}
    nodes = [
        ("Reshape", ["x", "split"], ["r"], {}), ("Transpose", ["r"], ["t"], {"perm": [2, 0, 3, 1, 4]}),
        ("Split", ["t", "ones"], ["q1", "k1", "v1"], {"axis": 0}),
        *(("Squeeze", [f"{n}1", "zero"], [n], {}) for n in "qkv"), *QK, *merged(),
    ]  # fmt: skip
    constants = {"split": ints(0, 0, 3, H, D), "merge": ints(0, 0, -1), "ones": ints(1, 1, 1), "zero": ints(0)}
    assert lowered_ops(model(nodes, inputs, ["out"], constants), inputs) == {"Reshape": 2, "Attention": 1}


def test_parts_taken_by_gather():
    inputs = {"x": rng(B, S, 3 * H * D)}
    nodes = [
        ("Reshape", ["x", "split"], ["r"], {}), ("Transpose", ["r"], ["t"], {"perm": [2, 0, 3, 1, 4]}),
        *(("Gather", ["t", f"i{i}"], [n], {"axis": 0}) for i, n in enumerate("qkv")), *QK, *merged(),
    ]  # fmt: skip
    constants = {"split": ints(0, 0, 3, H, D), "merge": ints(0, 0, -1), **{f"i{i}": np.array(i) for i in range(3)}}
    assert lowered_ops(model(nodes, inputs, ["out"], constants), inputs) == {"Reshape": 2, "Attention": 1}


def test_keys_transposed_by_reshapes():
    constants = {"three": ints(-1, S, D), "four": ints(B, H, D, S), "split": ints(B, S, H, D), "merge": ints(0, 0, -1)}
    nodes = [
        *split("q", "x"), *split("k", "z"), *split("v", "z"), ("Reshape", ["k", "three"], ["k3"], {}),
        ("Transpose", ["k3"], ["kt3"], {"perm": [0, 2, 1]}), ("Reshape", ["kt3", "four"], ["kt"], {}),
        ("MatMul", ["q", "kt"], ["s0"], {}), *merged(),
    ]  # fmt: skip
    assert lowered_ops(model(nodes, ROWS, ["out"], constants), ROWS) == {"Reshape": 3, "Attention": 1}


def test_reshapes_that_are_no_transpose_stay():
    constants = {"three": ints(-1, D, S), "four": ints(B, H, D, S), "split": ints(B, S, H, D), "merge": ints(0, 0, -1)}
    nodes = [
        *split("q", "x"), *split("k", "z"), *split("v", "z"), ("Reshape", ["k", "three"], ["k3"], {}),
        ("Transpose", ["k3"], ["kt3"], {"perm": [0, 2, 1]}), ("Reshape", ["kt3", "four"], ["kt"], {}),
        ("MatMul", ["q", "kt"], ["s0"], {}), *merged(),
    ]  # fmt: skip
    ops = lowered_ops(model(nodes, ROWS, ["out"], constants), ROWS)
    assert ops["Transpose"] == 2
    assert ops["Attention"] == 1


@pytest.mark.parametrize("expanded", ["heads", "keys"])
def test_repeated_key_heads(expanded):
    inputs = {"q": rng(B, 4, S, D), "k": rng(B, 2, S, D, seed=1), "v": rng(B, 2, S, D, seed=2)}
    wide, final = ints(B, 2, 2, S, D), ints(B, 4, S, D)
    if expanded == "keys":  # one key of each head stands for all: that is no repetition of heads
        inputs["k"], inputs["v"] = inputs["k"][:, :, :1], inputs["v"][:, :, :1]
    shapes = {"k0": inputs["k"].shape, "v0": inputs["v"].shape}
    nodes = []
    for n in "kv":
        nodes += [
            ("Reshape", [n, f"{n}_shape"], [f"{n}r"], {}), ("Unsqueeze", [f"{n}r", "two"], [f"{n}u"], {}),
            ("Expand", [f"{n}u", "wide"], [f"{n}e"], {}), ("Reshape", [f"{n}e", "final"], [f"{n}w"], {}),
        ]  # fmt: skip
    nodes += [
        ("Transpose", ["kw"], ["kt"], {"perm": [0, 1, 3, 2]}), ("MatMul", ["q", "kt"], ["s0"], {}),
        ("Softmax", ["s0"], ["p"], {"axis": -1}), ("MatMul", ["p", "vw"], ["y"], {}),
    ]  # fmt: skip
    constants = {"two": ints(2), "wide": wide, "final": final}
    constants |= {"k_shape": ints(*shapes["k0"]), "v_shape": ints(*shapes["v0"])}
    ops = lowered_ops(model(nodes, inputs, ["y"], constants), inputs)
    assert ops["Attention"] == 1
    assert ops["Expand"] == (0 if expanded == "heads" else 2)


def repeated_at_a_run(how, name):
    return [
        ("Unsqueeze", [name, "two"], [f"{name}u"], {}), (how, [f"{name}u", f"{name}_wide"], [f"{name}e"], {}),
        ("Reshape", [f"{name}e", f"{name}_final"], [f"{name}w"], {}),
    ]  # fmt: skip


AFTER_REPEATS = [
    ("Transpose", ["kw"], ["kt"], {"perm": [0, 1, 3, 2]}), ("MatMul", ["q", "kt"], ["s0"], {}),
    ("Softmax", ["s0"], ["p"], {"axis": -1}), ("MatMul", ["p", "vw"], ["y"], {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "keys", "wide", "final"),
    [
        (B, S, (B, 2, 3, S, D), (B, 6, S, D)), (B, S, (1, 1, 3, 1, 1), (B, 6, -1, D)), (B, S, (1, 2, 3, S, 1), (-1, 6, S, D)),
        (1, S, (B, 2, 3, S, D), (B, 6, S, D)), (B, 1, (B, 2, 3, S, D), (B, 6, S, D)), (B, S, (B, 2, 3, S, D), (0, 6, S, D)),
    ],
)  # fmt: skip
def test_key_heads_repeated_to_shapes_of_a_run(batch, keys, wide, final):
    """Whatever the shapes say, the result is that of Expand and Reshape: of batches and keys too, which are no heads."""
    inputs = {"q": rng(B, 6, S, D), "k": rng(batch, 2, keys, D, seed=1), "v": rng(batch, 2, keys, D, seed=2)}
    inputs |= {f"{n}_{part}": ints(*shape) for n in "kv" for part, shape in (("wide", wide), ("final", final))}
    nodes = [*repeated_at_a_run("Expand", "k"), *repeated_at_a_run("Expand", "v"), *AFTER_REPEATS]
    loaded = model(nodes, inputs, ["y"], {"two": ints(2)})
    found = loaded.run(inputs)["y"]
    is_native = batch == B and keys == S and final[0] != 0
    ran = [(call.node.op_type, call.source) for call in loaded._plan(("y",)).as_run()]
    assert ran == [("Attention", "native" if is_native else "numpy")]
    k, v = (np.broadcast_to(inputs[n][:, :, None], (B, 2, 3, S, D)).reshape(B, 6, S, D) for n in "kv")
    scores = inputs["q"] @ k.swapaxes(2, 3)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(found, e / e.sum(axis=-1, keepdims=True) @ v, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("wide", "final"), [((2, 2, 3, S, D), (B, 4, S, D)), ((1, 1, 1 << 62, 1, 1), (B, 6, S, D)), ((3, -7), (6,))])
def test_shapes_of_a_run_that_do_not_fit(wide, final):
    inputs = {"q": rng(B, 6, S, D), "k": rng(B, 2, S, D, seed=1), "v": rng(B, 2, S, D, seed=2)}
    inputs |= {f"{n}_{part}": ints(*shape) for n in "kv" for part, shape in (("wide", wide), ("final", final))}
    nodes = [*repeated_at_a_run("Expand", "k"), *repeated_at_a_run("Expand", "v"), *AFTER_REPEATS]
    with pytest.raises((RunError, MemoryError), match="Attention"):
        model(nodes, inputs, ["y"], {"two": ints(2)}).run(inputs)


@pytest.mark.parametrize("times", [(1, 1, 3, 1, 1), (1, 3, 1, 1, 1)])
def test_key_heads_repeated_by_tile(times):
    inputs = {"q": rng(B, 6, S, D), "k": rng(B, 2, S, D, seed=1), "v": rng(B, 2, S, D, seed=2)}
    inputs |= {f"{n}_final": ints(B, 6, -1, D) for n in "kv"}
    nodes = [*repeated_at_a_run("Tile", "k"), *repeated_at_a_run("Tile", "v"), *AFTER_REPEATS]
    constants = {"two": ints(2), "k_wide": ints(*times), "v_wide": ints(*times)}
    found = lowered_ops(model(nodes, inputs, ["y"], constants), inputs)
    assert found["Attention"] == 1
    assert found["Tile"] == (0 if times[2] == 3 else 2)


def test_cached_keys_are_not_transposed():
    inputs = {**HEADS, "past": rng(B, H, 3, D), "past_v": rng(B, H, 3, D, seed=1)}
    nodes = [
        ("Concat", ["past", "k"], ["k_all"], {"axis": 2}), ("Concat", ["past_v", "v"], ["v_all"], {"axis": 2}),
        ("Transpose", ["k_all"], ["kt"], {"perm": [0, 1, 3, 2]}), ("MatMul", ["q", "kt"], ["s0"], {}),
        ("Softmax", ["s0"], ["p"], {"axis": -1}), ("MatMul", ["p", "v_all"], ["y"], {}),
    ]  # fmt: skip
    assert lowered_ops(model(nodes, inputs, ["y", "k_all", "v_all"]), inputs) == {"AppendCache": 2, "Attention": 1}
    assert lowered_ops(model(nodes, inputs, ["y"]), inputs) == {"Concat": 2, "Attention": 1}


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 5, 7), (2, 0, 7), (2, 5, 0)])
def test_empty(batch, queries, keys):
    inputs = {"q": rng(batch, H, queries, D), "k": rng(batch, H, keys, D), "v": rng(batch, H, keys, D)}
    loaded = model([*QK, *tail("s0")], HEADS, ["y"])
    assert lowered_ops(loaded, inputs) == {"Attention": 1}


def test_mask_that_widens_the_scores():
    """The kernel declines, the definition broadcasts."""
    inputs = {n: rng(1, H, S, D, seed=i) for i, n in enumerate("qkv")}
    inputs["mask"] = rng(B, 1, S, S, seed=3)
    loaded = model([*QK, ("Add", ["s0", "mask"], ["s1"], {}), *tail("s1")], inputs, ["y"])
    q, k, v, mask = inputs.values()
    scores = q @ k.swapaxes(2, 3) + mask
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(loaded.run(inputs)["y"], e / e.sum(axis=-1, keepdims=True) @ v, rtol=1e-5, atol=1e-6)
